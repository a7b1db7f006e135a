"""Process groups: who is where on the tp, pp, dp and ep axes, and sums over the data ranks."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_ring.config import Config, ConfigError, ModelConfig, ParallelConfig


def world_size() -> int:
    """Ranks of this launch, from torchrun's or sbatch's environment; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Rank 0 writes what is written once. Known from the launch, also before groups exist."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def process_groups(
    parallel: ParallelConfig, device: torch.device, seed: int, patience: float = 1800.0
) -> Iterator[None]:
    """Join the launch (NCCL on GPUs, gloo on CPUs), make megatron-core's groups, leave.

    A collective fails after `patience` seconds.
    """
    rank = int(os.environ.get("RANK", "0"))
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl"
    limit = timedelta(seconds=patience)
    store = dist.HashStore() if world_size() == 1 else _launch_store(rank, limit)
    dist.init_process_group(backend, rank=rank, world_size=world_size(), store=store, timeout=limit)
    with _groups(parallel, seed, gloo=True):
        yield


def _launch_store(rank: int, limit: timedelta) -> dist.Store:
    """The launch's store, without what ranks of an earlier life of the launch have left in it.

    torchrun's static rendezvous (the one without --rdzv-backend) keeps the store when it restarts
    ranks, with addresses that nobody answers any more; ranks would wait for them for ever. On one
    node the number of restarts is the same for all ranks, so it keeps their entries apart.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=limit))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore(f"life-{restarts}", store)
    if store.add(f"joined/{rank}", 1) > 1:
        raise ConfigError(
            f"rank {rank} was restarted by a launcher that cannot do so on several nodes; launch "
            "with torchrun --rdzv-backend c10d --rdzv-endpoint HOST:PORT --max-restarts N"
        )
    return store


@contextmanager
def pretended_groups(parallel: ParallelConfig, rank: int, world_size: int) -> Iterator[None]:
    """The groups of a launch that does not exist: this process is its `rank`, the others are not.

    Collectives return at once and do nothing, so that thousands of ranks fit a laptop.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # it registers "fake"

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    with _groups(parallel, seed=0, gloo=False):
        yield


@contextmanager
def _groups(parallel: ParallelConfig, seed: int, gloo: bool) -> Iterator[None]:
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tp,
            pipeline_model_parallel_size=parallel.pp,
            virtual_pipeline_model_parallel_size=parallel.vpp if parallel.vpp > 1 else None,
            context_parallel_size=parallel.cp,
            expert_model_parallel_size=parallel.ep,
            expert_tensor_parallel_size=1,
            create_gloo_process_groups=gloo,
        )
        torch.manual_seed(seed)
        model_parallel_cuda_manual_seed(seed)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        # It forgets some of its groups, and a group that dies in a forked child never returns.
        for name, value in list(vars(parallel_state).items()):
            if isinstance(value, dist.ProcessGroup):
                setattr(parallel_state, name, None)
        dist.destroy_process_group()


def data_rank() -> int:
    """This rank's place among the replicas of the dense model."""
    return parallel_state.get_data_parallel_rank()


def data_size() -> int:
    """Replicas of the dense model."""
    return parallel_state.get_data_parallel_world_size()


def replicas() -> int:
    """Ranks over which the dense model's gradients are averaged: data × context parallel."""
    return parallel_state.get_data_parallel_world_size(with_context_parallel=True)


def pipeline_size() -> int:
    """Pipeline stages."""
    return parallel_state.get_pipeline_model_parallel_world_size()


def describe() -> str:
    """The layout in a few words, for the log."""
    groups = {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "cp": parallel_state.get_context_parallel_world_size(),
        "ep": parallel_state.get_expert_model_parallel_world_size(),
        "dp": data_size(),
    }
    return " ".join(f"{name} {size}" for name, size in groups.items())


def is_last_stage() -> bool:
    """Does this rank hold the head, and so the loss?"""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=True)


def is_first_copy() -> bool:
    """Does this rank speak for those of its tensor and context group, who know the same?"""
    first_tp = parallel_state.get_tensor_model_parallel_rank() == 0
    return first_tp and parallel_state.get_context_parallel_rank() == 0


def sum_over_data(values: list[float]) -> list[float]:
    """Sums over the data-parallel ranks, in float64."""
    return _sum(values, parallel_state.get_data_parallel_group())


def sum_over_stages_and_data(table: torch.Tensor) -> torch.Tensor:
    """Sum over pipeline stages and data ranks (of what only last stages know: zeros elsewhere).

    On the CPU, equal on all ranks.
    """
    dist.all_reduce(table, group=parallel_state.get_pipeline_model_parallel_group())
    dist.all_reduce(table, group=parallel_state.get_data_parallel_group())
    return table.cpu()


def sum_over_model_and_data(table: torch.Tensor) -> torch.Tensor:
    """Sum of a float64 tensor over all ranks."""
    dist.all_reduce(table)
    return table


def sum_over_all(values: list[float]) -> list[float]:
    """Sums over all ranks, in float64."""
    return _sum(values, dist.group.WORLD)


def all_agree(flag: bool) -> bool:
    """Do all ranks say yes?"""
    table = torch.tensor(int(flag), dtype=torch.int32, device=torch.cuda.current_device())
    dist.all_reduce(table, op=dist.ReduceOp.MIN)
    return bool(table)


def gathered(value: Any) -> list[Any]:
    """The small objects of all ranks, by rank, on every rank."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def from_rank_0(value: Any) -> Any:
    """Rank 0's small object, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_rank_0(action: Callable[[], Any]) -> None:
    """Run `action` on rank 0; if it fails there, fail everywhere instead of waiting for ever."""
    problem = None
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            problem = str(error)
    problem = from_rank_0(problem)
    if problem is not None:
        raise OSError(problem)


def largest(value: float) -> float:
    """The largest of all ranks' values."""
    table = torch.tensor(value, dtype=torch.float64, device=torch.cuda.current_device())
    dist.all_reduce(table, op=dist.ReduceOp.MAX)
    return float(table)


def _sum(values: list[float], group: dist.ProcessGroup) -> list[float]:
    device = torch.cuda.current_device()
    table = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(table, group=group)
    return table.tolist()


def check_layout(config: Config, world_size: int, row_tokens: int | None = None) -> int:
    """Data-parallel size for `world_size` ranks; ConfigError names the first contradiction."""
    p = config.parallel
    ranks = p.tp * p.pp * p.cp
    _refuse(
        world_size % ranks != 0,
        f"world size {world_size} is not a multiple of parallel.tp × pp × cp = {p.tp} × {p.pp} "
        f"× {p.cp} = {ranks}; launch {max(world_size // ranks, 1) * ranks} ranks or lower one",
    )
    spread = world_size // p.pp
    _refuse(
        spread % p.ep != 0,
        f"parallel.ep={p.ep} does not divide the {spread} ranks of a pipeline stage "
        f"(world size {world_size} / pp {p.pp}); experts are spread over tp × cp × dp and never "
        "split",
    )
    _refuse(
        p.offload and p.recompute != "full",
        "parallel.offload=true moves the inputs of recomputed layers to host memory; set "
        "parallel.recompute=full with it",
    )
    _check_model_fits(config.model, p)
    dp, rows = world_size // ranks, config.data.rows_per_step
    _refuse(
        rows % dp != 0,
        f"data.rows_per_step={rows} is not a multiple of the data-parallel size {dp} "
        f"(world size {world_size} / {ranks}); try {max(round(rows / dp), 1) * dp}",
    )
    _refuse(
        p.vpp > 1 and rows // dp % p.pp != 0,
        f"parallel.vpp={p.vpp} needs the rows of a rank and step, {rows // dp}, to be a multiple "
        f"of parallel.pp={p.pp}; change data.rows_per_step={rows}",
    )
    chunks = row_multiple(p)
    by = [f"parallel.tp={p.tp} (sequence parallelism)"] * (p.tp > 1)
    by += [f"parallel.cp={p.cp} (two chunks a rank)"] * (p.cp > 1)
    _refuse(
        row_tokens is not None and row_tokens % chunks != 0,
        f"rows of {row_tokens} tokens cannot be split over {' and '.join(by)}; pack with a "
        f"row_tokens that is a multiple of {chunks}",
    )
    return dp


def row_multiple(p: ParallelConfig) -> int:
    """What the tokens of a row must be a multiple of: two chunks a context rank, split over tp."""
    return p.tp * (2 * p.cp if p.cp > 1 else 1)


def _check_model_fits(m: ModelConfig, p: ParallelConfig) -> None:
    shared = "num_shared_experts × moe_intermediate_size"
    for name, width, by, ranks in (
        ("num_key_value_heads", m.num_key_value_heads, "tp", p.tp),
        ("vocab_size", m.vocab_size, "tp", p.tp),
        (shared, m.shared_intermediate_size, "tp", p.tp),
        ("intermediate_size", m.intermediate_size * bool(m.first_k_dense_replace), "tp", p.tp),
        ("num_experts", m.num_experts, "ep", p.ep),
    ):
        _refuse(
            width % ranks != 0, f"model.{name}={width} is not a multiple of parallel.{by}={ranks}"
        )
    _refuse(
        m.num_hidden_layers < p.pp * p.vpp - 1,
        f"model.num_hidden_layers={m.num_hidden_layers} are too few for parallel.pp × vpp = "
        f"{p.pp} × {p.vpp} = {p.pp * p.vpp} model chunks",
    )
    _refuse(
        p.vpp > 1 and p.pp == 1,
        f"parallel.vpp={p.vpp} interleaves pipeline stages; it needs pp > 1",
    )


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise ConfigError(message)
