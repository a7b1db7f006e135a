"""Stage select_answer: of the answers a source offers, the one that is kept, or none.

Each candidate meets the rules in this order and goes by the first that it fails: other_model, then
those of collect/rules.py: not_finished, length, think_structure, language, wrong_answer or
unverified. Those that pass compete: known to be right before unknown, then by length.
"""

from typing import Any

from megatron_ring import think
from megatron_ring.config.curation.collect import SelectAnswerConfig
from megatron_ring.curation.collect.cells import other_kind
from megatron_ring.curation.collect.rules import Judged, Rules, answer_turn, none_passes
from megatron_ring.curation.record import Record, Rejection


class SelectAnswer:
    """Keeps the best of extra.candidates, or judges the answer that is there already."""

    def __init__(self, options: SelectAnswerConfig) -> None:
        self.options = options
        self._rules = Rules(options, min_score=options.min_score)

    def apply(self, record: Record) -> Record | Rejection:
        """The record with its best answer; without any (or rejected) when none passes.

        What became of the others stands in extra.selection, one line each. A record that offers no
        answer, or several turns or calls, or is of another kind, passes as it is.
        """
        offered, bare = _offered(record)
        if not offered or other_kind(record, self.options.kinds):
            return record
        judged = [self._judge(one, record) for one in offered]
        fates = [one.fate for one in judged]
        extra = {k: v for k, v in record.get("extra", {}).items() if k != "candidates"}
        extra["selection"] = fates
        best = self._rules.best(judged)
        if best is None:
            if self.options.when_none == "prompt":
                return {**record, "messages": bare, "extra": extra}
            return none_passes(fates)
        card = dict(record.get("card", {}))
        if "card" in best.one:  # a model was asked for this answer: the record's is of the prompt
            extra |= {"prompt_card": card} if card else {}
            card = dict(best.one["card"])
        card |= {"model": best.one["model"]} if "model" in best.one else {}
        card |= {"finish_reason": best.one["finish"]} if "finish" in best.one else {}
        messages = [*bare, answer_turn(best.one["text"])]
        chosen: Record = {**record, "messages": messages, "extra": extra}
        return {**chosen, "card": card} if card else chosen

    def _judge(self, one: dict[str, Any], record: Record) -> Judged:
        model = one.get("model", record.get("card", {}).get("model", "unknown"))
        names = {name.rpartition("/")[2].casefold() for name in self.options.models}
        if names and str(model).rpartition("/")[2].casefold() not in names:
            return Judged(one, "unknown", f"other_model {model}")
        return self._rules.judge(one, record)


def _offered(record: Record) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The answers to judge, and the turns before them."""
    messages = record["messages"]
    if "candidates" in record.get("extra", {}):
        return record["extra"]["candidates"], messages
    answers = [turn for turn in messages if turn["role"] == "assistant"]
    if len(answers) != 1 or answers[0] is not messages[-1] or "tool_calls" in answers[0]:
        return [], messages
    text = think.join(answers[0].get("reasoning_content"), answers[0]["content"])
    return [{"number": 0, "text": text}], messages[:-1]
