"""One optimizer step: forward and backward over this rank's rows, then the update.

Letters: S tokens in a row · L layers · E experts.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ring import losses, parallel, spikes
from megatron_ring.data.rows import Row
from megatron_ring.losses import Head
from megatron_ring.model.ling import LingModel

# A row's output on the last stage -> the scalar to differentiate, and what to keep of it.
Reduce = Callable[[Tensor, Row], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Counts:
    """What a global batch holds, over all data-parallel ranks."""

    units: tuple[int, ...]  # of each kind that the loss head divides by
    supervised: int  # tokens whose log-probability is computed
    tokens: int  # without padding
    square_lengths: int  # Σ over documents of length², for attention FLOPs

    @classmethod
    def of(cls, rows: list[Row], head: Head) -> "Counts":
        """Counts of this rank's rows, summed over the data ranks."""
        lengths = [row.cu_seqlens[: row.num_documents + 1] for row in rows]
        squares = sum(int(((cu[1:] - cu[:-1]).astype("int64") ** 2).sum()) for cu in lengths)
        units = zip(*(head.units(documents_of(row)) for row in rows), strict=True)
        own = [
            squares,
            sum(row.num_tokens for row in rows),
            sum(row.num_supervised for row in rows),
        ]
        squares, tokens, supervised, *units = map(
            int, parallel.sum_over_data([*own, *map(sum, units)])
        )
        return cls(tuple(units), supervised, tokens, squares)


def documents_of(row: Row, device: torch.device | str = "cpu") -> losses.Documents:
    """What a loss head wants to know of a row's documents, on `device`."""
    starts = row.cu_seqlens[: row.num_documents]
    flags_2S = np.stack([row.mask_S, row.format_S])
    # Documents end where the next begins; the last is not to run on into the padding.
    counts = np.add.reduceat(flags_2S[:, : row.num_tokens], starts, axis=1, dtype=np.float64)
    reference = None if row.reference is None else _sent(row.reference, device)
    return losses.Documents(
        lengths=_sent(np.diff(row.cu_seqlens).astype(np.int64), device),
        source_A=_sent(row.sources.astype(np.int64), device),
        domain_A=_sent(row.domains.astype(np.int64), device),
        scored_A2=_sent(np.ascontiguousarray(counts.T), device),
        format_S=_sent(row.format_S, device),
        reference_A2=reference,
    )


def train_step(
    models: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    rows: list[Row],
    lr: float,
    head: Head,
) -> tuple[Counts, Tensor, float]:
    """Apply the gradient of Σ over kinds of units of (their sum in the batch) / (their number).

    Units are counted *before* the first backward, so every row is divided by the same numbers and
    the result does not depend on how rows are dealt to ranks and micro-batches. Returns the counts,
    this rank's table of the head (zeros before the last pipeline stage) and the gradient norm
    before clipping. Raises FloatingPointError, weights untouched, when that is not finite.
    """
    counts, table, grad_norm = gradient(models, optimizer, rows, head)
    spikes.refuse(grad_norm)
    update(optimizer, lr)
    return counts, table, grad_norm


def gradient(
    models: list[DistributedDataParallel], optimizer: MegatronOptimizer, rows: list[Row], head: Head
) -> tuple[Counts, Tensor, float]:
    """The first half of `train_step`, which changes nothing: what it returns, gradients ready.

    The norm comes before the update: a gradient that is not finite must never reach the weights.
    What a step that ends here leaves in the gradient buffers is zeroed by the next.
    """
    counts = Counts.of(rows, head)
    for model in models:
        model.zero_grad_buffer()
        # Per real token, undone by DDP's division by the number of replicas.
        model.module.router_loss.per_token = parallel.replicas() / max(counts.tokens, 1)
    optimizer.zero_grad()
    table = accumulate(models, rows, head, counts)
    optimizer.prepare_grads()
    return counts, table, float(optimizer.get_grad_norm())


def update(optimizer: MegatronOptimizer, lr: float) -> None:
    """The second half: clip the gradients, and let AdamW apply them."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def agreed(table: Tensor, grad_norm: float, head: Head) -> tuple[float, float]:
    """The batch's loss, and the gradient norm, in the same bits on all ranks: one small sum.

    `table` is what `gradient` returned, and is left as it is.
    """
    # Ranks of a tensor or context group have the same table; one of them counts.
    own = table.flatten().tolist() if parallel.is_first_copy() else [0.0] * table.numel()
    norm = grad_norm if parallel.is_first_rank() else 0.0
    *total, norm, bad = parallel.sum_over_all([*own, norm, not math.isfinite(grad_norm)])
    loss = head.report(torch.tensor(total, dtype=torch.float64).view(table.shape))["loss"]
    return loss, math.nan if bad and math.isfinite(norm) else norm


def accumulate(
    models: list[DistributedDataParallel], rows: list[Row], head: Head, counts: Counts
) -> Tensor:
    """Forward and backward over this rank's rows, without the update; the head's table."""
    # The schedule divides by the number of micro-batches and multiplies by cp, DDP divides by
    # dp · cp. Undo all: what remains is each sum over its number of units, exactly.
    whole = len(rows) * parallel.data_size()
    scale_U = [whole / max(units, 1) for units in counts.units]

    def reduce(logp_S: Tensor, row: Row) -> tuple[Tensor, dict[str, Tensor]]:
        loss = head(logp_S, documents_of(row, logp_S.device))
        scaled = sum(total * scale for total, scale in zip(loss.sums_U, scale_U, strict=True))
        return scaled.float(), {"table": loss.table}

    return _sum_tables(run(models, rows, reduce), head)


def _sum_tables(per_row: list[dict[str, Tensor]], head: Head) -> Tensor:
    """The head's table, [groups, columns] in float64; zeros before the last stage."""
    device = torch.cuda.current_device()
    total = torch.zeros(len(head.groups), len(head.columns), dtype=torch.float64, device=device)
    for kept in per_row:
        total += kept["table"]
    return total


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
    batches = [(row, to_device(row, torch.cuda.current_device())) for row in rows]

    def forward(batches_left: Iterator[tuple], model: Any) -> tuple[Tensor, Callable]:
        row, batch = next(batches_left)
        return model(**batch), partial(reduce, row=row)

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


def to_device(row: Row, device: torch.device) -> dict[str, Any]:
    """LingModel.forward's arguments for one row."""
    lengths = row.cu_seqlens[1:] - row.cu_seqlens[:-1]
    return {
        "tokens_S": _sent(row.tokens_S.astype(np.int64), device),
        "labels_S": _sent(row.labels_S.astype(np.int64), device),
        "mask_S": torch.from_numpy(row.mask_S),  # counted on the host: a GPU would be waited for
        "positions_S": _sent(row.positions_S, device),
        "padding_S": _sent(row.padding_S, device),
        "cu_seqlens": _sent(row.cu_seqlens, device),
        "lengths": lengths.tolist(),
    }


def _sent(array: np.ndarray, device: torch.device | str) -> Tensor:
    """An array on its way to `device`; nothing on it is waited for."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def score(models: list[Any], rows: list[Row]) -> list[Tensor]:
    """Log-probability of every supervised label, float32 [S] a row; [] before the last stage.

    Models are as they are: with or without DDP, in eval or in train mode.
    """
    zero = torch.zeros((), device=torch.cuda.current_device())
    with torch.no_grad():
        keep = lambda logp_S, row: (zero.clone(), {"logp": logp_S})  # noqa: E731
        kept = run(models, rows, keep, forward_only=True)
    return [one["logp"] for one in kept]


def evaluate(models: list[DistributedDataParallel], rows: list[Row], head: Head) -> Tensor:
    """The head's table over `rows` of all ranks, on the CPU; nothing is learnt."""
    for model in models:
        model.eval()

    def reduce(logp_S: Tensor, row: Row) -> tuple[Tensor, dict[str, Tensor]]:
        loss = head(logp_S, documents_of(row, logp_S.device))
        return loss.sums_U.sum(), {"table": loss.table}

    with torch.no_grad():
        table = _sum_tables(run(models, rows, reduce, forward_only=True), head)
    for model in models:
        model.train()
    return parallel.sum_over_stages_and_data(table)
