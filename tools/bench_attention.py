"""Time and memory of packed attention: every backend that runs here, shape by shape.

\b
    python tools/bench_attention.py                         # what a CPU does in a minute
    python tools/bench_attention.py --json attention.json   # on a GPU: Ling-Lite's heads, to 128K
    python tools/bench_attention.py --packed packed/sft     # also a row of your own lengths
    python tools/bench_attention.py --documents 2048 --single 131072 --row 131072

Shapes: rows of --row tokens cut into documents of each length of --documents; a single document of
each length of --single; of --packed, the row in the middle by Σ length². Heads are Ling-Lite's (16
query, 4 key/value heads of 128 channels) on a GPU.

Candidates, turn by turn on the same numbers: those of attention.backend that run on this device in
this number format; and "dense" (up to 16,384 tokens), one attention over the row with a mask, which
is what a program without packed attention does.

Columns: seconds of forward, and of forward with backward, medians of the repeats; TFLOP/s of the
latter by the convention 7 × heads × width × Σ length² (two products forward and five on the way
back, 2 flop each, half of them above the diagonal and not counted); peak memory beyond inputs (on a
CPU, of a process of its own); how far values and gradients are from per-document attention in fp32,
relative, in the norm, the worst of the four. FlexAttention's block mask is not in the times: it is
made once a row, for all layers.

The last lines say which backend should be the default here, and whether --backend, as configured,
is within 1.1 × of the best.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from megatron_ring import platform
from megatron_ring.config import ConfigError
from megatron_ring.data.rows import Rows
from megatron_ring.kernels.attention import NEEDS, Segments, choose_backend, packed_attention, runs
from megatron_ring.platform.timing import machine, make_room_for, side_by_side

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False, soft_wrap=True)
MIB = 2**20
DENSE_TOKENS = 16384  # a mask of 256 MiB
MARGIN = 1.1


@dataclass(frozen=True)
class Case:
    heads: int
    groups: int
    width: int
    dtype: str
    deterministic: bool
    threads: int


@dataclass(frozen=True)
class Shape:
    name: str
    lengths: list[int]

    def flop(self, case: Case) -> int:
        """Of forward and backward: 2 + 5 products of 2 flop, half of each above the diagonal."""
        return 7 * case.heads * case.width * sum(n * n for n in self.lengths)


@app.command(help=__doc__)
def main(
    documents: Annotated[str, typer.Option(help="lengths; default 2048,8192,16384")] = "",
    single: Annotated[str, typer.Option(help="lengths; default 16384 to 131072")] = "",
    row: Annotated[int, typer.Option(min=0, help="tokens of a packed row; 0: 65536")] = 0,
    packed: Annotated[Path | None, typer.Option(help="folder written by tools/pack.py")] = None,
    heads: Annotated[int, typer.Option(min=0, help="query heads; 0: 16, on a CPU 4")] = 0,
    groups: Annotated[int, typer.Option(min=0, help="key/value heads; 0: 4, on a CPU 1")] = 0,
    width: Annotated[int, typer.Option(min=0, help="channels of a head; 0: 128, CPU 64")] = 0,
    dtype: Annotated[str, typer.Option(help="auto | bf16 | fp32, as run.dtype")] = "auto",
    backend: Annotated[str, typer.Option(help="attention.backend, to be judged")] = "auto",
    deterministic: Annotated[bool, typer.Option("--deterministic", help="as configured")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="0: torch's default")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all of it here")] = None,
    peak_of: Annotated[str, typer.Option(hidden=True, help="in a child: its peak, MiB")] = "",
) -> None:
    make_room_for(json_file)
    device = platform.prepare()
    gpu, chosen_dtype = device.type == "cuda", platform.dtype(dtype)
    case = Case(
        heads or (16 if gpu else 4),
        groups or (4 if gpu else 1),
        width or (128 if gpu else 64),
        str(chosen_dtype).removeprefix("torch."),
        deterministic,
        threads or torch.get_num_threads(),
    )
    torch.set_num_threads(case.threads)
    if peak_of:
        name, lengths = peak_of.split(":")
        print(peak_here(case, Shape("", numbers(lengths)), name, device))
        return
    try:
        configured = choose_backend(backend, device, chosen_dtype)
        shapes = shapes_of(documents, single, row, packed, gpu)
    except (ConfigError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    about = {"case": asdict(case), "machine": machine(device), "configured": configured.backend}
    console.print(", ".join(f"{key} {value}" for key, value in about["machine"].items()))
    console.print(
        f"{case.heads} query and {case.groups} key/value heads of {case.width}, {case.dtype}, "
        f"{case.threads} threads, deterministic {case.deterministic}; {configured.why}"
    )
    results = [measure(case, shape, device, repeats) for shape in shapes]
    for result in results:
        report(result)
    about |= {"results": results, "verdict": verdict(results, configured.backend)}
    console.print("\n" + "\n".join(about["verdict"]["lines"]))
    if json_file:
        json_file.write_text(json.dumps(about | {"argv": sys.argv[1:]}, indent=1) + "\n")


def numbers(text: str) -> list[int]:
    """Lengths from "2048,8192"; ValueError for what is none."""
    found = [int(part) for part in text.split(",") if part]
    if not all(n > 0 for n in found):
        raise ValueError(f"lengths {text!r}: each must be at least 1")
    return found


def shapes_of(documents: str, single: str, row: int, packed: Path | None, gpu: bool) -> list[Shape]:
    """The shapes asked for; with nothing said, all of them, on a CPU small ones."""
    if not documents and not single and packed is None:
        documents = "2048,8192,16384" if gpu else "128,512"
        single = "16384,32768,65536,131072" if gpu else "1024"
    row = row or (65536 if gpu else 2048)
    shapes = []
    for n in numbers(documents):
        if n > row:
            raise ValueError(f"documents of {n} tokens do not fit --row {row}")
        tail = [row % n] if row % n else []
        shapes.append(Shape(f"{row:,} in documents of {n:,}", [n] * (row // n) + tail))
    shapes += [Shape(f"one document of {n:,}", [n]) for n in numbers(single)]
    if packed is not None:
        rows = Rows.open(packed)
        every = [rows.row(i).cu_seqlens for i in range(0, rows.num_rows, rows.num_rows // 200 + 1)]
        lengths = sorted(
            ([b - a for a, b in zip(cu, cu[1:])] for cu in (cu.tolist() for cu in every)),  # noqa: B905
            key=lambda row: sum(n * n for n in row),
        )
        shapes.append(Shape(f"middle row of {packed}", lengths[len(lengths) // 2]))
    return shapes


class Bench:
    """The numbers that all candidates of a shape work on, and the candidates."""

    def __init__(self, case: Case, shape: Shape, device: torch.device) -> None:
        dtype, S = getattr(torch, case.dtype), sum(shape.lengths)
        generator = torch.Generator(device).manual_seed(0)

        def random(heads: int) -> Tensor:
            made = torch.empty((S, heads, case.width), dtype=dtype, device=device)
            return made.normal_(generator=generator)

        self.case, self.lengths = case, shape.lengths
        self.qkv = [random(n).requires_grad_() for n in (case.heads, case.groups, case.groups)]
        self.grad = random(case.heads)
        self.segments = Segments.of_lengths(shape.lengths, shape.lengths, device)
        names = [name for name in NEEDS if runs(name, device, dtype)]
        self.candidates = {name: self._packed(name) for name in names}
        if S <= DENSE_TOKENS:
            self.candidates["dense"] = self._dense

    def _packed(self, name: str) -> Callable[..., Tensor]:
        def attend(*qkv: Tensor) -> Tensor:
            return packed_attention(*qkv, self.segments, name, self.case.deterministic)

        return attend

    def _dense(self, *qkv: Tensor) -> Tensor:
        first_S, end_S = self.segments.seen()
        at_S = torch.arange(len(first_S), device=first_S.device)
        sees = (first_S[:, None] <= at_S) & (at_S < end_S[:, None])
        q, k, v = (x.transpose(0, 1)[None] for x in qkv)
        k, v = (x.repeat_interleave(self.case.heads // self.case.groups, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=sees)[0].transpose(0, 1)

    def forward(self, name: str) -> None:
        with torch.no_grad():
            self.candidates[name](*self.qkv)

    def both(self, name: str) -> list[Tensor]:
        out = self.candidates[name](*self.qkv)
        return [out.detach(), *torch.autograd.grad(out, self.qkv, self.grad)]

    def compare(self) -> dict[str, float]:
        """How far each candidate is from sdpa in fp32: the worst of values and gradients."""
        exact = [x.detach().float().requires_grad_() for x in self.qkv]
        out = packed_attention(*exact, self.segments, "sdpa")
        expected = [out.detach(), *torch.autograd.grad(out, exact, self.grad.float())]
        del exact, out

        def off(found: list[Tensor]) -> float:
            pairs = zip(found, expected, strict=True)
            return max(((a - b).norm() / b.norm().clamp(min=1e-30)).item() for a, b in pairs)

        return {name: off(self.both(name)) for name in self.candidates}


def measure(case: Case, shape: Shape, device: torch.device, repeats: int) -> dict[str, Any]:
    """All figures of a shape."""
    bench = Bench(case, shape, device)
    off = bench.compare()
    tasks: dict[str, Callable[[], object]] = {}
    for name in bench.candidates:
        tasks[f"{name} forward"] = lambda name=name: bench.forward(name)
        tasks[f"{name} both"] = lambda name=name: bench.both(name)
    seconds = side_by_side(tasks, repeats)
    rows = []
    for name in bench.candidates:
        forward, both = (seconds[f"{name} {part}"] for part in ("forward", "both"))
        median = statistics.median(both)
        rows.append(
            {
                "name": name,
                "forward": statistics.median(forward),
                "seconds": median,
                "fastest": min(both),
                "tflops": shape.flop(case) / median / 1e12,
                "peak_mib": peak(case, shape, bench, name),
                "off": off[name],
            }
        )
    return {"shape": shape.name, "lengths": shape.lengths, "candidates": rows}


def peak(case: Case, shape: Shape, bench: Bench, name: str) -> float:
    """MiB that forward and backward of a candidate take beyond what goes in."""
    if bench.grad.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        bench.both(name)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    names = {"bfloat16": "bf16", "float32": "fp32"}
    options = [f"--{k}={v}" for k, v in asdict(case).items() if k not in ("dtype", "deterministic")]
    options += ["--deterministic"] * case.deterministic + [f"--dtype={names[case.dtype]}"]
    options += ["--peak-of", f"{name}:{','.join(map(str, shape.lengths))}"]
    command = [sys.executable, __file__, *options]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def peak_here(case: Case, shape: Shape, name: str, device: torch.device) -> float:
    """The same in this process, which has done nothing else: MiB of resident memory on top."""
    Bench(case, Shape("", [8, 4]), device).both(name)  # what is loaded at the first call
    bench = Bench(case, shape, device)
    before = resident("VmRSS")
    bench.both(name)
    return resident("VmHWM") - before


def resident(key: str) -> float:
    """MiB of this process, from Linux; VmHWM is the peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def verdict(results: list[dict[str, Any]], configured: str) -> dict[str, Any]:
    """Which backend is best for each shape and for all, and how the configured one compares.

    For all shapes: the smallest geometric mean of times relative to each shape's best.
    """
    lines, ratios = [], {}
    for result in results:
        times = {r["name"]: r["seconds"] for r in result["candidates"] if r["name"] != "dense"}
        best = min(times, key=times.__getitem__)
        for name, seconds in times.items():
            ratios.setdefault(name, []).append(seconds / times[best])
        ratio = times[configured] / times[best]
        judged = "within" if ratio <= MARGIN else "NOT within"
        lines.append(
            f"{result['shape']}: best {best}; configured {configured} takes {ratio:.2f} × its "
            f"time, {judged} {MARGIN} ×"
        )
    means = {name: math.exp(statistics.fmean(map(math.log, r))) for name, r in ratios.items()}
    default = min(means, key=means.__getitem__)
    lines.append(f"default for this device: {default} (kernels/attention.py, DEFAULTS)")
    fine = all(ratio <= MARGIN for ratio in ratios[configured])
    return {"default": default, "configured_is_fine": fine, "mean_ratios": means, "lines": lines}


def report(result: dict[str, Any]) -> None:
    columns = ("forward s", "+ backward", "min", "TFLOP/s", "peak MiB", "ratio", "off")
    table = Table("attention", *columns, box=None)
    fastest = min(row["seconds"] for row in result["candidates"])
    for row in result["candidates"]:
        table.add_row(
            row["name"],
            f"{row['forward']:.4f}",
            f"{row['seconds']:.4f}",
            f"{row['fastest']:.4f}",
            f"{row['tflops']:.3g}",
            f"{row['peak_mib']:,.0f}",
            f"{row['seconds'] / fastest:.2f}",
            f"{row['off']:.1e}",
        )
    console.print(f"\n{result['shape']}")
    console.print(table)


if __name__ == "__main__":
    app()
