"""Causal attention inside each segment of a packed row, with grouped heads, by several backends.

Letters: S queries · T keys · N segments · H query heads and G key/value heads · R head width.
"""

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from megatron_ring.config import ConfigError
from megatron_ring.kernels.device import has_triton

# By a part of the GPU's name, the backend that `auto` takes for bf16. It is filled from the last
# lines of tools/bench_attention.py. No GPU has been measured yet: varlen, which needs nothing but
# torch, wherever it runs.
DEFAULTS: dict[str, str] = {}
BLOCK = 128  # queries × keys that FlexAttention skips, or takes without asking, as one


@dataclass(frozen=True, eq=False)
class Segments:
    """Which keys each query sees: the causal past in its own segment.

    Segment n has queries q_cu[n] : q_cu[n + 1] and keys k_cu[n] : k_cu[n + 1]. Its last query sees
    all of its keys, the query before it all but one, and so on: the mask is aligned at the bottom
    right. So a segment has no fewer keys than queries; it may have no queries, or neither.
    """

    q_cu: Tensor  # int32 [N + 1], on the device of the queries
    k_cu: Tensor
    q_lengths: Sequence[int]  # the same on the host: N lengths
    k_lengths: Sequence[int]

    def __post_init__(self) -> None:
        pairs = list(zip(self.q_lengths, self.k_lengths, strict=True))
        assert all(0 <= q <= k for q, k in pairs), f"queries and keys of segments: {pairs}"

    @classmethod
    def of_row(cls, cu_seqlens: Tensor, lengths: Sequence[int]) -> "Segments":
        """Of a row whose queries and keys are the same tokens; `cu_seqlens` int32 [N + 1]."""
        return cls(cu_seqlens, cu_seqlens, lengths, lengths)

    @classmethod
    def of_lengths(
        cls, q_lengths: Sequence[int], k_lengths: Sequence[int], device: torch.device | str
    ) -> "Segments":
        """From lengths on the host."""
        ends = [torch.tensor(lengths).cumsum(0).int() for lengths in (q_lengths, k_lengths)]
        q_cu, k_cu = (F.pad(end, (1, 0)).to(device, non_blocking=True) for end in ends)
        return cls(q_cu, k_cu, q_lengths, k_lengths)

    def seen(self) -> tuple[Tensor, Tensor]:
        """The first key that each query sees, and the first after it that it does not: [S] each."""
        at_S = torch.arange(sum(self.q_lengths), device=self.q_cu.device, dtype=torch.int32)
        # The first segment that ends behind the query; those without queries are passed over.
        n_S = torch.searchsorted(self.q_cu[1:], at_S, right=True)
        from_end_S = self.q_cu[n_S + 1] - 1 - at_S
        return self.k_cu[n_S], self.k_cu[n_S + 1] - from_end_S

    @functools.cached_property
    def block_mask(self) -> BlockMask:
        """FlexAttention's mask, made once for all layers that see this row.

        From each query's range of keys, never from all S × T pairs. Blocks that no query of theirs
        sees anything of are skipped (but for a few, where a segment has no queries).
        """
        first_S, end_S = self.seen()
        S, T, device = len(first_S), sum(self.k_lengths), first_S.device
        blocks = -(-S // BLOCK)

        def by_block(x_S: Tensor, fill: int) -> Tensor:
            return F.pad(x_S, (0, blocks * BLOCK - S), value=fill).view(blocks, BLOCK)

        begins = torch.arange(0, T, BLOCK, device=device)
        some = by_block(first_S, T).amin(1)[:, None] < begins + BLOCK
        some &= by_block(end_S, 0).amax(1)[:, None] > begins
        every = by_block(first_S, T).amax(1)[:, None] <= begins
        every &= by_block(end_S, 0).amin(1)[:, None] >= begins + BLOCK

        def listed(which: Tensor) -> tuple[Tensor, Tensor]:
            """How many blocks of keys for each block of queries, and which, those first."""
            order = torch.argsort(which.int(), dim=1, descending=True, stable=True)
            return which.sum(1).int()[None, None], order.int()[None, None]

        def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (first_S[q] <= k) & (k < end_S[q])

        return BlockMask.from_kv_blocks(
            *listed(some & ~every), *listed(every), BLOCK, mask_mod=mask, seq_lengths=(S, T)
        )


def packed_attention(
    q_SHR: Tensor,
    k_TGR: Tensor,
    v_TGR: Tensor,
    segments: Segments,
    backend: str,
    deterministic: bool = False,
) -> Tensor:
    """softmax(q kᵀ / √R) v over the keys that each query sees: [S, H, R].

    Query head h uses key/value head h // (H / G). Keys that no query sees get a gradient of 0.
    `backend`: as `choose_backend` says. `deterministic`: the backward repeats bit by bit; the
    forward always does.
    """
    S, T = sum(segments.q_lengths), sum(segments.k_lengths)
    assert (len(q_SHR), len(k_TGR), len(v_TGR)) == (S, T, T), (
        f"{len(q_SHR)} queries, {len(k_TGR)} keys, {len(v_TGR)} values; segments of {S} and {T}"
    )
    given = (q_SHR, k_TGR, v_TGR)
    if backend == "flash3":
        return flash3(*given, segments, deterministic)
    attend: Attend = {"sdpa": sdpa, "varlen": varlen, "flex": flex}[backend]
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    # FlexAttention's kernels add nothing by atomics: its order of additions is always the same.
    if deterministic and learns and backend != "flex":
        return _Repeatable.apply(lambda *qkv: attend(*qkv, segments), *given)
    return attend(*given, segments)


Attend = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]


def sdpa(q_SHR: Tensor, k_TGR: Tensor, v_TGR: Tensor, segments: Segments) -> Tensor:
    """One scaled-dot-product attention a segment: the CPU's way, and the reference.

    Where a segment has more keys than queries, its mask is a matrix of their product in bytes.
    """
    repeat = q_SHR.shape[1] // k_TGR.shape[1]
    if repeat > 1:  # the CPU's flash kernel wants as many key as query heads
        k_TGR, v_TGR = (x.repeat_interleave(repeat, dim=1) for x in (k_TGR, v_TGR))
    # [1, H, S, R]; splitting (not slicing) keeps the backward linear in S.
    lengths = (segments.q_lengths, segments.k_lengths, segments.k_lengths)
    q, k, v = (
        x.transpose(0, 1)[None].split(list(n), 2)
        for x, n in zip((q_SHR, k_TGR, v_TGR), lengths, strict=True)
    )
    parts = [_segment(*one) for one in zip(q, k, v, strict=True)]
    return torch.cat(parts, dim=2)[0].transpose(0, 1)


def _segment(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    len_q, len_k = q.shape[2], k.shape[2]
    if len_q == 0:
        return q
    if len_q == len_k:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    sees = torch.ones(len_q, len_k, dtype=torch.bool, device=q.device).tril(len_k - len_q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees)


def varlen(q_SHR: Tensor, k_TGR: Tensor, v_TGR: Tensor, segments: Segments) -> Tensor:
    """torch's variable-length FlashAttention 2 (CUDA, torch >= 2.10).

    FlashAttention aligns causal masks at the bottom right since 2.1 (Dao-AILab/flash-attention,
    README, "2.1: Change behavior of causal flag"); torch's documentation does not say it, so
    tests/kernels/test_attention_gpu.py does.
    """
    from torch.nn.attention.varlen import varlen_attn

    # 2.10 spells causality is_causal and has no grouped heads; later releases use a window.
    options: dict[str, Any] = {}
    known = inspect.signature(varlen_attn).parameters
    options |= {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    else:
        repeat = q_SHR.shape[1] // k_TGR.shape[1]
        k_TGR, v_TGR = (x.repeat_interleave(repeat, dim=1) for x in (k_TGR, v_TGR))
    longest = max(segments.q_lengths), max(segments.k_lengths)
    return varlen_attn(q_SHR, k_TGR, v_TGR, segments.q_cu, segments.k_cu, *longest, **options)


def flex(q_SHR: Tensor, k_TGR: Tensor, v_TGR: Tensor, segments: Segments) -> Tensor:
    """torch's FlexAttention, compiled (CUDA). On a CPU it runs eagerly, forward only: for tests."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_SHR, k_TGR, v_TGR))
    attend = _compiled_flex() if q.is_cuda else flex_attention
    return attend(q, k, v, block_mask=segments.block_mask, enable_gqa=True)[0].transpose(0, 1)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def flash3(
    q_SHR: Tensor, k_TGR: Tensor, v_TGR: Tensor, segments: Segments, deterministic: bool
) -> Tensor:
    """FlashAttention 3 for Hopper. Written from its source and never run: there was no GPU.

    Dao-AILab/flash-attention 01afd16, hopper/flash_attn_interface.py; builds before September 2025
    also return the log-sum-exp.
    """
    from flash_attn_interface import flash_attn_varlen_func

    longest = max(segments.q_lengths), max(segments.k_lengths)
    given = (q_SHR, k_TGR, v_TGR, segments.q_cu, segments.k_cu, *longest)
    out = flash_attn_varlen_func(*given, causal=True, deterministic=deterministic)
    return out[0] if isinstance(out, tuple) else out


class _Repeatable(torch.autograd.Function):
    """Runs attention with a backward under torch.use_deterministic_algorithms(True).

    The operators ask that flag when their backward runs, which is long after this forward; around
    a whole step it would forbid operators elsewhere. So the attention has a graph of its own, and
    this backward is what walks it, with the flag set for that time. What the graph keeps is what
    attention keeps without it, and it goes as soon as it has been walked.
    """

    @staticmethod
    def forward(ctx: Any, attend: Callable[..., Tensor], *qkv: Tensor) -> Tensor:
        own = [x.detach().requires_grad_(x.requires_grad) for x in qkv]
        with torch.enable_grad():
            out = attend(*own)
        ctx.own, ctx.out = own, out
        return out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [x for x in ctx.own if x.requires_grad]
        with _deterministic_algorithms():
            grads = iter(torch.autograd.grad(ctx.out, wanted, grad))
        return None, *(next(grads) if x.requires_grad else None for x in ctx.own)


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)  # warn_only would leave attention as it is
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


class Choice(NamedTuple):
    backend: str
    why: str  # for the log: "varlen (auto: bf16 on NVIDIA H200)"


NEEDS = {
    "sdpa": "nothing",
    "varlen": "CUDA, bf16 and torch >= 2.10",
    "flex": "CUDA and Triton",
    "flash3": "a Hopper GPU, bf16 and the package flash_attn_interface",
}


def runs(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a backend has what NEEDS says."""
    if backend == "sdpa":
        return True
    if device.type != "cuda":
        return False
    if backend == "flex":
        return has_triton(device)
    if dtype == torch.float32:
        return False
    if backend == "varlen":
        return _has_module("torch.nn.attention.varlen")
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] == 9
    return hopper and _has_module("flash_attn_interface")


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """The attention that `attention.backend=name` means here; ConfigError says why not."""
    if name == "te":
        raise ConfigError(
            "attention.backend=te is not offered: TransformerEngine's packed attention has not "
            "been run with this program; use attention.backend=auto"
        )
    if name != "auto":
        if not runs(name, device, dtype):
            raise ConfigError(
                f"attention.backend={name} needs {NEEDS[name]}; this run has {device.type}, "
                f"{dtype} and torch {torch.__version__}; use attention.backend=sdpa"
            )
        return Choice(name, f"{name} (as configured)" + UNTRIED * (name != "sdpa"))
    if device.type != "cuda":
        return Choice("sdpa", f"sdpa (auto: {device.type})")
    if dtype == torch.float32:
        return Choice("sdpa", "sdpa (auto: fp32)")
    gpu = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "CUDA"
    best = next((best for part, best in DEFAULTS.items() if part in gpu), "varlen")
    best = next(b for b in (best, "varlen", "sdpa") if runs(b, device, dtype))
    return Choice(best, f"{best} (auto: bf16 on {gpu})" + UNTRIED * (best != "sdpa"))


# To be said in the log until the tests marked gpu have run somewhere.
UNTRIED = ", never run on a GPU before this release"
