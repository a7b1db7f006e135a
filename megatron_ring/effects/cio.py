"""CIO: effects from a few randomized rows and a long, confounded, perhaps one-armed history."""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from megatron_ring.effects import covariates, learners, selection
from megatron_ring.effects.base import EffectEstimator, given, one_thread
from megatron_ring.effects.learners import Correction, Function, History, Recipe
from megatron_ring.effects.rows import ARMS, Array, Rows

CANDIDATES = ("x", "dr")  # beside RCT-only, of final="auto"
COMPLETENESS = {(0, 1): "complete", (1,): "treated_only", (0,): "control_only", (): "none"}
PSEUDO_CONTROLS = ("arm", "all")
FEW_RUNS = 8  # an arm, below which intervals lean on Student's quantiles
LARGE_BIAS = 0.5  # of the outcomes' standard deviation
OUTSIDE = 0.05  # share of historical rows beyond the randomized ones that is worth a word


class CIO(EffectEstimator):
    """Effects from randomized and historical rows (Yao et al., CIKM 2024), arm against same arm.

    Beside EffectEstimator's parameters: `bias`, the learner of bias functions, which must be
    simpler than `outcome` to gain anything (ridge if None); `bias_step`, how it is used: regress
    the historical surface less randomized outcomes ("x"), the difference of two surfaces ("t"), or
    econml's DRLearner ("dr") or CausalForestDML ("forest") with the source as treatment; `final`:
    "t", "x", "forest", "dr", or "auto": RCT-only, moved towards that of CANDIDATES with the least
    held-out randomized loss, as far as held-out rows speak for it less `margin` standard errors
    (selection.py); `arms` of history to use: "auto" for all it has, or a tuple; `borrow` a missing
    arm's shape from the other one; `pseudo_control`: "arm", or "all" randomized rows, as the paper
    was relayed, which attenuates the effect by 1 - w (1 - e) and is here to show it.

    After `fit`: `completeness_`, `chosen_` ("rct" for RCT-only) and its `share_`, the rest being
    RCT-only, `comparison_` (None unless "auto"), `corrected_outcome_` (a number a row; of
    randomized outcomes only W is taken off).
    """

    def __init__(
        self,
        outcome: BaseEstimator | None = None,
        bias: BaseEstimator | None = None,
        heterogeneity: BaseEstimator | None = None,
        *,
        bias_step: str = "x",
        final: str = "auto",
        arms: str | tuple[int, ...] = "auto",
        borrow: bool = True,
        pseudo_control: str = "arm",
        e: float | None = None,
        folds: int = 4,
        margin: float = 1.0,
        bootstraps: int = 100,
        random_state: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.outcome = outcome
        self.bias = bias
        self.heterogeneity = heterogeneity
        self.bias_step = bias_step
        self.final = final
        self.arms = arms
        self.borrow = borrow
        self.pseudo_control = pseudo_control
        self.e = e
        self.folds = folds
        self.margin = margin
        self.bootstraps = bootstraps
        self.random_state = random_state
        self.n_jobs = n_jobs

    def bias_function(self, X: npt.ArrayLike, arm: int) -> Array:
        """How far historical outcomes of this arm lie above randomized ones, at each row of X."""
        return self.correction_.bias(arm)(self._features(X))

    @one_thread
    def diagnostics(self) -> dict[str, Any]:
        """What the rows are, what the bias looks like, what was chosen, and `flags` in words.

        Learns the candidates again without each fold, if `final` was not "auto".
        """
        check_is_fitted(self)
        rows, comparison = self.rows_, self.comparison_
        if comparison is None:
            names = CANDIDATES if self.chosen_ == selection.RCT_ONLY else (self.chosen_,)
            comparison = self._compare(names) if self.completeness_ != "none" else None
        found: dict[str, Any] = {
            "completeness": self.completeness_,
            "chosen": self.chosen_,
            "share": self.share_,
            "rows": {s: {t: len(r.arm(t)) for t in ARMS} for s, r in _sources(rows).items()},
            "runs": {s: {t: r.groups_of(t) for t in ARMS} for s, r in _sources(rows).items()},
            "bias": {t: self._size_of_bias(t) for t in self.correction_.arms},
            "outside": self._outside(),
            "held_out": {},
        }
        for name in comparison.effects if comparison else ():
            apart, error = comparison.difference(name)
            found["held_out"][name] = {
                "loss": comparison.loss(name),
                "difference": apart,
                "error": error,
                "slope": comparison.slope(name),
                "share": comparison.share(name, self.margin),
            }
        return found | {"flags": self._flags(found)}

    def _learn(self, rows: Rows) -> Function:
        past, trial = self._past(rows), rows.trial
        self.completeness_ = COMPLETENESS[past.arms]
        recipe = self._checked_recipe(rows)
        self.history_ = History.learned(recipe, past)
        self.correction_ = Correction(recipe, self.history_, trial)
        self.comparison_, self.chosen_, self.share_ = None, self.final, 1.0
        if self.completeness_ == "none":
            self.chosen_, self.share_ = selection.RCT_ONLY, 0.0
            return learners.effect("dr" if self.final == "auto" else self.final, self.correction_)
        if self.final == "auto":
            self.comparison_ = selection.compare(recipe, self.history_, trial, CANDIDATES)
            self.chosen_, self.share_ = self.comparison_.choice(self.margin)
        if self.share_ == 1:
            return learners.effect(self.chosen_, self.correction_)
        nothing = self.history_.rows.of(np.zeros(len(past), dtype=bool))
        alone = learners.effect("dr", Correction(recipe, History(nothing, {}), trial))
        if self.share_ == 0:
            return alone
        joint, share = learners.effect(self.chosen_, self.correction_), self.share_
        return lambda x: alone(x) + share * (joint(x) - alone(x))

    @property
    def corrected_outcome_(self) -> Array:
        rows, correction = covariates.adjusted(self.rows_, self.w_), self.correction_
        y = rows.y.copy()
        for t in correction.arms:
            own = ~rows.randomized & (rows.t == t)
            y[own] -= correction.bias(t)(rows.x[own])
        return y

    def _past(self, rows: Rows) -> Rows:
        """Historical rows of the arms asked for; ValueError for an arm that is none or missing."""
        past = rows.past
        if self.arms == "auto":
            return past
        wanted = self.arms if isinstance(self.arms, tuple | list) else ("",)
        if any(t not in past.arms for t in wanted):
            raise ValueError(
                f"arms={self.arms!r}: the history has rows of {past.arms or 'no arm'}; write "
                "'auto' or a tuple of those"
            )
        return past.of(np.isin(past.t, wanted))

    def _checked_recipe(self, rows: Rows) -> Recipe:
        for name, value, allowed in (
            ("bias_step", self.bias_step, learners.BIAS_STEPS),
            ("final", self.final, (*learners.FINALS, "auto")),
            ("pseudo_control", self.pseudo_control, PSEUDO_CONTROLS),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}; it is one of {', '.join(allowed)}")
        return self._recipe(
            rows,
            bias=given(self.bias, learners.ridge()),
            bias_step=self.bias_step,
            borrow=self.borrow,
            pseudo_control=self.pseudo_control,
        )

    def _compare(self, names: tuple[str, ...]) -> selection.Comparison:
        c = self.correction_
        return selection.compare(c.recipe, c.history, c.trial, names)

    def _size_of_bias(self, t: int) -> dict[str, float]:
        past = self.history_.rows.arm(t)
        bias = self.correction_.bias(t)(past.x)
        return {"mean": float(bias.mean()), "sd": float(bias.std())}

    def _outside(self) -> float:
        """Share of historical rows with a feature beyond the range of the randomized ones."""
        x, past = self.rows_.trial.x, self.history_.rows.x
        beyond = (past < x.min(axis=0)) | (past > x.max(axis=0))
        return float(beyond.any(axis=1).mean()) if len(past) else 0.0

    def _flags(self, found: dict[str, Any]) -> list[str]:
        flags = []
        if self.completeness_ == "none":
            flags.append("there is no history: this is the effect by randomized rows alone")
        elif self.completeness_ != "complete":
            missing = "treated" if self.completeness_ == "control_only" else "control"
            how = "borrowed from the other arm" if self.borrow else "from randomized rows alone"
            flags.append(f"the history has no {missing} rows: that arm's outcomes are {how}")
        least = min(found["runs"]["randomized"].values())
        if least < FEW_RUNS:
            flags.append(f"{least} randomized runs in the smaller arm: intervals are wide")
        count, used = self.w_.shape[1], len(self._covariates())
        if used < count:
            flags.append(
                f"{count - used} of {count} columns of W cannot be told from the arm or from each "
                "other in the randomized runs, or those are too few: they are not taken off"
            )
        spread = float(np.std(self.rows_.trial.y))
        for t, size in found["bias"].items():
            if abs(size["mean"]) > LARGE_BIAS * spread:
                flags.append(
                    f"history of arm {t} is off by {size['mean']:+.3g} on average, against an "
                    f"outcome spread of {spread:.3g}: read without correction it misleads"
                )
        if found["outside"] > OUTSIDE:
            flags.append(
                f"{found['outside']:.0%} of historical rows lie beyond the randomized ones in a "
                "feature: there the bias is extrapolated"
            )
        if self.completeness_ != "none" and self.chosen_ == selection.RCT_ONLY:
            flags.append("history did not improve held-out loss: this is RCT-only")
        return flags


def _sources(rows: Rows) -> dict[str, Rows]:
    return {"randomized": rows.trial, "historical": rows.past}
