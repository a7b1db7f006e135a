"""Scores with intervals. Items are the units: answers to one item are no independent evidence.

An interval speaks of items like these, of which the benchmark is taken as a sample.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
ROUNDING = 1e-12  # of a share of answers


@dataclass(frozen=True)
class Estimate:
    """A number and its interval of CONFIDENCE."""

    value: float
    low: float
    high: float


def avg_at_k(
    scores: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Estimate:
    """Mean score: of all answers to an item, then of items. `scores`: 0 to 1, a row an item.

    Items count by `weights`, else alike. `groups` says to which group each belongs, where the
    weight of a group is fixed and items are drawn inside of it: how groups differ is no chance.
    """
    values = [sum(row) / len(row) for row in scores]
    return _bounded_mean(values, sum(map(len, scores)), weights, groups)


def pass_at_k(scores: Sequence[Sequence[float]], k: int) -> Estimate:
    """The chance that one of k answers is right (score 1), averaged over items.

    Of n answers, c of them right: 1 - C(n - c, k) / C(n, k), which is unbiased (Chen et al. 2021,
    Evaluating Large Language Models Trained on Code, eq. 1). ValueError where an item has fewer
    than k.
    """
    least = min(map(len, scores))
    if not 1 <= k <= least:
        raise ValueError(f"pass@{k}: an item has {least} answers; k is from 1 to that")
    values = []
    for row in scores:
        n, c = len(row), sum(score == 1 for score in row)
        values.append(1 - math.comb(n - c, k) / math.comb(n, k))
    return _bounded_mean(values, sum(map(len, scores)) // k)


def difference(
    one: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
) -> Estimate:
    """How much higher `other` scores than `one` on the same items, in the same order.

    The mean of the items' differences with Student's interval: mean ± t s / sqrt(items). Paired, so
    that how hard an item is takes no part. Items count by `weights`, else alike; weighted ones for
    1 / sum(w^2) items, and those of weight 0 not at all. ValueError for other numbers of items, or
    for one item.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(
            f"{len(one)} items against {len(other)}: a paired difference needs the same items in "
            "both, two at least"
        )
    pairs = zip(one, other, strict=True)
    apart = np.array([sum(b) / len(b) - sum(a) / len(a) for a, b in pairs])
    w = np.ones(len(apart)) if weights is None else np.asarray(weights, dtype=float)
    w = w / w.sum()
    value, n = float(w @ apart), 1 / float(w @ w)
    if n < 2 - 1e-9:
        raise ValueError(f"a paired difference of {n:.2g} items' weight: two are wanted at least")
    variance = float(w**2 @ (apart - value) ** 2) * n / (n - 1)
    reach = student(max(round(n) - 1, 1)) * math.sqrt(variance)
    return Estimate(value, max(-1.0, value - reach), min(1.0, value + reach))


def student(degrees: int) -> float:
    """Two-sided quantile of Student's t at CONFIDENCE; exact for 1 and 2 degrees of freedom.

    Else Abramowitz and Stegun 26.7.5, off by less than 1 % from 3 degrees on.
    """
    p = (1 + CONFIDENCE) / 2
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z, v = NormalDist().inv_cdf(p), degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def _bounded_mean(
    values: Sequence[float],
    draws: int,
    weights: Sequence[float] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Estimate:
    """Mean of items' values from 0 to 1, with Wilson's interval for clustered data.

    Wilson's for as many independent yes-or-no draws as would have this variance (the effective
    number of Korn and Graubard 1998, there with Clopper-Pearson). With one answer an item it is
    Wilson's own. It never leaves [0, 1], and has a width where all answers are alike; no narrower
    than `draws` independent ones would have it. Of weighted items, 1 / sum(w^2) count (Kish 1965),
    and the variance is sum(w^2 (x - mean of its group)^2), of the whole for groups of one item.
    """
    x = np.asarray(values, dtype=float)
    w = np.full(len(x), 1 / len(x)) if weights is None else np.asarray(weights) / sum(weights)
    mean, n = min(max(float(w @ x), 0.0), 1.0), 1 / float(w @ w)
    centre = np.full(len(x), mean)
    for group in set(groups or ()):
        own = np.array([one == group for one in groups or ()])
        if own.sum() > 1:
            centre[own] = w[own] @ x[own] / w[own].sum()
    variance = float(w**2 @ (x - centre) ** 2)  # of the mean
    spread = max(mean * (1 - mean), 0.0)
    most = draws * n / len(x)
    if spread < ROUNDING:  # all are 0 or all are 1, but for the last digit of the mean
        effective = n
    else:
        effective = min(spread / variance, most) if variance > 0 else most
    z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    middle = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    reach = math.sqrt(z2 * spread / effective + (z2 / (2 * effective)) ** 2)
    reach /= 1 + z2 / effective
    return Estimate(mean, max(0.0, middle - reach), min(1.0, middle + reach))
