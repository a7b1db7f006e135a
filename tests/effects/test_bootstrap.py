"""Weights of groups against the variance of a mean; intervals against how often they hold."""

from typing import ClassVar

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from threadpoolctl import threadpool_info, threadpool_limits

from megatron_ring.effects import bootstrap
from megatron_ring.effects.baselines import RCTOnly
from megatron_ring.effects.cio import CIO
from megatron_ring.effects.rows import Rows, checked

LEAST_SQUARES = LinearRegression()


def runs(count: int, items: int, past: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Randomized runs, half of each arm, then `past` confounded ones, on the same items.

    Y = x + T (1 + x) + the run's own shift (sd 0.5) + noise (sd 0.5). In history, runs with a high
    shift are treated more often, and all are 0.4 better.
    """
    random = np.random.default_rng(seed)
    x = np.linspace(-1, 1, items)
    shift = 0.5 * random.normal(size=count + past)
    coin = random.permutation(np.arange(count) % 2)
    chosen = random.uniform(size=past) < 1 / (1 + np.exp(-4 * shift[count:]))
    t = np.r_[coin, chosen.astype(int)]
    s = np.arange(count + past) < count
    y = x + t[:, None] * (1 + x) + shift[:, None] + 0.4 * ~s[:, None]
    y = y + 0.5 * random.normal(size=y.shape)
    return {
        "Y": y.ravel(),
        "T": np.repeat(t, items),
        "X": np.tile(x, count + past)[:, None],
        "S": np.repeat(s, items).astype(int),
        "groups": np.repeat(np.arange(count + past), items),
    }


def rows_of(count: int, items: int, past: int = 0) -> Rows:
    made = runs(count, items, past)
    return checked(made["Y"], made["T"], made["X"], made["S"], made["groups"])


def test_weights_are_a_run_s_and_keep_the_size_of_each_arm_and_source() -> None:
    rows = rows_of(10, 7, past=20)
    for factor in bootstrap.weights(rows, 5, seed=0):
        assert (factor > 0).all()
        for run in range(30):
            assert np.ptp(factor[rows.group == run]) == 0
        for source in (rows.randomized, ~rows.randomized):
            for t in (0, 1):
                own = source & (rows.t == t)
                assert factor[own].sum() == pytest.approx(own.sum())
    again = [next(bootstrap.weights(rows, 1, seed=s)) for s in (0, 0, 1)]
    assert np.array_equal(again[0], again[1]) and not np.array_equal(again[0], again[2])


@pytest.mark.parametrize("count", [3, 4, 12])
def test_a_mean_varies_as_much_as_it_should(count: int) -> None:
    """s^2 / n, even for three runs, where draws with replacement give two thirds of it."""
    rows = rows_of(2 * count, 1)
    y = rows.y[rows.t == 1]
    means = [
        np.average(y, weights=factor[rows.t == 1])
        for factor in bootstrap.weights(rows, 6000, seed=1)
    ]
    assert np.var(means) == pytest.approx(np.var(y, ddof=1) / count, rel=0.1)


def test_reach_is_student_s() -> None:
    """Ten runs, 8 degrees, and 41 replicates, 40: 1 / (1/8 + 1/40) = 20/3 degrees.

    Their two-sided 90 % quantile lies between those of six and of seven, 1.9432 and 1.8946; it is
    interpolated in 1 / degrees.
    """
    rows = rows_of(10, 3)
    replicates = np.c_[np.r_[np.zeros(20), np.ones(21)], np.zeros(41)]
    quantile = 1.8946 + (0.15 - 1 / 7) / (1 / 6 - 1 / 7) * (1.9432 - 1.8946)
    spread = np.sqrt(20 * 21 / 41 / 40)
    found = bootstrap.reach(replicates, rows, alpha=0.1)
    assert found == pytest.approx([quantile * spread, 0], abs=1e-3)
    with pytest.raises(ValueError, match="alpha=1.5 must be between 0 and 1"):
        bootstrap.reach(replicates, rows, alpha=1.5)


def coverage(draws: int, bootstraps: int, final: str) -> float:
    """How often intervals of 90 % hold the effect, of six items and of two topics' means."""
    x = np.linspace(-1, 1, 6)[:, None]
    made = dict(outcome=LEAST_SQUARES, bias=LEAST_SQUARES, heterogeneity=LEAST_SQUARES)
    held = []
    for seed in range(draws):
        rows = runs(12, 6, past=30, seed=seed)
        estimator = CIO(**made, final=final, e=0.5, folds=3, bootstraps=bootstraps)
        low, high = estimator.fit(**rows).effect_interval(x, alpha=0.1)
        held += [*((low < 1 + x[:, 0]) & (1 + x[:, 0] < high))]
        topics = estimator.summarize(np.tile(list("aaabbb"), 42), alpha=0.1)
        for topic, effect in zip(topics, (0.4, 1.6), strict=True):
            held.append(topic.low < effect < topic.high)
    return float(np.mean(held))


def test_intervals_hold_the_effect() -> None:
    """Nominal 90 %; with runs as units, though rows are six times as many."""
    assert coverage(draws=60, bootstraps=15, final="t") >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("final", "draws"), [("x", 200), ("dr", 200), ("auto", 40)])
def test_intervals_hold_the_effect_over_many_draws(final: str, draws: int) -> None:
    """Choosing is learned again in each replicate, which takes its time."""
    assert coverage(draws, bootstraps=30, final=final) >= 0.85


def test_rows_as_units_would_claim_too_much() -> None:
    """The same rows, with and without their runs: the run's own shift is half of the variance."""
    rows = runs(12, 12)
    x = np.zeros((1, 1))
    widths = []
    for groups in (rows["groups"], None):
        alone = RCTOnly("t", LEAST_SQUARES, bootstraps=60).fit(**{**rows, "groups": groups})
        low, high = alone.effect_interval(x)
        widths.append(float(high[0] - low[0]))
    assert widths[0] > 1.7 * widths[1]


def test_processes_change_no_number_and_steps_are_told() -> None:
    made = runs(8, 5, past=8)
    found = []
    for jobs in (None, 2):
        estimator = CIO(LEAST_SQUARES, final="x", bootstraps=4, n_jobs=jobs).fit(**made)
        assert list(estimator.replicate()) == [1, 2, 3, 4]
        found.append(estimator.effect_interval(made["X"][:5]))
    assert np.array_equal(found[0], found[1])
    with pytest.raises(ValueError, match="bootstraps=1: intervals need 2"):
        list(RCTOnly("dr", LEAST_SQUARES, bootstraps=1).fit(**made).replicate())


class Counting(LinearRegression):
    """Least squares that notes the threads it might use."""

    threads: ClassVar[set[int]] = set()

    def fit(
        self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None
    ) -> "Counting":
        self.threads.update(pool["num_threads"] for pool in threadpool_info())
        return super().fit(X, y, sample_weight)


def test_fits_take_one_thread_whatever_the_machine_has() -> None:
    made = runs(8, 5, past=8)
    with threadpool_limits(limits=2):
        estimator = CIO(Counting(), Counting(), final="x", bootstraps=2).fit(**made)
        estimator.effect_interval(made["X"][:5])
    assert Counting.threads == {1}
