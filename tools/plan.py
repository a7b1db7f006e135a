"""Will it fit, and how long will it take? Asked before a job is queued.

Usage:
    python tools/plan.py FILE.yaml... [key.path=value ...] --gpus 8 --memory 80GB

\b
Examples:
    python tools/plan.py configs/model/ling_lite.yaml configs/sft_stage1.yaml \\
        configs/parallel/8x80gb.yaml --gpus 8 --memory 80GB --packed packed/sft_stage1
    python tools/plan.py configs/model/ling_lite.yaml configs/dpo.yaml parallel.ep=8 --gpus 8 \\
        --memory 141GB --tokens 60M
    python tools/plan.py configs/model/ling_lite.yaml --gpus 32 --memory 80GB --search

The files and keys are those of training. Needs no GPU: the real modules, gradient buffers and the
distributed optimizer of every pipeline stage are built without memory, as rank N of a launch that
does not exist, and counted. Activations, working memory and communication are estimates (formulas
checked against autograd on a CPU; no GPU has been at hand to measure them). Exit status: 0 when it
fits, 1 when not, 2 when the question cannot be answered.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from megatron_ring import config as configuration
from megatron_ring import metrics
from megatron_ring.config import Config, ConfigError
from megatron_ring.data.rows import Rows
from megatron_ring.planner import layouts, memory
from megatron_ring.planner.memory import Need, Workload
from megatron_ring.step import Counts

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False, soft_wrap=True)
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
MULTIPLES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclasses.dataclass(frozen=True)
class Data:
    """What is trained on, over all epochs."""

    tokens: int
    supervised: int
    square_lengths: int
    rows: int


@app.command(help=__doc__)
def main(
    arguments: Annotated[list[str], typer.Argument(help="YAML files and key.path=value …")],
    gpus: Annotated[int, typer.Option(min=1, help="ranks of the launch, one a device")] = 8,
    memory_size: Annotated[
        str, typer.Option("--memory", help="of one device: 80GB, 141GB, 79GiB")
    ] = "80GB",
    reserve: Annotated[
        str, typer.Option(help="of it for CUDA, NCCL and fragmentation: an assumption")
    ] = "5GB",
    row_tokens: Annotated[
        int | None, typer.Option(min=1, help="S; default: that of --packed, or 16384")
    ] = None,
    packed: Annotated[Path | None, typer.Option(help="packed folder: its rows and lengths")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="without --packed: tokens to train on, 800M or 21.2B")
    ] = None,
    document_tokens: Annotated[int, typer.Option(min=1, help="their mean length")] = 4096,
    supervised: Annotated[
        float, typer.Option(min=0, max=1, help="share of tokens predicted; known of --packed")
    ] = 0.9,
    imbalance: Annotated[
        float, typer.Option(min=1, help="tokens of the fullest rank's experts / mean")
    ] = 1.3,
    peak_tflops: Annotated[float, typer.Option(help="dense bf16 peak of a device")] = 989.0,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="assumed share of the peak")] = 0.3,
    search: Annotated[bool, typer.Option("--search", help="list the layouts that fit")] = False,
    as_json: Annotated[Path | None, typer.Option("--json", help="write the plan to a file")] = None,
) -> None:
    try:
        config = read(arguments)
        limit = room(memory_size, reserve)
        if as_json is not None and not as_json.parent.is_dir():
            raise ConfigError(f"--json {as_json}: there is no folder {as_json.parent}")
        data = whole_data(packed, tokens, document_tokens, supervised, row_tokens)
        if data is not None:
            supervised = data[1].supervised / max(data[1].tokens, 1)
        work = Workload(
            row_tokens=data[0] if data else row_tokens or 16384,
            supervised=supervised,
            imbalance=imbalance,
            dtype=torch.float32 if config.run.dtype == "fp32" else torch.bfloat16,
        )
        needs = needs_of(config, gpus, work, search)
    except (ConfigError, ValueError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    fits = needs is not None and max(need.total for need in needs) <= limit
    if needs is not None:
        show_memory(config, needs, limit, gpus, work)
        if data is not None:
            show_time(config, data[1], gpus, peak_tflops * mfu)
    choices = look(config, gpus, work, limit) if search or not fits else []
    if as_json is not None:
        write(as_json, config, needs or [], limit, choices, fits)
    raise typer.Exit(0 if fits or (search and choices) else 1)


def needs_of(config: Config, gpus: int, work: Workload, search: bool) -> list[Need] | None:
    """The need of each stage; None where the layout is impossible and others are searched."""
    try:
        return memory.needs(config, gpus, work)
    except ConfigError as error:
        if not search:
            raise
        console.print(str(error), style="red", markup=False)
        return None


def read(arguments: list[str]) -> Config:
    files = [a for a in arguments if "=" not in a]
    return configuration.load(Config, files, [a for a in arguments if "=" in a])


def size(text: str, option: str) -> int:
    """Bytes in 80GB (powers of ten) or 79GiB (powers of two)."""
    found = re.fullmatch(r"([0-9.]+)\s*([KMGT]i?B)", text, re.IGNORECASE)
    if not found or found[2].upper() not in UNITS:
        raise ConfigError(f"{option} {text} is no size such as 80GB, 141GB or 79GiB")
    return round(float(found[1]) * UNITS[found[2].upper()])


def room(memory_size: str, reserve: str) -> int:
    """Bytes of a device that are left for the run."""
    limit = size(memory_size, "--memory") - size(reserve, "--reserve")
    if limit <= 0:
        raise ConfigError(f"--memory {memory_size} is no more than --reserve {reserve}")
    return limit


def whole_data(
    packed: Path | None,
    tokens: str | None,
    document_tokens: int,
    supervised: float,
    row_tokens: int | None,
) -> tuple[int, Data] | None:
    """Tokens in a row, and the data of all epochs; None when nothing is said of it."""
    if packed is not None:
        rows = Rows.open(packed)
        if row_tokens not in (None, rows.row_tokens):
            raise ConfigError(
                f"--row-tokens {row_tokens}, but {packed} has rows of {rows.row_tokens}"
            )
        shown = np.concatenate([rows.documents_of(n) for n in range(rows.num_rows)])
        squares = int((rows.lengths[shown] ** 2).sum())
        facts = rows.manifest
        data = Data(facts["num_tokens"], facts["num_supervised"], squares, rows.num_rows)
        return rows.row_tokens, data
    if tokens is None:
        return None
    found = re.fullmatch(r"([0-9.]+)([KMBT]?)", tokens, re.IGNORECASE)
    if not found:
        raise ConfigError(f"--tokens {tokens} is no number such as 800M or 21.2B")
    count = round(float(found[1]) * MULTIPLES[found[2].upper()])
    in_row = row_tokens or 16384
    squares = count * document_tokens
    return in_row, Data(count, round(count * supervised), squares, -(-count // in_row))


def show_memory(config: Config, needs: list[Need], limit: int, gpus: int, work: Workload) -> None:
    p = config.parallel
    dp = gpus // (p.tp * p.pp * p.cp)
    console.print(
        f"[bold]{gpus} devices: tp {p.tp} · cp {p.cp} · pp {p.pp} · vpp {p.vpp} · ep {p.ep} · "
        f"dp {dp} · recompute {p.recompute}{' · offload' * p.offload}[/]; rows of "
        f"{work.row_tokens:,} tokens, {config.data.rows_per_step // dp} of "
        f"{config.data.rows_per_step} a rank and step"
    )
    table = Table("GB of a rank, by stage", *(str(n.stage) for n in needs), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    lines: dict[str, Any] = {
        "layers": lambda n: f"{n.layers}",
        "weights": lambda n: gb(n.static.weights),
        "gradients (fp32)": lambda n: gb(n.static.gradients),
        "optimizer, this rank's shard": lambda n: gb(n.static.optimizer),
        "activations, estimated": lambda n: gb(n.activations),
        "  rows in flight": lambda n: f"{n.in_flight:g}",
        "working memory, estimated": lambda n: gb(n.working),
        "communication, estimated": lambda n: gb(n.communication),
        "[bold]sum": lambda n: f"[bold]{gb(n.total)}",
    }
    if p.offload:
        lines["layer inputs in host memory"] = lambda n: gb(n.host)
    if p.cp > 1:
        lines["received for a row, cp"] = lambda n: gb(n.context_traffic)
    for name, cell in lines.items():
        table.add_row(name, *(cell(need) for need in needs))
    console.print(table)
    if config.loss.head == "dpo":
        console.print("dpo: reference scores are read from the rows; there is no second model")
    peak = max(need.total for need in needs)
    verdict = "[bold green]fits[/]" if peak <= limit else "[bold red]does not fit[/]"
    console.print(f"{verdict}: the fullest rank needs {gb(peak)} of {gb(limit)} GB\n")


def gb(count: int) -> str:
    return f"{count / 1e9:.2f}"


def show_time(config: Config, data: Data, gpus: int, tflops: float) -> None:
    counts = Counts((data.supervised,), data.supervised, data.tokens, data.square_lengths)
    flops = metrics.train_flops(config.model, counts)
    planned = -(-data.rows // config.data.rows_per_step)
    steps = min(config.optim.steps or planned, planned)
    seconds = flops * (steps / planned) / (gpus * tflops * 1e12)
    console.print(
        f"{data.tokens:,} tokens in {data.rows:,} rows, {steps:,} steps; "
        f"{flops / data.tokens / 1e9:.1f} GFLOPs a token, {flops:.2e} in all\n"
        f"at {tflops:,.0f} TFLOP/s a device ({gpus} devices): {duration(seconds)}, "
        f"{seconds / max(steps, 1):.1f} s a step, "
        f"{data.tokens / seconds / gpus:,.0f} tokens/s a device\n"
    )


def duration(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes"


def look(config: Config, gpus: int, work: Workload, limit: int) -> list[layouts.Choice]:
    """Find and show the layouts that fit."""

    def progress(candidates: list[Config]) -> Any:
        return track(candidates, "trying layouts", console=console, transient=True)

    choices = layouts.fitting(config, gpus, work, limit, progress)
    if not choices:
        console.print(
            f"no layout of {gpus} devices fits {gb(limit)} GB; use more devices, shorter rows or a "
            f"smaller loss.chunk_tokens (data.rows_per_step={config.data.rows_per_step} decides "
            "which layouts are possible)"
        )
        return []
    table = Table("layouts that fit", "GB", "time lost", box=None)
    for choice in choices[:12]:
        p = choice.parallel
        plain = {"tp": 1, "cp": 1, "pp": 1, "vpp": 1, "ep": 0, "recompute": "none"}
        plain["offload"] = False
        chosen = {k: v for k, v in p.model_dump().items() if k in plain and v != plain[k]}
        typed = " ".join(f"parallel.{k}={str(v).lower()}" for k, v in chosen.items())
        table.add_row(typed, gb(choice.peak), f"{choice.waste - 1:.0%}")
    console.print(table)
    more = f" ({len(choices) - 12} more)" if len(choices) > 12 else ""
    console.print(
        f"by time lost to pipeline bubbles and recomputation, then by tp, cp and ep{more}"
    )
    return choices


def write(
    file: Path,
    config: Config,
    needs: list[Need],
    limit: int,
    choices: list[layouts.Choice],
    fits: bool,
) -> None:
    stages = [dataclasses.asdict(need) | {"total": need.total} for need in needs]
    found = [
        {"parallel": c.parallel.model_dump(), "peak": c.peak, "waste": c.waste} for c in choices
    ]
    plan = {"fits": fits, "limit": limit, "parallel": config.parallel.model_dump()}
    file.write_text(json.dumps(plan | {"stages": stages, "layouts": found}, indent=1) + "\n")


if __name__ == "__main__":
    app()
