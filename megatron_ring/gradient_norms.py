"""Norms of the gradient by part of the model: which part does a large norm come from?"""

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate

from megatron_ring import parallel
from megatron_ring.optim import sharded

# A parameter belongs to the first of these that stands in its name.
PARTS = {
    "word_embeddings": "embedding",
    "output_layer": "head",
    "norm": "norm",
    "self_attention": "attention",
    "router": "router",
    "shared_experts": "shared_experts",
    "experts": "experts",
    "mlp": "mlp",
}


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, by its name."""
    return next(part for sign, part in PARTS.items() if sign in name)


class GradientNorms:
    """Squares of the parts' norms add up to the square of the whole one.

    Making it and `read` are collective; only `read` waits for the device.
    """

    def __init__(self, models: list[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
        self._optimizers = sharded(optimizer)
        named = (pair for model in models for pair in model.module.named_parameters())
        self._part_of = {id(parameter): part_of(name) for name, parameter in named}
        there = set().union(*parallel.gathered(set(self._part_of.values())))
        self.parts = [part for part in PARTS.values() if part in there]

    @torch.no_grad()
    def read(self) -> dict[str, float]:
        """`grad_norm/PART` before clipping: between `step.gradient` and `step.update`."""
        grads: dict[str, list[torch.Tensor]] = {part: [] for part in self.parts}
        for optimizer in self._optimizers:
            wholes = (*optimizer.model_float16_groups, *optimizer.model_fp32_groups)
            shards = (*optimizer.shard_fp32_from_float16_groups, *optimizer.shard_fp32_groups)
            for group, own in zip(wholes, shards, strict=True):
                for parameter, shard in zip(group, own, strict=True):
                    # As megatron-core counts: not what the first tensor rank has as well.
                    if shard.grad is not None and param_is_not_tensor_parallel_duplicate(shard):
                        grads[self._part_of[id(parameter)]].append(shard.grad)
        squares = torch.zeros(len(grads), dtype=torch.float64, device=torch.cuda.current_device())
        for index, own in enumerate(grads.values()):
            if own:
                squares[index] = torch.stack(torch._foreach_norm(own)).double().square().sum()
        norms = parallel.sum_over_model_and_data(squares).sqrt().tolist()
        return {f"grad_norm/{part}": norm for part, norm in zip(self.parts, norms, strict=True)}
