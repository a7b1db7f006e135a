"""Triton kernels of the router, one forward and one backward over blocks of tokens.

Sums over tokens come as one part a block, added afterwards: no atomics, so they repeat.

Letters: T tokens · B blocks of tokens · E experts · K a token.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_ring.kernels.build import Build


@triton.jit
def _softmax(logits, t, T, E: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr):
    """Probabilities [BT, BE], zeros beyond E, and the log of their sum [BT]."""
    e = tl.arange(0, BE)
    inside = (t < T)[:, None] & (e < E)[None, :]
    x = tl.load(logits + t[:, None] * E + e[None, :], mask=inside, other=0.0)
    x = tl.where((e < E)[None, :], x, -float("inf"))
    largest = tl.max(x, axis=1)
    power = tl.exp(x - largest[:, None])
    total = tl.sum(power, axis=1)
    return power / total[:, None], largest + tl.log(total)


@triton.jit
def route_kernel(
    logits, padding, pinned, prob_TK, experts_TK, sums_BS, T,
    E: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr,
    NORMALISE: tl.constexpr, PINNED: tl.constexpr,
):  # fmt: skip
    """K experts a token, their probabilities; this block's counts, Σ scores, Σ lse², Σ entropy."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    e, k = tl.arange(0, BE), tl.arange(0, BK)
    scores, lse = _softmax(logits, t, T, E, BT, BE)
    is_padding = tl.load(padding + t, mask=t < T, other=1) != 0
    real = tl.where(is_padding, 0.0, 1.0)
    inside = (t < T)[:, None] & (e < E)[None, :]
    x = tl.load(logits + t[:, None] * E + e[None, :], mask=inside, other=0.0)
    entropy = lse - tl.sum(scores * x, axis=1)  # -Σ p log p, and log p = logit - lse
    left = tl.where((e < E)[None, :], scores, -1.0)
    visits = tl.zeros((BT, BE), tl.float32)
    prob, chosen = tl.zeros((BT, BK), tl.float32), tl.zeros((BT, BK), tl.int32)
    for i in tl.static_range(K):
        if PINNED:
            best = tl.load(pinned + t * K + i, mask=t < T, other=0).to(tl.int32)
        else:
            # Among logits that are no numbers none is largest: stay inside whatever comes.
            best = tl.minimum(tl.argmax(left, axis=1).to(tl.int32), E - 1)
        best = tl.where(is_padding, (t * K + i) % E, best)
        here = e[None, :] == best[:, None]
        value = tl.sum(tl.where(here, scores, 0.0), axis=1)
        left = tl.where(here, -1.0, left)
        visits += here.to(tl.float32)
        prob = tl.where((k == i)[None, :], value[:, None], prob)
        chosen = tl.where((k == i)[None, :], best[:, None], chosen)
    if NORMALISE:
        prob = prob / tl.sum(prob, axis=1)[:, None]
    prob = prob * real[:, None]
    at = t[:, None] * K + k[None, :]
    inside = (t < T)[:, None] & (k < K)[None, :]
    tl.store(prob_TK + at, prob, mask=inside)
    tl.store(experts_TK + at, chosen.to(tl.int64), mask=inside)
    sums = sums_BS + tl.program_id(0) * (2 * E + 2)
    tl.store(sums + e, tl.sum(visits * real[:, None], axis=0), mask=e < E)
    tl.store(sums + E + e, tl.sum(scores * real[:, None], axis=0), mask=e < E)
    tl.store(sums + 2 * E, tl.sum(lse * lse * real, axis=0))
    tl.store(sums + 2 * E + 1, tl.sum(entropy * real, axis=0))


@triton.jit
def route_backward_kernel(
    logits, padding, experts_TK, dprob_TK, dscores_E, dz, dlogits, T,
    E: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
    NORMALISE: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits from those of probabilities, Σ scores and Σ lse²; 0 for padding."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    e = tl.arange(0, BE)
    scores, lse = _softmax(logits, t, T, E, BT, BE)
    real = tl.where(tl.load(padding + t, mask=t < T, other=1) != 0, 0.0, 1.0)
    total, product = tl.zeros((BT,), tl.float32), tl.zeros((BT,), tl.float32)
    for i in tl.static_range(K):
        chosen = tl.load(experts_TK + t * K + i, mask=t < T, other=0).to(tl.int32)
        dprob = tl.load(dprob_TK + t * K + i, mask=t < T, other=0.0)
        value = tl.sum(tl.where(e[None, :] == chosen[:, None], scores, 0.0), axis=1)
        total += value
        product += dprob * value
    dscores = tl.zeros((BT, BE), tl.float32)
    for i in tl.static_range(K):
        chosen = tl.load(experts_TK + t * K + i, mask=t < T, other=0).to(tl.int32)
        dprob = tl.load(dprob_TK + t * K + i, mask=t < T, other=0.0)
        if NORMALISE:  # of value / total
            dprob = (dprob - product / total) / total
        dscores += tl.where(e[None, :] == chosen[:, None], dprob[:, None], 0.0)
    dscores += tl.load(dscores_E + e, mask=e < E, other=0.0)[None, :]
    mean = tl.sum(scores * dscores, axis=1)
    grad = scores * (dscores - mean[:, None] + (2 * tl.load(dz) * lse)[:, None]) * real[:, None]
    inside = (t < T)[:, None] & (e < E)[None, :]
    tl.store(dlogits + t[:, None] * E + e[None, :], grad, mask=inside)


def forward(
    logits_TE: Tensor, padding_T: Tensor, topk: int, normalise: bool, pinned_TK: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities [T, K], experts [T, K]; counts, Σ scores, Σ lse², Σ entropy in one [2E + 2]."""
    T, E = logits_TE.shape
    BT = tokens_in_a_block(E)
    B, device = triton.cdiv(T, BT), logits_TE.device
    prob_TK = torch.empty(T, topk, dtype=torch.float32, device=device)
    experts_TK = torch.empty(T, topk, dtype=torch.int64, device=device)
    sums_BS = torch.empty(B, 2 * E + 2, dtype=torch.float32, device=device)
    pinned = experts_TK if pinned_TK is None else pinned_TK.contiguous()
    route_kernel[(B,)](
        logits_TE, padding_T, pinned, prob_TK, experts_TK, sums_BS, T, E, topk, BT,
        triton.next_power_of_2(E), triton.next_power_of_2(topk), normalise, pinned_TK is not None,
    )  # fmt: skip
    return prob_TK, experts_TK, sums_BS.sum(0)


def backward(
    logits_TE: Tensor,
    padding_T: Tensor,
    experts_TK: Tensor,
    dprob_TK: Tensor,
    dscores_E: Tensor,
    dz: Tensor,
    normalise: bool,
) -> Tensor:
    T, E = logits_TE.shape
    BT, dlogits_TE = tokens_in_a_block(E), torch.empty_like(logits_TE)
    route_backward_kernel[(triton.cdiv(T, BT),)](
        logits_TE, padding_T, experts_TK, dprob_TK, dscores_E, dz, dlogits_TE, T, E,
        experts_TK.shape[1], BT, triton.next_power_of_2(E), normalise,
    )  # fmt: skip
    return dlogits_TE


def tokens_in_a_block(experts: int) -> int:
    """BT such that a [BT, BE] table takes 16 registers a thread of four warps."""
    return max(1, 2048 // triton.next_power_of_2(experts))


def builds(arch: int) -> list[Build]:
    """What the lint compiles: Ling-Lite's 6 of 64 and Ling-mini's 8 of 256."""
    types = {"logits": "*fp32", "padding": "*i1", "pinned": "*i64", "prob_TK": "*fp32"}
    types |= {"experts_TK": "*i64", "sums_BS": "*fp32", "dprob_TK": "*fp32", "dz": "*fp32"}
    types |= {"dscores_E": "*fp32", "dlogits": "*fp32", "T": "i32"}
    found = []
    for E, K in ((64, 6), (256, 8)):
        sizes: dict[str, Any] = {"E": E, "K": K, "BT": tokens_in_a_block(E), "BE": E, "BK": 8}
        sizes |= {"NORMALISE": True, "PINNED": False}
        for kernel in (route_kernel, route_backward_kernel):
            names = kernel.arg_names
            signature = {name: types[name] for name in names if name in types}
            constants = {name: sizes[name] for name in names if name in sizes}
            found.append(
                Build(f"{kernel.__name__} E={E}", kernel, signature, constants, warps=4, stages=1)
            )
    return found
