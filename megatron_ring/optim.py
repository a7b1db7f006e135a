"""AdamW on megatron-core's distributed optimizer: building it, the learning rate, its state."""

import math

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed import finalize_model_grads as finalize
from megatron.core.optimizer import (
    ChainedOptimizer,
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import nn

from megatron_ring.config import OptimConfig, ParallelConfig


def wrap(
    stages: list[nn.Module], parallel: ParallelConfig, shard: bool = True
) -> list[DistributedDataParallel]:
    """megatron-core's DDP around each model chunk: gradient buffers, and sums over data ranks.

    Gradients are divided by the data-parallel size; the step multiplies its loss by it. With
    `shard`, as the distributed optimizer wants, each rank ends up with its part of the sum;
    without, every rank has all of it in `main_grad`.
    """
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap,
        use_distributed_optimizer=shard,
        check_for_nan_in_grad=False,  # the step checks the norm, with a message of its own
    )
    core = stages[0].config
    wrapped = [
        DistributedDataParallel(core, ddp, stage, disable_bucketing=chunk > 0)
        for chunk, stage in enumerate(stages)
    ]
    core.finalize_model_grads_func = finalize
    # With one chunk the schedule wants a function, with several a list.
    syncs = [model.no_sync for model in wrapped]
    core.no_sync_func = syncs if len(syncs) > 1 else syncs[0]
    if parallel.overlap:
        starts = [model.start_grad_sync for model in wrapped]
        core.grad_sync_func = starts if len(starts) > 1 else starts[0]
    return wrapped


def build_optimizer(
    models: list[DistributedDataParallel],
    optim: OptimConfig,
    dtype: torch.dtype,
    gloo: bool = True,
) -> MegatronOptimizer:
    """AdamW, its fp32 state sharded over the data-parallel ranks; no decay on norms.

    Without `gloo` groups its state cannot be saved.
    """
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.beta1,
            adam_beta2=optim.beta2,
            adam_eps=optim.eps,
            clip_grad=optim.clip_norm,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=True,
        ),
        models,
        use_gloo_process_groups=gloo,
    )
    # megatron-core marks the groups; what would heed the mark is Megatron-LM's scheduler.
    for group in optimizer.param_groups:
        group["weight_decay"] = optim.weight_decay * group["wd_mult"]
    return optimizer


def lr_at(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Learning rate of update `step` (from 0): linear warm-up, then cosine or constant."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    done = (step - optim.warmup_steps) / max(total_steps - optim.warmup_steps, 1)
    low = optim.lr * optim.min_lr_ratio
    return low + (optim.lr - low) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def sharded(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    """The distributed optimizers inside: one for dense, one for expert parameters."""
    if isinstance(optimizer, ChainedOptimizer):
        return optimizer.chained_optimizers
    return [optimizer]


def set_step(optimizer: MegatronOptimizer, step: int) -> None:
    """Tell Adam how many updates it has made (for its bias correction)."""
    for part in sharded(optimizer):
        for state in part.optimizer.state.values():
            state["step"] = torch.tensor(float(step))
        for group in part.optimizer.param_groups:
            if "step" in group:  # fused Adams keep it here
                group["step"] = step


def make_state(optimizer: MegatronOptimizer) -> None:
    """Adam's state before the first update, zeros, as it comes to be in the first; else as it is.

    Needed where a run is saved that has skipped every step so far.
    """
    for part in sharded(optimizer):
        rates = [group["lr"] for group in part.optimizer.param_groups]
        for group in part.optimizer.param_groups:
            group["lr"] = 0.0  # what makes the state is an update, which is to change nothing
        part._init_optimizer_states_with_dummy_values()
        for group, lr in zip(part.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
    set_step(optimizer, 0)
