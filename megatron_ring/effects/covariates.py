"""Other changes that runs had as well: what they explain is taken off before all else.

Where coins decided several changes at once, the others are noise to the effect of one: half of the
runs are better by what another change did. Least squares on the change, the others and their
products with features (Lin 2013) takes that noise off; each source by itself, so that history is
believed nothing about the randomized runs.
"""

import numpy as np
import numpy.typing as npt

from megatron_ring.effects.rows import Array, Rows, numbers

SPARE = 2  # groups a source must have beyond the numbers that are fitted to a feature


def checked(W: npt.ArrayLike | None, count: int) -> Array:
    """N x K numbers, no columns for None; ValueError for another shape or for NaN."""
    if W is None:
        return np.empty((count, 0))
    w = numbers("W", W)
    w = w[:, None] if w.ndim == 1 else w
    if w.ndim != 2 or len(w) != count:
        raise ValueError(f"W has the shape {w.shape} and Y {count} rows; give a row for each")
    if not np.isfinite(w).all():
        bad = int((~np.isfinite(w)).sum())
        raise ValueError(f"W has {bad} values that are no numbers; drop those columns or rows")
    return w


def usable(rows: Rows, w: Array) -> list[int]:
    """Columns of w that can be told from the arm, and from those before, in these rows."""
    _, first = np.unique(rows.group, return_index=True)
    found: list[int] = []
    for k in range(w.shape[1]):
        known = np.column_stack([np.ones(len(rows)), rows.t, w[:, [*found, k]]])
        enough = len(first) >= known.shape[1] + SPARE
        if enough and np.linalg.matrix_rank(known) == known.shape[1]:
            found.append(k)
    return found


def adjusted(rows: Rows, w: Array) -> Rows:
    """Rows with outcomes as if all groups had the randomized groups' mean of w."""
    if not w.shape[1]:
        return rows
    y = rows.y.copy()
    apart = w - w[rows.randomized].mean(axis=0)
    for own in (rows.randomized, ~rows.randomized):
        part = rows.of(own)
        columns = usable(part, apart[own]) if len(part) else []
        if not columns:
            continue
        basis = np.column_stack([np.ones(len(part)), part.x])
        others = np.hstack([basis * apart[own][:, [k]] for k in columns])
        design = np.hstack([basis, basis * part.t[:, None], others])
        root = np.sqrt(part.weight)
        slopes = np.linalg.lstsq(design * root[:, None], part.y * root, rcond=None)[0]
        y[own] -= others @ slopes[-others.shape[1] :]
    return rows.with_outcome(y)
