"""The steps of CIO: bias functions by arm, corrected outcomes, and learners of the effect.

b_t(x) = E[Y | x, T=t, history] - E[Y | x, T=t, randomized] is taken off historical outcomes of arm
t; then any learner of heterogeneous effects may use both sources (Yao et al., CIKM 2024, arXiv
2410.21343; each arm against the same arm, so that no effect is taken for bias).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils.validation import has_fit_parameter

from megatron_ring.effects.rows import Array, Rows, joined

if TYPE_CHECKING:
    from econml.dml import CausalForestDML

Function = Callable[[Array], Array]  # features N x F -> N numbers

BIAS_STEPS = ("t", "x", "dr", "forest")
FINALS = ("t", "x", "forest", "dr")
FOREST_TREES = 200
LEAST_PROPENSITY = 0.02  # of the source, which most rows of an arm share


def ridge(degree: int = 1) -> Pipeline:
    """Ridge on polynomials of standardized features, its penalty by leave-one-out."""
    steps = [StandardScaler()]
    if degree > 1:
        steps += [PolynomialFeatures(degree, include_bias=False), StandardScaler()]
    return make_pipeline(*steps, RidgeCV(alphas=np.logspace(-2, 4, 13)))


def boosting(seed: int = 0) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(max_iter=100, random_state=seed)


class Routed(RegressorMixin, BaseEstimator):
    """A regressor whose sample_weight reaches the last step of a pipeline as well."""

    def __init__(self, estimator: BaseEstimator) -> None:
        self.estimator = estimator

    def fit(self, X: Array, y: Array, sample_weight: Array | None = None) -> "Routed":
        """ValueError for weights that differ, where the estimator takes none."""
        self.fitted_ = clone(self.estimator)
        pipeline = isinstance(self.fitted_, Pipeline)
        last = self.fitted_.steps[-1][1] if pipeline else self.fitted_
        name = f"{self.fitted_.steps[-1][0]}__sample_weight" if pipeline else "sample_weight"
        weights = {}
        if sample_weight is not None and np.ptp(sample_weight) > 0:
            if not has_fit_parameter(last, "sample_weight"):
                raise ValueError(
                    f"{type(last).__name__} takes no sample_weight, which weighted rows and the "
                    "bootstrap need; choose a regressor that does, such as RidgeCV"
                )
            weights[name] = sample_weight
        self.fitted_.fit(X, y, **weights)
        return self

    def predict(self, X: Array) -> Array:
        return np.asarray(self.fitted_.predict(X), dtype=float).ravel()


@dataclass(frozen=True)
class Recipe:
    """What the steps are made with. `e`: share of the randomized that are treated."""

    outcome: BaseEstimator
    bias: BaseEstimator
    heterogeneity: BaseEstimator
    e: float
    bias_step: str = "x"
    bias_columns: tuple[int, ...] = ()  # all where empty
    borrow: bool = True
    pseudo_control: str = "arm"
    folds: int = 4
    seed: int = 0

    def simple(self, x: Array) -> Array:
        """The features that a bias function may use."""
        return x[:, list(self.bias_columns)] if self.bias_columns else x


def regress(estimator: BaseEstimator, x: Array, y: Array, weight: Array) -> Function:
    return Routed(estimator).fit(x, y, sample_weight=weight).predict


@dataclass(frozen=True)
class History:
    """Historical rows, and E[Y | x, T=t] in them for each arm t they have."""

    rows: Rows
    surfaces: dict[int, Function]

    @classmethod
    def learned(cls, recipe: Recipe, past: Rows) -> "History":
        arms = {t: past.arm(t) for t in past.arms}
        fitted = {t: regress(recipe.outcome, r.x, r.y, r.weight) for t, r in arms.items()}
        return cls(past, fitted)


@dataclass(frozen=True)
class Correction:
    """Bias functions of the history's arms, against these randomized rows."""

    recipe: Recipe
    history: History
    trial: Rows
    _made: dict[tuple[str, int], Function] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[int, ...]:
        """The arms that are corrected: all there are, but for the variant as printed."""
        arms = self.history.rows.arms
        return (1,) if self.recipe.pseudo_control == "all" and len(arms) == 2 else arms

    def bias(self, t: int) -> Function:
        """b_t; ValueError where the history has no such arm, so no bias of it."""
        if t not in self.arms:
            raise ValueError(
                f"arm={t}: the history has no such rows, so there is no bias function of that arm; "
                f"it has {', '.join(map(str, self.arms)) or 'none'}"
            )
        return self._once("bias", t, self._learn_bias)

    def surface(self, t: int) -> Function:
        """E[Y(t) | x] of the randomized: corrected history, else borrowed, else from the trial."""
        return self._once("surface", t, self._learn_surface)

    @cached_property
    def pool(self) -> Rows:
        """Randomized rows, and historical ones with corrected outcomes."""
        past = self.history.rows
        y = past.y.copy()
        for t in self.arms:
            own = past.t == t
            y[own] -= self.bias(t)(past.x[own])
        return joined(self.trial, past.with_outcome(y))

    def borrowed(self, t: int) -> bool:
        """Whether arm t, absent from history, takes its shape from the other arm there."""
        return self.recipe.borrow and t not in self.arms and bool(self.arms)

    def _once(self, what: str, t: int, learn: Callable[[int], Function]) -> Function:
        if (what, t) not in self._made:
            self._made[what, t] = learn(t)
        return self._made[what, t]

    def _learn_surface(self, t: int) -> Function:
        own = self.trial.arm(t)
        if t in self.arms:
            return minus(self.history.surfaces[t], self.bias(t))
        if self.borrowed(t):
            other = self.history.surfaces[1 - t]
            return minus(other, self._simple_gap(other, own))
        return regress(self.recipe.outcome, own.x, own.y, own.weight)

    def _learn_bias(self, t: int) -> Function:
        control = self.trial if self.recipe.pseudo_control == "all" else self.trial.arm(t)
        surface = self.history.surfaces[t]
        if self.recipe.bias_step == "x":
            return self._simple_gap(surface, control)
        if self.recipe.bias_step == "t":
            return minus(
                surface, regress(self.recipe.outcome, control.x, control.y, control.weight)
            )
        return _source_effect(self.recipe, self.history.rows.arm(t), control)

    def _simple_gap(self, surface: Function, rows: Rows) -> Function:
        """How far `surface` lies above the outcomes of `rows`, by the bias learner."""
        simple = self.recipe.simple
        gap = surface(rows.x) - rows.y
        learned = regress(self.recipe.bias, simple(rows.x), gap, rows.weight)
        return lambda x: learned(simple(x))


def minus(one: Function, other: Function) -> Function:
    return lambda x: one(x) - other(x)


def effect(final: str, correction: Correction) -> Function:
    """The effect at x, by one of FINALS."""
    learn = {"t": two_surfaces, "x": crossed, "forest": forest, "dr": doubly_robust}
    return learn[final](correction)


def two_surfaces(correction: Correction) -> Function:
    """T-learner: one regression an arm on the pool."""
    one, zero = (_pooled_surface(correction, t) for t in (1, 0))
    return minus(one, zero)


def crossed(correction: Correction) -> Function:
    """X-learner (Künzel et al. 2019) on the pool, with the pool's own share of treated at x."""
    recipe, pool = correction.recipe, correction.pool
    one, zero = (_pooled_surface(correction, t) for t in (1, 0))
    treated, control = pool.arm(1), pool.arm(0)
    from_treated = regress(
        recipe.heterogeneity, treated.x, treated.y - zero(treated.x), treated.weight
    )
    from_control = regress(
        recipe.heterogeneity, control.x, one(control.x) - control.y, control.weight
    )
    chance = make_pipeline(StandardScaler(), LogisticRegression())
    chance.fit(pool.x, pool.t, logisticregression__sample_weight=pool.weight)

    def learned(x: Array) -> Array:
        g = chance.predict_proba(x)[:, 1]
        return g * from_control(x) + (1 - g) * from_treated(x)

    return learned


def forest(correction: Correction) -> Function:
    """Causal forest (Athey et al. 2019) on the pool; a missing arm is not borrowed here."""
    recipe, pool = correction.recipe, correction.pool
    learned = _causal_forest(recipe, pool)
    learned.fit(pool.y, pool.t, X=pool.x, sample_weight=pool.weight, inference=None)
    return lambda x: np.asarray(learned.effect(x)).ravel()


def doubly_robust(correction: Correction) -> Function:
    """Pseudo-outcomes of the randomized rows alone, cross-fitted, regressed on x.

    Right on average whatever the history holds, since the coin's `e` is known: history only lowers
    the variance.
    """
    recipe, trial = correction.recipe, correction.trial
    fold = trial.folds(recipe.folds, recipe.seed)
    phi = np.empty(len(trial))
    for k in np.unique(fold):
        rest = Correction(recipe, correction.history, trial.of(fold != k))
        held = trial.of(fold == k)
        phi[fold == k] = pseudo_outcomes(held, rest.surface(1), rest.surface(0), recipe.e)
    return regress(recipe.heterogeneity, trial.x, phi, trial.weight)


def pseudo_outcomes(rows: Rows, one: Function, zero: Function, e: float) -> Array:
    """m1 - m0 + T (y - m1) / e - (1 - T) (y - m0) / (1 - e): on average the effect at x."""
    m1, m0 = one(rows.x), zero(rows.x)
    return m1 - m0 + rows.t * (rows.y - m1) / e - (1 - rows.t) * (rows.y - m0) / (1 - e)


def _pooled_surface(correction: Correction, t: int) -> Function:
    if correction.borrowed(t):
        return correction.surface(t)
    own = correction.pool.arm(t)
    return regress(correction.recipe.outcome, own.x, own.y, own.weight)


def _source_effect(recipe: Recipe, past: Rows, control: Rows) -> Function:
    """The bias as the effect of "being history" on the outcome, by an econml learner."""
    both = joined(past, control)
    source, simple = (~both.randomized).astype(int), recipe.simple(both.x)
    rest = np.delete(both.x, list(recipe.bias_columns), axis=1) if recipe.bias_columns else None
    if recipe.bias_step == "forest":
        learner = _causal_forest(recipe, both)
    else:
        from econml.dr import DRLearner  # as in _causal_forest

        learner = DRLearner(
            model_propensity=LogisticRegression(max_iter=1000),
            model_regression=Routed(recipe.outcome),
            model_final=Routed(recipe.bias),
            min_propensity=LEAST_PROPENSITY,
            cv=_splits(recipe, both),
            random_state=recipe.seed,
        )
    w = rest if rest is not None and rest.shape[1] else None
    learner.fit(both.y, source, X=simple, W=w, sample_weight=both.weight, inference=None)
    return lambda x: np.asarray(learner.effect(recipe.simple(x))).ravel()


def _causal_forest(recipe: Recipe, rows: Rows) -> "CausalForestDML":
    from econml.dml import CausalForestDML  # here: it takes seconds, and few want a forest

    return CausalForestDML(
        model_y=Routed(recipe.outcome),
        model_t=LogisticRegression(max_iter=1000),
        discrete_treatment=True,
        n_estimators=FOREST_TREES,
        inference=False,
        n_jobs=1,
        cv=_splits(recipe, rows),
        random_state=recipe.seed,
    )


def _splits(recipe: Recipe, rows: Rows) -> list[tuple[np.ndarray, np.ndarray]]:
    fold = rows.folds(recipe.folds, recipe.seed)
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold)]
