"""What a run tells: the console, metrics.jsonl, events.jsonl, wandb and TensorBoard.

`metrics.jsonl` has a line of numbers for each logged step, validation, spike and heat map, each
with "step" and "time" (Unix seconds); a resumed run drops the lines of steps that run again.
`events.jsonl` is the run's diary over all its lives and is never cut: starts, notes, saves, spikes,
ends.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.markup import escape

from megatron_ring import parallel, spikes, trackers
from megatron_ring.config import Config
from megatron_ring.data.rows import Rows


class Journal:
    """Rank 0's log. On other ranks every method does nothing."""

    def __init__(self, config: Config, total_steps: int, resumed_step: int) -> None:
        self.config, self.total_steps, self.last = config, total_steps, resumed_step
        self.active = torch.distributed.get_rank() == 0
        if not self.active:
            return
        self.console = Console(highlight=False)
        folder = Path(config.run.dir)
        kept = _drop_after(folder / "metrics.jsonl", resumed_step)
        _drop_after(folder / "spikes.jsonl", resumed_step)
        self.useful = sum(map(_seconds, kept))
        self._evaluated = {line["step"] for line in kept if _is_evaluation(line)}
        self.first = self._begin(folder / "events.jsonl", resumed_step)
        self.file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.trackers = trackers.opened(config, resumed_step, self._warn)

    def _begin(self, file: Path, resumed_step: int) -> float:
        """Note the start of this life of the run; when the first began, in Unix seconds."""
        starts = [line for line in _whole_lines(file) if line["kind"] in ("start", "resume")]
        torn = file.exists() and not file.read_bytes().endswith(b"\n")
        self.events = file.open("a", encoding="utf-8")
        self.events.write("\n" * torn)  # by a kill; what comes now shall have its own line
        began = psutil.Process().create_time()
        more = {"total": self.total_steps, "world_size": parallel.world_size()}
        more |= {"restart": len(starts), "time": round(began, 3)}
        kind = "resume" if resumed_step or starts else "start"
        self._event(kind, f"{kind} after step {resumed_step}", **more)
        return starts[0]["time"] if starts else began

    def step(self, line: dict[str, Any], fair: list[list[float]] | None = None) -> None:
        """One training step: `line` has "step" (batches tried so far) and plain numbers.

        `fair`: the heat map, if it is time for one.
        """
        if not self.active:
            return
        step, total = line["step"], self.total_steps
        self.last = step
        self.useful += _seconds(line)
        line["goodput"] = min(self.useful / max(time.time() - self.first, 1e-9), 1.0)
        self._write(line)
        if fair is not None:
            self._map(step, fair)
        eta = (total - step) * line["step_seconds"]
        mfu = f"  mfu {line['mfu']:.1%}" if "mfu" in line else ""
        self._print(
            f"[bold]{step:>{len(str(total))}}[/]/{total}  {_loss(line)}"
            f"lr {line['lr']:.2e}  grad {line['grad_norm']:.3f}  "
            f"load {line['load_max_over_mean']:.2f}  aux {line['aux_loss']:.3f}  "
            f"{line['tokens_per_second']:,.0f} tok/s{mfu}  {line['memory_gib']:.1f} GiB  "
            f"eta {timedelta(seconds=round(eta))}"
        )

    def valid(self, step: int, line: dict[str, float]) -> None:
        """One validation, after `step` updates: the head's report."""
        if not self.active:
            return
        self._write({"step": step} | {f"valid_{key}": value for key, value in line.items()})
        self._print(f"[cyan]step {step}: held out, {_loss(line)}[/]")

    def evaluated(self, step: int, numbers: dict[str, float]) -> None:
        """What benchmarks say after `step` updates, shares by name; {}: it was broken off."""
        if not self.active or not numbers:
            return
        self._evaluated.add(step)
        self._write({"step": step} | numbers)
        told = ", ".join(
            f"{key.removeprefix('eval/').removesuffix('/score').replace('/', ' ')} {value:.1%}"
            for key, value in numbers.items()
        )
        self._print(f"[cyan]step {step}: evaluated, {escape(told)}[/]")

    def lacks_evaluation(self, step: int) -> bool:
        """Is not written yet what benchmarks say after `step`? A collective on all ranks."""
        return parallel.from_rank_0(self.active and step not in self._evaluated)

    def tried(
        self, step: int, guard: spikes.Guard, event: dict[str, Any] | None, rows: Rows
    ) -> None:
        """Step `step` has been trained or skipped; what is told from now on happens after it.

        `event`: its batch spiked, or did and now went well: a line for spikes.jsonl. The run may
        have become longer by it, or by a retry.
        """
        self.last, self.total_steps = step, guard.total
        if not self.active or event is None:
            return
        event |= rows.named(event["batch"], self.config.data.rows_per_step)
        with (Path(self.config.run.dir) / "spikes.jsonl").open("a", encoding="utf-8") as file:
            self._append(file, event)
        numbers = {f"spike_{key}": event[key] for key in ("loss", "grad_norm")}
        numbers = {key: value for key, value in numbers.items() if value != str(value)}
        self._write({"step": event["step"]} | numbers | guard.counts())
        self._event("spike", spikes.say(event))
        self._print(f"[yellow]{spikes.say(event)}[/]")

    def note(self, text: str, kind: str = "note", **more: Any) -> None:
        """A line of text for the person watching."""
        if self.active and text:
            self._event(kind, text, **more)
            self._print(f"[green]{text}[/]")

    def _warn(self, text: str) -> None:
        self.note(text, "warning")

    def saved(self, step: int, text: str) -> None:
        """What the saver says of the checkpoint of `step`, often some steps later."""
        self.note(text, "warning" if text.startswith("WARNING") else "saved", step=step)

    def end(self, error: BaseException | None) -> None:
        """The last event, and everything closed."""
        if not self.active:
            return
        if error is not None:
            self._event("failed", f"{type(error).__name__}: {error}")
        elif self.last >= self.total_steps:
            self._event("finished", f"finished after step {self.last}")
        else:
            self._event("stopped", f"stopped after step {self.last} of {self.total_steps}")
        self.file.close()
        self.events.close()
        for tracker in self.trackers:
            tracker.close()

    def _map(self, step: int, fair: list[list[float]]) -> None:
        first = self.config.model.first_k_dense_replace + 1
        line = {"step": step, "first_layer": first, "expert_load": fair}
        self._append(self.file, line | {"time": _now()})
        for tracker in self.trackers:
            tracker.picture(step, "expert_load", fair)

    def _event(self, kind: str, text: str, **more: Any) -> None:
        line = {"time": _now(), "step": self.last, "kind": kind, "text": text}
        self._append(self.events, line | more)

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)  # a log file has lines, not a width

    def _write(self, line: dict[str, Any]) -> None:
        self._append(self.file, line | {"time": _now()})
        numbers = {key: value for key, value in line.items() if key != "step"}
        for tracker in self.trackers:
            tracker.log(line["step"], numbers)

    @staticmethod
    def _append(file: Any, line: dict[str, Any]) -> None:
        try:
            file.write(json.dumps(line) + "\n")
            file.flush()
        except OSError as error:
            raise OSError(
                f"could not write to {file.name}: {error}; make room on its disk and start the "
                "same command again, it resumes from its newest checkpoint"
            ) from error


def _now() -> float:
    return round(time.time(), 3)


def _seconds(line: dict[str, Any]) -> float:
    """Seconds of the updates that a line stands for."""
    return line.get("step_seconds", 0.0) * line.get("updates", 1)


def _is_evaluation(line: dict[str, Any]) -> bool:
    return any(key.startswith("eval/") for key in line)


def _loss(line: dict[str, float]) -> str:
    """What the console says of a head's report."""
    said = f"loss [bold]{line['loss']:.4f}[/]  "
    if "margin" in line:
        said += f"accuracy {line['accuracy']:.0%}  margin {line['margin']:.3f}  "
    return said


@contextmanager
def opened(config: Config, total_steps: int, resumed_step: int) -> Iterator[Journal]:
    """The run's log, closed at the end also when the run fails."""
    log = Journal(config, total_steps, resumed_step)
    try:
        yield log
    except BaseException as error:
        with suppress(OSError):  # of a full disk, which must not hide what went wrong
            log.end(error)
        raise
    log.end(None)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a file, without what a kill has cut off; [] where there is none."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:  # the run was killed while writing it
            continue
    return found


def _drop_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Forget lines of steps that a killed run logged but that are about to be run again.

    All of them when it starts from the beginning: step 0 then has its validation again.
    """
    kept = [line for line in _whole_lines(path) if line["step"] <= step and step > 0]
    if path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
    return kept
