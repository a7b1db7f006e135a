"""Triton kernels that order routed rows by expert, without a word to the host.

A stable counting sort in four small launches: visits to each expert in each block of entries;
their running sums over the blocks; from the totals, which expert each block of BM rows belongs to;
each entry's row.

Letters: N entries (tokens × experts a token) · B blocks of entries · E experts · M blocks of rows.
"""

from typing import Any

import triton
import triton.language as tl

from megatron_ring.kernels.build import Build


@triton.jit
def _one_hot(experts_N, start, N, E, BN: tl.constexpr, BE: tl.constexpr):
    """Entries start… and, [BN, BE], which expert each visits; entries beyond N visit none."""
    entry = start + tl.arange(0, BN)
    expert = tl.load(experts_N + entry, mask=entry < N, other=E).to(tl.int32)
    visits = (expert[:, None] == tl.arange(0, BE)[None, :]) & (expert < E)[:, None]
    return entry, expert, visits.to(tl.int32)


@triton.jit
def count_kernel(experts_N, counts_BE, N, E, BN: tl.constexpr, BE: tl.constexpr):
    """Visits to each expert in each block of BN entries."""
    b = tl.program_id(0)
    _, _, visits = _one_hot(experts_N, b * BN, N, E, BN, BE)
    e = tl.arange(0, BE)
    tl.store(counts_BE + b * E + e, tl.sum(visits, axis=0), mask=e < E)


@triton.jit
def running_kernel(counts_BE, counts_E, B, E, BB: tl.constexpr):
    """For one expert: each block's count becomes the sum of those before it."""
    e = tl.program_id(0)
    before = 0
    for start in range(0, B, BB):
        b = start + tl.arange(0, BB)
        at = counts_BE + b * E + e
        count = tl.load(at, mask=b < B, other=0)
        tl.store(at, before + tl.cumsum(count, axis=0) - count, mask=b < B)
        before += tl.sum(count, axis=0)
    tl.store(counts_E + e, before)


@triton.jit
def blocks_kernel(
    counts_E, first_E, expert_M, M, E, BM: tl.constexpr, BE: tl.constexpr, BLOCK: tl.constexpr
):
    """first_E [E + 1]: the block of rows where each expert begins. expert_M: whose a block is."""
    e = tl.arange(0, BE)
    count = tl.load(counts_E + e, mask=e < E, other=0).to(tl.int32)
    blocks = (count + BM - 1) // BM
    ends = tl.cumsum(blocks, axis=0)
    if tl.program_id(0) == 0:
        tl.store(first_E + e, ends - blocks, mask=e < E)
        tl.store(first_E + E, tl.sum(blocks, axis=0))
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    passed = (m[:, None] >= ends[None, :]) & (e < E)[None, :]
    expert = tl.sum(passed.to(tl.int32), axis=1)
    tl.store(expert_M + m, expert, mask=m < M)


@triton.jit
def place_kernel(
    experts_N, prob_N, before_BE, first_E, row_N, token_R, prob_R, N, E,
    K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """The row of each entry, and each row's token and probability."""
    b = tl.program_id(0)
    entry, expert, visits = _one_hot(experts_N, b * BN, N, E, BN, BE)
    inside = entry < N
    earlier = tl.sum((tl.cumsum(visits, axis=0) - visits) * visits, axis=1)
    first = tl.load(first_E + expert, mask=inside, other=0) * BM
    row = first + tl.load(before_BE + b * E + expert, mask=inside, other=0) + earlier
    tl.store(row_N + entry, row, mask=inside)
    tl.store(token_R + row, entry // K, mask=inside)
    prob = tl.load(prob_N + entry, mask=inside, other=0.0).to(tl.float32)
    tl.store(prob_R + row, prob, mask=inside)


@triton.jit
def place_sorted_kernel(
    counts_E, prob_N, first_E, row_N, token_R, prob_R, N, E,
    BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """The same for entries that already lie expert after expert, `counts_E` of each."""
    entry = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = entry < N
    e = tl.arange(0, BE)
    count = tl.load(counts_E + e, mask=e < E, other=0).to(tl.int32)
    ends = tl.cumsum(count, axis=0)
    passed = ((entry[:, None] >= ends[None, :]) & (e < E)[None, :]).to(tl.int32)
    expert = tl.sum(passed, axis=1)
    start = tl.sum(passed * count[None, :], axis=1)
    row = tl.load(first_E + expert, mask=inside, other=0) * BM + entry - start
    tl.store(row_N + entry, row, mask=inside)
    tl.store(token_R + row, entry, mask=inside)
    prob = tl.load(prob_N + entry, mask=inside, other=0.0).to(tl.float32)
    tl.store(prob_R + row, prob, mask=inside)


def builds(arch: int) -> list[Build]:
    """What the lint compiles: 64 and 256 experts, rows in blocks of 128."""
    pointers = {
        name: "*i32" for name in ("counts_BE", "counts_E", "first_E", "expert_M", "before_BE")
    }
    pointers |= {"row_N": "*i32", "token_R": "*i32", "experts_N": "*i64"}
    types = pointers | {"prob_N": "*fp32", "prob_R": "*fp32", "N": "i32", "E": "i32", "M": "i32"}
    types |= {"B": "i32"}
    found = []
    for experts in (64, 256):
        sizes: dict[str, Any] = {"BM": 128, "BE": experts, "K": 6, "BB": 1024, "BLOCK": 128}
        sizes["BN"] = entries_in_a_block(experts)
        for kernel in (
            count_kernel,
            running_kernel,
            blocks_kernel,
            place_kernel,
            place_sorted_kernel,
        ):
            names = kernel.arg_names
            found.append(
                Build(
                    name=f"{kernel.__name__} E={experts}",
                    kernel=kernel,
                    signature={name: types[name] for name in names if name in types},
                    constexprs={name: sizes[name] for name in names if name in sizes},
                    warps=4,
                    stages=1,
                )
            )
    return found


def entries_in_a_block(experts: int) -> int:
    """BN such that the [BN, BE] table takes some 64 registers a thread of four warps."""
    return max(16, 8192 // triton.next_power_of_2(experts))
