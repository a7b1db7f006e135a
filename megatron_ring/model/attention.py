"""Causal self-attention inside each document of a packed row, with grouped query heads.

Letters: S tokens in a row · H query heads and G key/value heads on this rank · R head width.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_ring.config import RopeScaling
from megatron_ring.kernels.attention import Segments, packed_attention
from megatron_ring.kernels.device import fused_backend
from megatron_ring.kernels.rotary import split_and_rotate
from megatron_ring.model.context import Context, attend


@dataclass(frozen=True)
class Packing:
    """Where the documents of a row begin and end, and the rotary angles of its positions."""

    place: Segments | Context  # the whole row, or this rank's chunks of it
    cos_SR: Tensor  # float32 [S, 1, R]; of this rank's tokens
    sin_SR: Tensor


def rotary_angles(
    positions_S: Tensor, head_size: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of position × theta^(-2i/R), float32 [S, 1, R], halves repeated (neox order).

    With `scaling`, YaRN's frequencies in place of theta^(-2i/R), and both times its factor.
    Positions restart in every document. Attention is relative, so restarting changes no result in
    exact arithmetic; it keeps angles small and therefore exact in long rows.
    """
    exponent = torch.arange(0, head_size, 2, device=positions_S.device).float() / head_size
    frequencies, length = theta**-exponent, 1.0
    if scaling is not None:
        frequencies, length = yarn(frequencies, theta, scaling), yarn_length(scaling)
    angles = positions_S.float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos() * length, angles.sin() * length


def yarn(frequencies: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Frequencies [R / 2] after YaRN (arXiv 2309.00071, section 3.2, "NTK-by-parts").

    Channels that turn often over the original length stay, those that turn little are slowed down
    by the factor; between them the share that stays falls linearly. As in all code for it, linearly
    in the number of the channel, from whole channels to whole channels; the paper has it linear in
    the turns.
    """
    pairs = len(frequencies)

    def channel(turns: float) -> float:
        """The one that turns so often over the original length."""
        wavelength = scaling.original_max_position_embeddings / turns
        return pairs * math.log(wavelength / (2 * math.pi)) / math.log(theta)

    first = max(math.floor(channel(scaling.beta_fast)), 0)
    last = min(math.ceil(channel(scaling.beta_slow)), 2 * pairs - 1)
    slowed = torch.arange(pairs, device=frequencies.device) - first
    slowed = (slowed / max(last - first, 0.001)).clamp(0, 1)
    return frequencies * (1 - slowed) + frequencies / scaling.factor * slowed


def yarn_length(scaling: RopeScaling) -> float:
    """What YaRN multiplies queries and keys with: √(1/t) of arXiv 2309.00071, section 3.4."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    log = 0.1 * math.log(scaling.factor)
    if scaling.mscale is not None and scaling.mscale_all_dim is not None:
        return (scaling.mscale * log + 1) / (scaling.mscale_all_dim * log + 1)
    return log + 1


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
        deterministic: bool,
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
        self.attend = functools.partial(
            packed_attention, backend=backend, deterministic=deterministic
        )
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
        """[S (or S / tp), 1, D] -> the same, and no bias. Argument names are megatron-core's.

        Under context parallelism S are this rank's tokens.
        """
        qkv, _bias = self.linear_qkv(hidden_states)  # [S, 1, (H + 2G) · R]
        S = qkv.shape[0]
        qkv = qkv.view(S, self.groups, self.heads_per_group + 2, self.width)
        angles = (packed_seq_params.cos_SR, packed_seq_params.sin_SR)
        q_SHR, k_SGR, v_SGR = split_and_rotate(qkv, *angles, fused_backend(qkv.device))
        place = packed_seq_params.place
        if isinstance(place, Context):
            out_SHR = attend(q_SHR, k_SGR, v_SGR, place, self.attend)
        else:
            out_SHR = self.attend(q_SHR, k_SGR, v_SGR, place)
        return self.linear_proj(out_SHR.reshape(S, 1, -1))[0], None
