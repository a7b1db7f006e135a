"""Log-probability of one label a token, straight from hidden states: [N, V] logits never exist.

Tokens go through the head in chunks, whose logits share one buffer and are overwritten by their own
gradient. With a vocabulary split over tensor-parallel ranks, each chunk costs one max and one sum
reduction of a number to three a token (Megatron-LM's vocabulary-parallel cross-entropy, arXiv
1909.08053, sec. 3).

Letters: N tokens to score · C tokens in a chunk · D hidden · V vocabulary rows on this rank.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ring.kernels.device import has_triton
from megatron_ring.kernels.main_grad import hand_over, main_grad_of

# How many logits at a time the torch backend holds in fp32: few enough for a CPU's caches, many
# enough to keep a GPU busy.
FP32_LOGITS = {"cpu": 2**20, "cuda": 2**25}
FP32_ROWS = 4096  # rows of a weight gradient that a CPU multiplies before it adds them in fp32

NOT_UNIFORM = (
    "linear_logprob: gradient='forward' wants one and the same incoming gradient for all tokens; "
    "gradient='backward' takes any"
)


class Stats(NamedTuple):
    logp_N: Tensor  # float32, differentiable; of the label
    lse_N: Tensor  # float32; log Σ exp of the logits of the whole vocabulary
    entropy_N: Tensor  # float32, nats; -Σ p log p over the whole vocabulary


class _Settings(NamedTuple):
    chunk: int
    group: dist.ProcessGroup | None  # None where the vocabulary is whole
    first_row: int
    gradient: str
    backend: str
    entropy: bool


def choose_backend(device: torch.device) -> str:
    """Triton on a GPU that it supports, else torch."""
    return "triton" if device.type == "cuda" and has_triton(device) else "torch"


def linear_logprob(
    h_ND: Tensor,
    w_VD: Tensor,
    labels_N: Tensor,
    chunk: int,
    group: dist.ProcessGroup | None = None,
    *,
    scale_D: Tensor | None = None,
    gradient: str = "backward",
    backend: str = "torch",
) -> Tensor:
    """log softmax((h / scale) @ w.T)[label], float32 [N], differentiable in `h_ND` and `w_VD`.

    `labels_N` (int64) are rows of the whole vocabulary. With `group` (tensor parallel) this rank
    holds rows [rank × V, (rank + 1) × V), and the gradient of `h_ND` is this rank's part of a sum
    over the group. `scale_D` (float32, a constant) is NormHead's divisor. At most `chunk` × V
    logits exist at a time, in the format of `h_ND`.

    gradient="backward" keeps log-sums and computes each chunk's logits again on the way back: any
    gradient may come in. "forward" makes both gradients at once and multiplies them on the way
    back by the incoming gradient, which must then be one number for all tokens (a loss that sums
    them): a quarter of the multiplications less, a float32 [V, D] kept meanwhile. Another gradient
    raises ValueError on a CPU; on a GPU the assertion fails on the device, without waiting for it.

    Gradients of `w_VD` add up over chunks in float32. Where it has a float32 `main_grad` they go
    there (main_grad.py): the `weight.grad` that DDP's hook then sees, and drops, holds no gradient.

    backend="triton" (CUDA, or Triton's interpreter) reads logits in place; "torch" runs anywhere.
    """
    args = (h_ND, w_VD, labels_N, chunk, group, scale_D, gradient, backend)
    return _stats(*args, entropy=False)[0]


def linear_logprob_stats(
    h_ND: Tensor,
    w_VD: Tensor,
    labels_N: Tensor,
    chunk: int,
    group: dist.ProcessGroup | None = None,
    *,
    scale_D: Tensor | None = None,
    gradient: str = "backward",
    backend: str = "torch",
) -> Stats:
    """`linear_logprob`, and of the same pass log-sum-exp and entropy, which have no gradient."""
    args = (h_ND, w_VD, labels_N, chunk, group, scale_D, gradient, backend)
    return Stats(*_stats(*args, entropy=True))


def linear_logprob_reference(
    h_ND: Tensor, w_VD: Tensor, labels_N: Tensor, scale_D: Tensor | None = None
) -> Tensor:
    """The same, with all logits at once and no ranks."""
    h_ND = _scaled(h_ND, scale_D)
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


def _stats(
    h_ND: Tensor,
    w_VD: Tensor,
    labels_N: Tensor,
    chunk: int,
    group: dist.ProcessGroup | None,
    scale_D: Tensor | None,
    gradient: str,
    backend: str,
    entropy: bool,
) -> tuple[Tensor, ...]:
    assert gradient in ("backward", "forward"), gradient
    assert scale_D is None or not scale_D.requires_grad, "scale_D is a constant: detach it"
    split = group is not None and group.size() > 1
    first_row = group.rank() * len(w_VD) if split else 0
    s = _Settings(chunk, group if split else None, first_row, gradient, backend, entropy)
    if torch.is_grad_enabled() and (h_ND.requires_grad or w_VD.requires_grad):
        return _LinearLogprob.apply(h_ND, w_VD, labels_N, scale_D, s)
    return _forward(h_ND, w_VD, labels_N, scale_D, s, None, None)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, w_VD: Tensor, labels_N: Tensor, scale_D: Tensor | None, s: _Settings
    ) -> tuple[Tensor, ...]:
        dh_ND = dw_VD = None
        if s.gradient == "forward":
            dh_ND = torch.empty_like(h_ND) if ctx.needs_input_grad[0] else None
            dw_VD = _zeros(w_VD) if ctx.needs_input_grad[1] else None
        logp_N, lse_N, entropy_N = _forward(h_ND, w_VD, labels_N, scale_D, s, dh_ND, dw_VD)
        if s.gradient == "forward":
            ctx.save_for_backward(dh_ND, dw_VD)
        else:
            ctx.save_for_backward(h_ND, w_VD, labels_N, scale_D, lse_N)
        # Not the saved tensor: that need not be the object that carries `main_grad`.
        ctx.settings, ctx.weight = s, w_VD
        ctx.mark_non_differentiable(lse_N, entropy_N)
        ctx.set_materialize_grads(False)
        return logp_N, lse_N, entropy_N

    @staticmethod
    def backward(
        ctx: Any, grad_N: Tensor, *_: None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        main_VD = main_grad_of(ctx.weight) if ctx.needs_input_grad[1] else None
        if ctx.settings.gradient == "forward":
            dh_ND, dw_VD = ctx.saved_tensors
            if len(grad_N):
                factor = _one_number(grad_N)
                # In place: a second backward over the same graph is refused by autograd.
                dh_ND = None if dh_ND is None else dh_ND.mul_(factor)
                if main_VD is not None:
                    main_VD.addcmul_(dw_VD, factor)
                elif dw_VD is not None:
                    dw_VD.mul_(factor)
        else:
            h_ND, w_VD, *_ = ctx.saved_tensors
            dh_ND = torch.empty_like(h_ND) if ctx.needs_input_grad[0] else None
            dw_VD = main_VD
            if ctx.needs_input_grad[1] and main_VD is None:
                dw_VD = _zeros(w_VD)
            _backward(*ctx.saved_tensors, ctx.settings, grad_N, dh_ND, dw_VD)
        if main_VD is not None:
            dw_VD = hand_over(ctx.weight, main_VD)
        elif dw_VD is not None:
            dw_VD = dw_VD.to(ctx.weight.dtype)
        return dh_ND, dw_VD, None, None, None


def _forward(
    h_ND: Tensor,
    w_VD: Tensor,
    labels_N: Tensor,
    scale_D: Tensor | None,
    s: _Settings,
    dh_ND: Tensor | None,
    dw_VD: Tensor | None,
) -> tuple[Tensor, ...]:
    """logp, log-sum-exp and entropy; gradients of Σ logp where there is a tensor to take them."""
    statistics, to_gradient = _passes(s.backend)
    wanted = dh_ND is not None or dw_VD is not None
    out_3N = torch.zeros(3, len(h_ND), dtype=torch.float32, device=h_ND.device)
    ones_C = torch.ones(min(s.chunk, len(h_ND)), device=h_ND.device) if wanted else None
    for part, h_CD, logits_CV in _chunks(h_ND, w_VD, scale_D, s.chunk):
        row_C = labels_N[part] - s.first_row
        out_3N[:, part] = _combined(statistics(logits_CV, row_C, s.entropy), row_C, len(w_VD), s)
        if wanted:
            to_gradient(logits_CV, row_C, out_3N[1, part], ones_C[: len(row_C)])
            _add_gradients(part, h_CD, logits_CV, w_VD, scale_D, dh_ND, dw_VD)
    return out_3N.unbind()


def _backward(
    h_ND: Tensor,
    w_VD: Tensor,
    labels_N: Tensor,
    scale_D: Tensor | None,
    lse_N: Tensor,
    s: _Settings,
    grad_N: Tensor,
    dh_ND: Tensor | None,
    dw_VD: Tensor | None,
) -> None:
    """Both gradients, from each chunk's logits once more."""
    _, to_gradient = _passes(s.backend)
    for part, h_CD, logits_CV in _chunks(h_ND, w_VD, scale_D, s.chunk):
        to_gradient(logits_CV, labels_N[part] - s.first_row, lse_N[part], grad_N[part])
        _add_gradients(part, h_CD, logits_CV, w_VD, scale_D, dh_ND, dw_VD)


def _chunks(
    h_ND: Tensor, w_VD: Tensor, scale_D: Tensor | None, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Tokens, their scaled hidden states and logits, one chunk after the other in one buffer."""
    buffer_CV = h_ND.new_empty(min(chunk, len(h_ND)), len(w_VD))
    for at in range(0, len(h_ND), chunk):
        part = slice(at, min(at + chunk, len(h_ND)))
        h_CD = _scaled(h_ND[part], scale_D)
        yield part, h_CD, torch.mm(h_CD, w_VD.T, out=buffer_CV[: len(h_CD)])


def _scaled(h_CD: Tensor, scale_D: Tensor | None) -> Tensor:
    return h_CD if scale_D is None else (h_CD / scale_D).to(h_CD.dtype)


def _combined(parts_4C: Tensor, row_C: Tensor, num_rows: int, s: _Settings) -> Tensor:
    """logp, log-sum-exp and entropy [3, C] from every slice's numbers (see `_statistics`)."""
    top_C, sum_C, label_C, weighted_C = parts_4C
    if s.group is not None:
        own_C, top_C = top_C, top_C.clone()
        dist.all_reduce(top_C, op=dist.ReduceOp.MAX, group=s.group)
        shift_C = own_C - top_C
        weighted_C = shift_C.exp() * (weighted_C + sum_C * shift_C)
        sum_C = shift_C.exp() * sum_C
    here_C = (row_C >= 0) & (row_C < num_rows)
    label_C = torch.where(here_C, label_C - top_C, 0.0)
    if s.group is not None:
        sums = torch.stack([sum_C, label_C, weighted_C][: 3 if s.entropy else 2])
        dist.all_reduce(sums, group=s.group)
        sum_C, label_C, weighted_C = *sums, *[weighted_C] * (not s.entropy)
    log_sum_C = sum_C.log()
    return torch.stack([label_C - log_sum_C, top_C + log_sum_C, log_sum_C - weighted_C / sum_C])


def _add_gradients(
    part: slice,
    h_CD: Tensor,
    grad_CV: Tensor,
    w_VD: Tensor,
    scale_D: Tensor | None,
    dh_ND: Tensor | None,
    dw_VD: Tensor | None,
) -> None:
    """Write a chunk's gradient of h, and add its gradient of w to float32 `dw_VD`."""
    short = grad_CV.dtype in (torch.bfloat16, torch.float16)
    if dh_ND is not None and scale_D is None:
        torch.mm(grad_CV, w_VD, out=dh_ND[part])
    elif dh_ND is not None and short and grad_CV.is_cuda:
        dh_ND[part] = torch.mm(grad_CV, w_VD, out_dtype=torch.float32) / scale_D
    elif dh_ND is not None:
        dh_ND[part] = (grad_CV @ w_VD) / scale_D
    if dw_VD is None:
        return
    if not short:
        dw_VD.addmm_(grad_CV.T, h_CD)
    elif grad_CV.is_cuda:
        torch.addmm(dw_VD, grad_CV.T, h_CD, out_dtype=torch.float32, out=dw_VD)
    else:  # a CPU has no product of bf16 in fp32
        for rows_VD, grad_CR in zip(
            dw_VD.split(FP32_ROWS), grad_CV.split(FP32_ROWS, dim=1), strict=True
        ):
            rows_VD += grad_CR.T @ h_CD


def _zeros(w_VD: Tensor) -> Tensor:
    return torch.zeros_like(w_VD, dtype=torch.float32)


def _one_number(grad_N: Tensor) -> Tensor:
    """The gradient that all tokens share, as a tensor without dimensions; not a number stays so."""
    low, high = torch.aminmax(grad_N)
    same = (low == high) | high.isnan()
    if grad_N.is_cuda:
        torch._assert_async(same, NOT_UNIFORM)  # does not wait for the device
    elif not same:
        raise ValueError(f"{NOT_UNIFORM} (here: {low.item()} to {high.item()})")
    return high


def _passes(backend: str) -> tuple[Callable[[Tensor, Tensor, bool], Tensor], Callable[..., None]]:
    """The two passes over a chunk's logits, of one backend."""
    if backend == "triton":
        from megatron_ring.kernels import linear_logprob_triton

        return linear_logprob_triton.statistics, linear_logprob_triton.to_gradient
    assert backend == "torch", backend
    return _statistics, _to_gradient


def _statistics(logits_CV: Tensor, row_C: Tensor, entropy: bool) -> Tensor:
    """Of each row x: M = max x, Σ exp(x - M), x[row], Σ exp(x - M) (x - M): float32 [4, C].

    Where `row_C` is not within the logits, 0 for x[row]; without `entropy` the last is any number.
    """
    num_rows = logits_CV.shape[1]
    out_4C = torch.zeros(4, len(row_C), dtype=torch.float32, device=row_C.device)
    here_C, at_C = (row_C >= 0) & (row_C < num_rows), row_C.clamp(0, num_rows - 1)
    for part in _fp32_parts(logits_CV):
        x_RV = logits_CV[part].float()
        top_R = x_RV.amax(-1)
        out_4C[0, part] = top_R
        out_4C[2, part] = torch.where(here_C[part], x_RV.gather(1, at_C[part, None])[:, 0], 0.0)
        x_RV = x_RV - top_R[:, None]
        if entropy:
            exp_RV = x_RV.exp()
            out_4C[1, part] = exp_RV.sum(-1)
            out_4C[3, part] = exp_RV.mul_(x_RV).sum(-1)
        else:
            out_4C[1, part] = x_RV.exp_().sum(-1)
    return out_4C


def _to_gradient(logits_CV: Tensor, row_C: Tensor, lse_C: Tensor, factor_C: Tensor) -> None:
    """Overwrite logits by factor × d logp / d logits = factor × (onehot(row) - softmax)."""
    num_rows = logits_CV.shape[1]
    here_C = (row_C >= 0) & (row_C < num_rows)
    at_C, at_label_C = row_C.clamp(0, num_rows - 1), torch.where(here_C, factor_C, 0.0)
    for part in _fp32_parts(logits_CV):
        x_RV = logits_CV[part].float()  # fp32 logits: no copy
        x_RV.sub_(lse_C[part, None]).exp_().mul_(-factor_C[part, None])
        x_RV.scatter_add_(1, at_C[part, None], at_label_C[part, None])
        logits_CV[part] = x_RV


def _fp32_parts(logits_CV: Tensor) -> Iterator[slice]:
    """Rows of which the torch backend holds an fp32 copy at a time."""
    rows = max(1, FP32_LOGITS[logits_CV.device.type] // logits_CV.shape[1])
    for at in range(0, len(logits_CV), rows):
        yield slice(at, at + rows)
