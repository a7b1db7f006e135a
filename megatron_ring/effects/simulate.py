"""Designs with a known effect: a small randomized sample, and a large confounded history."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from megatron_ring.effects.rows import Array

V = TypeVar("V")
FEATURES = 5
STRENGTH = 3.0  # of what history adds to outcomes of the treated
UNSEEN = 2.0
NOISE = 1.0
HISTORIES = ("complete", "treated_only", "control_only")


@dataclass(frozen=True)
class Draw:
    """Rows of one draw, and the effect at features that no row has."""

    y: Array
    t: npt.NDArray[np.int64]
    x: Array
    s: npt.NDArray[np.int64]
    test_x: Array
    test_effect: Array
    e: float  # the coin's chance of T=1 among the randomized


@dataclass(frozen=True)
class Design:
    """How history came about. X, what is unseen, and the noise are standard normal in both sources.

    The paper's own functions could not be had; these have its sizes and, for "paper", its
    outcome model, Y = T (effect(x) + (1 - S) c(x)) + baseline(x) + noise.
    """

    chance: Callable[[Array, Array], Array]  # of x and the unseen u: log-odds of T=1 in history
    unseen: float = 0.0  # what a unit of u adds to Y, in both sources
    added: Callable[[Array, Array], Array] = lambda x, t: np.zeros(len(x))  # to Y in history alone


def baseline(x: Array) -> Array:
    return 2 * np.sin(x[:, 0]) + x[:, 1] ** 2 - x[:, 2] * x[:, 3] + x[:, 4]


def effect(x: Array) -> Array:
    return 2 + x[:, 0] - 0.5 * x[:, 2] + 0.7 * x[:, 0] * x[:, 1] + 0.5 * (x[:, 3] ** 2 - 1)


def _sum(x: Array, u: Array) -> Array:
    return x.sum(axis=1)


def _by_unseen(x: Array, u: Array) -> Array:
    return 0.5 * x[:, 0] + 2 * u


def _smooth(x: Array, t: Array) -> Array:
    return STRENGTH * t * (0.5 + 0.5 * x[:, 0] - 0.5 * x[:, 3])


def _rough(x: Array, t: Array) -> Array:
    rough = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + x[:, 3] ** 2 - 1
    return STRENGTH * (t - 0.5) * rough


def _site(x: Array, t: Array) -> Array:
    return 1 + x[:, 0] - x[:, 1]


DESIGNS = {
    # Something unseen drives T and Y; given x and T its mean is a smooth function of x.
    "hidden": Design(_by_unseen, unseen=UNSEEN),
    # The paper's outcome model and chance of treatment.
    "paper": Design(_sum, added=_smooth),
    # As hidden, and history was measured at another site.
    "shift": Design(_by_unseen, unseen=UNSEEN, added=_site),
    # A bias in both arms as rough as the outcome, which no simple learner takes off.
    "wiggly": Design(_sum, added=_rough),
}


def draw(
    design: str,
    history: str,
    seed: int,
    *,
    randomized: int = 200,
    historical: int = 3000,
    test: int = 2000,
    e: float = 0.5,
) -> Draw:
    """One draw. `historical` rows are made before an arm is left out of `history`.

    ValueError for a design or a history of another name.
    """
    chosen = named("design", design, DESIGNS)
    random = np.random.default_rng(seed)
    n = randomized + historical
    x, u = random.normal(size=(n, FEATURES)), random.normal(size=n)
    s = (np.arange(n) < randomized).astype(np.int64)
    odds = np.where(s == 1, np.log(e / (1 - e)), chosen.chance(x, u))
    t = (random.uniform(size=n) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    y = baseline(x) + t * effect(x) + chosen.unseen * u + NOISE * random.normal(size=n)
    y += (1 - s) * chosen.added(x, t)
    keep = (s == 1) | kept(history, t)
    test_x = np.random.default_rng(10**6 + seed).normal(size=(test, FEATURES))
    return Draw(y[keep], t[keep], x[keep], s[keep], test_x, effect(test_x), e)


def kept(history: str, t: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which historical rows there are."""
    named("history", history, dict.fromkeys(HISTORIES))
    wanted = {"complete": (0, 1), "treated_only": (1,), "control_only": (0,)}[history]
    return np.isin(t, wanted)


def named(what: str, name: str, known: Mapping[str, V]) -> V:
    """What has this name; ValueError lists the names there are."""
    if name not in known:
        raise ValueError(f"{what}={name!r}; it is one of {', '.join(known)}")
    return known[name]
