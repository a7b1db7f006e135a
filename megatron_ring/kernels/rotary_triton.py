"""Triton kernels that take a fused projection apart and rotate it, and the way back.

One program a token. A slot is one head's vector in the projection: of each group, its query heads,
its key, its value.

Letters: S tokens · G key/value heads · H query heads · R head width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_ring.kernels.build import Build


@triton.jit
def _slots(s, G: tl.constexpr, QUERIES: tl.constexpr, BS: tl.constexpr):
    """For each slot: which query, key or value head it is, and three masks."""
    slot = tl.arange(0, BS)
    group, inside = slot // (QUERIES + 2), slot % (QUERIES + 2)
    used = slot < G * (QUERIES + 2)
    is_query, is_key = used & (inside < QUERIES), used & (inside == QUERIES)
    is_value = used & (inside == QUERIES + 1)
    q = (s.to(tl.int64) * (G * QUERIES) + group * QUERIES + inside)[:, None]
    kv = (s.to(tl.int64) * G + group)[:, None]
    return slot, q, kv, is_query[:, None], is_key[:, None], is_value[:, None], used[:, None]


@triton.jit
def _angles(cos, sin, s, c, R: tl.constexpr):
    """cos and sin of a token's angles [1, BC], which repeat after R / 2."""
    at = s.to(tl.int64) * R + c
    inside = c < R // 2
    return tl.load(cos + at, mask=inside, other=1.0), tl.load(sin + at, mask=inside, other=0.0)


@triton.jit
def split_and_rotate_kernel(
    qkv, cos, sin, q, k, v,
    G: tl.constexpr, QUERIES: tl.constexpr, R: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0)
    slot, at_q, at_kv, is_query, is_key, is_value, used = _slots(s, G, QUERIES, BS)
    c = tl.arange(0, BC)[None, :]
    half = c < R // 2
    at = (s.to(tl.int64) * (G * (QUERIES + 2)) + slot)[:, None] * R + c
    low = tl.load(qkv + at, mask=used & half, other=0.0).to(tl.float32)
    high = tl.load(qkv + at + R // 2, mask=used & half, other=0.0).to(tl.float32)
    cos, sin = _angles(cos, sin, s, c, R)
    turned_low, turned_high = low * cos - high * sin, high * cos + low * sin
    kind = q.dtype.element_ty
    tl.store(q + at_q * R + c, turned_low.to(kind), mask=is_query & half)
    tl.store(q + at_q * R + R // 2 + c, turned_high.to(kind), mask=is_query & half)
    tl.store(k + at_kv * R + c, turned_low.to(kind), mask=is_key & half)
    tl.store(k + at_kv * R + R // 2 + c, turned_high.to(kind), mask=is_key & half)
    tl.store(v + at_kv * R + c, low.to(kind), mask=is_value & half)
    tl.store(v + at_kv * R + R // 2 + c, high.to(kind), mask=is_value & half)


@triton.jit
def _both(x, at, is_there, half, R: tl.constexpr):
    """Low and high halves of the slots that are there, zeros elsewhere."""
    low = tl.load(x + at, mask=is_there & half, other=0.0).to(tl.float32)
    return low, tl.load(x + at + R // 2, mask=is_there & half, other=0.0).to(tl.float32)


@triton.jit
def join_and_rotate_back_kernel(
    dq, dk, dv, cos, sin, dqkv,
    G: tl.constexpr, QUERIES: tl.constexpr, R: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The inverse rotation is its transpose."""
    s = tl.program_id(0)
    slot, at_q, at_kv, is_query, is_key, is_value, used = _slots(s, G, QUERIES, BS)
    c = tl.arange(0, BC)[None, :]
    half = c < R // 2
    low, high = _both(dq, at_q * R + c, is_query, half, R)
    key_low, key_high = _both(dk, at_kv * R + c, is_key, half, R)
    value_low, value_high = _both(dv, at_kv * R + c, is_value, half, R)
    low, high = low + key_low, high + key_high
    cos, sin = _angles(cos, sin, s, c, R)
    back_low = low * cos + high * sin + value_low
    back_high = high * cos - low * sin + value_high
    kind = dqkv.dtype.element_ty
    at = (s.to(tl.int64) * (G * (QUERIES + 2)) + slot)[:, None] * R + c
    tl.store(dqkv + at, back_low.to(kind), mask=used & half)
    tl.store(dqkv + at + R // 2, back_high.to(kind), mask=used & half)


def forward(qkv_SGHR: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    S, G, slots, R = qkv_SGHR.shape
    q_SHR = qkv_SGHR.new_empty(S, G * (slots - 2), R)
    k_SGR, v_SGR = qkv_SGHR.new_empty(S, G, R), qkv_SGHR.new_empty(S, G, R)
    split_and_rotate_kernel[(S,)](
        qkv_SGHR, cos_SR, sin_SR, q_SHR, k_SGR, v_SGR, *_sizes(G, slots - 2, R).values()
    )
    return q_SHR, k_SGR, v_SGR


def backward(
    dq_SHR: Tensor, dk_SGR: Tensor, dv_SGR: Tensor, cos_SR: Tensor, sin_SR: Tensor
) -> Tensor:
    S, G, R = dk_SGR.shape
    queries = dq_SHR.shape[1] // G
    dqkv_SGHR = torch.empty(S, G, queries + 2, R, dtype=dq_SHR.dtype, device=dq_SHR.device)
    join_and_rotate_back_kernel[(S,)](
        dq_SHR, dk_SGR, dv_SGR, cos_SR, sin_SR, dqkv_SGHR, *_sizes(G, queries, R).values()
    )
    return dqkv_SGHR


def _sizes(groups: int, queries: int, width: int) -> dict[str, int]:
    return {
        "G": groups,
        "QUERIES": queries,
        "R": width,
        "BS": triton.next_power_of_2(groups * (queries + 2)),
        "BC": triton.next_power_of_2(width // 2),
    }


def builds(arch: int) -> list[Build]:
    """What the lint compiles: Ling-Lite's 16 query and 4 key heads of 128, whole and at tp = 4."""
    names = ("qkv", "q", "k", "v", "dqkv", "dq", "dk", "dv")
    types = dict.fromkeys(names, "*bf16") | {"cos": "*fp32", "sin": "*fp32"}
    return [
        Build(
            name=f"{kernel.__name__} {groups} groups",
            kernel=kernel,
            signature={name: types[name] for name in kernel.arg_names if name in types},
            constexprs=_sizes(groups, 4, 128),
            warps=4,
            stages=1,
        )
        for groups in (4, 1)
        for kernel in (split_and_rotate_kernel, join_and_rotate_back_kernel)
    ]
