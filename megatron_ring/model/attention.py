"""Causal self-attention inside each document of a packed row, with grouped query heads.

Letters: S tokens in a row · H query heads and G key/value heads on this rank · R head width.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_ring.config import ConfigError
from megatron_ring.kernels.device import fused_backend
from megatron_ring.kernels.rotary import split_and_rotate


@dataclass(frozen=True)
class Packing:
    """Where the documents of a row begin and end, and the rotary angles of its positions."""

    cu_seqlens: Tensor  # int32 [N + 1] on the device; the padding tail is cut into segments too
    lengths: list[int]  # of the N segments
    cos_SR: Tensor  # float32 [S, 1, R]
    sin_SR: Tensor


def rotary_angles(positions_S: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position × theta^(-2i/R), float32 [S, 1, R], halves repeated (neox order).

    Positions restart in every document. Attention is relative, so restarting changes no result in
    exact arithmetic; it keeps angles small and therefore exact in long rows.
    """
    exponent = torch.arange(0, head_size, 2, device=positions_S.device).float() / head_size
    angles = positions_S.float()[:, None] * theta**-exponent
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def sdpa(q_SHR: Tensor, k_SGR: Tensor, v_SGR: Tensor, packing: Packing) -> Tensor:
    """One scaled-dot-product attention a document: the CPU's way, and the reference. [S, H, R]"""
    repeat = q_SHR.shape[1] // k_SGR.shape[1]
    if repeat > 1:  # the CPU's flash kernel wants as many key as query heads
        k_SGR, v_SGR = (x.repeat_interleave(repeat, dim=1) for x in (k_SGR, v_SGR))
    # [1, H, S, R]; splitting (not slicing) keeps the backward linear in S.
    q, k, v = (x.transpose(0, 1)[None].split(packing.lengths, 2) for x in (q_SHR, k_SGR, v_SGR))
    parts = [
        F.scaled_dot_product_attention(*document, is_causal=True)
        for document in zip(q, k, v, strict=True)
    ]
    return torch.cat(parts, dim=2)[0].transpose(0, 1)


def varlen(q_SHR: Tensor, k_SGR: Tensor, v_SGR: Tensor, packing: Packing) -> Tensor:
    """torch's variable-length flash attention (CUDA, torch >= 2.10). [S, H, R]"""
    from torch.nn.attention.varlen import varlen_attn

    # 2.10 spells causality is_causal and has no grouped heads; later releases use a window.
    options: dict[str, Any] = {}
    known = inspect.signature(varlen_attn).parameters
    options |= {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    else:
        repeat = q_SHR.shape[1] // k_SGR.shape[1]
        k_SGR, v_SGR = (x.repeat_interleave(repeat, dim=1) for x in (k_SGR, v_SGR))
    cu, longest = packing.cu_seqlens, max(packing.lengths)
    return varlen_attn(q_SHR, k_SGR, v_SGR, cu, cu, longest, longest, **options)


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The attention that `attention.backend=name` means here; ConfigError says why not."""
    try:
        from torch.nn.attention import varlen as module

        has_varlen = module is not None
    except ImportError:
        has_varlen = False
    can_varlen = has_varlen and device.type == "cuda" and dtype != torch.float32
    if name == "te":
        raise ConfigError(
            "attention.backend=te is not offered: TransformerEngine's packed attention has not "
            "been run with this program; use attention.backend=auto"
        )
    if name == "varlen" and not can_varlen:
        raise ConfigError(
            f"attention.backend=varlen needs CUDA, bf16 and torch >= 2.10; this run has "
            f"{device.type}, {dtype} and torch {torch.__version__}; use attention.backend=sdpa"
        )
    return ("varlen" if can_varlen else "sdpa") if name == "auto" else name


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor, Packing], Tensor]] = {
    "sdpa": sdpa,
    "varlen": varlen,
}


class PackedSelfAttention(MegatronModule):
    """Fused q, k, v projection; rotary; attention by document; output projection.

    The rows of `linear_qkv` are grouped by key/value head: its query heads, its key, its value
    (Megatron's order), so that a tensor-parallel slice is whole groups.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        pg_collection: ProcessGroupCollection,
        *,
        backend: str,
        **_: Any,  # megatron-core 0.19 also hands every module its name
    ) -> None:
        super().__init__(config=config)
        heads, groups, width = (
            config.num_attention_heads,
            config.num_query_groups,
            config.kv_channels,
        )
        self.groups = groups // config.tensor_model_parallel_size
        self.heads_per_group, self.width = heads // groups, width
        self.attend = ATTENTION[backend]
        options = {
            "config": config,
            "init_method": config.init_method,
            "bias": False,
            "skip_bias_add": False,
            "tp_group": pg_collection.tp,
        }
        self.linear_qkv = ColumnParallelLinear(
            config.hidden_size, (heads + 2 * groups) * width, gather_output=False, **options
        )
        self.linear_proj = RowParallelLinear(
            heads * width, config.hidden_size, input_is_parallel=True, **options
        )

    def forward(
        self, hidden_states: Tensor, *_: Any, packed_seq_params: Packing, **__: Any
    ) -> tuple[Tensor, None]:
        """[S (or S / tp), 1, D] -> the same, and no bias. Argument names are megatron-core's."""
        qkv, _bias = self.linear_qkv(hidden_states)  # [S, 1, (H + 2G) · R]
        S = qkv.shape[0]
        qkv = qkv.view(S, self.groups, self.heads_per_group + 2, self.width)
        angles = (packed_seq_params.cos_SR, packed_seq_params.sin_SR)
        q_SHR, k_SGR, v_SGR = split_and_rotate(qkv, *angles, fused_backend(qkv.device))
        out_SHR = self.attend(q_SHR, k_SGR, v_SGR, packed_seq_params)
        return self.linear_proj(out_SHR.reshape(S, 1, -1))[0], None
