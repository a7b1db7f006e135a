"""Which learner of the effect to trust, and how far: loss on held-out randomized rows.

The loss of a learned effect is the mean of (phi - effect(x))^2 over randomized rows held out of its
training, phi their doubly robust pseudo-outcomes: up to a constant that all learners share, it is
their squared error (as in Foster and Syrgkanis 2023). Whole groups are held out; history is always
trained on.

Each candidate is mixed with RCT-only: the share of it with the least loss, lowered by a margin of
standard errors. So RCT-only is left only as far as held-out rows speak for it; to choose the one or
the other outright gains less and risks more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_ring.effects.learners import (
    Correction,
    History,
    Recipe,
    effect,
    pseudo_outcomes,
)
from megatron_ring.effects.rows import Array, Rows

RCT_ONLY = "rct"  # the doubly robust learner on randomized rows alone


@dataclass(frozen=True)
class Comparison:
    """Held-out pseudo-outcomes of the randomized rows, and what each candidate said of them."""

    phi: Array
    effects: dict[str, Array]  # by candidate, RCT_ONLY among them
    rows: Rows

    def loss(self, name: str) -> float:
        return float(np.average((self.phi - self.effects[name]) ** 2, weights=self.rows.weight))

    def difference(self, name: str) -> tuple[float, float]:
        """Loss less that of RCT-only, paired, and the standard error of that over groups."""
        apart = (self.phi - self.effects[name]) ** 2 - (self.phi - self.effects[RCT_ONLY]) ** 2
        return clustered_mean(apart, self.rows)

    def share(self, name: str, margin: float) -> float:
        """How far to go from RCT-only (0) to the candidate (1).

        The share of least loss, sum(gap * rest) / sum(gap^2) over rows, where the gap is between
        the two effects and the rest is what RCT-only leaves of phi; less `margin` of its standard
        errors over groups (sandwich), and cut to 0 to 1.
        """
        gap, rest = self.effects[name] - self.effects[RCT_ONLY], self.phi - self.effects[RCT_ONLY]
        weight = self.rows.weight
        size = float(weight @ gap**2)
        if size <= 0:
            return 0.0
        best = float(weight @ (gap * rest)) / size
        place = np.unique(self.rows.group, return_inverse=True)[1]
        scores = np.bincount(place, weights=weight * gap * (rest - best * gap))
        error = np.sqrt(scores @ scores * len(scores) / max(len(scores) - 1, 1)) / size
        return float(np.clip(best - margin * error, 0, 1))

    def mixed_loss(self, name: str, share: float) -> float:
        """Loss of RCT-only plus `share` of the way to the candidate."""
        alone = self.effects[RCT_ONLY]
        mixed = alone + share * (self.effects[name] - alone)
        return float(np.average((self.phi - mixed) ** 2, weights=self.rows.weight))

    def choice(self, margin: float) -> tuple[str, float]:
        """The candidate whose mixture has the least loss, and its share; RCT-only where all are 0.

        ValueError for a negative margin.
        """
        if margin < 0:
            raise ValueError(f"margin={margin} must not be negative; 0 trusts held-out loss as is")
        shares = {name: self.share(name, margin) for name in self.effects if name != RCT_ONLY}
        losses = {name: self.mixed_loss(name, s) for name, s in shares.items() if s > 0}
        best = min(losses, key=losses.__getitem__, default=RCT_ONLY)
        return best, shares.get(best, 0.0)

    def slope(self, name: str) -> float:
        """Slope of phi on the held-out effects: 1 where their spread is right, 0 where it is noise.

        The best linear predictor of Chernozhukov et al. 2018; NaN where the effects do not differ.
        """
        learned, weight = self.effects[name], self.rows.weight
        centred = learned - np.average(learned, weights=weight)
        spread = float(weight @ centred**2)
        return float(weight @ (centred * self.phi)) / spread if spread > 1e-12 else float("nan")


def clustered_mean(values: npt.ArrayLike, rows: Rows) -> tuple[float, float]:
    """Weighted mean over rows, and its standard error where groups are the units."""
    mean = float(np.average(values, weights=rows.weight))
    groups, place = np.unique(rows.group, return_inverse=True)
    sums = np.bincount(place, weights=rows.weight * (values - mean))
    n = len(groups)
    error = float(np.sqrt((sums**2).sum() * n / max(n - 1, 1)) / rows.weight.sum())
    return mean, error


def compare(recipe: Recipe, history: History, trial: Rows, candidates: Sequence[str]) -> Comparison:
    """Each candidate, and RCT-only, trained without one fold of the randomized rows at a time."""
    nothing = History(history.rows.of(np.zeros(len(history.rows), dtype=bool)), {})
    fold = trial.folds(recipe.folds, recipe.seed + 1)  # not the folds inside of learners
    phi = np.empty(len(trial))
    effects = {name: np.empty(len(trial)) for name in (RCT_ONLY, *candidates)}
    for k in np.unique(fold):
        own = fold == k
        held, train = trial.of(own), trial.of(~own)
        alone, joint = (Correction(recipe, past, train) for past in (nothing, history))
        both = [pseudo_outcomes(held, c.surface(1), c.surface(0), recipe.e) for c in (alone, joint)]
        phi[own] = np.mean(both, axis=0)
        effects[RCT_ONLY][own] = effect("dr", alone)(held.x)
        for name in candidates:
            effects[name][own] = effect(name, joint)(held.x)
    return Comparison(phi, effects, trial)
