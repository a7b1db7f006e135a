"""Log-probability of one label a token, straight from hidden states: [S, V] logits never exist.

Tokens go through the head in chunks; the backward computes each chunk's logits again. With a
vocabulary split over tensor-parallel ranks, each chunk costs one max and one sum reduction of a
number or two a token (Megatron-LM's vocabulary-parallel cross-entropy, arXiv 1909.08053, sec. 3).

Letters: N tokens to score · D hidden · V vocabulary rows on this rank.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def linear_logprob(
    h_ND: Tensor, w_VD: Tensor, labels_N: Tensor, chunk: int, group: dist.ProcessGroup | None = None
) -> Tensor:
    """log softmax(h @ w.T)[label], float32 [N], differentiable in `h_ND` and `w_VD`.

    `labels_N` (int64) are rows of the whole vocabulary. With `group` (tensor parallel) this rank
    holds rows [rank × V, (rank + 1) × V), and the gradient of `h_ND` is this rank's part of a sum
    over the group. At most `chunk` × V logits exist at a time.
    """
    return _LinearLogprob.apply(h_ND, w_VD, labels_N, chunk, group)


def linear_logprob_reference(h_ND: Tensor, w_VD: Tensor, labels_N: Tensor) -> Tensor:
    """The same, with all logits at once and no ranks."""
    return (h_ND @ w_VD.T).float().log_softmax(-1).gather(1, labels_N[:, None])[:, 0]


def column_norm(w_VD: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """NormHead's divisor: L2 norm over the whole vocabulary of each hidden column, float32 [D].

    inclusionAI/Ling 5ccaeae, modeling_bailing_moe.py, compute_logit: W / (norm(W, dim=0) + 1e-7),
    the norm detached. Dividing the hidden states instead gives the same logits and gradients
    without a second V × D matrix.
    """
    with torch.no_grad():
        square_D = torch.linalg.vector_norm(w_VD, dim=0, dtype=torch.float32).square()
        if group is not None and group.size() > 1:
            dist.all_reduce(square_D, group=group)
        return square_D.sqrt() + 1e-7


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_ND: Tensor,
        w_VD: Tensor,
        labels_N: Tensor,
        chunk: int,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        num_rows = w_VD.shape[0]
        split = group is not None and group.size() > 1
        first_row = group.rank() * num_rows if split else 0
        logp_N = torch.empty(len(h_ND), dtype=torch.float32, device=h_ND.device)
        lse_N = torch.empty_like(logp_N)
        for at in range(0, len(h_ND), chunk):
            part = slice(at, at + chunk)
            logits_CV = (h_ND[part] @ w_VD.T).float()
            max_C = logits_CV.amax(-1)
            if split:
                dist.all_reduce(max_C, op=dist.ReduceOp.MAX, group=group)
            row_C, here_C = _local(labels_N[part], first_row, num_rows)
            label_C = logits_CV.gather(1, row_C[:, None])[:, 0] - max_C
            logits_CV.sub_(max_C[:, None]).exp_()
            sums_2C = torch.stack([logits_CV.sum(-1), torch.where(here_C, label_C, 0.0)])
            if split:
                dist.all_reduce(sums_2C, group=group)
            log_sum_C = sums_2C[0].log()
            logp_N[part] = sums_2C[1] - log_sum_C
            lse_N[part] = max_C + log_sum_C
        ctx.save_for_backward(h_ND, w_VD, labels_N, lse_N)
        ctx.chunk, ctx.first_row = chunk, first_row
        return logp_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        h_ND, w_VD, labels_N, lse_N = ctx.saved_tensors
        dh_ND = torch.zeros_like(h_ND)
        dw_VD = torch.zeros_like(w_VD, dtype=torch.float32)  # chunks add up in full precision
        for at in range(0, len(h_ND), ctx.chunk):
            part = slice(at, at + ctx.chunk)
            # d logp / d logits = onehot(label) - softmax
            grad_CV = (h_ND[part] @ w_VD.T).float()
            grad_CV.sub_(lse_N[part, None]).exp_().mul_(-grad_N[part, None])
            row_C, here_C = _local(labels_N[part], ctx.first_row, w_VD.shape[0])
            at_label_C = torch.where(here_C, grad_N[part], 0.0)
            grad_CV.scatter_add_(1, row_C[:, None], at_label_C[:, None])
            grad_CV = grad_CV.to(h_ND.dtype)
            dh_ND[part] = grad_CV @ w_VD
            dw_VD += grad_CV.T @ h_ND[part]
        return dh_ND, dw_VD.to(w_VD.dtype), None, None, None


def _local(labels_C: Tensor, first_row: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """Rows of this rank's slice, and whether each label is among them (else its row is 0)."""
    row_C = labels_C - first_row
    here_C = (row_C >= 0) & (row_C < num_rows)
    return torch.where(here_C, row_C, 0), here_C
