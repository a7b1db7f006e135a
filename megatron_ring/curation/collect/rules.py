"""What an answer must be to be kept, and which of several is: for offered and for drawn ones.

A candidate is plain JSON: number and text; finish, complete, model where they are known; score or
correct where a verifier has spoken, then perhaps told, what it said against it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from megatron_ring import think
from megatron_ring.config.curation.collect import AnswerRulesConfig
from megatron_ring.curation.collect import turns
from megatron_ring.curation.collect.answers import Verdict, compare, final_answer, judge
from megatron_ring.curation.collect.equality import MathVerify
from megatron_ring.curation.record import Record, Rejection, prompt_of

Compare = Callable[[str, str], Verdict]  # given, gold
CHINESE = re.compile(r"[\u3400-\u9fff]")
LETTER = re.compile(r"[^\W\d_]")
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]*\$|\\[a-zA-Z]+", re.DOTALL)


@dataclass(frozen=True)
class Judged:
    """A candidate, and what the rules say of it."""

    one: dict[str, Any]
    verdict: Verdict  # unknown as well where a fault was seen before
    fault: str | None  # the first rule that it fails: its name, and what was seen

    @property
    def fate(self) -> str:
        """Its line in extra.selection."""
        return f"{self.one['number']}: {self.fault or self.verdict}"


class Rules:
    """Judges candidates by form, then by the answer; chooses among those that pass."""

    def __init__(
        self, options: AnswerRulesConfig, compare: Compare | None = None, min_score: float = 1.0
    ) -> None:
        """`compare` takes the place of what options.equality names; `min_score` is the score from
        which a candidate counts as right. ConfigError when math-verify is not there."""
        self.options, self.min_score = options, min_score
        self._compare = compare or comparison(options)

    def judge(self, one: dict[str, Any], record: Record) -> Judged:
        """Its first fault in this order: not_finished, length, think_structure, language,
        wrong_answer or unverified."""
        verdict: Verdict = "unknown"
        fault = self.fault_of_form(one, record)
        if fault is None:  # to compare takes longer than all the rest
            gold = None if self.options.correct == "ignore" else record.get("answer")
            verdict = judge(one, gold, self._compare, self.min_score)
            fault = self._fault_of_answer(one, record, verdict)
        return Judged(one, verdict, fault)

    def fault_of_form(self, one: dict[str, Any], record: Record) -> str | None:
        """What is wrong with it whatever it answers."""
        options, text = self.options, one["text"]
        if "finish" in one and one["finish"] not in options.finish:
            return f"not_finished finish={one['finish']}"
        if one.get("complete") is False:
            return "not_finished the source says that the thought is open"
        if not options.min_chars <= len(text) <= options.max_chars:
            return f"length {len(text)} of {options.min_chars} to {options.max_chars} characters"
        if (tags := self._structure(text)) is not None:
            return f"think_structure {tags}"
        if options.language and (seen := self._foreign(text, record)) is not None:
            return f"language {seen}"
        return None

    def best(self, judged: Iterable[Judged]) -> Judged | None:
        """Of those that pass: known to be right before unknown, then by length, then the first."""
        passed = [one for one in judged if one.fault is None]
        sign = {"shortest": 1, "longest": -1, "first": 0}[self.options.choose]
        return min(
            passed,
            key=lambda found: (
                found.verdict != "right",
                sign * len(found.one["text"]),
                found.one["number"],
            ),
            default=None,
        )

    def _fault_of_answer(self, one: dict[str, Any], record: Record, verdict: Verdict) -> str | None:
        if self.options.correct == "ignore" or verdict == "right":
            return None
        if verdict == "wrong":
            if "score" in one:
                return f"wrong_answer score {one['score']} below {self.min_score}"
            if "correct" in one:
                return f"wrong_answer {one.get('told', 'its verifiers say so')}"
            return f"wrong_answer {final_answer(one['text'])!r}, not {record['answer']!r}"
        asked = self.options.correct == "where_known" and "answer" in record
        return f"unverified {verdict}" if asked or self.options.correct == "require" else None

    def _structure(self, text: str) -> str | None:
        """What is wrong with the think tags of an answer; None when nothing is."""
        if self.options.think == "ignore":
            return None
        text = retagged(text)
        tags = think.TAG.findall(text)
        if not tags and self.options.think == "allow":
            return None
        if think.is_plain(text):
            return None
        return " ".join(tags) or "no tags"

    def _foreign(self, text: str, record: Record) -> str | None:
        """How the language of an answer differs from its prompt's; None when it does not.

        A prompt of hardly more than a formula has no language.
        """
        prompt = prompt_of(record)
        if len(LETTER.findall(FORMULA.sub(" ", prompt))) < 10 and not CHINESE.search(prompt):
            return None
        asked, answered = chinese_share(prompt), chinese_share(text)
        limit = self.options.max_foreign
        if asked == 0 and answered > limit:
            return f"{answered:.1%} Chinese letters, more than {limit:.1%}; none in the prompt"
        # Half of a prompt: one that is about Chinese, or a formula, is left alone.
        if asked > 0.5 and answered <= limit:
            return f"{answered:.1%} Chinese letters; {asked:.1%} in the prompt"
        return None


def comparison(options: AnswerRulesConfig) -> Compare:
    """How options.equality compares; ConfigError when math-verify is not there."""
    return MathVerify(options.timeout).compare if options.equality == "math_verify" else compare


def none_passes(fates: list[str]) -> Rejection:
    """Why a record goes: the rule that all its candidates fail, or no_answer_passes."""
    reasons = {fate.split(": ")[1].split(" ")[0] for fate in fates}
    reason = reasons.pop() if len(reasons) == 1 else "no_answer_passes"
    return Rejection(reason, "; ".join(fates))


def answer_turn(text: str) -> dict[str, Any]:
    """The assistant's turn of a candidate, its thought apart."""
    return turns.answer_turn(retagged(text), None)


def chinese_share(text: str) -> float:
    """Chinese characters among the letters of a text that are in no formula, 0 to 1."""
    text = FORMULA.sub(" ", text)
    letters = len(LETTER.findall(text))
    return len(CHINESE.findall(text)) / letters if letters else 0.0


def retagged(text: str) -> str:
    """Bespoke-Stratos' tags as ours; other texts as they are."""
    found = turns.STRATOS.fullmatch(text)
    return text if found is None else think.join(found[1], found[2].strip())
