"""All routed experts of a rank as two stacked weights, in the place of megatron-core's experts."""

from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_ring.config import ConfigError, ModelConfig
from megatron_ring.kernels.grouped_mlp import GROUPED_MLP


def choose_backend(name: str, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that `experts.backend=name` means here; ConfigError says why not."""
    if device.type == "cuda" and dtype != torch.bfloat16:
        if name == "torch":
            raise ConfigError(
                f"experts.backend=torch computes in bf16 on a GPU, this run in {dtype}; use "
                "run.dtype=bf16 or experts.backend=loop"
            )
        return "loop"
    widths = {
        "hidden_size": model.hidden_size,
        "moe_intermediate_size": model.moe_intermediate_size,
    }
    # torch's grouped_mm wants rows that begin at multiples of 16 bytes.
    odd = {key: width for key, width in widths.items() if width * dtype.itemsize % 16}
    if name == "torch" and odd:
        (key, width), *_ = odd.items()
        raise ConfigError(
            f"experts.backend=torch needs rows of a multiple of 16 bytes: model.{key}={width} in "
            f"{dtype} has {width * dtype.itemsize}; use experts.backend=loop"
        )
    return ("loop" if odd else "torch") if name == "auto" else name


class RoutedExperts(MegatronModule):
    """SwiGLU experts over rows that the dispatcher has sorted by expert.

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
        self.mlp = GROUPED_MLP[backend]
        self.ep, self.expert_dp = pg_collection.ep, pg_collection.expt_dp

    def forward(
        self,
        permuted_local_hidden_states: Tensor,
        tokens_per_expert: Tensor,
        permuted_probs: Tensor,
    ) -> tuple[Tensor, None]:
        """[T, D], int [E], [T] -> [T, D] and no bias. Argument names are megatron-core's."""
        x_TD, counts_E = permuted_local_hidden_states, tokens_per_expert
        return self.mlp(x_TD, permuted_probs, counts_E, self.w1, self.w2), None

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
