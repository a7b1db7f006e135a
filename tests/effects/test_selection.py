"""The choice against sums by hand, and against what would be leakage."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from megatron_ring.effects import selection, simulate
from megatron_ring.effects.cio import CIO
from megatron_ring.effects.learners import History, Recipe, pseudo_outcomes, ridge
from megatron_ring.effects.rows import Rows, checked
from megatron_ring.effects.selection import Comparison, clustered_mean, compare

LEAST_SQUARES = LinearRegression()


def rows_of(group: list[int], weight: list[float] | None = None) -> Rows:
    n = len(group)
    ones = np.ones(n) if weight is None else np.array(weight)
    zeros = np.zeros(n, dtype=np.int64)
    return Rows(np.zeros(n), zeros, np.zeros((n, 1)), zeros == 0, np.array(group), ones)


def test_pseudo_outcomes_by_hand() -> None:
    """m1 = 3, m0 = 1, e = 0.25: 2 + (5 - 3) / 0.25 = 10 and 2 - (4 - 1) / 0.75 = -2."""
    rows = Rows(
        np.array([5.0, 4.0]),
        np.array([1, 0]),
        np.zeros((2, 1)),
        np.array([True, True]),
        np.arange(2),
        np.ones(2),
    )
    found = pseudo_outcomes(rows, lambda x: np.full(2, 3.0), lambda x: np.full(2, 1.0), 0.25)
    assert found == pytest.approx([10, -2])


def test_the_mean_s_error_counts_groups() -> None:
    """Groups of two equal rows: the error of the means 1, 2, 6 of three groups."""
    values = np.array([1.0, 1, 2, 2, 6, 6])
    mean, error = clustered_mean(values, rows_of([0, 0, 1, 1, 2, 2]))
    assert mean == 3
    assert error == pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3))
    weighted, _ = clustered_mean(values, rows_of([0, 0, 1, 1, 2, 2], [1, 1, 0, 0, 3, 3]))
    assert weighted == pytest.approx((1 + 3 * 6) / 4)


def test_losses_slopes_and_the_choice_by_hand() -> None:
    phi = np.array([0.0, 1, 2, 3])
    effects = {
        "rct": np.full(4, 1.5),
        "good": np.array([0.0, 1, 2, 4]),
        "wide": 2 * phi,
    }
    found = Comparison(phi, effects, rows_of([0, 1, 2, 3]))
    assert found.loss("rct") == 1.25
    assert found.loss("good") == 0.25
    # Differences -2.25, -0.25, -0.25, -1.25: mean -1, standard deviation 0.957.
    mean, error = found.difference("good")
    assert (mean, error) == (pytest.approx(-1), pytest.approx(0.9574 / 2, abs=1e-4))
    assert found.slope("wide") == pytest.approx(0.5)
    assert np.isnan(found.slope("rct"))
    assert found.mixed_loss("wide", 0.5) == pytest.approx(0.75**2)  # phi + 0.75 is its mixture


def test_the_share_is_the_slope_less_its_error() -> None:
    """RCT-only says 0, the candidate 1 and 2 and so on: a regression through 0, by hand."""
    phi, gap = np.array([1.0, 0.5, 2.5, 2.0]), np.array([1.0, 1, 2, 4])
    found = Comparison(phi, {"rct": np.zeros(4), "x": gap}, rows_of([0, 1, 2, 3]))
    best = (1 + 0.5 + 5 + 8) / 22
    scores = gap * (phi - best * gap)
    error = np.sqrt((scores**2).sum() * 4 / 3) / 22
    assert found.share("x", 0) == pytest.approx(best)
    assert found.share("x", 1) == pytest.approx(best - error)
    paired = Comparison(phi, found.effects, rows_of([0, 0, 1, 1]))
    sums = np.array([scores[:2].sum(), scores[2:].sum()])
    assert paired.share("x", 1) == pytest.approx(best - np.sqrt((sums**2).sum() * 2) / 22)
    assert found.share("x", 100) == 0
    assert Comparison(5 * gap, found.effects, rows_of([0, 1, 2, 3])).share("x", 0) == 1
    assert Comparison(phi, {"rct": gap, "x": gap}, rows_of([0, 1, 2, 3])).share("x", 0) == 0


def test_the_choice_is_the_mixture_of_least_loss() -> None:
    phi = np.array([0.0, 1, 2, 3])
    effects = {"rct": np.zeros(4), "near": phi * 1.1, "far": phi[::-1].copy(), "off": -phi}
    found = Comparison(phi, effects, rows_of([0, 1, 2, 3]))
    name, share = found.choice(0.5)
    assert (name, share) == ("near", pytest.approx(1 / 1.1))
    assert Comparison(phi, {"rct": phi, "off": -phi}, found.rows).choice(0) == ("rct", 0.0)
    with pytest.raises(ValueError, match="margin=-1 must not be negative"):
        found.choice(-1)


def test_no_candidate_sees_the_rows_it_is_judged_on() -> None:
    """Other outcomes in one fold: no effect learned for that fold's rows moves."""
    made = simulate.draw("hidden", "complete", 0, randomized=60, historical=200)
    recipe = Recipe(LEAST_SQUARES, ridge(), LEAST_SQUARES, e=0.5)
    found = []
    for added in (0, 100):
        rows = checked(made.y, made.t, made.x, made.s)
        fold = rows.trial.folds(recipe.folds, recipe.seed + 1)
        y = rows.trial.y + added * (fold == 2)
        history = History.learned(recipe, rows.past)
        found.append(compare(recipe, history, rows.trial.with_outcome(y), ("x", "dr")))
    for name in ("rct", "x", "dr"):
        before, after = (one.effects[name] for one in found)
        assert np.array_equal(before[fold == 2], after[fold == 2])
        assert np.abs(before[fold != 2] - after[fold != 2]).min() > 1e-9


def test_groups_and_arms_are_spread_over_the_folds() -> None:
    """Four randomized runs an arm, 13 historical: whole runs, and each fold has one of each arm."""
    group = np.repeat(np.arange(21), 3)
    t = np.repeat(np.r_[[0, 1] * 4, np.arange(13) % 2], 3)
    rows = Rows(np.zeros(63), t, np.zeros((63, 1)), group < 8, group, np.ones(63))
    fold = rows.folds(5, seed=0)
    assert sorted(set(fold)) == [0, 1, 2, 3]
    for run in range(21):
        assert len(set(fold[group == run])) == 1
    for k in range(4):
        assert [len(set(group[(fold == k) & (group < 8) & (t == arm)])) for arm in (0, 1)] == [1, 1]


def test_history_is_used_where_it_helps_and_left_where_it_misleads() -> None:
    """An unseen cause, whose bias is smooth, against a bias that no simple learner takes off."""
    shares: dict[str, list[float]] = {"hidden": [], "wiggly": []}
    for design, found in shares.items():
        for seed in range(3):
            made = simulate.draw(design, "complete", seed)
            estimator = CIO(ridge(2), heterogeneity=ridge(2), e=made.e)
            estimator.fit(made.y, made.t, X=made.x, S=made.s)
            found.append(estimator.comparison_.share("x", margin=1))
            assert (estimator.chosen_ == selection.RCT_ONLY) == (estimator.share_ == 0)
    assert np.mean(shares["hidden"]) > 0.3 and max(shares["wiggly"]) < 0.2
