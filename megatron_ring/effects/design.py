"""Tables -> rows for estimators: a row is one item in one run, features are of the item alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from megatron_ring.config.base import ConfigError
from megatron_ring.effects.plan import LEAST
from megatron_ring.effects.tables import ItemRow, RunRow, Tables, chosen

By = Literal["benchmark", "tax_l1", "tax_l2"]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """N rows, R runs; all runs have the same items, in the same order."""

    y: Array  # N: scores
    t: npt.NDArray[np.int64]  # N: arm
    x: Array  # N x F
    s: npt.NDArray[np.int64]  # N: 1 where a coin decided
    group: npt.NDArray[np.int64]  # N: place of the run in `runs`
    topic: npt.NDArray[np.str_]  # N
    columns: list[str]  # F
    bias_features: list[int]  # columns that are simple enough for a bias function
    runs: list[RunRow]
    items: list[ItemRow]
    others: list[str]  # K: the other changes whose arms all runs know

    @property
    def w(self) -> Array:
        """N x K: arms of the other changes."""
        arms = np.array([self.arm_of(name) for name in self.others], dtype=float)
        return np.repeat(arms.reshape(len(self.others), len(self.runs)).T, len(self.items), axis=0)

    @property
    def topics(self) -> list[str]:
        """In the order of their names."""
        return sorted(set(self.topic.tolist()))

    def arm_of(self, name: str) -> npt.NDArray[np.int64]:
        """R: the arm of each run in another intervention."""
        return np.array([run.interventions[name] for run in self.runs])

    def means(self, topic: str | None = None) -> Array:
        """R: each run's mean score over the items of a topic, or over all."""
        own = np.ones(len(self.y), dtype=bool) if topic is None else self.topic == topic
        count = np.bincount(self.group[own], minlength=len(self.runs))
        return np.bincount(self.group[own], self.y[own], len(self.runs)) / count

    @property
    def arms(self) -> npt.NDArray[np.int64]:
        """R: the arm of each run."""
        return self.t[:: len(self.items)]

    @property
    def randomized(self) -> npt.NDArray[np.bool_]:
        """R: whether a coin decided."""
        return self.s[:: len(self.items)] == 1

    def num_runs(self) -> dict[str, list[int]]:
        """Runs without and with it, by source."""
        return {
            name: [int(((self.arms == arm) & own).sum()) for arm in (0, 1)]
            for name, own in (("randomized", self.randomized), ("historical", ~self.randomized))
        }


def make(tables: Tables, intervention: str, by: By = "tax_l1", scale: str = "") -> Design:
    """Rows of all runs of one scale that know their arm, and of all items that each of them has.

    ConfigError, which says what is to be done, where nothing can be told: no coin was tossed for
    any run, or for too few; runs of several scales; no item in all of them.
    """
    tables = _of_scale(tables, scale)
    known = chosen(tables, lambda run: intervention in run.interventions)
    if not known.runs:
        names = sorted({name for run in tables.runs for name in run.interventions})
        raise ConfigError(
            f"no run knows its arm of {intervention!r}; known: {', '.join(names) or 'none'}"
        )
    _check_coins(known.runs, intervention)
    items, scores = _matrix(known)
    arms = np.array([run.interventions[intervention] for run in known.runs])
    coins = np.array([run.randomized for run in known.runs], dtype=int)
    topics = np.array([item.model_dump()[by] for item in items])
    columns, features, simple = _features(items, topics)
    each, count = len(items), len(known.runs)
    return Design(
        y=scores.reshape(-1),
        t=np.repeat(arms, each),
        x=np.tile(features, (count, 1)),
        s=np.repeat(coins, each),
        group=np.repeat(np.arange(count), each),
        topic=np.tile(topics, count),
        columns=columns,
        bias_features=simple,
        runs=list(known.runs),
        items=items,
        others=[name for name in known.interventions if name != intervention],
    )


def adjusted(design: Design) -> Design:
    """Scores as if each run had trained on as many tokens as randomized runs do on average.

    By topic, a line through (log tokens, mean score) of runs, its slope common to sources and arms
    and its height their own. What is logged should not be left to the bias function, which is
    smoother without it. ConfigError where a run's tokens are not known.
    """
    if missing := [run.run_id for run in design.runs if not run.tokens]:
        raise ConfigError(
            f"{missing[0]} does not tell its tokens ({len(missing)} of {len(design.runs)} runs do "
            "not); leave --adjust out"
        )
    logged = np.log([float(run.tokens or 1) for run in design.runs])
    apart = logged - logged[design.randomized].mean()
    cell = 2 * design.randomized + design.arms
    within = _centred(apart, cell)
    y = design.y.copy()
    for topic in design.topics:
        slope = 0.0
        if (spread := within @ within) > 1e-12:
            slope = float(within @ _centred(design.means(topic), cell) / spread)
        own = design.topic == topic
        y[own] -= slope * apart[design.group[own]]
    return replace(design, y=y)


def _centred(values: Array, cell: npt.NDArray[np.int64]) -> Array:
    """Less the mean of each cell."""
    count = np.maximum(np.bincount(cell), 1)
    return np.asarray(values - (np.bincount(cell, values) / count)[cell])


def _of_scale(tables: Tables, scale: str) -> Tables:
    scales = sorted({run.scale for run in tables.runs})
    if scale:
        if scale not in scales:
            raise ConfigError(f"--scale {scale!r}: no run has it; there are: {', '.join(scales)}")
        return chosen(tables, lambda run: run.scale == scale)
    if len(scales) > 1:
        raise ConfigError(
            f"runs of {len(scales)} scales: {', '.join(scales)}; an effect at one is none at "
            "another: choose with --scale"
        )
    return tables


def _check_coins(runs: Sequence[RunRow], intervention: str) -> None:
    arms = [run.interventions[intervention] for run in runs if run.randomized]
    if not arms:
        raise ConfigError(
            f"{intervention}: none of {len(runs)} runs is randomized, so all there is to tell is "
            "correlational only: what else these runs had cannot be told from the change. Plan a "
            "few randomized runs (tools/effects.py plan), run them, import them with --plan"
        )
    counts = [arms.count(0), arms.count(1)]
    if min(counts) < LEAST:
        raise ConfigError(
            f"{intervention}: {counts[1]} randomized runs with it and {counts[0]} without; "
            f"{LEAST} of each are the least from which an effect has an interval. The number of "
            "items does not replace runs: plan more (tools/effects.py plan)"
        )


def _matrix(tables: Tables) -> tuple[list[ItemRow], Array]:
    """Items that all runs have, and R x I scores."""
    places = {run.run_id: number for number, run in enumerate(tables.runs)}
    scores: dict[str, dict[int, float]] = {}
    for one in tables.evals:
        scores.setdefault(one.item_id, {})[places[one.run_id]] = one.score
    items = [item for item in tables.items if len(scores.get(item.item_id, ())) == len(places)]
    if not items:
        raise ConfigError(
            f"no item was asked of all {len(places)} runs: evaluate them on the same items"
        )
    found = [[scores[item.item_id][run] for run in range(len(places))] for item in items]
    return items, np.array(found).T


def _features(
    items: Sequence[ItemRow], topics: npt.NDArray[np.str_]
) -> tuple[list[str], Array, list[int]]:
    """Names and I x F values, and which of them are topic and difficulty."""
    columns = {f"is {topic}": (topics == topic).astype(float) for topic in np.unique(topics)}
    if all(item.difficulty is not None for item in items):
        hard = np.array([item.difficulty for item in items], dtype=float)
        hard = hard - hard.mean()
        columns |= {f"difficulty, {name}": hard * own for name, own in list(columns.items())}
    simple = list(range(len(columns)))
    columns["log length"] = np.log1p([item.n_tok for item in items])
    if items[0].emb is not None and all(item.emb is not None for item in items):
        for number, values in enumerate(np.array([item.emb for item in items]).T):
            columns[f"emb {number}"] = values
    return list(columns), np.stack(list(columns.values()), axis=1), simple
