"""What saving costs: seconds the loop waits, in the foreground and in the background; goodput.

\b
    python tools/bench_checkpoint.py blocked packed/train model.hidden_size=512
    torchrun --nproc-per-node 2 tools/bench_checkpoint.py blocked packed/train parallel.ep=2
    python tools/bench_checkpoint.py kills packed/train --every 20 optim.steps=400

`blocked`, turn by turn: a save while training waits, and one while it trains on. "waited" is what
the loop stood still; "cost" is the time from the save's begin until it is complete, less what the
steps in between take without a save: it has the steps in it that writing slows down.

`kills`: the program, sent SIGKILL every so many seconds and started again until it is done.
Goodput is its steps × the median step, over all the time that passed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from megatron_ring import checkpoint, losses, optim, parallel, platform, recovery, saving, step
from megatron_ring import config as configuration
from megatron_ring.config import Config
from megatron_ring.convert import checksums
from megatron_ring.convert.folder import newest
from megatron_ring.data.rows import Rows
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)
Packed = Annotated[str, typer.Argument(help="folder written by tools/pack.py")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value …")]
Model = Annotated[str, typer.Option(help="YAML with the architecture")]
TINY = "configs/model/ling_tiny.yaml"


def load(packed: str, model: str, run_dir: str, overrides: list[str] | None) -> Config:
    fixed = [f"data.train={packed}", f"run.dir={run_dir}", "log.wandb=disabled"]
    try:
        return configuration.load(Config, [model], [*fixed, *(overrides or [])])
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


@app.command(help="seconds the loop waits for a save")
def blocked(
    packed: Packed,
    overrides: Overrides = None,
    model: Model = TINY,
    saves: Annotated[int, typer.Option(min=1, help="saves of each kind")] = 5,
    folder: Annotated[str, typer.Option(help="where to save; default: a temporary one")] = "",
) -> None:
    device = platform.prepare()
    with tempfile.TemporaryDirectory() as temporary:
        more = ["checkpoint.keep_last=1", *(overrides or [])]
        config = load(packed, model, str(Path(folder or temporary) / "run"), more)
        with parallel.process_groups(config.parallel, device, config.run.seed):
            run = config.run.model_copy(update={"dir": parallel.from_rank_0(config.run.dir)})
            config = config.model_copy(update={"run": run})
            report = Bench(config, Rows.open(packed), device).run(saves)
            if parallel.is_first_rank():
                say(report, saves)


class Bench:
    """A model that trains and is saved; times are those of this rank."""

    def __init__(self, config: Config, rows: Rows, device: torch.device) -> None:
        self.config, self.rows = config, rows
        dtype = platform.dtype(config.run.dtype)
        self.stages = build_stages(config, dtype, device)
        weights.load_first(config, self.stages)
        self.models = optim.wrap(self.stages, config.parallel)
        self.optimizer = optim.build_optimizer(self.models, config.optim, dtype)
        self.head = losses.head(config.loss, rows.sources)
        self.progress = checkpoint.Progress()

    def step(self) -> float:
        """Seconds of one step; its learning rate is 0, so that it may go on for ever."""
        began = time.monotonic()
        number = self.progress.step % self.rows.num_steps(self.config.data.rows_per_step)
        rank, size = parallel.data_rank(), parallel.data_size()
        mine = self.rows.at_step(number, self.config.data.rows_per_step, rank, size)
        step.train_step(self.models, self.optimizer, mine, 0.0, self.head)
        self.progress = self.progress.after(0, 0, {})
        return time.monotonic() - began

    def run(self, saves: int) -> dict[str, float]:
        """Medians over the saves, in seconds, bytes and bytes a second."""
        kinds = {"foreground": self.saver(False), "background": self.saver(True)}
        figures: dict[str, list[float]] = {}
        for turn in range(saves + 1):  # the first warms up
            plain = statistics.median(self.step() for _ in range(5))
            for name, saver in kinds.items():
                began, steps = time.monotonic(), 0
                saver.save(self.progress)
                while saver.under_way:
                    self.step()
                    saver.poll()
                    steps += 1
                cost = time.monotonic() - began - steps * plain
                self.step()  # the next save is of another step
                if turn:
                    figures.setdefault(f"{name} waited", []).append(saver.blocked)
                    figures.setdefault(f"{name} cost", []).append(cost)
                    figures.setdefault(f"{name} steps", []).append(steps)
            if turn:
                figures.setdefault("step", []).append(plain)
        report = {name: statistics.median(values) for name, values in figures.items()}
        saved = newest(self.config.run.dir)
        report["bytes"] = sum(entry.num_bytes for entry in checksums.read(saved).values())
        began = time.monotonic()
        recovery.newest_whole(self.config)
        report["verify"] = time.monotonic() - began
        return report

    def saver(self, background: bool) -> saving.Saver:
        part = self.config.checkpoint.model_copy(update={"async_save": background})
        config = self.config.model_copy(update={"checkpoint": part})
        return saving.Saver(config, self.stages, self.optimizer, self.rows, lambda step, line: None)


def say(report: dict[str, float], saves: int) -> None:
    size = report["bytes"]
    print(f"{parallel.world_size()} ranks, {size / 1e6:,.0f} MB a checkpoint, medians of {saves}")
    print(f"a step without a save {report['step']:.3f} s")
    for name in ("foreground", "background"):
        waited, cost = report[f"{name} waited"], report[f"{name} cost"]
        during = f"{report[f'{name} steps']:.0f} steps meanwhile"
        print(f"{name}: the loop waited {waited:.3f} s, cost {cost:.3f} s, {during}")
    ratio = report["foreground waited"] / report["background waited"]
    print(f"in the background the loop waits {ratio:.1f} × less")
    print(f"checking all files before resuming: {report['verify']:.3f} s", end="")
    print(f" ({size / report['verify'] / 1e9:.1f} GB/s, files in the page cache)")


@app.command(help="goodput of a run that is killed again and again")
def kills(
    packed: Packed,
    overrides: Overrides = None,
    model: Model = TINY,
    every: Annotated[float, typer.Option(help="seconds from a start to its SIGKILL")] = 60,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        run_dir = Path(temporary) / "run"
        load(packed, model, str(run_dir), overrides)
        command = [sys.executable, "-m", "megatron_ring.train", model, f"data.train={packed}"]
        command += [f"run.dir={run_dir}", "log.wandb=disabled", *(overrides or [])]
        began, killed, code = time.monotonic(), 0, None
        saved, idle = newest(run_dir), 0
        while code is None:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            try:
                code = process.wait(every)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                idle = idle + 1 if newest(run_dir) == saved else 0
                saved = newest(run_dir)
                if idle == 3:
                    why = "three lives in a row saved nothing; more seconds, or save more often"
                    raise SystemExit(f"error: --every {every:g}: {why}") from None
        if code:
            raise SystemExit(f"error: the run ended with status {code}")
        total = time.monotonic() - began
        lines = [json.loads(li) for li in (run_dir / "metrics.jsonl").read_text().splitlines()]
        seconds = [line["step_seconds"] for line in lines if "loss" in line]
        useful = len(seconds) * statistics.median(seconds)
        print(
            f"{len(seconds)} steps of {statistics.median(seconds):.3f} s, killed {killed} times, "
            f"{every:g} s after each start: {total:.0f} s in all, goodput {useful / total:.0%}"
        )


if __name__ == "__main__":
    app()
