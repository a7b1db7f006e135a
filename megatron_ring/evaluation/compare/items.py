"""Two columns item by item: what was won, what was lost, and what was said then and now."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_ring.evaluation.compare.cells import Frame
from megatron_ring.evaluation.compare.estimates import mcnemar
from megatron_ring.evaluation.compare.reading import (
    Benchmark,
    Column,
    any_of,
    lines_of,
    tasks_of,
)

OUTCOMES = {(False, True): "won", (True, False): "lost", (True, True): "both"}
NEITHER = "neither"


@dataclass(frozen=True)
class Changes:
    """One benchmark in two columns."""

    task: str
    title: str
    both: int
    won: list[str]  # ids
    lost: list[str]
    neither: int
    p: float  # McNemar's, exact


@dataclass(frozen=True)
class Pair:
    """A column and its baseline."""

    one: str
    other: str
    tasks: list[Changes]


def pairs(frame: Frame) -> list[Pair]:
    """Each column with its baseline, by benchmark that both have."""
    found = []
    for index, column in enumerate(frame.columns):
        base = frame.base(index)
        if base is not None:
            tasks = [task for task in tasks_of([base, column]) if base.has(task)]
            both = [_changes(frame, base, column, task) for task in tasks if column.has(task)]
            found.append(Pair(base.name, column.name, both))
    return found


def _changes(frame: Frame, base: Column, column: Column, task: str) -> Changes:
    before, after = _right(base.of(task)), _right(column.of(task))
    by_outcome: dict[str, list[str]] = {}
    for key in any_of(frame.columns, task).items:
        outcome = OUTCOMES.get((before[key], after[key]), NEITHER)
        by_outcome.setdefault(outcome, []).append(key)
    won, lost = by_outcome.get("won", []), by_outcome.get("lost", [])
    both, neither = (len(by_outcome.get(name, [])) for name in ("both", NEITHER))
    title = column.of(task)[0].title
    return Changes(task, title, both, won, lost, neither, mcnemar(len(won), len(lost)))


def _right(benchmarks: list[Benchmark]) -> dict[str, bool]:
    """Whether an item is right: its answers in all runs score more than a half on average."""
    return {
        key: fmean(one.score for bench in benchmarks for one in bench.answers[key]) > 0.5
        for key in benchmarks[0].items
    }


def changed(frame: Frame, pair: Pair) -> Iterator[dict[str, Any]]:
    """Every item that was won or lost, with the prompt and an answer of each column.

    Of several answers that one is shown which is as the outcome says: right where the item is.
    """
    named = {column.name: column for column in frame.columns}
    for change in pair.tasks:
        outcome = dict.fromkeys(change.won, "won") | dict.fromkeys(change.lost, "lost")
        if not outcome:
            continue
        sides = []
        for name, right in ((pair.one, "lost"), (pair.other, "won")):
            wanted = {key: what == right for key, what in outcome.items()}
            sides.append(_answers(named[name], change.task, wanted))
        for key, what in outcome.items():
            head = {"task": change.task, "id": key, "outcome": what}
            prompt = sides[0][key].pop("prompt")
            sides[1][key].pop("prompt")
            answers = {"one": sides[0][key], "other": sides[1][key]}
            yield {**head, "columns": [pair.one, pair.other], "prompt": prompt, **answers}


def _answers(column: Column, task: str, wanted: dict[str, bool]) -> dict[str, dict[str, Any]]:
    """An answer to each item, read again: a right one where `wanted` says so."""
    found: dict[str, dict[str, Any]] = {}
    for run in column.runs:
        for sample, grade in lines_of(run.folder, task):
            key = sample["id"]
            if key in wanted and (
                key not in found
                or (found[key]["score"] > 0.5) != wanted[key] == (grade["score"] > 0.5)
            ):
                found[key] = _shown(run.folder, sample, grade)
    return found


def _shown(folder: Path, sample: dict[str, Any], grade: dict[str, Any]) -> dict[str, Any]:
    turns = [f"{turn['role']}: {turn['content']}" for turn in sample["messages"]]
    return {
        "prompt": "\n".join(turns),
        "run": str(folder),
        "sample": sample["sample"],
        "text": sample["text"],
        **{key: grade[key] for key in ("score", "verdict", "extracted")},
    }
