"""Scores and intervals: numbers by hand, and how often an interval holds what it should."""

import itertools
import math

import numpy as np
import pytest

from megatron_ring.evaluation.statistics import (
    CONFIDENCE,
    avg_at_k,
    difference,
    pass_at_k,
    student,
)


def test_the_mean_is_of_items_and_not_of_answers() -> None:
    assert avg_at_k([[1, 1, 1, 1], [0]]).value == 0.5
    assert avg_at_k([[1, 0], [0, 0], [0.5, 0.5]]).value == pytest.approx(1 / 3)


def test_one_answer_an_item_has_wilsons_interval() -> None:
    """8 of 10: 0.4902 to 0.9433, as tables have it."""
    found = avg_at_k([[1]] * 8 + [[0]] * 2)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_copies_of_an_answer_are_no_evidence() -> None:
    once, often = avg_at_k([[1]] * 8 + [[0]] * 2), avg_at_k([[1] * 9] * 8 + [[0] * 9] * 2)
    assert once == often


def test_nothing_right_and_all_right_have_a_width() -> None:
    """Wilson's upper end for 0 of n is z^2 / (n + z^2)."""
    none, all_right = avg_at_k([[0]] * 30), avg_at_k([[1]] * 30)
    assert (none.low, none.high) == pytest.approx((0, 3.8415 / 33.8415), abs=1e-5)
    assert (all_right.low, all_right.high) == pytest.approx((1 - none.high, 1))


def test_rounding_of_all_right_is_no_spread() -> None:
    """The mean of 49 ones, each with the weight 1/49, is not 1 to the last digit."""
    for n in range(1, 300):
        found = avg_at_k([[1]] * n)
        assert (found.value, found.high) == pytest.approx((1, 1))
        assert found.value <= 1 and found.low == pytest.approx(n / (n + 3.841459))


def test_alike_items_are_as_good_as_all_their_answers() -> None:
    """Half right in each item, so that items do not vary: Wilson's for 4 of 8."""
    found = avg_at_k([[1, 0]] * 4)
    assert (found.low, found.high) == pytest.approx((0.2152, 0.7848), abs=1e-4)


def test_pass_at_k_is_the_mean_over_all_choices_of_k_answers() -> None:
    rows = [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]]
    for k in range(1, 6):
        slow = [np.mean([any(some) for some in itertools.combinations(row, k)]) for row in rows]
        assert pass_at_k(rows, k).value == pytest.approx(np.mean(slow))
    assert pass_at_k([[1, 0, 0]], 2).value == pytest.approx(2 / 3)


def test_half_a_point_is_no_pass() -> None:
    assert pass_at_k([[0.5, 0.5]], 2).value == 0


@pytest.mark.parametrize("k", [0, 3])
def test_more_answers_than_there_are_cannot_be_chosen(k: int) -> None:
    with pytest.raises(ValueError) as error:
        pass_at_k([[1, 0, 1], [1, 0]], k)
    assert str(error.value) == f"pass@{k}: an item has 2 answers; k is from 1 to that"


def test_a_difference_is_paired() -> None:
    """Differences 0.5, 0, 0.5, 0: mean 0.25, s = 0.2887, t(3) = 3.1824."""
    one, other = [[0, 0], [1], [0], [1]], [[1, 0], [1], [0.5], [1]]
    found = difference(one, other)
    assert found.value == 0.25
    assert (found.low, found.high) == pytest.approx((-0.2093, 0.7093), abs=5e-3)
    back = difference(other, one)
    assert (back.value, back.low, back.high) == (-found.value, -found.high, -found.low)
    same = difference(one, one)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_difference_may_be_weighted() -> None:
    """A weight of 0 is no item; doubled weights of half of the items by hand."""
    one, other = [[0, 0], [1], [0], [1]], [[1, 0], [1], [0.5], [1]]
    assert difference(one, other, [2, 2, 2, 2]) == difference(one, other)
    nothing = difference([*one, [0]], [*other, [1]], [1, 1, 1, 1, 0])
    assert nothing == difference(one, other)
    found = difference(one, other, [2, 1, 2, 1])  # mean 1/3, 1 / sum(w^2) = 3.6, t(3) = 3.1824
    variance = ((1 / 3) ** 2 * (1 / 6) ** 2 * 2 + (1 / 6) ** 2 * (1 / 3) ** 2 * 2) * 3.6 / 2.6
    assert found.value == pytest.approx(1 / 3)
    assert found.high - found.value == pytest.approx(3.1824 * math.sqrt(variance), rel=1e-2)
    with pytest.raises(ValueError) as error:
        difference(one, other, [9, 1, 0, 0])
    assert str(error.value) == ("a paired difference of 1.2 items' weight: two are wanted at least")


def test_a_difference_stays_in_bounds() -> None:
    found = difference([[0], [1]], [[1], [1]])
    assert (found.low, found.high) == (-1, 1)


@pytest.mark.parametrize(("one", "other"), [([[1]], [[1]]), ([[1], [0]], [[1]])])
def test_a_difference_needs_the_same_items(one: list[list[int]], other: list[list[int]]) -> None:
    with pytest.raises(ValueError) as error:
        difference(one, other)
    assert str(error.value) == (
        f"{len(one)} items against {len(other)}: a paired difference needs the same items in both, "
        "two at least"
    )


def test_students_quantiles_are_those_of_tables() -> None:
    tables = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 29: 2.045, 500: 1.965}
    for degrees, value in tables.items():
        assert student(degrees) == pytest.approx(value, rel=0.01)
    assert student(10) == pytest.approx(2.228, abs=1e-3)


@pytest.mark.parametrize(
    ("items", "samples", "a", "b"),
    [(30, 1, 1, 1), (30, 16, 0.4, 0.6), (100, 1, 4, 1), (100, 4, 2, 2)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    items: int, samples: int, a: float, b: float
) -> None:
    """Items are drawn with chances from Beta(a, b), whose mean is the truth."""
    rng, truth, rounds = np.random.default_rng(0), a / (a + b), 800
    held = shares_the_truth = 0
    for _ in range(rounds):
        chances = rng.beta(a, b, items)[:, None]
        one, other = ((rng.random((items, samples)) < chances).astype(float) for _ in range(2))
        found = avg_at_k(one.tolist())
        held += found.low <= truth <= found.high
        apart = difference(one.tolist(), other.tolist())
        shares_the_truth += apart.low <= 0 <= apart.high
    spread = 3 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / rounds)
    for count in (held, shares_the_truth):
        assert abs(count / rounds - CONFIDENCE) < spread + 0.01


def test_pass_at_k_intervals_hold_the_truth() -> None:
    """pass@4 of chances from a uniform distribution: 1 - E(1-p)^4 = 1 - 1/5."""
    rng, rounds, held = np.random.default_rng(1), 600, 0
    for _ in range(rounds):
        right = rng.random((60, 8)) < rng.random(60)[:, None]
        found = pass_at_k(right.astype(float).tolist(), 4)
        held += found.low <= 0.8 <= found.high
    assert 0.92 < held / rounds < 0.98


def test_weights_and_groups_change_nothing_where_all_are_alike() -> None:
    rows = [[1, 0], [1, 1], [0, 0], [0.5, 0]]
    plain = avg_at_k(rows)
    for weighted in (avg_at_k(rows, [3] * 4), avg_at_k(rows, [0.25] * 4, ["a"] * 4)):
        assert (weighted.value, weighted.low, weighted.high) == pytest.approx(
            (plain.value, plain.low, plain.high)
        )


def test_weights_are_of_the_mean_and_of_its_variance() -> None:
    """Twice the weight of an item is no second item: 0.75, of 1 / (0.5^2 + 2 * 0.25^2) items."""
    found = avg_at_k([[1], [1], [0]], [2, 1, 1])
    kish = 1 / (0.25 + 2 / 16)
    variance = 0.25 * 0.25**2 + (0.25**2 + 0.75**2) / 16
    effective = min(0.75 * 0.25 / variance, kish)
    z2 = 1.959964**2
    middle = (0.75 + z2 / 2 / effective) / (1 + z2 / effective)
    reach = math.sqrt(z2 * 0.1875 / effective + (z2 / 2 / effective) ** 2) / (1 + z2 / effective)
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((middle - reach, middle + reach), abs=1e-6)


def test_how_groups_differ_is_no_chance() -> None:
    """Items of ten answers vary little inside of groups at 0.25 and 0.75, and much without."""
    rows = [[share] * 10 for share in (0.2, 0.3, 0.7, 0.8)] * 5
    groups = ["low", "low", "high", "high"] * 5
    with_groups, without = avg_at_k(rows, None, groups), avg_at_k(rows)
    assert with_groups.value == without.value
    assert with_groups.high - with_groups.low < without.high - without.low


def test_a_group_of_one_item_says_nothing_of_its_spread() -> None:
    alone = avg_at_k([[1], [0.5], [0]], None, ["a", "b", "c"])
    assert alone == avg_at_k([[1], [0.5], [0]])


def test_intervals_of_groups_hold_what_they_should() -> None:
    """Two strata of 60 and 15 items with shares of one half: about 95 of 100 intervals."""
    rng = np.random.default_rng(5)
    weights, groups = [0.5 / 60] * 60 + [0.5 / 15] * 15, ["a"] * 60 + ["b"] * 15
    held = 0
    for _ in range(1000):
        right = [*(rng.random(60) < 0.8), *(rng.random(15) < 0.4)]
        found = avg_at_k([[float(one)] for one in right], weights, groups)
        held += found.low <= 0.6 <= found.high
    assert 930 <= held <= 985
