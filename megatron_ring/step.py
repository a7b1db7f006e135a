"""One optimizer step: forward and backward over this rank's rows, then the update.

Letters: S tokens in a row · L layers · E experts.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ring import losses, parallel
from megatron_ring.data.rows import Row
from megatron_ring.model.ling import LingModel

Reduce = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


def sft(logp_S: Tensor, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one row for the schedule: a sum, times `scale`."""
    loss = losses.sft(logp_S)
    return loss.total * scale, loss.metrics


@dataclass(frozen=True)
class Counts:
    """What a global batch holds, over all data-parallel ranks."""

    supervised: int  # tokens whose prediction is trained: the loss is divided by this
    tokens: int  # without padding
    square_lengths: int  # Σ over documents of length², for attention FLOPs

    @classmethod
    def of(cls, rows: list[Row]) -> "Counts":
        """Counts of this rank's rows, summed over the data ranks."""
        lengths = [row.cu_seqlens[: row.num_documents + 1] for row in rows]
        squares = sum(int(((cu[1:] - cu[:-1]).astype("int64") ** 2).sum()) for cu in lengths)
        own = [sum(row.num_supervised for row in rows), sum(row.num_tokens for row in rows)]
        return cls(*map(int, parallel.sum_over_data([*own, squares])))


def train_step(
    models: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    rows: list[Row],
    lr: float,
) -> tuple[Counts, Tensor, float]:
    """Apply the gradient of (Σ nll over the global batch) / (supervised tokens in it).

    The tokens are counted *before* the first backward, so every row is divided by the same number
    and the result does not depend on how rows are dealt to ranks and micro-batches. Returns the
    counts, this rank's Σ nll (zero before the last pipeline stage) and the gradient norm before
    clipping. Raises FloatingPointError, weights untouched, when that is not finite.
    """
    counts = Counts.of(rows)
    for model in models:
        model.zero_grad_buffer()
        # Per real token, undone by DDP's division by the data-parallel size.
        model.module.router_loss.per_token = parallel.data_size() / max(counts.tokens, 1)
    optimizer.zero_grad()
    # The schedule divides by the number of micro-batches, DDP by the data-parallel size.
    # Undo both: what remains is total / supervised, exactly.
    scale = len(rows) * parallel.data_size() / max(counts.supervised, 1)
    nll = sum_nll(run(models, rows, partial(sft, scale=scale)))
    for group in optimizer.param_groups:
        group["lr"] = lr
    grad_norm = _update(optimizer)
    return counts, nll, grad_norm


def _update(optimizer: MegatronOptimizer) -> float:
    # The norm comes first: a non-finite gradient must never reach the weights.
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient norm is {norm}; the weights are untouched. Resume from the last "
            "checkpoint with a lower optim.lr, or look at the rows of this step with "
            "tools/show_rows.py"
        )
    optimizer.step()
    return norm


def run(
    models: list[DistributedDataParallel] | list[LingModel],
    rows: list[Row],
    reduce: Reduce,
    forward_only: bool = False,
) -> list[dict[str, Tensor]]:
    """Forward, and backward unless `forward_only`, over `rows` on megatron-core's schedule.

    `reduce` turns a row's log-probabilities into the loss to differentiate and a dict to keep. The
    dicts come back in the order of the rows; before the last pipeline stage there are none.
    """
    batches = [to_device(row, torch.cuda.current_device()) for row in rows]

    def forward(batches_left: Iterator[dict[str, Any]], model: Any) -> tuple[Tensor, Reduce]:
        return model(**next(batches_left)), reduce

    iterators = [iter(batches) for _ in models]
    return get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iterators if len(models) > 1 else iterators[0],
        model=models if len(models) > 1 else models[0],
        num_microbatches=len(rows),
        seq_length=len(rows[0].tokens_S),
        micro_batch_size=1,
        forward_only=forward_only,
    )


def sum_nll(per_row: list[dict[str, Tensor]]) -> Tensor:
    """Σ nll of this rank's rows, a float64 scalar on the device; 0 before the last stage."""
    total = torch.zeros((), dtype=torch.float64, device=torch.cuda.current_device())
    for metrics in per_row:
        total += metrics["nll"]
    return total


def to_device(row: Row, device: torch.device) -> dict[str, Any]:
    """LingModel.forward's arguments for one row."""
    lengths = row.cu_seqlens[1:] - row.cu_seqlens[:-1]
    return {
        "tokens_S": torch.from_numpy(row.tokens_S).long().to(device),
        "labels_S": torch.from_numpy(row.labels_S).long().to(device),
        "mask_S": torch.from_numpy(row.mask_S).to(device),
        "positions_S": torch.from_numpy(row.positions_S).to(device),
        "padding_S": torch.from_numpy(row.padding_S).to(device),
        "cu_seqlens": torch.from_numpy(row.cu_seqlens).to(device),
        "lengths": lengths.tolist(),
    }


def score(models: list[LingModel], rows: list[Row]) -> list[Tensor]:
    """Log-probability of every supervised label, float32 [S] a row; [] before the last stage.

    For models of build_stages without DDP, in eval mode.
    """
    with torch.no_grad():
        zero = torch.zeros((), device=torch.cuda.current_device())
        kept = run(models, rows, lambda logp_S: (zero.clone(), {"logp": logp_S}), forward_only=True)
    return [row["logp"] for row in kept]


def evaluate(models: list[DistributedDataParallel], rows: list[Row]) -> tuple[float, int]:
    """Mean nll in nats a supervised token over `rows` of all data ranks, and how many tokens."""
    for model in models:
        model.eval()
    with torch.no_grad():
        nll = sum_nll(run(models, rows, sft, forward_only=True))
    for model in models:
        model.train()
    (nll_sum,) = parallel.broadcast_from_last_stage([float(nll)])
    nll_sum, tokens = parallel.sum_over_data([nll_sum, sum(row.num_supervised for row in rows)])
    return nll_sum / max(tokens, 1), int(tokens)
