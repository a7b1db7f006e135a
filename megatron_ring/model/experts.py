"""The mixture-of-experts layer, and the routed experts of a rank as two stacked weights."""

import importlib.util
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_ring.config import ConfigError, ModelConfig
from megatron_ring.kernels.device import has_triton
from megatron_ring.kernels.experts import grouped_mlp, moe_mlp
from megatron_ring.model.router import LingRouter


def choose_backend(name: str, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that `experts.backend=name` means here; ConfigError says why not."""
    reasons = {"triton": _why_not_triton(device, dtype), "torch": _why_not_torch(device, dtype)}
    odd = _odd_width(model, dtype)
    if name == "auto":
        if device.type != "cuda":
            return "loop" if odd or reasons["torch"] else "torch"
        possible = [one for one in ("triton", "torch") if not reasons[one] and not odd]
        return possible[0] if possible else "loop"
    if reason := reasons.get(name) or (odd if name != "loop" else ""):
        raise ConfigError(f"experts.backend={name} {reason}")
    return name


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str:
    """What keeps the Triton kernels from running, with a remedy; empty when nothing does."""
    if not has_triton(device):
        return (
            "needs Triton and an NVIDIA GPU of compute capability 8.0 or newer, this run has "
            f"{device.type}; use experts.backend=auto"
        )
    wanted = torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype != wanted:
        where = "on a GPU" if device.type == "cuda" else "in Triton's interpreter"
        return f"computes in {wanted} {where}, this run in {dtype}; set run.dtype or use loop"
    return ""


def _why_not_torch(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cuda" and dtype != torch.bfloat16:
        return (
            f"computes in bf16 on a GPU, this run in {dtype}; use run.dtype=bf16 or "
            "experts.backend=loop"
        )
    return ""


def _odd_width(model: ModelConfig, dtype: torch.dtype) -> str:
    """Grouped GEMMs and bulk tensor copies want rows that begin at multiples of 16 bytes."""
    widths = {
        "hidden_size": model.hidden_size,
        "moe_intermediate_size": model.moe_intermediate_size,
    }
    for key, width in widths.items():
        if width * dtype.itemsize % 16:
            return (
                f"needs rows of a multiple of 16 bytes: model.{key}={width} in {dtype} has "
                f"{width * dtype.itemsize}; use experts.backend=loop"
            )
    return ""


def check_dispatcher(name: str, expert_parallel: int, device: torch.device) -> None:
    """ConfigError when tokens cannot travel as `experts.dispatcher=name` says."""
    if name != "flex":
        return
    if device.type != "cuda" or importlib.util.find_spec("deep_ep") is None:
        raise ConfigError(
            f"experts.dispatcher=flex needs DeepEP (the package deep_ep) on GPUs, this run has "
            f"{device.type}; use experts.dispatcher=alltoall"
        )
    if expert_parallel == 1:
        raise ConfigError(
            "experts.dispatcher=flex needs parallel.ep of at least 2; without, nothing is sent"
        )


class RoutedExperts(MegatronModule):
    """SwiGLU experts over rows that a dispatcher has sorted by expert, or over tokens themselves.

    Expert parallelism deals whole experts to ranks. They are never split by tensor parallelism:
    1,408 channels are too narrow to divide and still feed a GPU.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection,
        *,
        backend: str,
        **_: Any,  # megatron-core 0.19 also hands every module its name
    ) -> None:
        super().__init__(config=config)
        E, D, width = num_local_experts, config.hidden_size, config.moe_ffn_hidden_size
        dtype, device = config.params_dtype, torch.cuda.current_device()
        self.w1 = nn.Parameter(torch.empty(E, 2 * width, D, dtype=dtype, device=device))
        self.w2 = nn.Parameter(torch.empty(E, D, width, dtype=dtype, device=device))
        for weight in (self.w1, self.w2):
            # Not allreduce: their gradients are summed over the expert-data-parallel ranks, which
            # are more than the data-parallel ones as soon as tp > ep.
            weight.allreduce = False
            # The optimizer shards experts over those same ranks, so no two tensor-parallel ranks
            # hold the same part and each must count in the gradient norm.
            weight.tensor_model_parallel = True
            weight.partition_dim, weight.partition_stride = 0, 1
        self.backend = backend
        self.ep, self.expert_dp = pg_collection.ep, pg_collection.expt_dp

    def forward(
        self,
        permuted_local_hidden_states: Tensor,
        tokens_per_expert: Tensor,
        permuted_probs: Tensor,
    ) -> tuple[Tensor, None]:
        """[N, D], int [E], [N] -> [N, D] and no bias. Argument names are megatron-core's."""
        x_ND, counts_E = permuted_local_hidden_states, tokens_per_expert
        out = grouped_mlp(x_ND, permuted_probs, counts_E, self.w1, self.w2, self.backend)
        return out, None

    def of_tokens(self, x_TD: Tensor, prob_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """What the chosen experts make of each token, added up, [T, D]; all of them are here."""
        return moe_mlp(x_TD, prob_TK, experts_TK, self.w1, self.w2, self.backend)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, ShardedTensor]:
        """`w1` [experts, 2F, D] and `w2` [experts, D, F] over all experts, split by ep rank."""
        assert not sharded_offsets, f"layers are not stacked, so no offsets: {sharded_offsets}"
        split = (0, self.ep.rank(), self.ep.size())
        return {
            f"{prefix}{name}": ShardedTensor.from_rank_offsets(
                f"{prefix}{name}", weight, split, replica_id=(0, 0, self.expert_dp.rank())
            )
            for name, weight in (("w1", self.w1), ("w2", self.w2))
        }


class LingMoE(MoELayer):
    """megatron-core's layer; where a rank has all experts, without its dispatcher.

    Nothing is sent then, so the experts take tokens and choices as they are: no dense [T, E] maps,
    no permuted copy of the tokens.
    """

    router: LingRouter
    experts: RoutedExperts

    def forward(
        self,
        hidden_states: Tensor,
        intermediate_tensors: Any = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """[S (or S / tp), 1, D], padding [1, S (or S / tp)] -> the same shape and no bias."""
        if self.config.expert_model_parallel_size > 1:
            return super().forward(hidden_states, intermediate_tensors, padding_mask)
        if padding_mask is not None:
            padding_mask = padding_mask.transpose(0, 1)
        prob_TK, experts_TK = self.router.choose(hidden_states, padding_mask)
        tokens_TD = hidden_states.view(-1, hidden_states.shape[-1])
        out = self.experts.of_tokens(tokens_TD, prob_TK, experts_TK).view_as(hidden_states)
        if self.use_shared_expert:
            out = out + self.shared_experts(hidden_states)
        return out, None
