"""What CIO is measured against, with the same interface."""

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from megatron_ring.effects import learners
from megatron_ring.effects.base import EffectEstimator
from megatron_ring.effects.learners import Correction, Function, History, Recipe, regress
from megatron_ring.effects.rows import Array, Rows

LEAST_CHANCE = 0.02  # to which chances of treatment in history are clipped


class Baseline(EffectEstimator):
    """A baseline with the parameters that all estimators have."""

    def __init__(
        self,
        outcome: BaseEstimator | None = None,
        heterogeneity: BaseEstimator | None = None,
        *,
        e: float | None = None,
        folds: int = 4,
        bootstraps: int = 100,
        random_state: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.outcome = outcome
        self.heterogeneity = heterogeneity
        self.e = e
        self.folds = folds
        self.bootstraps = bootstraps
        self.random_state = random_state
        self.n_jobs = n_jobs


class RCTOnly(Baseline):
    """Randomized rows alone, by the learner `kind`: one of learners.FINALS."""

    def __init__(
        self,
        kind: str = "dr",
        outcome: BaseEstimator | None = None,
        heterogeneity: BaseEstimator | None = None,
        *,
        e: float | None = None,
        folds: int = 4,
        bootstraps: int = 100,
        random_state: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            outcome,
            heterogeneity,
            e=e,
            folds=folds,
            bootstraps=bootstraps,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.kind = kind

    def _learn(self, rows: Rows) -> Function:
        if self.kind not in learners.FINALS:
            raise ValueError(f"kind={self.kind!r}; it is one of {', '.join(learners.FINALS)}")
        return learners.effect(self.kind, _alone(self._recipe(rows), rows.trial))


class ObservationalOnly(Baseline):
    """The history alone, its confounding believed away: a T-learner."""

    def _learn(self, rows: Rows) -> Function:
        return learners.effect("t", _alone(self._recipe(rows), _complete(self, rows).past))


class NaivePooling(Baseline):
    """History and randomized rows as if they were one source: a T-learner."""

    def _learn(self, rows: Rows) -> Function:
        return learners.effect("t", _alone(self._recipe(rows), rows))


class Kallus2018(Baseline):
    """History's difference of surfaces, plus a simple correction learned from randomized rows.

    Kallus, Puli and Shalit, NeurIPS 2018, Removing hidden confounding by experimental grounding:
    the correction regresses q y - omega(x) on x, q = T / e - (1 - T) / (1 - e). y is taken from its
    mean, since q is 0 on average: outcomes around 500 would be noise of that size.
    """

    def _learn(self, rows: Rows) -> Function:
        recipe, trial = self._recipe(rows), rows.trial
        omega = learners.effect("t", _alone(recipe, _complete(self, rows).past))
        q = trial.t / recipe.e - (1 - trial.t) / (1 - recipe.e)
        centred = trial.y - np.average(trial.y, weights=trial.weight)
        gap = q * centred - omega(trial.x)
        correction = regress(recipe.heterogeneity, trial.x, gap, trial.weight)
        return lambda x: omega(x) + correction(x)


class IntegrativeR(Baseline):
    """Effect and confounding function at once, from both sources' residuals.

    Wu and Yang, CLeaR 2022, Integrative R-learner: the residual of Y given x and source is
    (T - e(x, source)) (effect(x) + (1 - S) confounding(x)) + noise; both linear in x here, with one
    ridge penalty, which leave-one-out chooses. Outcome means and history's chances of treatment are
    cross-fitted.
    """

    def _learn(self, rows: Rows) -> Function:
        recipe = self._recipe(rows)
        residual, apart = _residuals(recipe, _complete(self, rows))
        scale = StandardScaler().fit(rows.x)
        basis = basis_of(scale, rows.x)
        design = np.hstack([basis, basis * ~rows.randomized[:, None]]) * apart[:, None]
        ridge = RidgeCV(alphas=np.logspace(-2, 4, 13), fit_intercept=False)
        ridge.fit(design, residual, sample_weight=rows.weight)
        slopes = ridge.coef_[: basis.shape[1]]
        return lambda x: basis_of(scale, x) @ slopes


def basis_of(scale: StandardScaler, x: Array) -> Array:
    """A column of ones and standardized features."""
    return np.hstack([np.ones((len(x), 1)), scale.transform(x)])


def _residuals(recipe: Recipe, rows: Rows) -> tuple[Array, Array]:
    """Y less its mean given x and source, and T less its chance, both from other folds."""
    fold = rows.folds(recipe.folds, recipe.seed)
    mean, chance = np.empty(len(rows)), np.full(len(rows), recipe.e)
    for k in np.unique(fold):
        for own in (rows.randomized, ~rows.randomized):
            rest, held = rows.of(own & (fold != k)), own & (fold == k)
            mean[held] = regress(recipe.outcome, rest.x, rest.y, rest.weight)(rows.x[held])
        past, held = rows.of(~rows.randomized & (fold != k)), ~rows.randomized & (fold == k)
        steps = StandardScaler(), PolynomialFeatures(2, include_bias=False), StandardScaler()
        learned = make_pipeline(*steps, LogisticRegression(max_iter=1000))
        learned.fit(past.x, past.t, logisticregression__sample_weight=past.weight)
        found = learned.predict_proba(rows.x[held])[:, 1]
        chance[held] = np.clip(found, LEAST_CHANCE, 1 - LEAST_CHANCE)
    return rows.y - mean, rows.t - chance


def _alone(recipe: Recipe, rows: Rows) -> Correction:
    """These rows and no history, so that learners of the effect use them as they are."""
    return Correction(recipe, History(rows.of(np.zeros(len(rows), dtype=bool)), {}), rows)


def _complete(estimator: BaseEstimator, rows: Rows) -> Rows:
    """The rows; ValueError where history lacks an arm."""
    arms = rows.past.arms
    if len(arms) < 2:
        raise ValueError(
            f"{type(estimator).__name__} needs both arms in the history; it has "
            f"{f'T={arms[0]} only' if arms else 'no rows'}: CIO does without"
        )
    return rows
