"""Stage select_answer: of the answers a source offers, the one that is kept, or none.

Each candidate meets the rules in this order and goes by the first that it fails: other_model,
not_finished, length, think_structure, language, wrong_answer or unverified. Those that pass
compete: known to be right before unknown, then by length.
"""

import re
from typing import Any

from megatron_ring.config.curation.collect import SelectAnswerConfig
from megatron_ring.curation.collect import turns
from megatron_ring.curation.collect.answers import Verdict, compare, final_answer
from megatron_ring.curation.collect.cells import other_kind
from megatron_ring.curation.collect.equality import MathVerify
from megatron_ring.curation.record import Record, Rejection, prompt_of

CHINESE = re.compile(r"[\u3400-\u9fff]")
LETTER = re.compile(r"[^\W\d_]")
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]*\$|\\[a-zA-Z]+", re.DOTALL)
STRUCTURE = re.compile(r"\s*<think>\s*\S.*?</think>\s*\S.*", re.DOTALL)
TAG = re.compile(r"</?think>")


class SelectAnswer:
    """Keeps the best of extra.candidates, or judges the answer that is there already."""

    def __init__(self, options: SelectAnswerConfig) -> None:
        self.options = options
        verifier = MathVerify(options.timeout) if options.equality == "math_verify" else None
        self._compare = compare if verifier is None else verifier.compare

    def apply(self, record: Record) -> Record | Rejection:
        """The record with its best answer; without any (or rejected) when none passes.

        What became of the others stands in extra.selection, one line each. A record that offers no
        answer, or several turns or calls, or is of another kind, passes as it is.
        """
        offered, bare = _offered(record)
        if not offered or other_kind(record, self.options.kinds):
            return record
        passed, fates = [], []
        for one in offered:
            verdict = self._verdict(one, record)
            fault = self._fault(one, record, verdict)
            fates.append(f"{one['number']}: {fault or verdict}")
            if fault is None:
                passed.append((verdict != "right", self._rank(one), one["number"], one))
        extra = {k: v for k, v in record.get("extra", {}).items() if k != "candidates"}
        extra["selection"] = fates
        if not passed:
            if self.options.when_none == "prompt":
                return {**record, "messages": bare, "extra": extra}
            reasons = {fate.split(": ")[1].split(" ")[0] for fate in fates}
            reason = reasons.pop() if len(reasons) == 1 else "no_answer_passes"
            return Rejection(reason, "; ".join(fates))
        best = min(passed, key=lambda found: found[:3])[3]
        card = dict(record.get("card", {}))
        card |= {"model": best["model"]} if "model" in best else {}
        card |= {"finish_reason": best["finish"]} if "finish" in best else {}
        turn = turns.answer_turn(_retagged(best["text"]), None)
        chosen: Record = {**record, "messages": [*bare, turn], "extra": extra}
        return {**chosen, "card": card} if card else chosen

    def _rank(self, one: dict[str, Any]) -> int:
        sign = {"shortest": 1, "longest": -1, "first": 0}[self.options.choose]
        return sign * len(one["text"])

    def _verdict(self, one: dict[str, Any], record: Record) -> Verdict:
        """What verifiers say, else what comparison with the gold answer says."""
        if "score" in one:
            return "right" if one["score"] >= self.options.min_score else "wrong"
        if "correct" in one:
            return "right" if one["correct"] else "wrong"
        if "answer" not in record or self.options.correct == "ignore":
            return "unknown"
        given = final_answer(one["text"])
        return "unknown" if given is None else self._compare(given, record["answer"])

    def _fault(self, one: dict[str, Any], record: Record, verdict: Verdict) -> str | None:
        """The first rule that a candidate fails: its name, and what was seen."""
        options, text = self.options, one["text"]
        model = one.get("model", record.get("card", {}).get("model", "unknown"))
        names = {name.rpartition("/")[2].casefold() for name in options.models}
        if names and str(model).rpartition("/")[2].casefold() not in names:
            return f"other_model {model}"
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
        return self._answer_fault(one, record, verdict)

    def _answer_fault(self, one: dict[str, Any], record: Record, verdict: Verdict) -> str | None:
        if self.options.correct == "ignore" or verdict == "right":
            return None
        if verdict == "wrong":
            if "score" in one:
                return f"wrong_answer score {one['score']} below {self.options.min_score}"
            if "correct" in one:
                return "wrong_answer its verifiers say so"
            return f"wrong_answer {final_answer(one['text'])!r}, not {record['answer']!r}"
        return f"unverified {verdict}" if self.options.correct == "require" else None

    def _structure(self, text: str) -> str | None:
        """What is wrong with the think tags of an answer; None when nothing is."""
        if self.options.think == "ignore":
            return None
        text = _retagged(text)
        tags = TAG.findall(text)
        if not tags and self.options.think == "allow":
            return None
        if tags == ["<think>", "</think>"] and STRUCTURE.fullmatch(text):
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


def chinese_share(text: str) -> float:
    """Chinese characters among the letters of a text that are in no formula, 0 to 1."""
    text = FORMULA.sub(" ", text)
    letters = len(LETTER.findall(text))
    return len(CHINESE.findall(text)) / letters if letters else 0.0


def _retagged(text: str) -> str:
    """Bespoke-Stratos' tags as ours; other texts as they are."""
    found = turns.STRATOS.fullmatch(text)
    return text if found is None else turns.join(found[2].strip(), found[1])


def _offered(record: Record) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The answers to judge, and the turns before them."""
    messages = record["messages"]
    if "candidates" in record.get("extra", {}):
        return record["extra"]["candidates"], messages
    answers = [turn for turn in messages if turn["role"] == "assistant"]
    if len(answers) != 1 or answers[0] is not messages[-1] or "tool_calls" in answers[0]:
        return [], messages
    text = turns.join(answers[0]["content"], answers[0].get("reasoning_content"))
    return [{"number": 0, "text": text}], messages[:-1]
