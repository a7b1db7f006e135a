"""Stage score_prompt: whether a prompt that has no answer is worth a teacher's time.

Rules first, each a reason of its own: too_short, too_long, incomplete, no_question. Then a score of
features from 0 to 1 that a person can check by eye; it stays with the record in extra.prompt_score.
"""

import re
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import ScorePromptConfig
from megatron_ring.curation.collect.cells import other_kind, pick
from megatron_ring.curation.record import Record, Rejection, prompt_of, response_of

FEATURES = ("length", "question", "constraints", "difficulty", "wanted")
# A question mark, a blank to fill (brackets with nothing but space in them too), or options.
ASKS = re.compile(
    r"[?？]|_{2,}|\\underline|[（(](?:\s|\$|\\q?quad)*[)）]|^\s*[（(]?B[)）.．、]", re.MULTILINE
)
TASK = re.compile(
    r"\b(?:find|compute|calculate|evaluate|determine|prove|show|solve|simplify|express|factor|"
    r"expand|write|implement|design|explain|describe|list|give|state|convert|draw|graph|estimate|"
    r"compare|classify|derive|verify|choose|name|create|generate|return|print|rationalize|rewrite|"
    r"specify|distribute|reduce|round|order|multiply|divide|add|subtract|perform|complete|sketch|"
    r"identify|fill|translate|answer|predict|apply|integrate|differentiate|enter|combine|obtain|use|sum|what|how|which|who|"
    r"when|where|why|how many)\b|求|证明|计算|判断|写出|解释|化简|确定|设计|选择|下列|则|编写|说明|"
    r"是否|多少|什么|哪|为何|如何|分析|回答",
    re.IGNORECASE,
)
CONSTRAINT = re.compile(
    r"\d+|\b(?:if|given|let|suppose|such that|where|must|at least|at most|exactly|each|every|only|"
    r"between|less than|greater than|integer|positive|without)\b|若|设|已知|满足|其中|不超过|至少",
    re.IGNORECASE,
)
# Ends that leave a sentence open: a comma, a word that wants another.
OPEN_END = re.compile(
    r"(?:[,，、;；(（\[{]|\b(?:and|or|the|of|to|a|an|is|are|with|for|in|by|that|than|if))\s*$",
    re.IGNORECASE,
)


class ScorePrompt:
    """Scores prompts without an answer; records that have one pass as they are."""

    def __init__(self, options: ScorePromptConfig) -> None:
        unknown = set(options.weights) - set(FEATURES)
        if unknown:
            raise ConfigError(
                f"weights: unknown feature {sorted(unknown)[0]!r}; known: {', '.join(FEATURES)}"
            )
        self.options = options

    def apply(self, record: Record) -> Record | Rejection:
        """The record with its score, or why its prompt is not worth an answer."""
        if response_of(record) is not None or other_kind(record, self.options.kinds):
            return record
        prompt = prompt_of(record).strip()
        options = self.options
        if len(prompt) < options.min_chars:
            return Rejection(
                "too_short", f"{len(prompt)} characters, fewer than {options.min_chars}"
            )
        if len(prompt) > options.max_chars:
            return Rejection("too_long", f"{len(prompt)} characters, more than {options.max_chars}")
        if (open_end := incomplete(prompt)) is not None:
            return Rejection("incomplete", open_end)
        if not asks(prompt):
            return Rejection("no_question", f"nothing is asked: …{prompt[-60:]!r}")
        features = self.features(record)
        known = {name: options.weights.get(name, 0.0) for name in features}
        total = sum(known.values())
        score = sum(features[name] * known[name] for name in features) / total if total else 0.0
        told = {name: round(value, 3) for name, value in features.items()}
        if score < options.min_score:
            shown = ", ".join(f"{name} {value}" for name, value in told.items())
            return Rejection("low_score", f"{score:.3f}, less than {options.min_score}: {shown}")
        extra = {**record.get("extra", {}), "prompt_score": {"score": round(score, 3), **told}}
        return {**record, "extra": extra}

    def features(self, record: Record) -> dict[str, float]:
        """Name -> 0 to 1; what is not known of a prompt is left out.

        length: 1 from 60 characters on, where 10 % of the problems of GSM8K and MATH are shorter.
        question: 1 with a question mark or a blank, 0.7 with a verb of a task alone.
        constraints: numbers and conditions, 1 from 3 on. difficulty: the set's label.
        wanted: how much its topic is under-supplied.
        """
        prompt = prompt_of(record).strip()
        found = {
            "length": min(1.0, len(prompt) / 60),
            "question": 1.0 if ASKS.search(prompt) else 0.7,
            "constraints": min(1.0, len(CONSTRAINT.findall(prompt)) / 3),
        }
        label = _number(pick(dict(record), self.options.difficulty))
        if label is not None:
            span = self.options.hardest - self.options.easiest
            found["difficulty"] = min(1.0, max(0.0, (label - self.options.easiest) / span))
        path = [record[key] for key in ("domain", "level", "topic") if key in record]
        for depth in range(len(path), 0, -1):
            if (name := "/".join(path[:depth])) in self.options.wanted:
                found["wanted"] = self.options.wanted[name]
                break
        return found


def asks(prompt: str) -> bool:
    """Does a prompt ask a question, leave a blank, or name a task?"""
    return ASKS.search(prompt) is not None or TASK.search(prompt) is not None


def incomplete(prompt: str) -> str | None:
    """What shows that a prompt was cut off; None when nothing does."""
    if prompt.count("$") % 2 and "\\$" not in prompt and not re.search(r"\$\d", prompt):
        return f"a formula is open: {prompt.count('$')} dollar signs"
    if OPEN_END.search(prompt) and not prompt.endswith(("()", "( )")):
        return f"it ends in …{prompt[-20:]!r}"
    if "\\" in prompt:  # \{ is a brace to be seen, and opens nothing
        bare = re.sub(r"\\\\|\\[{}]", "", prompt)
        if bare.count("{") > bare.count("}"):
            return f"{bare.count('{')} {{ and {bare.count('}')} }}"
    if prompt.count("```") % 2:
        return "a block of code is open"
    return None


def _number(value: Any) -> float | None:
    """A label such as 4, "4.5" or "Level 4" as a number; None when it is none."""
    if isinstance(value, bool) or value is None:
        return None
    found = re.search(r"\d+(?:\.\d+)?", str(value))
    return float(found[0]) if found else None
