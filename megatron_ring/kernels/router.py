"""The router's arithmetic: softmax, the K largest, their share, and sums for the losses.

Letters: T tokens · E experts · K a token.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Routed(NamedTuple):
    """Differentiable in the logits: `prob_TK`, `scores_E` and `z`. Sums are over real tokens."""

    prob_TK: Tensor  # float32; 0 for padding
    experts_TK: Tensor  # int64
    counts_E: Tensor  # float32: visits to each expert
    scores_E: Tensor  # float32: Σ softmax
    z: Tensor  # float32: Σ logsumexp²
    entropy: Tensor  # float32: Σ entropy of the softmax, in nats; no gradient


def route(
    logits_TE: Tensor,
    padding_T: Tensor,
    topk: int,
    normalise: bool,
    pinned_TK: Tensor | None = None,
    backend: str = "torch",
) -> Routed:
    """Choose experts by fp32 `logits_TE`; padding (True) is dealt round robin, so it crowds nobody.

    With `normalise` the chosen probabilities are divided by their sum. `pinned_TK` (int64) are the
    choices to make instead of the largest. `backend`: torch, or triton, which takes the lowest
    expert where logits are equal.
    """
    if backend == "triton" and len(logits_TE):
        return Routed(*_Route.apply(logits_TE, padding_T, topk, normalise, pinned_TK))
    scores_TE = logits_TE.softmax(-1)
    T, E = scores_TE.shape
    experts_TK = scores_TE.detach().topk(topk, dim=-1).indices if pinned_TK is None else pinned_TK
    slot_TK = torch.arange(T * topk, device=logits_TE.device).view(T, topk)
    experts_TK = torch.where(padding_T[:, None], slot_TK % E, experts_TK)
    prob_TK = scores_TE.gather(1, experts_TK)
    if normalise:
        prob_TK = prob_TK / prob_TK.sum(-1, keepdim=True)
    real_T = (~padding_T).float()
    lse_T = logits_TE.logsumexp(-1)
    with torch.no_grad():  # -Σ p log p, and log p = logit - logsumexp
        entropy_T = lse_T - (scores_TE * logits_TE).sum(-1)
    # Sums of ones are exact, in whatever order a GPU adds them.
    visits_TK = real_T[:, None].expand_as(experts_TK)
    counts_E = real_T.new_zeros(E).scatter_add_(0, experts_TK.flatten(), visits_TK.flatten())
    return Routed(
        prob_TK=prob_TK.masked_fill(padding_T[:, None], 0.0),
        experts_TK=experts_TK,
        counts_E=counts_E,
        scores_E=(scores_TE * real_T[:, None]).sum(0),
        z=(lse_T.square() * real_T).sum(),
        entropy=(entropy_T * real_T).sum(),
    )


class _Route(torch.autograd.Function):
    """One kernel each way; logits and choices are all that is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_TE: Tensor,
        padding_T: Tensor,
        topk: int,
        normalise: bool,
        pinned_TK: Tensor | None,
    ) -> tuple[Tensor, ...]:
        from megatron_ring.kernels import router_triton

        logits_TE, padding_T = logits_TE.contiguous(), padding_T.contiguous()
        prob_TK, experts_TK, sums = router_triton.forward(
            logits_TE, padding_T, topk, normalise, pinned_TK
        )
        E = logits_TE.shape[1]
        parts = (sums[:E], sums[E : 2 * E], sums[2 * E], sums[2 * E + 1])
        counts_E, scores_E, z, entropy = (part.clone() for part in parts)
        ctx.save_for_backward(logits_TE, padding_T, experts_TK)
        ctx.normalise = normalise
        ctx.mark_non_differentiable(experts_TK, counts_E, entropy)
        return prob_TK, experts_TK, counts_E, scores_E, z, entropy

    @staticmethod
    def backward(
        ctx: Any,
        dprob_TK: Tensor,
        _experts: Tensor,
        _counts: Tensor,
        dscores_E: Tensor,
        dz: Tensor,
        _entropy: Tensor,
    ) -> tuple[Tensor, None, None, None, None]:
        from megatron_ring.kernels import router_triton

        logits_TE, padding_T, experts_TK = ctx.saved_tensors
        given = (dprob_TK.contiguous(), dscores_E.contiguous(), dz.contiguous(), ctx.normalise)
        return (
            router_triton.backward(logits_TE, padding_T, experts_TK, *given),
            *[None] * 4,
        )
