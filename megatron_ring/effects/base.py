"""What all estimators of effects have in common: checks, intervals and summaries by topic."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, clone
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from megatron_ring.effects import bootstrap, covariates, learners
from megatron_ring.effects.learners import Function, Recipe
from megatron_ring.effects.rows import Array, Rows, checked, columns, features

# Fits are small and many: more threads would wait for each other, for minutes on a busy machine.
one_thread = threadpool_limits.wrap(limits=1)


@dataclass(frozen=True)
class TopicEffect:
    """Mean effect over a topic's randomized rows, with its interval."""

    topic: str
    effect: float
    low: float
    high: float
    items: int  # different rows of features among them
    runs: int  # randomized groups


class EffectEstimator(BaseEstimator, ABC):
    """Effect of T on Y at X. Subclasses say in `_learn` how it is had from rows.

    Parameters all of them take: `outcome`, a regressor of Y (boosted trees if None);
    `heterogeneity`, of the effect (ridge if None); `e`, the coin's chance of T=1 among the
    randomized (None: the share of treated groups); `folds` of cross-fitting; `bootstraps`;
    `random_state`; `n_jobs`, processes of the bootstrap, which change no number (None: 1, -1: all
    cores).
    """

    @one_thread
    def fit(
        self,
        Y: npt.ArrayLike,
        T: npt.ArrayLike,
        *,
        X: npt.ArrayLike,
        S: npt.ArrayLike,
        W: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
        bias_features: Sequence[int] | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Learn from N rows: outcomes Y, arms T (0 or 1), features X (N x F), sources S.

        S=1 marks rows whose arm a coin decided, S=0 history. W (N x K) is what else was changed: it
        is taken off first (covariates.py). Rows with one label in `groups` (a run) are no
        independent evidence. `bias_features` are the columns of X that bias functions may use: all
        for None. ValueError for rows of which nothing can be told (rows.checked).
        """
        self.rows_ = checked(Y, T, X, S, groups, sample_weight)
        self.w_ = covariates.checked(W, len(self.rows_))
        self.bias_columns_ = columns(bias_features, self.rows_.x.shape[1])
        self.replicates_: list[Function] = []
        self.effect_ = self._learn(covariates.adjusted(self.rows_, self.w_))
        return self

    @one_thread
    def effect(self, X: npt.ArrayLike) -> Array:
        """The effect at each row of X."""
        x = self._features(X)
        return self.effect_(x)

    def effect_interval(self, X: npt.ArrayLike, alpha: float = 0.1) -> tuple[Array, Array]:
        """Low and high ends of intervals of 1 - alpha: all steps are learned again `bootstraps`
        times, with groups weighted at random (bootstrap.weights).
        """
        x = self._features(X)
        middle = self.effect_(x)
        half = self._reach(self._replicated(x), alpha)
        return middle - half, middle + half

    def summarize(self, by: npt.ArrayLike, alpha: float = 0.1) -> list[TopicEffect]:
        """Mean effects by topic, in the order of their names.

        `by` labels each row that `fit` was given; a topic without randomized rows is left out, for
        nothing is known of it without assumptions. Where `heterogeneity` or `bias` shrink, as the
        defaults do, topics are drawn to each other; LinearRegression leaves each its own effect.
        """
        check_is_fitted(self)
        labels, rows = np.asarray(by).astype(str).ravel(), self.rows_
        if labels.shape != rows.y.shape:
            raise ValueError(f"by has {len(labels)} labels and the fit {len(rows)} rows")
        labels, trial = labels[rows.randomized], rows.trial
        topics = np.unique(labels)
        topics = np.array([one for one in topics if trial.weight[labels == one].any()])
        members = np.array([(labels == topic) * trial.weight for topic in topics])
        share = members / members.sum(axis=1, keepdims=True)
        means = share @ self.effect_(trial.x)
        half = self._reach(self._replicated(trial.x) @ share.T, alpha)
        found = []
        for topic, mean, apart in zip(topics, means, half, strict=True):
            own = labels == topic
            items = len(np.unique(trial.x[own], axis=0))
            runs = len(np.unique(trial.group[own]))
            ends = float(mean - apart), float(mean + apart)
            found.append(TopicEffect(str(topic), float(mean), *ends, items, runs))
        return found

    @abstractmethod
    def _learn(self, rows: Rows) -> Function:
        """The effect as a function of features (N x F -> N), learnt from these weighted rows."""

    def replicate(self) -> Iterator[int]:
        """Learn again for intervals, which otherwise happens when one is first asked for.

        Yields how often that is done, for a progress bar. ValueError for bootstraps below 2.
        """
        if self.bootstraps < 2:
            raise ValueError(f"bootstraps={self.bootstraps}: intervals need 2, and better 100")
        factors = bootstrap.weights(self.rows_, self.bootstraps, self.random_state)
        work = (delayed(_learnt_again)(self, self.rows_.reweighted(one)) for one in factors)
        replicates = []
        for learned in Parallel(self.n_jobs, return_as="generator")(work):
            replicates.append(learned)
            yield len(replicates)
        self.replicates_ = replicates

    @one_thread
    def _replicated(self, x: Array) -> Array:
        """Effects at x by each replicate: bootstraps x len(x)."""
        if len(self.replicates_) != self.bootstraps:
            deque(self.replicate(), maxlen=0)
        return np.array([learned(x) for learned in self.replicates_])

    def _reach(self, replicates: Array, alpha: float) -> Array:
        return bootstrap.reach(replicates, self.rows_.trial, alpha, len(self._covariates()))

    def _covariates(self) -> list[int]:
        """Columns of W that are taken off randomized outcomes."""
        own = self.rows_.randomized
        return covariates.usable(self.rows_.of(own), self.w_[own])

    def _features(self, X: npt.ArrayLike) -> Array:
        check_is_fitted(self)
        x, wanted = features(X), self.rows_.x.shape[1]
        if x.shape[1] != wanted:
            raise ValueError(f"X has {x.shape[1]} columns; it was fitted with {wanted}")
        return x

    def _recipe(self, rows: Rows, **more: object) -> Recipe:
        """What the steps are made with, defaults filled in; ValueError for an e that is none."""
        e = treated_share(rows) if self.e is None else self.e
        if not 0 < e < 1:
            raise ValueError(f"e={e}: the coin's chance of T=1 must be between 0 and 1")
        if self.folds < 2:
            raise ValueError(f"folds={self.folds}: cross-fitting needs at least 2")
        return Recipe(
            outcome=given(self.outcome, learners.boosting(self.random_state)),
            heterogeneity=given(self.heterogeneity, learners.ridge()),
            e=e,
            bias_columns=self.bias_columns_,
            folds=self.folds,
            seed=self.random_state,
            **{"bias": learners.ridge(), **more},
        )


@one_thread
def _learnt_again(estimator: EffectEstimator, rows: Rows) -> Function:
    """What an unfitted copy of it learns from rows of other weights."""
    again = clone(estimator)
    again.bias_columns_ = estimator.bias_columns_
    return again._learn(covariates.adjusted(rows, estimator.w_))


def given(learner: BaseEstimator | None, default: BaseEstimator) -> BaseEstimator:
    """The learner, if there is one. Not `or`: a forest not fitted yet has no truth value."""
    return default if learner is None else learner


def treated_share(rows: Rows) -> float:
    """Share of treated among randomized groups, each counted once."""
    trial = rows.trial
    place = np.unique(trial.group, return_inverse=True)[1]
    return float(np.mean(np.bincount(place, weights=trial.t) / np.bincount(place)))
