"""Time and memory of the head: hidden states to log-probabilities, forward and backward.

\b
    python tools/bench_head.py                              # what a CPU does in a minute
    python tools/bench_head.py --tokens 16384 --vocab 126464 --hidden 2048 --json head.json
    python tools/bench_head.py --chunk 2048 --norm-head     # Ling-Lite's divisor, larger chunks

On a GPU the sizes are Ling-Lite's (16,384 tokens, 126,464 rows of 2,048) unless others are given.
Candidates, turn by turn on the same numbers:

\b
- naive: all logits at once, torch's log_softmax, autograd;
- forward: linear_logprob with gradients made in the forward pass (what SFT uses);
- backward: linear_logprob that computes logits again on the way back (what DPO uses);
- liger: Liger's fused linear cross-entropy, where it is installed and there is a GPU.

Each ends with the weight's gradient added to a float32 buffer, as megatron-core's DDP wants it.

Columns: seconds, median of the repeats, and the fastest; TFLOP/s of the three products that a
forward and backward need (6 × tokens × vocab × hidden; a recomputed one does not count); peak
memory beyond hidden states, weight and that buffer (on a CPU, of a process of its own); how far the
weight's gradient is from the naive one, relative, in the norm.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from megatron_ring import platform
from megatron_ring.kernels.linear_logprob import (
    column_norm,
    linear_logprob,
    linear_logprob_reference,
)
from megatron_ring.platform.timing import machine, make_room_for, side_by_side

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False)
MIB = 2**20


@dataclass(frozen=True)
class Case:
    tokens: int
    vocab: int
    hidden: int
    chunk: int
    dtype: str
    norm_head: bool
    backend: str
    threads: int

    @property
    def flop(self) -> int:
        return 6 * self.tokens * self.vocab * self.hidden


@app.command(help=__doc__)
def main(
    tokens: Annotated[int, typer.Option(min=0, help="scored tokens; 0: 16384, on a CPU 2048")] = 0,
    vocab: Annotated[int, typer.Option(min=0, help="rows; 0: 126464, on a CPU 16384")] = 0,
    hidden: Annotated[int, typer.Option(min=0, help="width; 0: 2048, on a CPU 256")] = 0,
    chunk: Annotated[int, typer.Option(min=1, help="loss.chunk_tokens")] = 1024,
    dtype: Annotated[str, typer.Option(help="auto | bf16 | fp32, as run.dtype")] = "auto",
    norm_head: Annotated[bool, typer.Option("--norm-head", help="divide by column norms")] = False,
    backend: Annotated[str, typer.Option(help="auto | torch | triton")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="0: torch's default")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all of it here")] = None,
    peak_of: Annotated[str, typer.Option(hidden=True, help="in a child: its peak, MiB")] = "",
) -> None:
    make_room_for(json_file)
    device = platform.prepare()
    gpu = device.type == "cuda"
    if dtype not in ("auto", "fp32", "bf16"):
        raise SystemExit(f"error: --dtype {dtype}: auto, fp32 or bf16")
    if backend == "auto":
        backend = "triton" if gpu else "torch"
    if backend not in ("torch", "triton") or (backend == "triton" and not gpu):
        raise SystemExit(f"error: --backend {backend}: torch, or on a GPU triton")
    case = Case(
        tokens or (16384 if gpu else 2048),
        vocab or (126464 if gpu else 16384),
        hidden or (2048 if gpu else 256),
        chunk,
        str(platform.dtype(dtype)).removeprefix("torch."),
        norm_head,
        backend,
        threads or torch.get_num_threads(),
    )
    torch.set_num_threads(case.threads)
    if peak_of:
        print(peak_here(case, peak_of, device))
        return
    bench = Bench(case, device)
    off = bench.compare()
    seconds = side_by_side(bench.candidates, repeats)
    peaks = {name: peak(case, bench, name) for name in bench.candidates}
    rows = [figures(name, times, case, peaks[name], off[name]) for name, times in seconds.items()]
    about = {"case": asdict(case), "machine": machine(device), "results": rows}
    report(about)
    if json_file:
        json_file.write_text(json.dumps(about | {"argv": sys.argv[1:]}, indent=1) + "\n")


class Bench:
    """The numbers that all candidates work on, and the candidates."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, dtype = case, getattr(torch, case.dtype)
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            # In the format itself: a float32 copy would be in the peak of memory.
            return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

        self.h_ND = random(case.tokens, case.hidden).requires_grad_()
        self.w_VD = random(case.vocab, case.hidden).mul_(case.hidden**-0.5).requires_grad_()
        self.labels_N = torch.randint(
            case.vocab, (case.tokens,), generator=generator, device=device
        )
        self.scale_D = column_norm(self.w_VD) if case.norm_head else None
        self.sum_VD = torch.zeros(self.w_VD.shape, dtype=torch.float32, device=device)
        # Another name for the same weight: one that has the buffer, one that adds to it by itself.
        self.fused_VD = self.w_VD.detach().requires_grad_()
        self.fused_VD.main_grad = self.sum_VD
        self.w_VD.register_post_accumulate_grad_hook(self._add)
        self.candidates: dict[str, Callable[[], None]] = {
            "naive": self.naive,
            "forward": lambda: self.ours("forward"),
            "backward": lambda: self.ours("backward"),
        }
        if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
            self.candidates["liger"] = self.liger

    def _add(self, weight: Tensor) -> None:
        self.sum_VD += weight.grad
        weight.grad = None

    def naive(self) -> None:
        self.h_ND.grad = None
        logp_N = linear_logprob_reference(self.h_ND, self.w_VD, self.labels_N, self.scale_D)
        logp_N.sum().backward()

    def ours(self, gradient: str) -> None:
        self.h_ND.grad = None
        options: dict[str, Any] = {"scale_D": self.scale_D, "backend": self.case.backend}
        given = (self.h_ND, self.fused_VD, self.labels_N, self.case.chunk)
        linear_logprob(*given, gradient=gradient, **options).sum().backward()

    def liger(self) -> None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        self.h_ND.grad = None
        h_ND = self.h_ND
        if self.scale_D is not None:
            h_ND = (h_ND / self.scale_D).to(h_ND.dtype)
        loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
        (-loss(self.w_VD, h_ND, self.labels_N)).backward()

    def compare(self) -> dict[str, float]:
        """How far each candidate's gradient of the weight is from the naive one."""
        off, expected = {}, None
        for name, run in self.candidates.items():
            self.sum_VD.zero_()
            run()
            if expected is None:
                expected = self.sum_VD.clone()
            difference = torch.linalg.vector_norm(self.sum_VD.sub_(expected))
            off[name] = (difference / torch.linalg.vector_norm(expected)).item()
        return off


def peak(case: Case, bench: Bench, name: str) -> float:
    """MiB that a candidate takes beyond its inputs and the float32 gradient."""
    if bench.h_ND.is_cuda:
        bench.h_ND.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        bench.candidates[name]()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    options = [f"--{key}={value}" for key, value in asdict(case).items() if key != "norm_head"]
    names = {"bfloat16": "bf16", "float32": "fp32"}
    options = [o.replace(case.dtype, names[case.dtype]) for o in options]
    options += ["--norm-head"] * case.norm_head
    command = [sys.executable, __file__, *options, "--peak-of", name]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def peak_here(case: Case, name: str, device: torch.device) -> float:
    """The same in this process, which has done nothing else: MiB of resident memory on top."""
    small = Case(8, 64, 16, 4, case.dtype, case.norm_head, case.backend, case.threads)
    Bench(small, device).candidates[name]()  # what is loaded at the first call
    bench = Bench(case, device)
    before = resident("VmRSS")
    bench.candidates[name]()
    return resident("VmHWM") - before


def resident(key: str) -> float:
    """MiB of this process, from Linux; VmHWM is the peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def figures(
    name: str, times: list[float], case: Case, peak_mib: float, off: float
) -> dict[str, Any]:
    median = statistics.median(times)
    return {
        "name": name,
        "seconds": median,
        "fastest": min(times),
        "tflops": case.flop / median / 1e12,
        "peak_mib": peak_mib,
        "off": off,
    }


def report(about: dict[str, Any]) -> None:
    case = about["case"]
    console.print(
        f"{case['tokens']:,} tokens, {case['vocab']:,} rows of {case['hidden']:,}, {case['dtype']},"
        f" chunks of {case['chunk']:,}, {case['backend']}, {case['threads']} threads"
    )
    console.print(", ".join(f"{key} {value}" for key, value in about["machine"].items()))
    table = Table("head", "s (median)", "min", "TFLOP/s", "peak MiB", "ratio", "off", box=None)
    slowest = about["results"][0]["seconds"]
    for row in about["results"]:
        table.add_row(
            row["name"],
            f"{row['seconds']:.4f}",
            f"{row['fastest']:.4f}",
            f"{row['tflops']:.3g}",
            f"{row['peak_mib']:,.0f}",
            f"{slowest / row['seconds']:.2f}",
            f"{row['off']:.1e}",
        )
    console.print(table)


if __name__ == "__main__":
    app()
