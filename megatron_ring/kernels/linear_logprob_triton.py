"""The head's two passes over a chunk of logits, in Triton: read in place, no fp32 copy.

Each row's maximum and sums come from one reading (Milakov and Gimelshein 2018, arXiv 1805.02867:
sums are rescaled whenever the maximum grows); the second pass overwrites logits by their gradient.

Letters: C tokens in a chunk · V vocabulary rows on this rank.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_ring.kernels.build import Build
from megatron_ring.kernels.device import INTERPRET

BLOCK = 16 if INTERPRET else 4096  # logits a program looks at together; interpreted ones are few
WARPS = 8
LOWEST = tl.constexpr(-3.0e38)  # below any logit, and finite: differences of it are numbers


@triton.jit
def _statistics_kernel(logits, rows, out, num_rows, stride, C, BLOCK: tl.constexpr):
    """Of token `program_id(0)`: M = max x, Σ exp(x - M), x[row], Σ exp(x - M) (x - M)."""
    token = tl.program_id(0)
    line = logits + token.to(tl.int64) * stride
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    top = LOWEST
    # The next logits are asked for before the last ones are worked on.
    ahead = tl.load(line + columns, mask=columns < num_rows, other=-float("inf"))
    for start in range(0, num_rows, BLOCK):
        x = ahead.to(tl.float32)
        later = start + BLOCK + columns
        ahead = tl.load(line + later, mask=later < num_rows, other=-float("inf"))
        new_top = tl.maximum(top, tl.max(x, 0))
        shift = top - new_top
        below = x - new_top
        weight = tl.exp(below)
        product = weight * tl.maximum(below, LOWEST)  # beyond the last column 0, not 0 × -inf
        keep = tl.exp(shift)
        weighted = keep * (weighted + sums * shift) + product
        sums = keep * sums + weight
        top = new_top
    row = tl.load(rows + token)
    label = tl.load(line + row, mask=(row >= 0) & (row < num_rows), other=0.0)
    tl.store(out + token, top)
    tl.store(out + C + token, tl.sum(sums, 0))
    tl.store(out + 2 * C + token, label.to(tl.float32))
    tl.store(out + 3 * C + token, tl.sum(weighted, 0))


@triton.jit
def _gradient_kernel(logits, rows, lse, factor, num_rows, stride, BLOCK: tl.constexpr):
    """x ← factor × (onehot(row) - exp(x - lse)) for one token and BLOCK columns."""
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = logits + token.to(tl.int64) * stride + columns
    inside = columns < num_rows
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    onehot = tl.where(columns == tl.load(rows + token), 1.0, 0.0)
    grad = tl.load(factor + token) * (onehot - tl.exp(x - tl.load(lse + token)))
    tl.store(at, grad.to(logits.dtype.element_ty), mask=inside)


def statistics(logits_CV: Tensor, row_C: Tensor, entropy: bool) -> Tensor:
    """As `linear_logprob._statistics`; the sum for the entropy comes along at no cost."""
    C, num_rows = logits_CV.shape
    out_4C = torch.empty(4, C, dtype=torch.float32, device=logits_CV.device)
    _statistics_kernel[(C,)](
        logits_CV,
        row_C,
        out_4C,
        num_rows,
        logits_CV.stride(0),
        C,
        BLOCK=BLOCK,
        num_warps=WARPS,
        num_stages=1,
    )
    return out_4C


def to_gradient(logits_CV: Tensor, row_C: Tensor, lse_C: Tensor, factor_C: Tensor) -> None:
    """As `linear_logprob._to_gradient`."""
    C, num_rows = logits_CV.shape
    _gradient_kernel[(C, triton.cdiv(num_rows, BLOCK))](
        logits_CV,
        row_C,
        lse_C.contiguous(),
        factor_C.contiguous(),
        num_rows,
        logits_CV.stride(0),
        BLOCK=BLOCK,
        num_warps=WARPS,
        num_stages=1,
    )


def builds(architecture: int) -> list[Build]:
    """What training in bf16 launches; the same from compute capability 8.0 on."""
    sizes = {"num_rows": "i32", "stride": "i32", "BLOCK": "constexpr"}
    first = {"logits": "*bf16", "rows": "*i64", "out": "*fp32", "C": "i32"} | sizes
    second = {"logits": "*bf16", "rows": "*i64", "lse": "*fp32", "factor": "*fp32"} | sizes
    constants = {"BLOCK": 4096}
    return [
        Build("head statistics", _statistics_kernel, first, constants, WARPS, 1),
        Build("head gradient", _gradient_kernel, second, constants, WARPS, 1),
    ]
