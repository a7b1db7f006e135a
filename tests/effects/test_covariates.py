"""Other changes of the runs: taken off exactly without noise, and honestly with it."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

from megatron_ring.effects import covariates
from megatron_ring.effects import design as designs
from megatron_ring.effects.baselines import RCTOnly
from megatron_ring.effects.cio import CIO
from megatron_ring.effects.report import true_effect
from megatron_ring.effects.rows import checked
from megatron_ring.effects.tables import Tables
from tests.effects.making import eval_row, misleading

LEAST_SQUARES = LinearRegression()


def factorial(
    seeds: int, past: int = 0, noise: float = 0.0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Randomized runs of a change and another one, all four together `seeds` times, on 4 items.

    Y = x + T (1 + x) + other (3 - 2 x) + the run's own shift + noise; in history the other change
    is worth 1 more, and goes along with T.
    """
    random = np.random.default_rng(seed)
    x = np.array([-1.0, 0.0, 0.5, 1.0])
    t, w = np.tile([0, 0, 1, 1], seeds), np.tile([0, 1, 0, 1], seeds)
    chosen = random.integers(2, size=past)
    t, w = np.r_[t, chosen], np.r_[w, np.where(random.uniform(size=past) < 0.7, chosen, 1 - chosen)]
    s = np.arange(len(t)) < 4 * seeds
    worth = 3 - 2 * x + 1.0 * ~s[:, None]
    y = x + t[:, None] * (1 + x) + w[:, None] * worth
    y = y + noise * (random.normal(size=len(t))[:, None] + random.normal(size=y.shape))
    return {
        "Y": y.ravel(),
        "T": np.repeat(t, 4),
        "X": np.tile(x, len(t))[:, None],
        "S": np.repeat(s, 4).astype(int),
        "W": np.repeat(w, 4)[:, None].astype(float),
        "groups": np.repeat(np.arange(len(t)), 4),
    }


def test_what_others_do_is_taken_off_in_each_source() -> None:
    made = factorial(3, past=20)
    w = made.pop("W")
    rows = checked(made["Y"], made["T"], made["X"], made["S"], made["groups"], None)
    x = made["X"][:, 0]
    half_of_it = 0.5 * (3 - 2 * x + (made["S"] == 0))  # as if half of the runs had it
    right = x + made["T"] * (1 + x) + half_of_it
    np.testing.assert_allclose(covariates.adjusted(rows, w).y, right, atol=1e-9)
    assert covariates.adjusted(rows, w[:, :0]) is rows


def test_columns_that_cannot_be_told_apart_stay() -> None:
    made = factorial(3)
    rows = checked(made["Y"], made["T"], made["X"], made["S"], made["groups"], None)
    other, random = made["W"][:, 0], np.random.default_rng(0)
    same, constant = 1 - made["T"], np.ones(len(rows))
    third = np.repeat(random.integers(2, size=12), 4)
    w = np.column_stack([same, other, constant, 2 * other - made["T"], third])
    assert covariates.usable(rows, w) == [1, 4]
    few = rows.of(rows.group < 5)
    assert covariates.usable(few, w[rows.group < 5]) == [1]  # of five groups, one more at most
    assert covariates.usable(few.of(few.group < 4), w[rows.group < 4]) == []


def test_what_is_not_taken_off_is_told() -> None:
    made = factorial(3, past=20)
    both = np.column_stack([made["W"], made["T"]])
    learners = dict(outcome=LEAST_SQUARES, heterogeneity=LEAST_SQUARES, final="x")
    for w, told in ((both, ["1 of 2 columns of W cannot"]), (made["W"], [])):
        flags = CIO(**learners).fit(**{**made, "W": w}).diagnostics()["flags"]
        assert [flag[:26] for flag in flags if "columns of W" in flag] == told


def test_an_estimate_is_of_one_change_whatever_the_others() -> None:
    made = factorial(3, past=20)
    x = np.linspace(-1, 1, 5)[:, None]
    learners = dict(outcome=LEAST_SQUARES, heterogeneity=LEAST_SQUARES)
    estimator = CIO(bias=LEAST_SQUARES, final="x", **learners).fit(**made)
    np.testing.assert_allclose(estimator.effect(x), 1 + x[:, 0], atol=1e-9)
    corrected = estimator.corrected_outcome_[made["S"] == 0]
    own = made["S"] == 0
    features = made["X"][own, 0]
    right = features + made["T"][own] * (1 + features) + 0.5 * (3 - 2 * features)
    np.testing.assert_allclose(corrected, right, atol=1e-9)
    del made["W"]
    without = CIO(bias=LEAST_SQUARES, final="x", **learners).fit(**made)
    assert abs(without.corrected_outcome_[own] - right).max() > 1


def test_intervals_are_narrower_and_still_hold_the_effect() -> None:
    """Nominal 90 %, 12 randomized runs; the other change is worth six times the noise."""
    x, held, narrower = np.linspace(-1, 1, 4)[:, None], [], []
    for seed in range(60):
        made = factorial(3, noise=0.5, seed=seed)
        alone = RCTOnly("t", LEAST_SQUARES, bootstraps=20)
        low, high = alone.fit(**made).effect_interval(x, alpha=0.1)
        held += [*((low < 1 + x[:, 0]) & (1 + x[:, 0] < high))]
        if seed < 10:
            others = alone.fit(**{**made, "W": None}).effect_interval(x, alpha=0.1)
            narrower.append((high - low).mean() / (others[1] - others[0]).mean())
    assert np.mean(held) >= 0.85
    assert np.median(narrower) < 0.5


def test_the_truth_is_told_without_the_others() -> None:
    """Two changes in all combinations, one worth 0.4: the slope of least squares and its error."""
    found = misleading(randomized=6, history=0)
    runs = [
        run.model_copy(update={"interventions": run.interventions | {"also": n // 2 % 2}})
        for n, run in enumerate(found.runs)
    ]
    also = {run.run_id: run.interventions["also"] for run in runs}
    evals = [eval_row(e.run_id, e.item_id, e.score + 0.4 * also[e.run_id]) for e in found.evals]
    made = designs.make(Tables(runs, found.items, evals), "worked")
    assert made.others == ["also"]
    assert made.w[:: len(made.items), 0].tolist() == [n // 2 % 2 for n in range(12)]
    cell = true_effect(made, None, 0.1)
    x = np.column_stack([np.ones(12), made.arms, made.w[:: len(made.items), 0]])
    slopes = np.linalg.lstsq(x, made.means(), rcond=None)[0]
    assert cell["value"] == pytest.approx(slopes[1])
    # Welch's test of what is left, with nine degrees for its variance where it believes in ten.
    left = made.means() - slopes[2] * x[:, 2]
    welch = stats.ttest_ind(left[made.arms == 1], left[made.arms == 0], equal_var=False)
    error = slopes[1] / welch.statistic * np.sqrt(10 / 9)
    reach = stats.t.ppf(0.95, welch.df - 1) * error
    assert (cell["high"] - cell["low"]) / 2 == pytest.approx(reach)


@pytest.mark.parametrize(
    ("w", "told"),
    [
        (np.zeros((3, 1)), "W has the shape (3, 1) and Y 48 rows; give a row for each"),
        (np.full(48, np.nan), "W has 48 values that are no numbers; drop those columns or rows"),
    ],
)
def test_what_is_refused(w: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError) as error:
        RCTOnly().fit(**{**factorial(3), "W": w})
    assert str(error.value) == told
