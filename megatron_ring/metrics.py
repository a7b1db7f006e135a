"""What a run measures of itself: FLOPs, experts and router, memory, and a log line of them.

Model FLOPs, the convention behind MFU: 6 FLOPs per active weight and token (2 forward, 4 backward);
attention from Σ length² of the packed documents, the causal half counted once; the embedding
lookup free; the head for supervised tokens only, as we compute it; recomputation not counted.
"""

import math
import resource
from dataclasses import replace

import torch
from torch import Tensor

from megatron_ring import parallel
from megatron_ring.config import Config, ModelConfig
from megatron_ring.losses import Head
from megatron_ring.model.ling import LingModel
from megatron_ring.model.router import LingRouter, RouterStats
from megatron_ring.step import Counts

# Dense bf16 peaks of SXM modules in TFLOP/s, from NVIDIA's data sheets (without sparsity).
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0}
STEP = ("data", "forward_backward", "optimizer")  # what counts as training time
OTHER_MODULES = ("PCI", "NVL")  # slower ones, by parts of their names


def active_weights(model: ModelConfig) -> int:
    """Weights of the layers that one token is multiplied by; embedding and head not included."""
    m, D = model, model.hidden_size
    attention = D * m.head_size * (m.num_attention_heads * 2 + m.num_key_value_heads * 2)
    routed = 3 * D * m.moe_intermediate_size * m.num_experts_per_tok + D * m.num_experts
    shared = 3 * D * m.shared_intermediate_size
    dense = m.first_k_dense_replace
    experts = (m.num_hidden_layers - dense) * (routed + shared)
    return m.num_hidden_layers * attention + experts + dense * 3 * D * m.intermediate_size


def train_flops(model: ModelConfig, counts: Counts) -> float:
    """FLOPs the model needs for forward and backward over a global batch."""
    width = model.num_attention_heads * model.head_size
    # Scores and weighted sum: 2 products of 2 FLOPs over the causal half, times 3 for backward.
    attention = 3 * 2 * 2 * 0.5 * counts.square_lengths * width * model.num_hidden_layers
    head = 6 * model.vocab_size * model.hidden_size * counts.supervised
    return 6 * active_weights(model) * counts.tokens + attention + head


def router_table(stages: list[LingModel], config: ModelConfig) -> Tensor:
    """float64 [L, E + 3] over all ranks: visits to each expert, Σ aux, Σ z, Σ entropy.

    Then starts afresh.
    """
    device, width = torch.cuda.current_device(), config.num_experts + 3
    table = torch.zeros(config.num_hidden_layers, width, dtype=torch.float64, device=device)
    for stage in stages:
        for layer, router in stage.routers.items():
            stats = router.stats
            if stats.counts_E is not None:
                table[layer - 1, :-3] = stats.counts_E.double()
                table[layer - 1, -3] = stats.aux
                table[layer - 1, -2] = stats.z
                table[layer - 1, -1] = stats.entropy
            stats.reset()
    return parallel.sum_over_model_and_data(table).cpu()


def expert_metrics(table: Tensor, config: ModelConfig, tokens: int) -> dict[str, float]:
    """How the routed layers use their experts; means over layers where nothing else is said.

    `load_max_over_mean` (and of the worst layer) is the largest expert's visits over a fair share.
    Entropies are shares of ln E: `load_entropy` of the visits' distribution, 1 when all experts are
    visited equally; `router_entropy` of the softmax, a mean over tokens, 0 when each token is sure.
    """
    moe, most = table[config.first_k_dense_replace :], math.log(max(config.num_experts, 2))
    load, tokens = moe[:, :-3], max(tokens, 1)
    per_layer = load.amax(1) / load.mean(1).clamp(min=1e-9)
    share = load / load.sum(1, keepdim=True).clamp(min=1)
    return {
        "aux_loss": float(moe[:, -3].mean()) / tokens,
        "z_loss": float(moe[:, -2].mean()) / tokens,
        "router_entropy": float(moe[:, -1].mean()) / tokens / most,
        "load_max_over_mean": float(per_layer.mean()),
        "load_worst_layer": float(per_layer.max()),
        "load_entropy": float(torch.special.entr(share).sum(1).mean()) / most,
        "dead_experts": int((load == 0).sum()),
    }


def heat_map(visits: Tensor) -> list[list[float]]:
    """Each layer's visits [L, E] as multiples of a fair share, to three digits."""
    fair = visits / visits.mean(1, keepdim=True).clamp(min=1e-9)
    return [[float(f"{value:.3g}") for value in layer] for layer in fair.tolist()]


def memory_gib() -> float:
    """Peak memory of this process: device memory on a GPU, resident memory on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_tflops(config: Config) -> float | None:
    """Dense peak of one device, or None where nobody knows it: then MFU is not reported."""
    if config.log.peak_tflops or not torch.cuda.is_available():
        return config.log.peak_tflops
    name = torch.cuda.get_device_name()
    if any(module in name for module in OTHER_MODULES):
        return None
    return next((peak for kind, peak in PEAK_TFLOPS.items() if kind in name), None)


class Meter:
    """Sums since the last log line; reading them is the only place that waits for the device."""

    def __init__(
        self, config: Config, stages: list[LingModel], head: Head, resumed_step: int = 0
    ) -> None:
        self.config, self.stages, self.head = config, stages, head
        # As if the last line before the resumed step had had a heat map.
        self.mapped = resumed_step - resumed_step % config.log.every
        self.peak = peak_tflops(config)
        self.visits: Tensor | float = 0.0  # [L, E] since the last heat map
        self._reset()
        self.routed = self._routed()

    def _reset(self) -> None:
        self.table: Tensor | None = None  # None: no update since the last line
        self.supervised = self.tokens = self.steps = self.updates = 0
        self.flops = 0.0

    def add(self, counts: Counts, table: Tensor) -> None:
        """One step: its global counts and this rank's table of the head."""
        self.table = table if self.table is None else self.table + table
        self.supervised += counts.supervised
        self.tokens += counts.tokens
        self.flops += train_flops(self.config.model, counts)
        self.steps += 1
        self.updates += 1
        self.routed = self._routed()

    def skip(self) -> None:
        """A step without an update: its time counts, its loss and what it routed do not."""
        self.steps += 1
        for router, stats in zip(self._routers(), self.routed, strict=True):
            router.stats = replace(stats)  # else the next step would add to what is kept

    def _routers(self) -> list[LingRouter]:
        return [router for stage in self.stages for router in stage.routers.values()]

    def _routed(self) -> list[RouterStats]:
        """The routers' sums as they are; `RouterStats.add` puts new ones in their place."""
        return [replace(router.stats) for router in self._routers()]

    def read(self, seconds: dict[str, float]) -> dict[str, float]:
        """The numbers of a log line, equal on all ranks but for times; then starts afresh.

        `seconds` are those of the stopwatch since the last line, by part.
        """
        router = router_table(self.stages, self.config.model)
        self.visits = self.visits + router[self.config.model.first_k_dense_replace :, :-3]
        trained = max(sum(seconds.get(part, 0.0) for part in STEP), 1e-9)
        line = self.head.report(parallel.sum_over_stages_and_data(self.table)) | {
            "tokens": self.tokens,
            "supervised": self.supervised,
            "steps": self.steps,
            "updates": self.updates,
            "step_seconds": trained / self.steps,
            "tokens_per_second": self.tokens / trained,
            "tokens_per_second_per_device": self.tokens / trained / parallel.world_size(),
            "tflops_per_device": self.flops / trained / parallel.world_size() / 1e12,
            "memory_gib": memory_gib(),
        }
        if self.peak is not None:
            line["mfu"] = line["tflops_per_device"] / self.peak
        line |= {f"seconds/{part}": value / self.steps for part, value in seconds.items()}
        line |= expert_metrics(router, self.config.model, self.tokens)
        self._reset()
        self.routed = self._routed()
        return line

    def heat_map(self, step: int, last: bool) -> list[list[float]] | None:
        """Visits as multiples of a fair share, [L, E], since the last map or the run's last start.

        After `read`; None when it is not yet time.
        """
        every = self.config.log.heat_map_every  # the same steps after a restart
        if not (last or step // every > self.mapped // every):
            return None
        visits, self.visits, self.mapped = self.visits, 0.0, step
        return heat_map(visits)
