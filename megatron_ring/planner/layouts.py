"""The layouts of a launch that fit its devices, the least wasteful first."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from megatron_ring import parallel
from megatron_ring.config import Config, ConfigError, ParallelConfig
from megatron_ring.planner import memory
from megatron_ring.planner.memory import Need, Workload

RECOMPUTED = 4 / 3  # a second forward beside forward (1) and backward (2)
LONG = 16384  # tokens of a rank below which its context is not split further, nor offloaded


@dataclass(frozen=True)
class Choice:
    parallel: ParallelConfig
    peak: int  # bytes of the fullest rank
    waste: float  # time, as a multiple of an ideal step's: pipeline bubble × recomputation


def bubble(p: ParallelConfig, rows: int) -> float:
    """Idle share of a pipeline, as a multiple of the busy time, for `rows` of a rank and step.

    (pp - 1) / (vpp · rows), arXiv 2104.04473, sec. 2.2.
    """
    return (p.pp - 1) / (p.vpp * rows)


def waste(p: ParallelConfig, rows: int) -> float:
    """Time as a multiple of a step without bubble and recomputation; communication not counted."""
    return (1 + bubble(p, rows)) * (RECOMPUTED if p.recompute == "full" else 1.0)


def possible(config: Config, world_size: int, row_tokens: int) -> Iterator[Config]:
    """Every layout of `world_size` ranks that the model, the rows and the batch allow."""
    m = config.model
    shards = [n for n in (1, 2, 4, 8) if m.num_key_value_heads % n == 0]
    stages = [
        n for n in range(1, min(m.num_hidden_layers + 1, world_size) + 1) if world_size % n == 0
    ]
    experts = [n for n in range(1, m.num_experts + 1) if m.num_experts % n == 0 and n <= world_size]
    contexts = [n for n in (1, 2, 4, 8, 16) if n == 1 or row_tokens >= n * LONG]
    keeping = [{"recompute": "none"}, {"recompute": "full"}]
    if row_tokens > LONG:
        keeping.append({"recompute": "full", "offload": True})
    for tp, cp, pp, vpp, ep, keep in product(shards, contexts, stages, (1, 2), experts, keeping):
        if vpp > 1 and pp == 1:
            continue
        found = config.parallel.model_copy(
            update={"tp": tp, "cp": cp, "pp": pp, "vpp": vpp, "ep": ep, "offload": False} | keep
        )
        candidate = config.model_copy(update={"parallel": found})
        try:
            parallel.check_layout(candidate, world_size, row_tokens)
        except ConfigError:
            continue
        yield candidate


def fitting(
    config: Config,
    world_size: int,
    work: Workload,
    limit: int,
    progress: Callable[[list[Config]], Iterable[Config]] = lambda candidates: candidates,
) -> list[Choice]:
    """Layouts whose fullest rank needs at most `limit` bytes.

    In order of time lost to bubbles and recomputation, then of what communication costs most:
    nothing offloaded, few tensor-parallel ranks, few context-parallel, few expert-parallel ones,
    then the smaller peak.
    """
    found = []
    for candidate in progress(list(possible(config, world_size, work.row_tokens))):
        peak = max(need.total for need in ends(candidate, world_size, work))
        if peak <= limit:
            p = candidate.parallel
            rows = config.data.rows_per_step * p.tp * p.pp * p.cp // world_size
            found.append(Choice(p, peak, waste(p, rows)))

    def order(choice: Choice) -> tuple[float, ...]:
        p = choice.parallel
        return (round(choice.waste, 3), p.offload, p.tp, p.cp, p.ep, choice.peak)

    return sorted(found, key=order)


def ends(config: Config, world_size: int, work: Workload) -> list[Need]:
    """The need of the first stage, which holds the most rows, and of the last, with the head."""
    ranks = memory.representatives(config, world_size)
    return [memory.pretend(config, world_size, r, work) for r in sorted({ranks[0], ranks[-1]})]
