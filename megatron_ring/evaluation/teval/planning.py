"""Plans: read from an answer, and compared with the right one.

Rules of open-compass/T-Eval, commit 58f2240, teval/evaluators/planning_evaluator.py (there called
bertscore; it is the cosine of sentence embeddings).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_ring.evaluation.teval.reading import value

NAME_WEIGHT, ARGUMENTS_WEIGHT = 0.75, 0.25
ALIKE = 0.8  # similarity above which two steps may be the same
FINISH = "FinishAction"  # T-Eval's last step, which is not counted
# Cosines, nothing below 0, of each of the first texts (rows) with each of the second (columns).
Cosines = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Step:
    """A step of a plan."""

    number: int
    name: str
    arguments: str


@dataclass(frozen=True)
class Match:
    """How much of a plan is right."""

    precision: float = 0.0
    recall: float = 0.0

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def steps_in_json(given: Any) -> list[Step]:
    """Steps of a list, or of a text that holds one; [] where one of them lacks anything."""
    try:
        found = value(given, "[", "]")
        if not isinstance(found, list):
            return []
        return [Step(int(one["id"]), str(one["name"]), str(one["args"])) for one in found]
    except (ValueError, KeyError, TypeError, OverflowError):
        return []


def steps_in_text(text: str, functions: Sequence[str]) -> list[Step]:
    """A step for each line or sentence that names a function: the first that it names.

    Its arguments are the whole line. Of names that begin at one place the first listed counts.
    """
    steps: list[Step] = []
    for line in text.replace(". ", "\n").split("\n"):
        places = {name: line.find(name) for name in functions if name in line}
        if places:
            first = min(places, key=lambda name: places[name])
            steps.append(Step(len(steps), first, line))
    return steps


def compare(plan: Sequence[Step], gold: Sequence[Step], cosines: Cosines) -> Match:
    """Steps of `plan` that are those of `gold`, in its order.

    Steps are paired so that the sum of their similarities is highest, similar ones only; then
    counts the longest run of pairs, gaps allowed, that has the order of both. As T-Eval does it, a
    plan of which nothing is similar counts one right step.
    """
    import networkx  # slow to import; comes with torch, as sentence-transformers does

    ours, theirs = _counted(plan), _counted(gold)
    if not ours or not theirs:
        return Match()
    names = cosines([one.name for one in ours], [one.name for one in theirs])
    arguments = cosines([one.arguments for one in ours], [one.arguments for one in theirs])
    similarity = NAME_WEIGHT * names + ARGUMENTS_WEIGHT * arguments
    # Equal steps leave several such pairings; nodes and edges come in T-Eval's order, so that it
    # is the same one.
    graph = networkx.Graph()
    for i, j in zip(*np.nonzero(similarity > ALIKE), strict=True):
        graph.add_edge(int(i), str(j), weight=float(similarity[i, j]))
    pairs = [
        pair if isinstance(pair[0], int) else pair[::-1]
        for pair in networkx.max_weight_matching(graph)
    ]
    right = max(_longest_rise([int(j) for _, j in sorted(pairs)]), 1)
    return Match(precision=right / len(ours), recall=right / len(theirs))


def _counted(plan: Sequence[Step]) -> list[Step]:
    """By number, without the step that ends it."""
    steps = sorted(plan, key=lambda step: step.number)
    return steps[:-1] if steps and steps[-1].name == FINISH else steps


def _longest_rise(numbers: Sequence[int]) -> int:
    """Length of the longest part, gaps allowed, in which each number is above the one before."""
    ends: list[int] = []
    for i, number in enumerate(numbers):
        ends.append(1 + max((ends[j] for j in range(i) if numbers[j] < number), default=0))
    return max(ends, default=0)
