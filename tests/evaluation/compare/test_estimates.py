"""Intervals over seeds, of means and of rates: numbers by hand and of the papers."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from megatron_ring.evaluation.compare import estimates
from megatron_ring.evaluation.statistics import Estimate, avg_at_k, difference
from megatron_ring.evaluation.tag_report import Share


def test_over_seeds_by_hand() -> None:
    """0.5, 0.6, 0.7: s = 0.1, t(2) = 4.3027."""
    found = estimates.over_seeds([0.5, 0.6, 0.7])
    reach = 4.3027 * 0.1 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.6, 0.6 - reach, 0.6 + reach), abs=1e-4
    )
    wide = estimates.over_seeds([0.1, 0.9])
    assert (wide.low, wide.high) == (0, 1)
    with pytest.raises(ValueError) as error:
        estimates.over_seeds([0.5])
    assert str(error.value) == "1 seed: an interval over seeds needs two at least"


def test_seeds_are_paired_in_their_order() -> None:
    """Differences 0.375 and 0.25: mean 0.3125, s / sqrt(2) = 0.0625, t(1) = 12.706."""
    found = estimates.paired([0.375, 0.25], [0.75, 0.5])
    assert found.value == pytest.approx(0.3125)
    assert (found.low, found.high) == pytest.approx((0.3125 - 12.706 * 0.0625, 1), abs=1e-4)
    alone = estimates.paired([0.25], [0.75, 0.5])
    assert alone.value == pytest.approx(0.375)  # of 0.5 and 0.25
    assert estimates.seed_pairs([1], [2, 3]) == [(1, 2), (1, 3)]
    assert estimates.seed_pairs([2, 3], [1]) == [(2, 1), (3, 1)]
    with pytest.raises(ValueError) as error:
        estimates.seed_pairs([1, 2], [1, 2, 3])
    assert str(error.value) == (
        "2 seeds against 3: they are compared one by one, in the order they are given; give as "
        "many of both, or a single one"
    )


def test_of_one_item_all_is_open() -> None:
    found = estimates.over_items([[0, 1]], [[1, 1]])
    assert (found.value, found.low, found.high) == (0.5, -1, 1)


def test_items_that_all_moved_alike_are_not_certain() -> None:
    """Six of six won: 6/8 ± t(5) sqrt((7/8 - 9/16) / 8); nothing changed in six: ± t(5) / 8."""
    won = estimates.over_items([[0]] * 6, [[1]] * 6)
    reach = 2.5706 * math.sqrt((7 / 8 - 9 / 16) / 8)
    assert (won.value, won.high) == (1, 1)
    assert won.low == pytest.approx(0.75 - reach, abs=2e-3)
    lost = estimates.over_items([[1]] * 6, [[0]] * 6)
    assert (lost.value, lost.low, lost.high) == pytest.approx((-1, -1, -won.low))
    same = estimates.over_items([[1]] * 6, [[1]] * 6)
    assert (same.value, same.low, same.high) == pytest.approx(
        (0, -2.5706 / 8, 2.5706 / 8), abs=2e-3
    )
    few = estimates.over_items([[0]] * 2, [[1]] * 2)
    assert few.low < 0 and few.high == 1
    assert estimates.over_items([[0], [0]], [[1], [0]]) == difference([[0], [0]], [[1], [0]])


def test_a_mean_of_benchmarks_by_hand() -> None:
    """Below: sqrt(0.3^2 + 0.4^2) / 2 = 0.25; above: sqrt(0.05^2 + 0.12^2) / 2 = 0.065."""
    found = estimates.mean_of([Estimate(0.4, 0.1, 0.45), Estimate(0.8, 0.4, 0.92)])
    assert (found.value, found.low, found.high) == pytest.approx((0.6, 0.35, 0.665))


def test_the_interval_of_a_mean_holds_the_truth() -> None:
    """Three benchmarks of 60, 100 and 200 items, one answer each."""
    rng, held, rounds = np.random.default_rng(0), 0, 600
    chances, sizes = (0.3, 0.6, 0.9), (60, 100, 200)
    for _ in range(rounds):
        parts = [
            avg_at_k((rng.random((n, 1)) < p).astype(float).tolist())
            for p, n in zip(chances, sizes, strict=True)
        ]
        found = estimates.mean_of(parts)
        held += found.low <= 0.6 <= found.high
    assert 0.92 < held / rounds < 0.98


def test_a_difference_of_rates_is_newcombes() -> None:
    """Table II of the paper, method 10: 56/70 against 48/80, 9/10 against 3/10, 10/10, 0/20."""
    for one, other, low, high in [
        (Share(48, 80), Share(56, 70), 0.0524, 0.3339),
        (Share(3, 10), Share(9, 10), 0.1705, 0.8090),
        (Share(0, 20), Share(10, 10), 0.6791, 1.0),
    ]:
        found = estimates.rate_difference(one, other)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
        assert found.value == pytest.approx(other.value - one.value)
    assert estimates.rate_difference(Share(0, 0), Share(1, 2)) is None
    assert estimates.rate_difference(Share(1, 2), Share(0, 0)) is None


@pytest.mark.parametrize("won", range(7))
def test_mcnemar_is_the_count_of_all_tosses(won: int) -> None:
    """Of all ways six coins fall, those at least as uneven."""
    uneven = [abs(2 * sum(coins) - 6) >= abs(2 * won - 6) for coins in product((0, 1), repeat=6)]
    assert estimates.mcnemar(won, 6 - won) == pytest.approx(float(Fraction(sum(uneven), 64)))


def test_mcnemar_of_nothing_and_of_many() -> None:
    assert estimates.mcnemar(0, 0) == 1
    assert estimates.mcnemar(3, 3) == 1
    assert estimates.mcnemar(1, 5) == pytest.approx(0.21875)
    # Ten thousand changes: the normal limit, with a half for continuity.
    z = (5200 - 5000 - 0.5) / 50
    assert estimates.mcnemar(5200, 4800) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
