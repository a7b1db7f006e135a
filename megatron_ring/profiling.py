"""A profile of a few steps: torch's trace of each chosen rank, and a table by kernel family.

The trace opens in ui.perfetto.dev. The table counts self times: of kernels where there is a GPU,
else of torch's operators; families add up to all the profiler saw. Steps that are recorded take
longer, and their losses are the same bits.
"""

import gzip
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from megatron_ring.config import ConfigError, ProfileConfig
from megatron_ring.kernels.families import FAMILIES, family

MOST_NAMED = 12  # kernels under the table
MOST_ALLOCATIONS = 1_000_000  # remembered by a memory snapshot


def check(config: ProfileConfig, world_size: int) -> None:
    """ConfigError when a rank is to be recorded that this launch does not have."""
    if config.steps is not None and max(config.ranks) >= world_size:
        raise ConfigError(
            f"profile.ranks={list(config.ranks)}: this launch has {world_size} "
            f"rank{'s' * (world_size > 1)}, the last is {world_size - 1}"
        )


@dataclass(frozen=True)
class Kernel:
    """All calls of one name in one family."""

    name: str
    family: str
    seconds: float
    calls: int


def kernels(events: list[FunctionEvent], on_gpu: bool) -> list[Kernel]:
    """Self times by name and family, the longest first; they add up to the profiler's total.

    On a GPU its kernels, copies and memsets; else operators.
    """
    seconds: Counter[tuple[str, str]] = Counter()
    calls: Counter[tuple[str, str]] = Counter()
    for name, microseconds, around, count in _on_gpu(events) if on_gpu else _on_cpu(events):
        key = (name, family(name, around))
        seconds[key] += microseconds / 1e6
        calls[key] += count
    return [Kernel(*key, total, calls[key]) for key, total in seconds.most_common()]


Call = tuple[str, float, tuple[str, ...], int]  # name, self time in µs, operators around, calls


def _on_cpu(events: list[FunctionEvent]) -> Iterator[Call]:
    for event in events:
        if event.device_type == DeviceType.CPU and not event.is_async:
            yield event.name, event.self_cpu_time_total, _around(event), 1


def _on_gpu(events: list[FunctionEvent]) -> Iterator[Call]:
    """Kernels with the operators that launched them; then those nobody is known to have launched.

    As in torch's own table, what counts are the device's events without annotations.
    """
    left: Counter[str] = Counter()
    left_calls: Counter[str] = Counter()
    for event in events:
        if event.device_type != DeviceType.CPU and not event.is_user_annotation:
            left[event.name] += event.self_device_time_total
            left_calls[event.name] += 1
    for event in events:
        if event.device_type == DeviceType.CPU:
            for kernel in event.kernels:
                if left_calls[kernel.name]:
                    left[kernel.name] -= kernel.duration
                    left_calls[kernel.name] -= 1
                    yield kernel.name, kernel.duration, (event.name, *_around(event)), 1
    for name, microseconds in left.items():
        if left_calls[name] or abs(microseconds) > 1e-3:
            yield name, microseconds, (), left_calls[name]


def _around(event: FunctionEvent) -> tuple[str, ...]:
    names, outer = [], event.cpu_parent
    while outer is not None:
        names.append(outer.name)
        outer = outer.cpu_parent
    return tuple(names)


def summarise(found: list[Kernel], about: dict[str, Any]) -> dict[str, Any]:
    """The summary as JSON has it: `about`, the self time in all, by family, the longest names."""
    total = sum(kernel.seconds for kernel in found)
    families = []
    for name in FAMILIES:
        own = [kernel for kernel in found if kernel.family == name]
        seconds, calls = sum(k.seconds for k in own), sum(k.calls for k in own)
        share = seconds / total if total else 0.0
        families.append({"family": name, "seconds": seconds, "share": share, "calls": calls})
    families.sort(key=lambda line: -line["seconds"])
    longest = [vars(kernel) | {"share": kernel.seconds / total} for kernel in found[:MOST_NAMED]]
    return about | {"self_seconds": total, "families": families, "longest": longest}


def table(summary: dict[str, Any]) -> str:
    """The summary for people: families, then the names that take longest."""
    first, last = summary["steps"]
    count, covered = last - first + 1, summary["self_seconds"] / summary["wall_seconds"]
    lines = [
        f"profile of {_span(first, last)}, rank {summary['rank']}: "
        f"{summary['wall_seconds'] / count:.3f} s a step, {summary['of']} {covered:.0%} of it",
        f"{'ms a step':>10}{'share':>8}{'calls':>8}",
    ]
    for line in summary["families"]:
        lines.append(f"{_numbers(line, count)}  {line['family']}")
    lines += [f"{'total':>26}  {summary['self_seconds'] / count * 1e3:,.2f} ms a step", "longest:"]
    for kernel in summary["longest"]:
        lines.append(f"{_numbers(kernel, count)}  {kernel['name'][:70]} ({kernel['family']})")
    return "\n".join(lines)


def _numbers(line: dict[str, Any], steps: int) -> str:
    milliseconds, calls = 1e3 * line["seconds"] / steps, line["calls"] / steps
    return f"{milliseconds:>10,.2f}{line['share']:>8.1%}{calls:>8,.0f}"


def _span(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


class Profiler:
    """Records the configured steps on the chosen ranks; `step` tells it that one begins.

    A context manager: what is still being recorded at its end is written, also when the run was
    told to stop or failed. A disk that is full costs the profile, not the run.
    """

    def __init__(self, config: ProfileConfig, run_dir: str, say: Callable[[str], None]) -> None:
        """`say`: how the person watching is told; of rank 0 only it is heard."""
        self.config, self.say = config, say
        self.rank, self.folder = torch.distributed.get_rank(), Path(run_dir) / "profile"
        self.waiting = config.steps is not None  # for the steps to come, or to end
        self.mine = self.rank in config.ranks
        self.first: int | None = None  # of the steps that are recorded
        self.number = 0  # of the step that runs
        self._torch: profile | None = None
        self._began = 0.0

    def step(self, number: int) -> None:
        """Step `number` (from 1, as in the log) begins."""
        if not self.waiting:
            return
        first, last = self.config.steps
        if number > last:
            self._end()
        elif number >= first and self.first is None:
            self.first = number
            if self.mine:
                self._begin()
        self.number = number

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *error: object) -> None:
        if self.waiting:
            self._end()

    def _begin(self) -> None:
        if self.config.memory and torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(max_entries=MOST_ALLOCATIONS)
        on_gpu = [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._torch = profile(activities=[ProfilerActivity.CPU, *on_gpu])
        torch.cuda.synchronize()  # else the steps before would be seen ending
        self._torch.start()
        self._began = time.monotonic()

    def _end(self) -> None:
        self.waiting = False
        first, last = self.config.steps
        asked = f"profile.steps=[{first}, {last}]"
        if self.first is None:
            past = self.number == 0  # the first step of this start came after them
            when = "lie before the first step of this start" if past else "were not reached"
            self.say(f"{asked} {when}: nothing is recorded")
            return
        ranks = ", ".join(map(str, self.config.ranks))
        said = f"{asked}: {_span(self.first, self.number)} of rank {ranks} in {self.folder}"
        if self._torch is not None:
            torch.cuda.synchronize()
            seconds = time.monotonic() - self._began
            self._torch.stop()
            try:
                said = f"{self._write(seconds)}\n{said}"
            except OSError as problem:
                said = f"{asked}: the profile could not be written: {problem}"
            self._torch = None  # millions of events
        self.say(said)

    def _write(self, seconds: float) -> str:
        """Trace, summary and memory snapshot into the folder; what to tell the person watching."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank-{self.rank}-steps-{self.first}-{self.number}"
        _save_trace(self._torch, self.folder / f"{name}.json.gz")
        on_gpu = torch.cuda.is_available()
        about = {
            "rank": self.rank,
            "steps": [self.first, self.number],
            "of": "kernels" if on_gpu else "operators",
            "wall_seconds": seconds,
        }
        summary = summarise(kernels(self._torch.events(), on_gpu), about)
        said = table(summary) + self._memory(self.folder / f"{name}-memory.pickle")
        beside = self.folder / f"rank-{self.rank}-summary"
        beside.with_suffix(".json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        beside.with_suffix(".txt").write_text(said + "\n", encoding="utf-8")
        return said

    def _memory(self, file: Path) -> str:
        """Write the snapshot of memory, if it is wanted; what to say of it."""
        if not self.config.memory:
            return ""
        if not torch.cuda.is_available():
            return "\nprofile.memory=true: no snapshot, only the memory of a GPU can be recorded"
        torch.cuda.memory._dump_snapshot(str(file))
        torch.cuda.memory._record_memory_history(enabled=None)
        return f"\nmemory: {file}, for pytorch.org/memory_viz"


def _save_trace(recorded: profile, file: Path) -> None:
    """The trace as Chrome and Perfetto read it, compressed; under its name when it is complete."""
    plain, packed = file.with_suffix(""), file.with_suffix(".tmp")
    recorded.export_chrome_trace(str(plain))
    with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=4) as target:
        shutil.copyfileobj(source, target)
    plain.unlink()
    packed.replace(file)
