"""The bootstrap over groups: every group stays, with a random weight.

Groups that are drawn with replacement would leave an arm of three runs with one of them, and folds
without an arm. Weights change no fold.
"""

from collections.abc import Iterator

import numpy as np
from scipy.stats import t as student

from megatron_ring.effects.rows import Array, Rows


def weights(rows: Rows, count: int, seed: int) -> Iterator[Array]:
    """`count` times a factor for each row, the same for all rows of a group.

    In each stratum of n groups (a source and an arm) the factors are Dirichlet with parameter
    (n - 2) / n, times n. A mean over groups then varies by s^2 / n, s^2 with n - 1 in its
    denominator: Dirichlet(a) gives s^2 (n - 1) / n / (n a + 1), and Rubin's a = 1 (1981) too
    little of it where groups are few.
    """
    groups, stratum = rows.strata()
    place = np.searchsorted(groups, rows.group)
    random = np.random.default_rng(seed)
    for _ in range(count):
        factor = np.ones(len(groups))
        for own in np.unique(stratum):
            members = np.flatnonzero(stratum == own)
            n = len(members)
            if n > 1:
                drawn = random.gamma(max(n - 2, 0.5) / n, size=n) + 1e-9
                factor[members] = n * drawn / drawn.sum()
        yield factor[place]


def reach(replicates: Array, trial: Rows, alpha: float, covariates: int = 0) -> Array:
    """Half the width of an interval of 1 - alpha: Student's, by the replicates' spread.

    `replicates` is bootstraps x what is estimated. Of a difference of the two arms' means over
    randomized groups, the spread has groups - 2 degrees of freedom, and a covariate that was fitted
    takes one, in what is left of the outcomes too; that the spread is itself told from a few
    replicates takes some away (as Satterthwaite adds variances). ValueError for alpha outside of
    (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must be between 0 and 1: 0.1 gives intervals of 90 %")
    alone = max(len(np.unique(trial.group)) - 2, 1)
    left = max(alone - covariates, 1)
    degrees = 1 / (1 / left + 1 / (len(replicates) - 1))
    spread = np.std(replicates, axis=0, ddof=1) * np.sqrt(alone / left)
    return np.asarray(student.ppf(1 - alpha / 2, degrees) * spread)
