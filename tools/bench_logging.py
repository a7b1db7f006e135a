"""What logging every step costs: the same steps with and without it, turn by turn, in one process.

\b
    python tools/bench_logging.py packed/train
    torchrun --nproc-per-node 2 tools/bench_logging.py packed/train parallel.ep=2

With it, each step has a line in metrics.jsonl and wandb (offline), gradient norms by part, times by
part and every fifth a heat map; a run that logs every tenth step pays a tenth of it.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from megatron_ring import config as configuration
from megatron_ring import journal, losses, metrics, optim, parallel, platform, step, stopwatch
from megatron_ring.config import Config
from megatron_ring.data.rows import Rows
from megatron_ring.gradient_norms import GradientNorms
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages

TINY = "configs/model/ling_tiny.yaml"


def main(
    packed: Annotated[str, typer.Argument(help="folder written by tools/pack.py")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value …")] = None,
    model: Annotated[str, typer.Option(help="YAML with the architecture")] = TINY,
    steps: Annotated[int, typer.Option(min=1, help="steps of each kind")] = 40,
) -> None:
    device = platform.prepare()
    with tempfile.TemporaryDirectory() as temporary:
        fixed = [f"data.train={packed}", f"run.dir={temporary}/run", "log.wandb=offline"]
        fixed += ["log.heat_map_every=5"]
        try:
            config = configuration.load(Config, [model], [*fixed, *(overrides or [])])
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        with parallel.process_groups(config.parallel, device, config.run.seed):
            Path(config.run.dir).mkdir(parents=True, exist_ok=True)
            with journal.opened(config, 2 * (steps + 2), 0) as log:
                plain, logged = measure(config, Rows.open(packed), device, log, steps)
            if parallel.is_first_rank():
                say(plain, logged)


def measure(
    config: Config, rows: Rows, device: torch.device, log: journal.Journal, steps: int
) -> tuple[list[float], list[float]]:
    """Seconds of a step without and with logging; each row of the plan is seen by both."""
    stages = build_stages(config, platform.dtype(config.run.dtype), device)
    weights.load_first(config, stages)
    models = optim.wrap(stages, config.parallel)
    optimizer = optim.build_optimizer(models, config.optim, platform.dtype(config.run.dtype))
    head = losses.head(config.loss, rows.sources, rows.domains)
    meter, clock = metrics.Meter(config, stages, head), stopwatch.Stopwatch()
    norms = GradientNorms(models, optimizer)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * (steps + 2)):
        logs = bool((number + number // 2) % 2)  # off on, on off: neither always comes first
        batch = number // 2 % rows.num_steps(config.data.rows_per_step)
        place = (parallel.data_rank(), parallel.data_size())
        wait()
        began = time.perf_counter()
        with clock("data"):
            mine = rows.at_step(batch, config.data.rows_per_step, *place)
        with clock("forward_backward"):
            counts, table, norm = step.gradient(models, optimizer, mine, head)
        done = {"lr": 0.0, "grad_norm": norm} | (norms.read() if logs else {})
        with clock("optimizer"):
            step.update(optimizer, 0.0)
        meter.add(counts, table)
        if logs:
            line = {"step": number + 1} | done | meter.read(clock.read())
            log.step(line, meter.heat_map(number + 1, last=False))
        wait()
        if number >= 4:
            seconds[logs].append(time.perf_counter() - began)
    return seconds[False], seconds[True]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def say(plain: list[float], logged: list[float]) -> None:
    without = statistics.median(plain)
    extra = statistics.median(b - a for a, b in zip(plain, logged, strict=True))
    print(
        f"{len(plain)} steps of {without * 1e3:.1f} ms; logging adds {extra * 1e3:.2f} ms a step "
        f"(median of differences on the same rows): {extra / without:.2%}"
    )


if __name__ == "__main__":
    typer.run(main)
