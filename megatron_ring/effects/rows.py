"""Rows of outcomes: checked once, then cut by arm, by source and into folds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

ARMS = (0, 1)
ENOUGH = 3  # randomized runs (or rows, where no runs are named) that each arm needs
MIXED = 2  # stratum of a group that has rows of both arms
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """N rows. y: outcome; t: arm 0 or 1; x: N x F features; randomized: by a coin, or history.

    Rows of one `group` (a run) are no independent evidence of each other.
    """

    y: Array
    t: npt.NDArray[np.int64]
    x: Array
    randomized: npt.NDArray[np.bool_]
    group: npt.NDArray[np.int64]
    weight: Array

    def __len__(self) -> int:
        return len(self.y)

    def of(self, chosen: npt.NDArray[np.bool_]) -> "Rows":
        return Rows(
            self.y[chosen],
            self.t[chosen],
            self.x[chosen],
            self.randomized[chosen],
            self.group[chosen],
            self.weight[chosen],
        )

    def arm(self, t: int) -> "Rows":
        return self.of(self.t == t)

    @property
    def trial(self) -> "Rows":
        """The randomized rows."""
        return self.of(self.randomized)

    @property
    def past(self) -> "Rows":
        """The historical rows."""
        return self.of(~self.randomized)

    @property
    def arms(self) -> tuple[int, ...]:
        return tuple(t for t in ARMS if (self.t == t).any())

    def with_outcome(self, y: Array) -> "Rows":
        return replace(self, y=y)

    def reweighted(self, factor: Array) -> "Rows":
        return replace(self, weight=self.weight * factor)

    def groups_of(self, t: int) -> int:
        """How many groups have rows of arm t."""
        return len(np.unique(self.group[self.t == t]))

    def strata(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Groups, and the stratum of each: its source and its arm (or both arms)."""
        groups, place = np.unique(self.group, return_inverse=True)
        size = np.bincount(place)
        treated = np.bincount(place, weights=self.t) / size
        coin = np.bincount(place, weights=self.randomized) / size
        arm = np.where(treated == 0, 0, np.where(treated == 1, 1, MIXED))
        return groups, arm + 3 * (coin > 0)

    def folds(self, most: int, seed: int) -> npt.NDArray[np.int64]:
        """Fold of each row, from 0: whole groups, each stratum spread evenly over the folds.

        At most `most` folds, and no more than an arm has randomized groups, so that all arms are on
        both sides of each fold.
        """
        groups, stratum = self.strata()
        trial = self.trial
        count = max(2, min([most, *(trial.groups_of(t) for t in trial.arms)]))
        random = np.random.default_rng(seed)
        fold = np.zeros(len(groups), dtype=np.int64)
        for own in np.unique(stratum):
            members = random.permutation(np.flatnonzero(stratum == own))
            fold[members] = (np.arange(len(members)) + random.integers(count)) % count
        return fold[np.searchsorted(groups, self.group)]


def joined(one: Rows, other: Rows) -> Rows:
    return Rows(
        np.concatenate([one.y, other.y]),
        np.concatenate([one.t, other.t]),
        np.concatenate([one.x, other.x]),
        np.concatenate([one.randomized, other.randomized]),
        np.concatenate([one.group, other.group]),
        np.concatenate([one.weight, other.weight]),
    )


def checked(
    Y: npt.ArrayLike,
    T: npt.ArrayLike,
    X: npt.ArrayLike,
    S: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
) -> Rows:
    """The rows, if effects can be had from them; ValueError says what is wrong with which argument.

    Refused: other lengths, NaN, arms or sources that are not 0 or 1, groups of both sources, no
    randomized rows, and fewer than ENOUGH randomized groups of some weight in an arm: with fewer
    there is no telling chance from effect.
    """
    y, x = numbers("Y", Y).ravel(), features(X)
    t, s = _binary("T", T), _binary("S", S)
    group = np.arange(len(y)) if groups is None else _labels(groups)
    weight = np.ones(len(y)) if sample_weight is None else numbers("sample_weight", sample_weight)
    weight = weight.ravel()
    named = {"T": t, "X": x, "S": s, "groups": group, "sample_weight": weight}
    for name, values in named.items():
        if len(values) != len(y):
            raise ValueError(f"{name} has {len(values)} rows and Y {len(y)}; give one for each")
    for name, values in {"Y": y, "sample_weight": weight}.items():
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(f"{name} has {bad} values that are no numbers; drop those rows first")
    if (weight < 0).any() or not weight.any():
        raise ValueError("sample_weight must not be negative, nor 0 everywhere")
    rows = Rows(y, t, x, s == 1, group.astype(np.int64).ravel(), weight)
    if mixed := np.intersect1d(rows.trial.group, rows.past.group).size:
        raise ValueError(
            f"{mixed} of the groups have rows with S=1 and with S=0; a run is randomized or "
            "history: give runs of both sources labels of their own"
        )
    counted = rows.of(weight > 0).trial
    _enough(counted, "rows" if groups is None else "runs")
    return rows


def numbers(name: str, values: npt.ArrayLike) -> Array:
    """The values as numbers; ValueError names the argument."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds what is no number ({error})") from None


def _labels(groups: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Labels of any kind as numbers from 0; ValueError where one is missing."""
    labels = np.asarray(groups, dtype=object).ravel()
    missing = sum(label is None or label != label for label in labels)  # NaN is not itself
    if missing:
        raise ValueError(f"groups lacks the label of {missing} rows; name the run of each")
    plain = np.asarray(groups).ravel()
    ordered = plain if plain.dtype.kind in "biuf" else labels.astype(str)
    return np.unique(ordered, return_inverse=True)[1].astype(np.int64)


def features(X: npt.ArrayLike) -> Array:
    """X as N x F numbers; ValueError for another shape or for NaN."""
    x = numbers("X", X)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"X has the shape {x.shape}; it is rows x features")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        raise ValueError(f"X has {bad} values that are no numbers; fill them in or drop the rows")
    return x


def columns(wanted: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """`wanted` columns of the `count` that X has; all for None. ValueError for others, or none."""
    found = tuple(range(count) if wanted is None else wanted)
    bad = [number for number in found if number not in range(count)]
    if bad or not found:
        raise ValueError(
            f"bias_features={list(found)}: {bad or 'nothing'} is no column of X; its {count} are "
            f"0 to {count - 1}"
        )
    return found


def _binary(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(values, dtype=object).ravel()
    other = sorted({str(value) for value in array if value not in (0, 1)})
    if other:
        raise ValueError(f"{name} holds {', '.join(other[:3])}; it must be 0 or 1 in every row")
    return array.astype(np.int64)


def _enough(trial: Rows, unit: str) -> None:
    if not len(trial):
        raise ValueError(
            "S is 0 in every row: no randomized rows, so all that could be told is correlational "
            "only; run a few ablations whose arm a coin decides (S=1)"
        )
    for t in ARMS:
        count = trial.groups_of(t)
        if count < ENOUGH:
            raise ValueError(
                f"{count} randomized {unit} with T={t}; {ENOUGH} are needed in each arm to tell an "
                f"effect from chance: randomize {ENOUGH - count} more"
            )
