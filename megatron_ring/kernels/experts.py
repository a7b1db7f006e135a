"""SwiGLU MLPs of all experts of a rank, through two doors.

`moe_mlp` takes tokens and the router's choices: all experts are here. `grouped_mlp` takes rows that
a dispatcher has already sorted by expert: what expert parallelism sends. Three backends compute the
same: `triton` (experts_fused.py), `torch` (grouped GEMMs of torch) and `loop` (the reference: one
expert after the other).

Letters: T tokens · K experts a token · N rows · E experts on this rank · D hidden · F expert width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("triton", "torch", "loop")


def moe_mlp(
    x_TD: Tensor, prob_TK: Tensor, experts_TK: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, backend: str
) -> Tensor:
    """Σ over k of prob · (silu(x @ gate.T) * (x @ up.T)) @ down.T of expert k, [T, D].

    `w1_EFD` is [E, 2F, D], gate rows then up rows; `w2_EDF` is [E, D, F]; `experts_TK` int64.
    Differentiable in tokens, probabilities and weights.
    """
    if backend == "triton":
        from megatron_ring.kernels import experts_fused

        return experts_fused.moe_mlp(x_TD, prob_TK, experts_TK, w1_EFD, w2_EDF)
    K = experts_TK.shape[1]
    order_N = experts_TK.flatten().argsort(stable=True)
    rank_N = torch.empty_like(order_N)
    rank_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    # Not bincount, which asks the device how much there is. Sums of ones have no order.
    visited_N, ones_N = experts_TK.flatten(), torch.ones_like(order_N, dtype=torch.int32)
    counts_E = ones_N.new_zeros(len(w1_EFD)).scatter_add_(0, visited_N, ones_N)
    rows_ND = _Gather.apply(x_TD, order_N // K, rank_N.view(-1, K))
    prob_N = prob_TK.flatten()[order_N]
    out_ND = grouped_mlp(rows_ND, prob_N, counts_E, w1_EFD, w2_EDF, backend)
    return _Combine.apply(out_ND, order_N // K, rank_N.view(-1, K))


def grouped_mlp(
    x_ND: Tensor, prob_N: Tensor, counts_E: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, backend: str
) -> Tensor:
    """prob · (silu(x @ gate.T) * (x @ up.T)) @ down.T of each row's expert, [N, D].

    Rows of expert e follow those of expert e - 1 and number `counts_E[e]` (any integer dtype).
    """
    if backend == "triton":
        from megatron_ring.kernels import experts_fused

        return experts_fused.grouped_mlp(x_ND, prob_N, counts_E, w1_EFD, w2_EDF)
    mlp = {"torch": _grouped_mm, "loop": _loop}[backend]
    return mlp(x_ND, prob_N, counts_E, w1_EFD, w2_EDF)


def _grouped_mm(
    x_ND: Tensor, prob_N: Tensor, counts_E: Tensor, w1_EFD: Tensor, w2_EDF: Tensor
) -> Tensor:
    """Two grouped GEMMs: torch's own on a GPU, per-expert products on a CPU."""
    counts_E = counts_E.to(x_ND.device, non_blocking=True)  # dispatchers leave it on the host
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    gate_NF, up_NF = F.grouped_mm(x_ND, w1_EFD.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    h_NF = F.silu(gate_NF) * up_NF * prob_N.unsqueeze(-1).to(x_ND.dtype)
    return F.grouped_mm(h_NF, w2_EDF.transpose(1, 2), offs=ends_E)


def _loop(x_ND: Tensor, prob_N: Tensor, counts_E: Tensor, w1_EFD: Tensor, w2_EDF: Tensor) -> Tensor:
    parts, start = [], 0
    for e, count in enumerate(counts_E.tolist()):
        rows = slice(start, start + count)
        gate_NF, up_NF = (x_ND[rows] @ w1_EFD[e].T).chunk(2, dim=-1)
        h_NF = F.silu(gate_NF) * up_NF * prob_N[rows, None].to(x_ND.dtype)
        parts.append(h_NF @ w2_EDF[e].T)
        start += count
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """Rows of tokens; backward, each token's rows added up. Autograd's own would scatter-add."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_TK)
        return x_TD.index_select(0, token_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        [row_TK] = ctx.saved_tensors
        return _add_rows(grad_ND, row_TK), None, None


class _Combine(torch.autograd.Function):
    """The transpose of `_Gather`."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token_N)
        return _add_rows(y_ND, row_TK)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:
        [token_N] = ctx.saved_tensors
        return grad_TD.index_select(0, token_N), None, None


def _add_rows(y_ND: Tensor, row_TK: Tensor) -> Tensor:
    """Σ over k of the rows of each token, [T, D]; added in the order of k, so repeatable."""
    total_TD = y_ND.index_select(0, row_TK[:, 0])
    for k in range(1, row_TK.shape[1]):
        total_TD = total_TD + y_ND.index_select(0, row_TK[:, k])
    return total_TD
