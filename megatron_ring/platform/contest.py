"""Contests between ways of computing the same: each is checked first, then timed in turn.

Candidates may be foreign libraries. One that raises or is wrong gets a reason in the place of
figures, and the others go on.
"""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

MIB = 2**20
Work = tuple[float, float]  # FLOP and bytes
Row = dict[str, Any]
Forward = Callable[..., Any]  # of `Inputs.leaves`, then `Inputs.fixed`: a tensor or several
# What backward rounds to bf16 differs by candidate; a wrong one is off by 0.1 and more.
LIMITS = {torch.bfloat16: 0.05, torch.float32: 1e-3}


@dataclass(frozen=True)
class Inputs:
    """One set: what gradients are taken of, what is only read, gradients of the outputs."""

    leaves: dict[str, Tensor]
    fixed: tuple[Tensor, ...]
    dout: tuple[Tensor, ...]
    sums: dict[str, Tensor] = field(default_factory=dict)  # float32 [as the leaf], of some leaves


@dataclass(frozen=True)
class Candidate:
    name: str
    forward: Forward
    gpu: bool = False  # needs one
    package: str = ""  # needs it
    add: bool = False  # gradients of weights go into float32 buffers


@dataclass(frozen=True)
class Operation:
    """What is computed. The first candidate, in float32, is the reference for all."""

    name: str
    candidates: Sequence[Candidate]
    make: Callable[[], Inputs]  # weights may be the same each time
    forward: Work
    both: Work
    added: Work = (0.0, 0.0)  # both, with gradients of weights added to float32 buffers


class Draw:
    """Normal random numbers, the same in every run."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        # In the format itself: float32 copies of weights are large.
        x = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return x.normal_(0, scale, generator=self.generator)


def compiled(forward: Forward) -> Forward:
    """Under torch.compile, which is loaded at the first call."""
    made = functools.cache(lambda: torch.compile(forward, dynamic=False))
    return lambda *given: made()(*given)


class Stopwatch:
    """Seconds that a call takes: on a GPU by its own clock, with the host ahead of it.

    The call is queued behind some 6 ms of other work. So launching is hidden, unless the call waits
    for the device, and nothing of an earlier call is left in the second-level cache.
    """

    def __init__(self, device: torch.device) -> None:
        self.busy = None
        if device.type == "cuda":
            self.busy = torch.zeros(2, 8192, 8192, dtype=torch.bfloat16, device=device)

    def __call__(self, run: Callable[[], object]) -> float:
        if self.busy is None:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        for _ in range(4):
            torch.mm(self.busy[0], self.busy[0], out=self.busy[1])
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000


class Contest:
    """Candidates called `names`, on a device whose peaks are TFLOP/s and TB/s, if known."""

    def __init__(
        self,
        device: torch.device,
        repeats: int,
        names: Sequence[str],
        peaks: tuple[float, float] | None,
    ) -> None:
        self.device, self.repeats, self.names, self.peaks = device, repeats, names, peaks
        self.stopwatch = Stopwatch(device)

    def rows(self, operation: Operation) -> list[Row]:
        """Every candidate against the reference, then the good ones against each other.

        Timed are "forward", with what backward needs kept, and "both".
        """
        candidates = {c.name: c for c in operation.candidates if c.name in self.names}
        if not candidates:
            return []
        plain = [operation.make() for _ in range(self._num_sets(operation))]
        added = with_sums(plain) if any(c.add for c in candidates.values()) else []
        sets = {name: added if c.add else plain for name, c in candidates.items()}
        expected = both_ways(operation.candidates[0].forward, in_float32(plain[0]))
        rows = {name: _check(c, sets[name][0], expected) for name, c in candidates.items()}
        del expected  # before memory runs short
        for name, row in rows.items():
            row |= {"op": operation.name, "name": name, "sets": len(plain), "timings": {}}
        for what, run in (("forward", outputs), ("both", both_ways)):
            runs = {
                name: [partial(run, candidates[name].forward, inputs) for inputs in sets[name]]
                for name, row in rows.items()
                if not row["failed"]
            }
            works = {"forward": operation.forward, "both": operation.both}
            for name, found in self.take_turns(runs).items():
                added_up = what == "both" and candidates[name].add
                work = operation.added if added_up else works[what]
                self.enter(rows[name], what, found, work)
        return list(rows.values())

    def stages(
        self,
        make: Callable[[], Inputs],
        calls_of: Callable[[Inputs], dict[str, Callable[[], object]]],
        works: dict[str, Work],
    ) -> list[Row]:
        """Calls that are timed as they are, on GPUs only; weights have float32 buffers."""
        empty: Row = {"op": "stages", "failed": None, "off": {}, "peak_mib": None, "sets": 3}
        rows = {name: empty | {"name": name, "timings": {}} for name in works}
        found: Row = dict.fromkeys(works, "needs a GPU")
        if self.device.type == "cuda":
            try:
                sets = [calls_of(inputs) for inputs in with_sums([make() for _ in range(3)])]
            except Exception as error:  # of any kind: a stage may not run at all
                found = dict.fromkeys(works, _one_line(error))
            else:
                found = self.take_turns({name: [one[name] for one in sets] for name in works})
        for name, times in found.items():
            self.enter(rows[name], "kernel", times, works[name])
        return list(rows.values())

    def show(self, rows: list[Row], console: Console) -> None:
        """A table of the rows that have figures; for each reason why others have none, a line."""
        if not rows:
            return
        timings = [timing for row in rows for timing in row["timings"].values()]
        # GB/s where there is nothing to multiply, and floors where they are known.
        rate = "tflops" if any(timing["tflops"] for timing in timings) else "gb_per_second"
        shown, reasons = Table("", box=None, padding=(0, 1, 0, 0)), {}
        for what in dict.fromkeys(what for row in rows for what in row["timings"]):
            for column in (f"{what} ms", "TFLOP/s" if rate == "tflops" else "GB/s", "floor"):
                shown.add_column(column, justify="right")
        for column in ("peak MiB", "off"):
            shown.add_column(column, justify="right")
        for row in rows:
            if row["failed"]:
                reasons.setdefault(row["failed"], []).append(row["name"])
                continue
            cells = [row["name"]]
            for timing in row["timings"].values():
                cells += [f"{1000 * timing['seconds']:.3f}", f"{timing[rate]:.3g}"]
                cells.append("" if timing["floor"] is None else f"{timing['floor']:.0%}")
            cells.append("" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}")
            cells.append(f"{max(row['off'].values()):.0e}" if row["off"] else "")
            shown.add_row(*cells)
        console.print("\n{op}: {shape}, {tokens:,} tokens {routing}".format(**rows[0]))
        if shown.row_count:
            console.print(shown)
        for reason, names in reasons.items():
            console.print(f"not timed: {', '.join(names)}: {reason}")

    def _num_sets(self, operation: Operation) -> int:
        """Sets of 256 MiB together, but not more than 32; a second-level cache has some 50."""
        wanted = int(2**28 / operation.forward[1]) if self.device.type == "cuda" else 0
        return max(3, min(32, wanted))

    def take_turns(
        self, runs: dict[str, list[Callable[[], object]]]
    ) -> dict[str, list[float] | str]:
        """Seconds of a call, a value a repeat after a warm-up; or why a candidate dropped out.

        Each candidate has a call for each set of inputs and makes them all when it is its turn.
        """
        found: dict[str, Any] = {name: [] for name in runs}
        for repeat, (name, calls) in product(range(self.repeats + 1), runs.items()):
            if isinstance(found[name], str):
                continue
            try:
                seconds = self.stopwatch(partial(_each, calls))
            except Exception as error:  # of any kind: candidates are foreign libraries, too
                found[name] = _one_line(error)
            else:
                found[name] += [seconds / len(calls)] if repeat else []
        return found

    def enter(self, row: Row, what: str, found: list[float] | str, work: Work) -> None:
        """Put what a candidate's turns gave into its row."""
        if isinstance(found, str):
            row["failed"] = found
            return
        (flop, size), seconds = work, statistics.median(found)
        figures = {"seconds": seconds, "fastest": min(found), "tflops": flop / seconds / 1e12}
        figures |= {"gb_per_second": size / seconds / 1e9, "floor": None}
        if self.peaks:
            figures["floor"] = max(flop / self.peaks[0], size / self.peaks[1]) / 1e12 / seconds
        row["timings"][what] = figures


def _each(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _check(candidate: Candidate, inputs: Inputs, expected: dict[str, Tensor]) -> Row:
    """What a first call gives, and the memory that a second takes."""
    x = next(iter(inputs.leaves.values()))
    row: Row = {"failed": None, "off": {}, "peak_mib": None}
    if candidate.gpu and not x.is_cuda:
        return row | {"failed": "needs a GPU"}
    if candidate.package and not importlib.util.find_spec(candidate.package):
        return row | {"failed": f"{candidate.package} is not installed"}
    for total in inputs.sums.values():
        total.zero_()
    try:
        row["off"] = _distances(both_ways(candidate.forward, inputs), expected)
        if x.is_cuda:
            row["peak_mib"] = _peak_mib(partial(both_ways, candidate.forward, inputs))
    except Exception as error:  # of any kind: candidates are foreign libraries, too
        return row | {"failed": _one_line(error)}
    limit = LIMITS[x.dtype]
    # Not "greater": a distance may be no number.
    wrong = [f"{name} {off:.1e}" for name, off in row["off"].items() if not off <= limit]
    if wrong:
        row["failed"] = f"wrong by more than {limit:g}: {', '.join(wrong)}"
    return row


def outputs(forward: Forward, inputs: Inputs) -> tuple[Tensor, ...]:
    out = forward(*inputs.leaves.values(), *inputs.fixed)
    return out if isinstance(out, tuple) else (out,)


def both_ways(forward: Forward, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs by number and gradients by leaf; where a leaf has a buffer, it is added to that."""
    out, leaves = outputs(forward, inputs), inputs.leaves
    grads = torch.autograd.grad(out, [*leaves.values()], inputs.dout)
    found = dict(zip(leaves, grads, strict=True))
    for name, total in inputs.sums.items():
        if not leaves[name].grad_added_to_main_grad:  # as megatron-core's DDP has it
            total += found[name]
        leaves[name].grad_added_to_main_grad, found[name] = False, total
    return {f"output {i}": o.detach() for i, o in enumerate(out)} | found


def in_float32(inputs: Inputs) -> Inputs:
    leaves = {name: x.detach().float().requires_grad_() for name, x in inputs.leaves.items()}
    return Inputs(leaves, inputs.fixed, tuple(x.float() for x in inputs.dout))


def with_sums(sets: list[Inputs]) -> list[Inputs]:
    """The same sets; weights `w1` and `w2`, which they share, have a float32 buffer as under DDP.

    Weights are other tensors of the same memory, so that those of `sets` stay without.
    """
    weights = {name: sets[0].leaves[name].detach().requires_grad_() for name in ("w1", "w2")}
    for weight in weights.values():
        weight.main_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        weight.grad_added_to_main_grad = False
    sums = {name: weight.main_grad for name, weight in weights.items()}
    return [replace(inputs, leaves=inputs.leaves | weights, sums=sums) for inputs in sets]


def _distances(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """|found - expected| / |expected|, in the norm."""
    norm = torch.linalg.vector_norm
    return {k: (norm(found[k].float() - e) / norm(e)).item() for k, e in expected.items()}


def _peak_mib(run: Callable[[], object]) -> float:
    """Device memory that a call takes beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
