"""Context parallelism: one row over several ranks, exact for packed documents.

A row is cut into 2·cp chunks; rank r holds chunks r and 2·cp - 1 - r (a zigzag), so that under a
causal mask all ranks have equally much to attend to when a row is one long document. Everything but
attention works on a rank's own tokens. For attention, keys and values of the whole row are gathered
(2 KiB a token of Ling's 4 heads in bf16) and each chunk attends to a slice of them: from the
beginning of its first document to its own end. Documents are never padded to chunks.

The early half of the row, chunks 0 … cp - 1 in the order of ranks, is all that a rank's first chunk
can see. So the late half travels while the first chunk attends; in the backward, gradients of the
late half's keys return while the first chunk's are computed.

Letters: S tokens in a row · C = S / 2cp tokens in a chunk · H query heads and G key/value heads on
this rank · R head width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ring.kernels.attention import Segments


@dataclass(frozen=True)
class Chunk:
    """What one chunk of this rank attends to."""

    keys: slice  # of the row's tokens: from the beginning of its first document to its end
    segments: Segments  # its documents, and of each the keys before it


@dataclass(frozen=True)
class Context:
    """A rank's place in a row, and the two chunks it holds."""

    group: dist.ProcessGroup
    chunks: tuple[Chunk, Chunk]

    @classmethod
    def of(cls, lengths: list[int], group: dist.ProcessGroup, device: torch.device) -> "Context":
        """The place of this rank in a row of documents of these lengths (padding included)."""
        C = sum(lengths) // (2 * group.size())
        numbers = (group.rank(), 2 * group.size() - 1 - group.rank())
        return cls(group, tuple(_chunk(lengths, n * C, (n + 1) * C, device) for n in numbers))


def _chunk(lengths: list[int], first: int, end: int, device: torch.device) -> Chunk:
    """The chunk of tokens first … end - 1."""
    queries, keys, start = [], [], 0
    key_start = None
    for length in lengths:
        stop = min(start + length, end)
        if start < end and stop > first:
            key_start = start if key_start is None else key_start
            queries.append(stop - max(start, first))
            keys.append(stop - start)
        start += length
    assert sum(queries) == end - first, f"documents of {sum(lengths)} tokens do not fill {end}"
    return Chunk(slice(key_start, end), Segments.of_lengths(queries, keys, device))


def own(x_S: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's two chunks of a row's tokens, of any further axes; the row itself without cp."""
    if group.size() == 1:
        return x_S
    chunks = x_S.chunk(2 * group.size())
    return torch.cat([chunks[group.rank()], chunks[-1 - group.rank()]])


def whole(x_S: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The row of which every rank has its `own`; the inverse of it.

    Differentiable for a loss that every rank computes from the whole row: each keeps its own part
    of the gradient, and nothing is added up.
    """
    return x_S if group.size() == 1 else _Whole.apply(x_S, group)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_S: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        chunks = _gather(x_S, group).chunk(2 * group.size())
        return torch.cat([*chunks[::2], *chunks[1::2][::-1]])

    @staticmethod
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor, None]:
        return own(grad_S, ctx.group), None


def attend(
    q_SHR: Tensor,
    k_SGR: Tensor,
    v_SGR: Tensor,
    context: Context,
    attention: Callable[[Tensor, Tensor, Tensor, Segments], Tensor],
) -> Tensor:
    """Attention of this rank's tokens [S / cp, H, R] to all that they may see in the row.

    `attention(q, k, v, segments)` is any packed attention with a bottom-right causal mask.
    """
    group, (early, late) = context.group, context.chunks
    C = len(q_SHR) // 2
    kv = torch.stack([k_SGR, v_SGR], dim=1)
    # Collectives of a group run in the order in which they begin: the early half's first.
    early_travel, late_travel = _Travel(group), _Travel(group)
    early_kv = _Depart.apply(kv[:C], early_travel)
    late_kv = _Depart.apply(kv[C:], late_travel)
    early_kv = _Arrive.apply(early_kv, early_travel)
    first = attention(q_SHR[:C], *early_kv[early.keys].unbind(1), early.segments)
    late_kv = _Arrive.apply(late_kv, late_travel)
    # From rank 0 comes the row's last chunk, from the last rank the one after the early half.
    late_kv = late_kv.unflatten(0, (group.size(), C)).flip(0).flatten(0, 1)
    row_kv = torch.cat([early_kv, late_kv])
    second = attention(q_SHR[C:], *row_kv[late.keys].unbind(1), late.segments)
    return torch.cat([first, second])


@dataclass
class _Travel:
    """Collectives under way, in the forward and in the backward."""

    group: dist.ProcessGroup
    gathered: Tensor | None = None
    gathering: dist.Work | None = None
    scattering: dist.Work | None = None
    holding: list[Tensor] = field(default_factory=list)  # what a collective still reads


class _Depart(torch.autograd.Function):
    """Begins to gather; what it returns is its argument, and stands for what is under way.

    In the backward it is here that the gradient, sent back by `_Arrive`, is waited for.
    """

    @staticmethod
    def forward(ctx: Any, x_S: Tensor, travel: _Travel) -> Tensor:
        ctx.travel = travel
        x_S = x_S.contiguous()
        travel.gathered = x_S.new_empty(len(x_S) * travel.group.size(), *x_S.shape[1:])
        travel.holding = [x_S]
        travel.gathering = dist.all_gather_into_tensor(
            travel.gathered, x_S, group=travel.group, async_op=True
        )
        return x_S.view_as(x_S)

    @staticmethod
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor, None]:
        ctx.travel.scattering.wait()
        ctx.travel.holding = []
        return grad_S, None


class _Arrive(torch.autograd.Function):
    """Every rank's part, one after the other; backward, begins to add up the parts' gradients."""

    @staticmethod
    def forward(ctx: Any, x_S: Tensor, travel: _Travel) -> Tensor:
        ctx.travel = travel
        travel.gathering.wait()
        gathered, travel.gathered, travel.holding = travel.gathered, None, []
        return gathered

    @staticmethod
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor, None]:
        travel, grad_S = ctx.travel, grad_S.contiguous()
        own_S = grad_S.new_empty(len(grad_S) // travel.group.size(), *grad_S.shape[1:])
        travel.holding = [grad_S]
        travel.scattering = dist.reduce_scatter_tensor(
            own_S, grad_S, group=travel.group, async_op=True
        )
        return own_S, None


def _gather(x_S: Tensor, group: dist.ProcessGroup) -> Tensor:
    gathered = x_S.new_empty(len(x_S) * group.size(), *x_S.shape[1:])
    dist.all_gather_into_tensor(gathered, x_S.contiguous(), group=group)
    return gathered
