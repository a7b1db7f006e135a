"""Long curves made short enough for a page, without hiding what they say."""

from typing import NamedTuple

import numpy as np
from numpy import ndarray

POINTS = 2_000  # of a curve on the page
SMOOTH_POINTS = 500  # of its mean over neighbours, which has no detail to lose
SHORTEST = 100  # values; a shorter curve is not smoothed


def thin(values: ndarray, points: int = POINTS) -> ndarray:
    """Indices of at most `points` values that keep every bucket's least and greatest one.

    Of each of equally long buckets stay the minimum, the maximum and, if there is one, the first
    value that is not finite; the first and last value always do. All indices, if they are few.
    """
    count = len(values)
    if count <= points:
        return np.arange(count)
    finite = np.isfinite(values)
    buckets = (points - 2) // (2 if finite.all() else 3)
    width = -(-count // buckets)
    missing = buckets * width - count

    def rows(filled: ndarray) -> ndarray:
        return np.pad(filled, (0, missing), mode="edge").reshape(buckets, width)

    places = [rows(np.where(finite, values, np.inf)).argmin(1)]
    places += [rows(np.where(finite, values, -np.inf)).argmax(1)]
    if not finite.all():
        places.append(rows(finite).argmin(1))
    starts = np.arange(buckets) * width
    kept = np.concatenate([[0, count - 1], *(starts + place for place in places)])
    return np.unique(np.minimum(kept, count - 1))


def smooth(values: ndarray, window: int) -> ndarray:
    """Mean of the finite values among `window` around each (fewer at the ends); nan where none."""
    finite = np.isfinite(values)
    total = np.cumsum(np.concatenate([[0.0], np.where(finite, values, 0.0)]))
    known = np.cumsum(np.concatenate([[0], finite]))
    middle = np.arange(len(values))
    start = np.maximum(middle - (window - 1) // 2, 0)
    end = np.minimum(middle + window // 2 + 1, len(values))
    number = known[end] - known[start]
    mean = (total[end] - total[start]) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)


class Thinned(NamedTuple):
    """A curve on the page; `None` stands for a value that is not finite."""

    steps: list[int]
    values: list[float | None]
    smooth_steps: list[int]  # empty: too short, or nothing to smooth
    smooth_values: list[float | None]
    smooth_raw: list[float | None]  # the value itself where the mean stands
    count: int  # values before thinning
    window: int  # values a mean is over
    not_finite: list[int]  # the first steps of such values
    num_not_finite: int


def prepare(steps: list[int], values: list[float], smoothed: bool) -> Thinned:
    """A curve as the page takes it, thinned, its mean over a fiftieth of its length beside it."""
    step, value = np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)
    kept, strange = thin(value), step[~np.isfinite(value)]
    # Odd, so that it lies evenly around each step.
    window = len(value) // 50 | 1 if smoothed and len(value) >= SHORTEST else 0
    if window:
        some = np.unique(np.linspace(0, len(value) - 1, SMOOTH_POINTS).astype(int))
        mean = smooth(value, window)[some]
    else:
        some, mean = np.array([], dtype=int), np.array([])
    return Thinned(
        steps=step[kept].tolist(),
        values=short(value[kept]),
        smooth_steps=step[some].tolist(),
        smooth_values=short(mean),
        smooth_raw=short(value[some]),
        count=len(value),
        window=window,
        not_finite=strange[:5].tolist(),
        num_not_finite=len(strange),
    )


def short(values: ndarray, digits: int = 5) -> list[float | None]:
    """Numbers of so many significant digits, None for what is not finite: small, valid JSON."""
    found = [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in values.tolist()]
    return [int(v) if v is not None and v.is_integer() and abs(v) < 1e15 else v for v in found]
