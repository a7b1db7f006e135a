"""What a run reports: one line a step on the console, in metrics.jsonl and in wandb.

Model FLOPs, the convention behind MFU: 6 FLOPs per active weight and token (2 forward, 4 backward);
attention from Σ length² of the packed documents, the causal half counted once; the embedding
lookup free; the head for supervised tokens only, as we compute it; recomputation not counted.
"""

import json
import netrc
import os
import resource
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from rich.console import Console
from torch import Tensor

from megatron_ring import parallel, spikes
from megatron_ring.config import Config, ModelConfig
from megatron_ring.data.rows import Rows
from megatron_ring.losses import Head
from megatron_ring.model.ling import LingModel
from megatron_ring.model.router import LingRouter, RouterStats
from megatron_ring.step import Counts

# Dense bf16 peaks of SXM modules in TFLOP/s, from NVIDIA's data sheets (without sparsity).
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0}
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
    """float64 [L, E + 2] over all ranks: visits to each expert, Σ aux, Σ z; then starts afresh."""
    device = torch.cuda.current_device()
    table = torch.zeros(
        config.num_hidden_layers, config.num_experts + 2, dtype=torch.float64, device=device
    )
    for stage in stages:
        for layer, router in stage.routers.items():
            stats = router.stats
            if stats.counts_E is not None:
                table[layer - 1, :-2] = stats.counts_E.double()
                table[layer - 1, -2] = stats.aux
                table[layer - 1, -1] = stats.z
            stats.reset()
    return parallel.sum_over_model_and_data(table).cpu()


def expert_metrics(table: Tensor, config: ModelConfig, tokens: int) -> dict[str, float]:
    """Balance of the routed layers: aux and z loss a token, and expert load max / mean."""
    moe = table[config.first_k_dense_replace :]
    load = moe[:, :-2]
    per_layer = load.amax(1) / load.mean(1).clamp(min=1e-9)
    return {
        "aux_loss": float(moe[:, -2].mean()) / max(tokens, 1),
        "z_loss": float(moe[:, -1].mean()) / max(tokens, 1),
        "load_max_over_mean": float(per_layer.mean()),
        "load_worst_layer": float(per_layer.max()),
        "dead_experts": int((load == 0).sum()),
    }


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

    def __init__(self, config: Config, stages: list[LingModel], head: Head) -> None:
        self.config, self.stages, self.head = config, stages, head
        self.peak = peak_tflops(config)
        self._reset()
        self.routed = self._routed()

    def _reset(self) -> None:
        self.table: Tensor | None = None  # None: no update since the last line
        self.supervised = self.tokens = self.steps = 0
        self.flops = self.seconds = 0.0

    def add(self, counts: Counts, table: Tensor, seconds: float) -> None:
        """One step: its global counts, this rank's table of the head, and the time it took."""
        self.seconds += seconds
        self.table = table if self.table is None else self.table + table
        self.supervised += counts.supervised
        self.tokens += counts.tokens
        self.flops += train_flops(self.config.model, counts)
        self.steps += 1
        self.routed = self._routed()

    def skip(self, seconds: float) -> None:
        """A step without an update: its time counts, its loss and what it routed do not."""
        self.seconds += seconds
        self.steps += 1
        for router, stats in zip(self._routers(), self.routed, strict=True):
            router.stats = replace(stats)  # else the next step would add to what is kept

    def _routers(self) -> list[LingRouter]:
        return [router for stage in self.stages for router in stage.routers.values()]

    def _routed(self) -> list[RouterStats]:
        """The routers' sums as they are; `RouterStats.add` puts new ones in their place."""
        return [replace(router.stats) for router in self._routers()]

    def read(self) -> dict[str, float]:
        """The numbers of a log line, equal on all ranks; then starts afresh."""
        router = router_table(self.stages, self.config.model)
        line = self.head.report(parallel.sum_over_stages_and_data(self.table)) | {
            "tokens": self.tokens,
            "supervised": self.supervised,
            "step_seconds": self.seconds / self.steps,
            "tokens_per_second": self.tokens / self.seconds,
            "tflops_per_device": self.flops / self.seconds / parallel.world_size() / 1e12,
            "memory_gib": memory_gib(),
        }
        if self.peak is not None:
            line["mfu"] = line["tflops_per_device"] / self.peak
        line |= expert_metrics(router, self.config.model, self.tokens)
        self._reset()
        self.routed = self._routed()
        return line


class Writer:
    """Rank 0's log. On other ranks every method does nothing."""

    def __init__(self, config: Config, total_steps: int, resumed_step: int) -> None:
        self.config, self.total_steps = config, total_steps
        self.active = torch.distributed.get_rank() == 0
        self.console, self.wandb, self.file = Console(highlight=False), None, None
        if not self.active:
            return
        path = Path(config.run.dir) / "metrics.jsonl"
        _drop_after(path, resumed_step)
        _drop_after(path.with_name("spikes.jsonl"), resumed_step)
        self.file = path.open("a", encoding="utf-8")
        self.wandb = _start_wandb(config)

    def step(self, line: dict[str, Any]) -> None:
        """One training step: `line` has "step" (updates made so far) and plain numbers."""
        if not self.active:
            return
        self._write(line)
        step, total = line["step"], self.total_steps
        eta = (total - step) * line["step_seconds"]
        mfu = f"  mfu {line['mfu']:.1%}" if "mfu" in line else ""
        self._print(
            f"[bold]{step:>{len(str(total))}}[/]/{total}  {_loss(line)}"
            f"lr {line['lr']:.2e}  grad {line['grad_norm']:.3f}  "
            f"load {line['load_max_over_mean']:.2f}  aux {line['aux_loss']:.3f}  "
            f"{line['tokens_per_second']:,.0f} tok/s{mfu}  {line['memory_gib']:.1f} GiB  "
            f"eta {time.strftime('%H:%M:%S', time.gmtime(eta))}"
        )

    def valid(self, step: int, line: dict[str, float]) -> None:
        """One validation, after `step` updates: the head's report."""
        if not self.active:
            return
        self._write({"step": step} | {f"valid_{key}": value for key, value in line.items()})
        self._print(f"[cyan]step {step}: held out, {_loss(line)}[/]")

    def spike(self, event: dict[str, Any] | None, rows: Rows, total_steps: int) -> None:
        """A batch that spiked, or that did and now went well: a line for spikes.jsonl.

        None: neither. The run may have become longer by it, or by a retry.
        """
        self.total_steps = total_steps
        if not self.active or event is None:
            return
        event |= rows.named(event["batch"], self.config.data.rows_per_step)
        with (Path(self.config.run.dir) / "spikes.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        numbers = {f"spike_{key}": event[key] for key in ("loss", "grad_norm")}
        self._write({"step": event["step"]} | {k: v for k, v in numbers.items() if v != str(v)})
        self._print(f"[yellow]{spikes.say(event)}[/]")

    def note(self, text: str) -> None:
        """A line of text for the person watching."""
        if self.active and text:
            self._print(f"[green]{text}[/]")

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)  # a log file has lines, not a width

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if self.wandb is not None:
            self.wandb.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.wandb is not None:
            self.wandb.finish()


def _loss(line: dict[str, float]) -> str:
    """What the console says of a head's report."""
    said = f"loss [bold]{line['loss']:.4f}[/]  "
    if "margin" in line:
        said += f"accuracy {line['accuracy']:.0%}  margin {line['margin']:.3f}  "
    return said


@contextmanager
def writer(config: Config, total_steps: int, resumed_step: int) -> Iterator[Writer]:
    """The run's log, closed at the end also when the run fails."""
    log = Writer(config, total_steps, resumed_step)
    try:
        yield log
    finally:
        log.close()


def _drop_after(path: Path, step: int) -> None:
    """Forget lines of steps that a killed run logged but that are about to be run again."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # the run was killed while writing it
            continue
        if line["step"] <= step:
            kept.append(text + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def _has_wandb_login() -> bool:
    """Is there a key in the environment or, where `wandb login` puts it, in ~/.netrc?"""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _start_wandb(config: Config) -> Any:
    """A wandb run that resumes under the same id, or None when switched off."""
    if config.log.wandb == "disabled":
        return None
    import wandb

    mode = config.log.wandb
    if mode == "auto":
        mode = "online" if _has_wandb_login() else "offline"
    folder = Path(config.run.dir)
    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    return wandb.init(
        project=config.log.project,
        name=config.run.name or folder.name,
        id=id_file.read_text().strip(),
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=config.model_dump(),
        settings=wandb.Settings(silent=True, console="off"),
    )
