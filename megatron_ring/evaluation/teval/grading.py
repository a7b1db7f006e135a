"""What an answer is worth, by the kind of its question.

Rules of open-compass/T-Eval, commit 58f2240: teval/evaluators/instruct_evaluator.py,
planning_evaluator.py, reason_retrieve_understand_evaluator.py, review_evaluator.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from megatron_ring.evaluation.teval import planning, reading
from megatron_ring.evaluation.teval.planning import FINISH, Cosines, Step

FUNCTION = re.compile(rf"\w+\.\w+|{FINISH}")  # names of functions in a text


@dataclass(frozen=True)
class Graded:
    """What a rule says."""

    parts: dict[str, float] = field(default_factory=dict)  # by ability first, then details
    score: float = 0.0
    readable: bool = True
    detail: str = ""


class Grader:
    """T-Eval's rules. Without `cosines` an answer's thought is not looked at."""

    def __init__(self, cosines: Cosines | None) -> None:
        self.cosines = cosines

    def graded(self, kind: str, gold: Mapping[str, Any], answer: str) -> Graded:
        """Of an answer to a question of this kind."""
        ability, _, form = kind.partition("_")
        if ability == "instruct":
            return instructed(gold["template"], gold["call"], answer, form == "json")
        if ability == "plan":
            return self._planned(gold, answer, form == "json")
        if ability == "review":
            chosen = reading.outcome(answer)
            right = float(chosen == gold["outcome"])
            told = f"{chosen} for {gold['outcome']}"
            return Graded({"review": right}, right, chosen is not None, told)
        call = gold["call"]
        if call is None:
            parts = [ability] if form == "str" else ["reason", "retrieve", "understand"]
            parts = parts if self.cosines else [part for part in parts if part != "reason"]
            return Graded(dict.fromkeys(parts, 0.0), detail="its ground truth cannot be read")
        if form != "str":
            return self._in_json(call, answer)
        if ability == "reason":
            found = self._like(answer, call["thought"])
        elif ability == "retrieve":
            found = retrieved(answer, call["name"])
        else:
            found = float(answer.strip("'").strip('"') == call["args"])
        return Graded({ability: found}, found, bool(answer))

    def _planned(self, gold: Mapping[str, Any], answer: str, in_json: bool) -> Graded:
        """F1 of the steps."""
        assert self.cosines is not None
        right = [Step(**step) for step in gold["steps"]]
        plan = (
            planning.steps_in_json(answer)
            if in_json
            else planning.steps_in_text(answer, gold["functions"])
        )
        match = planning.compare(plan, right, self.cosines)
        parts = {
            "plan": match.f1,
            "plan_precision": match.precision,
            "plan_recall": match.recall,
        }
        return Graded(parts, match.f1, bool(plan), f"{len(plan)} steps for {len(right)}")

    def _in_json(self, call: Mapping[str, Any], answer: str) -> Graded:
        """Thought, name and arguments of one object, alike; without cosines, of the last two."""
        try:
            found = reading.value(answer, "{", "}")
        except ValueError:
            found = None
        is_readable = isinstance(found, dict) and bool(found)
        said = found if isinstance(found, dict) and found else {"args": None}
        parts = {"reason": self._like(str(said.get("thought", "")), call["thought"])}
        if self.cosines is None:
            parts = {}
        parts["retrieve"] = float(is_readable and str(said.get("name", "")) == call["name"])
        arguments = said.get("args", {})
        arguments = arguments if isinstance(arguments, dict) else {}
        parts["understand"] = understood(arguments, call["args"]) if is_readable else 0.0
        return Graded(parts, fmean(parts.values()), is_readable, f"{said.get('name', '')}")

    def _like(self, ours: str, theirs: str) -> float:
        if self.cosines is None or not ours:
            return 0.0
        return min(float(self.cosines([ours], [theirs])[0, 0]), 1.0)


def instructed(
    template: Mapping[str, str], call: Mapping[str, Any], answer: str, in_json: bool
) -> Graded:
    """Half for the form that was asked for, half for name and arguments, each of them alike."""
    read = reading.call_in_json if in_json else reading.call_in_text
    found = read(answer, template)
    form = same = 0.0
    if found is not None:
        form = 1.0
        # T-Eval takes an argument that is not there for an empty text.
        right = [found.arguments.get(key, "") == wanted for key, wanted in call["args"].items()]
        same = fmean([float(one) for one in (found.name == call["action"], *right)])
    score = (form + same) / 2
    parts = {"instruct": score, "instruct_format": form, "instruct_args": same}
    return Graded(parts, score, found is not None, f"{found} for {dict(call)}"[:500])


def retrieved(answer: str, name: str) -> float:
    """1 where a text names the function, and no other."""
    others = [one for one in FUNCTION.findall(answer) if one != name]
    return float(name in answer and not others)


def understood(arguments: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """Share of the wanted arguments that are given, compared as texts; others do no harm.

    Where none is wanted, none must be given.
    """
    if not wanted:
        return float(not arguments)
    right = [key in arguments and str(arguments[key]) == str(wanted[key]) for key in wanted]
    return fmean(map(float, right))
