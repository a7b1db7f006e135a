"""The effect of a change by topic: what the logs say, what coins say, and what both say together.

Every number stands beside the one it is to be preferred to: logs alone, logs and randomized runs
pooled as if they were one, randomized runs alone, CIO. Units are points: hundredths of the score.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Protocol

import numpy as np
from scipy.stats import t as student
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression

from megatron_ring.config.base import ConfigError
from megatron_ring.effects import covariates, sentences
from megatron_ring.effects import design as designs
from megatron_ring.effects.base import EffectEstimator, TopicEffect
from megatron_ring.effects.baselines import NaivePooling, ObservationalOnly, RCTOnly
from megatron_ring.effects.cio import CIO
from megatron_ring.effects.design import By, Design
from megatron_ring.effects.rows import Rows
from megatron_ring.effects.tables import Tables
from megatron_ring.evaluation.compare import words

LOGS, NAIVE, COINS, BOTH, TRUTH = "logs only", "naive pooled", "randomized only", "CIO", "truth"
ALL = "all topics"
GOES_ALONG = 0.3  # correlation of arms in history that is worth a word
UNEQUAL = 1.2  # ratio of tokens that is
Cell = dict[str, Any]


class Track(Protocol):
    """What shows how far steps of a known number are: rich.progress.track is one."""

    def __call__(self, steps: Iterable[int], /, description: str, total: int) -> Iterable[int]: ...


def _unseen(steps: Iterable[int], /, description: str, total: int) -> Iterable[int]:
    return steps


@dataclass(frozen=True)
class Options:
    """How a report is made."""

    by: By = "tax_l1"
    alpha: float = 0.1
    bootstraps: int = 100
    seed: int = 0
    scale: str = ""
    adjust: bool = False
    jobs: int = 1  # processes of the bootstrap
    about: Mapping[str, str] | None = None  # of interventions


def build(
    tables: Tables,
    interventions: Sequence[str],
    options: Options,
    truth: Tables | None = None,
    track: Track = _unseen,
) -> dict[str, Any]:
    """All that the report tells, as plain values; a part an intervention (all if none is named).

    `truth`: further randomized runs, which no estimate sees. ConfigError as designs.make has it.
    """
    names = list(interventions) or tables.interventions
    if not names:
        raise ConfigError("no intervention is known of all runs; name one by --treatment")
    # All designs before the first bootstrap: what is refused is refused at once.
    pairs = {}
    for name in names:
        made = designs.make(tables, name, options.by, options.scale)
        known = designs.make(truth, name, options.by, options.scale) if truth else None
        if known is not None:
            _check_truth(name, made, known)
        pairs[name] = made, known
    parts = [_part(name, made, known, options, track) for name, (made, known) in pairs.items()]
    columns = [LOGS, NAIVE, COINS, BOTH] + [TRUTH] * (truth is not None)
    return {
        "columns": columns,
        "caption": sentences.caption(options.alpha, options.adjust, truth is not None),
        "alpha": options.alpha,
        "by": options.by,
        "adjusted": options.adjust,
        "metric": " and ".join(sorted({one.metric for one in tables.evals})),
        "interventions": parts,
        "notes": _notes(tables),
    }


def _check_truth(name: str, made: Design, truth: Design) -> None:
    """Only further randomized runs, asked the same items, can judge."""
    if truth.num_runs()["historical"] != [0, 0]:
        raise ConfigError(f"the truth of {name} has runs that no coin decided; leave them out")
    known = {run.run_id for run in made.runs}
    if again := [run.run_id for run in truth.runs if run.run_id in known]:
        raise ConfigError(
            f"the truth has {len(again)} runs that are estimated from as well ({again[0]}): no "
            "estimate can be judged by its own runs; give others"
        )
    asked = {item.item_id for item in truth.items}
    own = {item.item_id for item in made.items}
    if asked != own:
        odd = sorted(asked ^ own)
        raise ConfigError(
            f"the truth of {name} and the estimates share {len(asked & own)} items, and {len(odd)} "
            f"({odd[0]}) are of one of them alone: evaluate all runs on the same items"
        )


def estimators(options: Options, e: float | None = None) -> dict[str, EffectEstimator]:
    """By column, not yet fitted. `e`: the coin's chance."""
    # Small trees: features are few, and a report fits some thousand of them.
    outcome = HistGradientBoostingRegressor(
        max_iter=40, max_leaf_nodes=8, learning_rate=0.15, random_state=options.seed
    )
    more: dict[str, Any] = {
        "outcome": outcome,
        "bootstraps": options.bootstraps,
        "random_state": options.seed,
        "n_jobs": options.jobs,
        "e": e,
    }
    # Least squares, not ridge: a topic's effect is its own, not drawn to those of noisier topics.
    # The features are few: topics, and how hard and how long their items are.
    linear = LinearRegression()
    return {
        LOGS: ObservationalOnly(**more),
        NAIVE: NaivePooling(**more),
        COINS: RCTOnly(heterogeneity=linear, **more),
        BOTH: CIO(heterogeneity=linear, bias=linear, **more),
    }


def _part(
    name: str, raw: Design, truth: Design | None, options: Options, track: Track
) -> dict[str, Any]:
    """One intervention."""
    made = designs.adjusted(raw) if options.adjust else raw
    cells: dict[str, dict[str, Cell]] = {}
    missing: list[str] = []
    fitted = estimators(options)
    for method, estimator in fitted.items():
        if method in (LOGS, NAIVE) and made.randomized.all():
            continue  # there is no history, and CIO's flags say so
        try:
            _fit(estimator, made)
        except ValueError as error:
            if method != LOGS:
                raise
            missing.append(f"{LOGS}: {error}")
            continue
        deque(track(estimator.replicate(), f"{name}: {method}", options.bootstraps), maxlen=0)
        for topics in (made.topic, np.full(len(made.y), ALL)):
            for found in estimator.summarize(topics, alpha=options.alpha):
                cells.setdefault(found.topic, {})[method] = _cell(found)
    both = fitted[BOTH]
    assert isinstance(both, CIO), type(both)
    if truth is not None:
        for topic in (*made.topics, ALL):
            cells[topic][TRUTH] = true_effect(truth, None if topic == ALL else topic, options.alpha)
        _judge(cells)
    told = both.diagnostics()
    return {
        "name": name,
        "about": (options.about or {}).get(name, ""),
        "runs": made.num_runs() | ({"truth": truth.num_runs()["randomized"]} if truth else {}),
        "items": len(made.items),
        "rows": _rows(made, cells, truth is not None),
        "completeness": told["completeness"],
        "choice": sentences.choice(told["completeness"], told["chosen"], told["share"]),
        "chosen": told["chosen"],
        "share": told["share"],
        "bias": _bias(made, both),
        "held_out": told["held_out"],
        "points": _points(raw, truth),
        "warnings": [*missing, *told["flags"], *_warnings(name, raw, options)],
        "findings": _findings(cells),
    }


def _fit(estimator: EffectEstimator, made: Design) -> None:
    estimator.fit(
        made.y,
        made.t,
        X=made.x,
        S=made.s,
        W=made.w,
        groups=made.group,
        bias_features=made.bias_features,
    )


def true_effect(truth: Design, topic: str | None, alpha: float) -> Cell:
    """Difference of the arms' mean runs with Welch's interval: n is runs.

    What other changes explain of the runs' means is taken off, as for the estimates.
    """
    count = len(truth.runs)
    runs = Rows(
        truth.means(topic),
        truth.arms,
        np.empty((count, 0)),
        np.ones(count, dtype=bool),
        np.arange(count),
        np.ones(count),
    )
    w = truth.w[:: len(truth.items)]
    means, fitted = covariates.adjusted(runs, w).y, len(covariates.usable(runs, w))
    arms = [means[truth.arms == arm].tolist() for arm in (0, 1)]
    value = fmean(arms[1]) - fmean(arms[0])
    left = (count - 2) / (count - 2 - fitted)
    parts = [left * stdev(one) ** 2 / len(one) for one in arms]
    total = sum(parts)
    if total == 0:  # runs that are all alike
        return {"value": value, "low": value, "high": value, "sure": value != 0}
    degrees = total**2 / sum(p**2 / (len(a) - 1) for p, a in zip(parts, arms, strict=True))
    reach = float(student.ppf(1 - alpha / 2, max(degrees - fitted, 1))) * math.sqrt(total)
    low, high = value - reach, value + reach
    return {"value": value, "low": low, "high": high, "sure": low > 0 or high < 0}


def _cell(found: TopicEffect) -> Cell:
    sure = found.low > 0 or found.high < 0
    return {"value": found.effect, "low": found.low, "high": found.high, "sure": sure}


def _judge(cells: Mapping[str, dict[str, Cell]]) -> None:
    """Mark what lies off the truth, beyond both intervals, and what is sure of the wrong sign."""
    for row in cells.values():
        right = row[TRUTH]
        for method, cell in row.items():
            if method != TRUTH:
                cell["off"] = cell["low"] > right["high"] or cell["high"] < right["low"]
                opposite = cell["value"] * right["value"] < 0
                cell["wrong_sign"] = opposite and right["sure"]


def _rows(
    made: Design, cells: Mapping[str, dict[str, Cell]], with_truth: bool
) -> list[dict[str, Any]]:
    columns = [LOGS, NAIVE, COINS, BOTH] + [TRUTH] * with_truth
    topics = np.array([made.topic[n] for n in range(len(made.items))])
    rows = []
    for topic in (*made.topics, ALL):
        count = len(made.items) if topic == ALL else int((topics == topic).sum())
        found = [cells[topic].get(method) for method in columns]
        kind = "mean" if topic == ALL else "topic"
        rows.append({"title": topic, "of": f"{count:,} items", "kind": kind, "cells": found})
    return rows


def _bias(made: Design, both: CIO) -> dict[str, dict[str, float]]:
    """By topic and arm: how far history lies above randomized runs, as CIO has it."""
    items = slice(0, len(made.items))
    x, topic = made.x[items], made.topic[items]
    arms = [arm for arm in (0, 1) if made.num_runs()["historical"][arm]]
    return {
        name: {str(arm): float(both.bias_function(x[topic == name], arm).mean()) for arm in arms}
        for name in made.topics
    }


def _points(made: Design, truth: Design | None) -> list[dict[str, Any]]:
    """Every run: its source, arm, tokens and mean score."""
    found = []
    for source, one in (("", made), ("truth", truth)):
        if one is None:
            continue
        for run, arm, mean in zip(one.runs, one.arms, one.means(), strict=True):
            kind = source or ("randomized" if run.randomized else "historical")
            found.append(
                {
                    "run": run.run_id,
                    "source": kind,
                    "arm": int(arm),
                    "tokens": run.tokens,
                    "score": float(mean),
                }
            )
    return found


def _warnings(name: str, made: Design, options: Options) -> list[str]:
    """What of the history goes along with the change, as far as it is logged."""
    past, found = ~made.randomized, []
    arms = made.arms
    if past.any() and len(set(arms[past].tolist())) == 2:
        tokens = np.array([float(run.tokens or np.nan) for run in made.runs])
        if not options.adjust and not np.isnan(tokens[past]).any():
            off, on = (tokens[past & (arms == arm)].mean() for arm in (0, 1))
            if max(on / off, off / on) > UNEQUAL:
                found.append(
                    f"in history, runs with it trained on {on:,.0f} tokens on average, those "
                    f"without on {off:,.0f}: longer training looks like the change (--adjust takes "
                    "what is logged of it off)"
                )
        for other in sorted(set.intersection(*(set(run.interventions) for run in made.runs))):
            if other != name and len(set(made.arm_of(other)[past].tolist())) == 2:
                along = float(np.corrcoef(arms[past], made.arm_of(other)[past])[0, 1])
                if abs(along) > GOES_ALONG:
                    found.append(
                        f"in history it goes along with {other} (correlation {along:.2f}): what "
                        f"{other} did there is taken off as far as the two can be told apart"
                    )
    coins = sum(made.num_runs()["randomized"])
    found.append(
        f"n is runs, not scores: {coins} randomized runs decide, whatever the {len(made.y):,} "
        "scores"
    )
    return found


def _notes(tables: Tables) -> list[str]:
    """What is not the same in all evaluations."""
    found = []
    for key, what in (("grader_version", "graders"), ("harness_version", "programs")):
        by_benchmark: dict[str, set[str]] = {}
        of = {item.item_id: item.benchmark for item in tables.items}
        for one in tables.evals:
            told = one.model_dump()[key]
            by_benchmark.setdefault(of[one.item_id], set()).add(told)
        for benchmark, versions in sorted(by_benchmark.items()):
            if len(versions) > 1:
                listed = ", ".join(sorted(versions))
                found.append(
                    f"{benchmark}: scores of several {what} ({listed}); between history and "
                    "randomized runs that is part of the bias, within randomized runs an error"
                )
    return found


def _findings(cells: Mapping[str, dict[str, Cell]]) -> list[str]:
    """Where history by itself would have led elsewhere, in words."""
    found = []
    for topic, row in cells.items():
        logs, both = row.get(LOGS), row.get(BOTH)
        if logs is None or both is None:
            continue
        apart = logs["low"] > both["high"] or logs["high"] < both["low"]
        turned = logs["value"] * both["value"] < 0 and both["sure"]
        if apart or turned or (logs["sure"] and not both["sure"]):
            told = f"{topic}: the logs say {said(logs)}, CIO says {said(both)}"
            if TRUTH in row:
                told += f"; the truth is {said(row[TRUTH])}"
            found.append(told)
    return found


def said(cell: Cell) -> str:
    """+3.1 points (0.4 to 5.8)"""
    value, low, high = (words.signed(cell[key]) for key in ("value", "low", "high"))
    return f"{value} points ({low} to {high})"
