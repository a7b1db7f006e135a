"""Baselines: exact where outcomes have no noise, and least squares done twice."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression

from megatron_ring.effects import simulate
from megatron_ring.effects.base import EffectEstimator
from megatron_ring.effects.baselines import (
    IntegrativeR,
    Kallus2018,
    NaivePooling,
    ObservationalOnly,
    RCTOnly,
)

LEAST_SQUARES = LinearRegression()
BOTH_ARMS = pytest.mark.parametrize("kind", [ObservationalOnly, Kallus2018, IntegrativeR])


def rows(history: str = "complete", noise: float = 0.0, e: float = 0.4) -> dict[str, np.ndarray]:
    """Y = x0 + T (2 + x0) + noise; history adds 3 + x1 to treated outcomes, 1 to the others."""
    random = np.random.default_rng(0)
    x, s = random.normal(size=(2400, 2)), (np.arange(2400) < 400).astype(int)
    t = (random.uniform(size=2400) < np.where(s == 1, e, 0.7)).astype(int)
    y = x[:, 0] + t * (2 + x[:, 0]) + (1 - s) * (1 + t * (2 + x[:, 1]))
    y += noise * random.normal(size=2400)
    keep = (s == 1) | simulate.kept(history, t)
    return {"Y": y[keep], "T": t[keep], "X": x[keep], "S": s[keep]}


def plain(of: type[EffectEstimator], **more: Any) -> EffectEstimator:
    return of(outcome=LEAST_SQUARES, heterogeneity=LEAST_SQUARES, **more)


POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
TRUTH = np.array([2.0, 3.0, 2.0])


@pytest.mark.parametrize("kind", ["t", "x", "dr"])
def test_rct_only_finds_the_effect_and_sees_no_history(kind: str) -> None:
    exact = plain(RCTOnly, kind=kind).fit(**rows())
    assert exact.effect(POINTS) == pytest.approx(TRUTH)
    other = rows()
    other["Y"][other["S"] == 0] = 1e6
    again = plain(RCTOnly, kind=kind).fit(**other)
    assert np.array_equal(again.effect(POINTS), exact.effect(POINTS))


def test_observational_only_believes_the_history() -> None:
    found = plain(ObservationalOnly).fit(**rows()).effect(POINTS)
    assert found == pytest.approx(TRUTH + 2 + POINTS[:, 1])


@pytest.mark.parametrize("history", simulate.HISTORIES)
def test_naive_pooling_is_least_squares_on_all_rows(history: str) -> None:
    made = rows(history)
    fits = [
        np.linalg.lstsq(
            np.c_[np.ones((made["T"] == t).sum()), made["X"][made["T"] == t]],
            made["Y"][made["T"] == t],
        )[0]
        for t in (1, 0)
    ]
    expected = np.c_[np.ones(3), POINTS] @ (fits[0] - fits[1])
    found = plain(NaivePooling).fit(**made).effect(POINTS)
    assert found == pytest.approx(expected)
    assert np.abs(found - TRUTH).max() > 0.3


@pytest.mark.parametrize("kind", [Kallus2018, IntegrativeR])
def test_grounding_takes_a_linear_confounding_off(kind: type[EffectEstimator]) -> None:
    """Kallus's pseudo-outcomes are noisy even where outcomes are not."""
    made = rows(noise=0.3)
    found = plain(kind, e=0.4).fit(**made).effect(POINTS)
    believed = plain(ObservationalOnly).fit(**made).effect(POINTS)
    assert np.abs(found - TRUTH).max() < 1.5 < np.abs(believed - TRUTH).max()


def test_kallus_by_hand() -> None:
    """omega plus least squares of q (y - mean) - omega on x; a shift of all outcomes is nothing."""
    made, e = rows(noise=1.0), 0.4
    trial = made["S"] == 1
    x, t, y = made["X"][trial], made["T"][trial], made["Y"][trial]
    omega = plain(ObservationalOnly).fit(**made).effect
    q = t / e - (1 - t) / (1 - e)
    eta = np.linalg.lstsq(np.c_[np.ones(400), x], q * (y - y.mean()) - omega(x))[0]
    found = plain(Kallus2018, e=e).fit(**made).effect(POINTS)
    assert found == pytest.approx(omega(POINTS) + np.c_[np.ones(3), POINTS] @ eta)
    made["Y"] += 500
    assert plain(Kallus2018, e=e).fit(**made).effect(POINTS) == pytest.approx(found)


@BOTH_ARMS
@pytest.mark.parametrize("history", ["treated_only", "control_only"])
def test_an_arm_that_history_lacks_is_named(kind: type[EffectEstimator], history: str) -> None:
    t = 1 if history == "treated_only" else 0
    message = f"{kind.__name__} needs both arms in the history; it has T={t} only: CIO does without"
    with pytest.raises(ValueError, match=message):
        plain(kind).fit(**rows(history))
    alone = {name: value[rows(history)["S"] == 1] for name, value in rows(history).items()}
    with pytest.raises(ValueError, match="it has no rows"):
        plain(kind).fit(**alone)


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind='s'; it is one of t, x, forest, dr"):
        RCTOnly("s").fit(**rows())


@pytest.mark.parametrize(
    "kind", [RCTOnly, ObservationalOnly, NaivePooling, Kallus2018, IntegrativeR]
)
def test_all_have_intervals_and_topics(kind: type[EffectEstimator]) -> None:
    made = rows(noise=1.0)
    fitted = clone(plain(kind, bootstraps=4)).fit(**made)
    low, high = fitted.effect_interval(POINTS)
    assert (low < fitted.effect(POINTS)).all() and (fitted.effect(POINTS) < high).all()
    (topic,) = fitted.summarize(np.full(len(made["Y"]), "all"))
    trial = made["X"][made["S"] == 1]
    assert topic.effect == pytest.approx(fitted.effect(trial).mean())
    assert (topic.items, topic.runs) == (400, 400)
