"""Bytes of one rank: weights, gradients and optimizer exactly, the rest as an estimate."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_ring import optim, parallel, platform
from megatron_ring.config import Config
from megatron_ring.model.ling import LingModel, build_stages
from megatron_ring.planner import activations, traffic
from megatron_ring.planner.activations import Widths
from megatron_ring.platform.meta import without_memory


@dataclass(frozen=True)
class Static:
    """Bytes that a rank holds for the whole run, storages counted once."""

    weights: int  # with the padding of megatron-core's buffers
    gradients: int  # fp32 buffers
    optimizer: int  # this rank's shard: fp32 weights unless they are the weights, two moments


@dataclass(frozen=True)
class Need:
    """Bytes of one rank at the moment of its highest use."""

    stage: int  # of the pipeline
    layers: int
    static: Static
    activations: int  # kept from forward to backward, of all rows in flight
    in_flight: float  # rows, of all of the stage's layers
    working: int  # for a moment: recomputed layer, gradients, logits
    communication: int
    host: int  # of the host's memory: layer inputs that are offloaded
    context_traffic: int  # bytes received for one row by context parallelism

    @property
    def total(self) -> int:
        held = self.static.weights + self.static.gradients + self.static.optimizer
        return held + self.activations + self.working + self.communication


@dataclass(frozen=True)
class Workload:
    """What a rank computes at a time."""

    row_tokens: int  # S
    supervised: float = 1.0  # share of the tokens whose log-probability is computed
    imbalance: float = 1.3  # tokens of the fullest rank's experts / mean
    dtype: torch.dtype = torch.bfloat16
    on_gpu: bool = True


def count_static(models: list[DistributedDataParallel], optimizer: MegatronOptimizer) -> Static:
    """The bytes of real objects, also of those built without memory.

    After `_init_optimizer_states` or a step: torch's optimizers have no moments before.
    """
    buffers = [b for model in models for b in model.buffers + model.expert_parallel_buffers]
    weights = [p for model in models for p in model.parameters()]
    weights += [b.param_data for b in buffers if b.param_data is not None]
    state: list[Tensor] = []
    for part in optim.sharded(optimizer):
        state += [p for group in part.optimizer.param_groups for p in group["params"]]
        for moments in part.optimizer.state.values():
            state += [t for t in moments.values() if isinstance(t, Tensor) and t.dim()]
    held, seen = _unique(weights, set())
    grads, seen = _unique([b.grad_data for b in buffers], seen)
    own, _ = _unique(state, seen)  # in fp32 the main weights are slices of the weights
    return Static(held, grads, own)


def _unique(tensors: Iterable[Tensor], seen: set[int]) -> tuple[int, set[int]]:
    """Bytes of the storages not seen before, and all that are seen now."""
    total, seen = 0, set(seen)
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            total += storage.nbytes()
    return total, seen


def pretend(config: Config, world_size: int, rank: int, work: Workload) -> Need:
    """Build what `rank` of `world_size` would, without its memory or its peers, and count."""
    platform.prepare()
    meta = torch.device("meta")
    with parallel.pretended_groups(config.parallel, rank, world_size), without_memory():
        stages = build_stages(config, work.dtype, meta)
        models = optim.wrap(stages, config.parallel)
        optimizer = optim.build_optimizer(models, config.optim, work.dtype, gloo=False)
        for part in optim.sharded(optimizer):
            part._init_optimizer_states_with_dummy_values()
        return _need(config, stages, count_static(models, optimizer), work)


def _need(config: Config, stages: list[LingModel], static: Static, work: Workload) -> Need:
    p, model = config.parallel, config.model
    bytes_each = torch.empty((), dtype=work.dtype).element_size()
    fused = work.on_gpu and bytes_each == 2 and config.experts.backend in ("auto", "triton")
    w = Widths(config, work.row_tokens, bytes_each, work.on_gpu, fused, work.imbalance)
    numbers = [layer.layer_number for stage in stages for layer in stage.decoder.layers]
    is_moe = [number > model.first_k_dense_replace for number in numbers]
    stage = stages[0].pg_collection.pp.rank()
    rows = rows_in_flight(p.pp, p.vpp, stage, config.data.rows_per_step // parallel.data_size())
    kept = activations.kept_by_layers(w, is_moe) * rows
    busy = activations.working(w, is_moe) if is_moe else 0
    if stages[0].pre_process:
        kept += rows * w.cp_tokens * 8  # token ids
    if stages[-1].post_process:
        kept += activations.kept_by_head(w, work.supervised)
        busy = max(busy, activations.head_working(w, model.vocab_size // p.tp))
    return Need(
        stage=stage,
        layers=len(numbers),
        static=static,
        activations=round(kept),
        in_flight=rows,
        working=busy,
        communication=activations.communication(w),
        host=round(activations.kept_on_host(w, len(numbers)) * rows),
        context_traffic=traffic.of_context(w, len(numbers), stages[-1].post_process),
    )


def rows_in_flight(pp: int, vpp: int, stage: int, rows: int) -> float:
    """Rows whose activations a stage holds at most, in units of all its layers.

    1F1B: a stage runs forward for itself and each stage behind it before its first backward.
    Interleaved, megatron-core warms up (pp - stage - 1) · 2 + (vpp - 1) · pp chunks and runs one
    more; a chunk is 1 / vpp of the stage's layers (arXiv 2104.04473, sec. 2.2).
    """
    if vpp == 1:
        return min(pp - stage, rows)
    return min((pp - stage - 1) * 2 + (vpp - 1) * pp + 1, rows * vpp) / vpp


def representatives(config: Config, world_size: int) -> list[int]:
    """One rank of each pipeline stage: the first, whose shard of every buffer is a full one."""
    per_stage = world_size // config.parallel.pp
    return [stage * per_stage for stage in range(config.parallel.pp)]


def needs(config: Config, world_size: int, work: Workload) -> list[Need]:
    """The need of each pipeline stage; ConfigError when the layout is impossible."""
    parallel.check_layout(config, world_size, work.row_tokens)
    return [pretend(config, world_size, r, work) for r in representatives(config, world_size)]
