"""What this machine has, and what that means for a run.

    python tools/doctor.py
    python tools/doctor.py --json

Looks only; installs and changes nothing, reads no secret, and needs neither a GPU nor a network.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megatron_ring.trackers import has_wandb_login

GIB = 2**30
SUPPORTED_MCORE = ("0.16.1", "0.19.2")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float
    capability: tuple[int, int]  # (9, 0) is Hopper


@dataclass(frozen=True)
class Machine:
    """What was found; None where a thing is not there."""

    python: str
    cores: int
    memory_gib: float
    disk_free_gib: float  # where runs/ would be
    driver_gpus: list[str] = field(default_factory=list)  # as nvidia-smi lists them
    gpus: list[Gpu] = field(default_factory=list)  # as torch sees them
    packages: dict[str, str | None] = field(default_factory=dict)
    torch_cuda: str | None = None  # CUDA version torch was built for
    nccl: str | None = None
    grouped_mm: bool = False
    varlen: bool = False
    c_compiler: bool = False  # and Python's headers
    wandb_login: bool = False
    slurm: list[str] | None = None  # partitions, as sinfo prints them
    problems: list[str] = field(default_factory=list)  # what was there and did not work


PACKAGES = [
    *("torch", "megatron-core", "transformers", "datasets", "sentencepiece", "triton"),
    *("transformer-engine", "apex", "wandb", "reasoning-gym", "psutil"),
]


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def output_of(*command: str) -> list[str] | None:
    """Lines a program prints; None when it is missing, fails, or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def memory_gib() -> float:
    """Memory of the machine, or of its container where that is less, in GiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
    return total / GIB


def can_compile_c() -> bool:
    """Whether there are a C compiler and Python.h, with which Triton builds what starts kernels."""
    compilers = [os.environ.get("CC"), "gcc", "clang"]  # triton/runtime/build.py
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return any(name and shutil.which(name) for name in compilers) and headers.is_file()


def look_at_torch() -> dict[str, object]:
    """The fields of Machine that only torch can tell; importing it may fail in many ways."""
    try:
        import torch
    except Exception as error:  # a broken CUDA library raises OSError, a bad build anything
        return {"problems": [f"torch does not import: {type(error).__name__}: {error}"]}
    found: dict[str, object] = {"torch_cuda": torch.version.cuda, "problems": []}
    found["grouped_mm"] = "grouped_mm" in dir(torch.nn.functional)
    found["varlen"] = Path(torch.__file__).with_name("nn").joinpath("attention/varlen.py").is_file()
    if not torch.cuda.is_available():
        return found
    try:
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        count = range(torch.cuda.device_count())
        properties = [torch.cuda.get_device_properties(i) for i in count]
    except Exception as error:  # the driver and the build may not fit each other
        found["problems"] = [f"CUDA does not start: {type(error).__name__}: {error}"]
        return found
    found["gpus"] = [Gpu(p.name, p.total_memory / GIB, (p.major, p.minor)) for p in properties]
    return found


def look(folder: Path) -> Machine:
    """Everything about this machine that matters to a run; `folder` is where runs would go."""
    return Machine(
        python=sys.version.split()[0],
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_gib=memory_gib(),
        disk_free_gib=shutil.disk_usage(folder).free / GIB,
        driver_gpus=output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or [],
        packages={package: installed(package) for package in PACKAGES},
        c_compiler=can_compile_c(),
        wandb_login=has_wandb_login(),
        slurm=output_of("sinfo", "--noheader", "--format=%P %D nodes, %a, %G"),
        **look_at_torch(),
    )


def about_software(m: Machine) -> list[str]:
    """What is missing or unproven, with the remedy."""
    said = list(m.problems)
    if m.packages["torch"] is None:
        said.append("torch is missing: run `make install`.")
    mcore = m.packages["megatron-core"]
    if mcore is None:
        said.append("megatron-core is missing, so nothing can train: run `make install`.")
    elif mcore not in SUPPORTED_MCORE:
        tested = " and ".join(SUPPORTED_MCORE)
        said.append(f"megatron-core {mcore} is untested here; {tested} are tested.")
    if m.packages["transformer-engine"] or m.packages["apex"]:
        said.append("TransformerEngine or Apex is installed, but nothing here needs either.")
    return said


def about_compute(m: Machine) -> list[str]:
    """Device, dtype, backends, and what fits."""
    if not m.gpus:
        said = []
        if m.driver_gpus:
            said.append(
                f"There is a {m.driver_gpus[0]}, but torch cannot use it (built for CUDA "
                f"{m.torch_cuda or 'none'}): remove .venv and run `make install`."
            )
        return said + [
            "Runs use the CPU with fp32, gloo between processes, attention.backend=sdpa and "
            "experts.backend=torch: right for the quickstart, tests, packing and conversion, "
            f"not for Ling-Lite. At most {m.cores} processes are useful.",
            "Converting Ling-Lite needs 34 GB of disk a copy, and little memory; "
            f"{m.disk_free_gib:.0f} GiB are free here.",
        ]
    gpu, total = m.gpus[0], sum(g.memory_gib for g in m.gpus)
    dtype = "bf16" if gpu.capability >= (8, 0) else "fp32 (no bf16 before Ampere)"
    attention = "varlen" if m.varlen and gpu.capability >= (8, 0) else "sdpa"
    experts = "torch (grouped_mm)" if m.grouped_mm else "loop"
    if m.packages["triton"] and gpu.capability >= (8, 0):
        experts = "triton"
    said = [
        f"Runs use {len(m.gpus)} × {gpu.name} with {dtype}, attention.backend={attention}, "
        f"experts.backend={experts}, NCCL {m.nccl} between processes."
    ]
    if experts == "triton" and not m.c_compiler:
        said.append(
            "Triton cannot start its kernels: it needs a C compiler and Python.h (Debian: apt "
            "install gcc python3-dev)."
        )
    if total >= 600:  # 302 GB of states, plus activations and head room
        said.append(f"{total:.0f} GiB: Ling-Lite fits in full, for instance with parallel.ep=8.")
    else:
        said.append(
            f"{total:.0f} GiB: full fine-tuning of Ling-Lite keeps 302 GB of weights, gradients "
            "and Adam state alone; take more GPUs, or fewer layers to try things out."
        )
    return said


def about_logging(m: Machine) -> list[str]:
    said = [
        "wandb: logged in, runs are shown online."
        if m.wandb_login
        else "wandb: no login, runs are written offline (`wandb login`, or `wandb sync` later)."
    ]
    if m.slurm is None:
        said.append("Slurm: not here; several nodes need torchrun on each.")
    else:
        said.append("Slurm: " + ("; ".join(m.slurm) or "here, but sinfo lists no partition") + ".")
    if m.disk_free_gib < 5:
        said.append(f"Only {m.disk_free_gib:.1f} GiB of disk are free: checkpoints may not fit.")
    return said


def show(m: Machine) -> None:
    table = Table("what", "found", title="This machine", show_header=False)
    table.add_row("processor", f"{m.cores} cores, {m.memory_gib:.0f} GiB memory")
    table.add_row("disk", f"{m.disk_free_gib:.0f} GiB free")
    kinds = {
        f"{g.name}, {g.memory_gib:.0f} GiB, sm_{g.capability[0]}{g.capability[1]}" for g in m.gpus
    }
    table.add_row("GPUs", f"{len(m.gpus)} × {' / '.join(sorted(kinds))}" if m.gpus else "none")
    table.add_row("Python", m.python)
    for package in PACKAGES:
        table.add_row(package, m.packages[package] or "[dim]not installed[/]")
    table.add_row("CUDA of torch, NCCL", f"{m.torch_cuda or 'none'}, {m.nccl or 'none'}")
    table.add_row("wandb login", "yes" if m.wandb_login else "no")
    table.add_row("Slurm", "yes" if m.slurm is not None else "no")
    console = Console()
    console.print(table)
    console.print("[bold]What that means[/]")
    for sentence in about_software(m) + about_compute(m) + about_logging(m):
        console.print(f"· {sentence}", highlight=False, markup=False, soft_wrap=True)


def main(
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Say what this machine has, and what that means for a run.

    Example: python tools/doctor.py --json
    """
    machine = look(Path())
    if not as_json:
        show(machine)
        return
    means = about_software(machine) + about_compute(machine) + about_logging(machine)
    print(json.dumps(asdict(machine) | {"means": means}, indent=1))


if __name__ == "__main__":
    typer.run(main)
