"""Loss heads: pure functions from per-token log-probabilities to a sum over units.

A head returns a *sum*; the step divides once by the number of units in the global batch, counted
before the first backward. Gradients then do not depend on packing, micro-batches or ranks.

Letters: S tokens in a row.
"""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    total: Tensor  # scalar, differentiable; a sum over the head's units
    metrics: dict[str, Tensor]  # scalars without gradient; sums over the same units


def sft(logp_S: Tensor) -> Loss:
    """Cross-entropy; `logp_S` is 0 where nothing is supervised. Unit: one supervised token."""
    total = -logp_S.sum()
    return Loss(total, {"nll": total.detach()})
