"""Intervals of what tables hold: over items, over seeds, of means over benchmarks, of rates."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from megatron_ring.evaluation import statistics
from megatron_ring.evaluation.statistics import Estimate
from megatron_ring.evaluation.tag_report import Share


def over_seeds(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> Estimate:
    """Mean of one value a seed with Student's interval, t s / sqrt(seeds), kept in [low, high].

    ValueError for fewer than two seeds, of which nobody knows how they vary.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} seed: an interval over seeds needs two at least")
    mean = fmean(values)
    reach = statistics.student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, max(low, mean - reach), min(high, mean + reach))


def paired(one: Sequence[float], other: Sequence[float], least: float = -1.0) -> Estimate:
    """How much higher `other` is, over seeds: first with first, second with second, ...

    Where one side has a single run it stands against each run of the other.
    """
    return over_seeds([b - a for a, b in seed_pairs(one, other)], low=least, high=-least)


def seed_pairs(one: Sequence[float], other: Sequence[float]) -> list[tuple[float, float]]:
    """What is compared with what; ValueError for two sides with different numbers of seeds."""
    if len(one) != len(other) and 1 not in (len(one), len(other)):
        raise ValueError(
            f"{len(one)} seeds against {len(other)}: they are compared one by one, in the order "
            "they are given; give as many of both, or a single one"
        )
    most = max(len(one), len(other))
    pairs = zip(list(one) * (most // len(one)), list(other) * (most // len(other)), strict=True)
    return list(pairs)


def agree(values: Sequence[float]) -> bool:
    """Whether all are the same number: then they do not tell how others would vary."""
    return max(values) - min(values) < 1e-12


def over_items(
    one: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
) -> Estimate:
    """statistics.difference, but of one item, or of items that all moved alike.

    Of a single item all is open: -1 to 1. Items that all moved alike have no variance, and are not
    certain for that: as for matched pairs by Agresti and Min (2005, Statistics in Medicine 24: 729)
    an item is added that did not change, half a one that was won and half a one that was lost, here
    with Student's t.
    """
    moves = [fmean(b) - fmean(a) for a, b in zip(one, other, strict=True)]
    if len(moves) < 2:
        return Estimate(moves[0], -1.0, 1.0)
    if not agree(moves):
        return statistics.difference(one, other, weights)
    value, count = moves[0], len(moves) + 2
    middle = value * len(moves) / count
    variance = (value**2 * len(moves) + 1) / count - middle**2
    reach = statistics.student(len(moves) - 1) * math.sqrt(variance / count)
    low, high = min(value, middle - reach), max(value, middle + reach)
    return Estimate(value, max(-1.0, low), min(1.0, high))


def mean_of(parts: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each with equal weight, by their intervals.

    Each end is as far from the mean as the root of the parts' squared distances, over their number:
    the method of variance estimates recovery (Zou and Donner 2008, Statistics in Medicine 27, eq.
    5, there for a sum of two).
    """
    mean, count = fmean(part.value for part in parts), len(parts)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / count
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / count
    return Estimate(mean, mean - below, mean + above)


def rate_difference(one: Share, other: Share) -> Estimate | None:
    """How much higher the rate `other` is; None where one of them is of nothing.

    Newcombe's interval from two of Wilson's (1998, Statistics in Medicine 17: 873, method 10). It
    takes the two as independent; answers to the same items are not, and mostly nearer to each other
    than it says.
    """
    if not (one.whole and other.whole):
        return None
    a, b, (low_a, high_a), (low_b, high_b) = one.value, other.value, one.interval, other.interval
    below = math.sqrt((b - low_b) ** 2 + (high_a - a) ** 2)
    above = math.sqrt((high_b - b) ** 2 + (a - low_a) ** 2)
    return Estimate(b - a, b - a - below, b - a + above)


def mcnemar(won: int, lost: int) -> float:
    """Two-sided exact p: how likely so uneven a split is where each change is a coin's toss.

    Twice the binomial tail of the fewer, 1 at most (McNemar 1947; exact as for the sign test).
    """
    changed, ways, tail = won + lost, 1, 0
    for count in range(min(won, lost) + 1):
        tail += ways
        ways = ways * (changed - count) // (count + 1)  # now C(changed, count + 1)
    return min(1.0, 2 * tail / 2**changed)
