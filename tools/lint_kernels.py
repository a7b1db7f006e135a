"""Compile every Triton kernel that is shipped, for GPUs that need not be there, and look inside.

\b
    python tools/lint_kernels.py                 # compute capability 8.0 and 9.0
    python tools/lint_kernels.py --arch 90 --only weight --jobs 4

For each configuration in use: does it compile, how much shared memory and how many registers does
it take, do registers spill to memory, are tensor cores and (9.0) bulk tensor copies used, and did
the assembler have to serialise wgmma. Ends with 1 and the findings if any is not as it should be.
The compiler is the one of the installed Triton; what holds for one release need not for the next.
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.pop("TRITON_INTERPRET", None)  # it would leave nothing to compile
# Fused multiply-adds, which Triton means to stop making by default: the same code from 3.6 on.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import typer
from rich.console import Console
from rich.table import Table

from megatron_ring import kernels
from megatron_ring.kernels.build import Build

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may use, of CUDA's guide

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False)


@dataclass(frozen=True)
class Compiled:
    """What came out of one configuration."""

    name: str
    arch: int
    shared: int  # bytes
    registers: int  # a thread
    spilled: int  # bytes
    wgmma: int  # instructions in the PTX
    mma: int
    tma: int
    serialised: bool  # the assembler made wgmma wait for each other
    complaints: tuple[str, ...]


@app.command(help=__doc__)
def main(
    arch: Annotated[int, typer.Option(help="80 or 90; 0: both")] = 0,
    only: Annotated[str, typer.Option(help="configurations whose name contains this")] = "",
    jobs: Annotated[int, typer.Option(min=0, help="at a time; 0: as many as cores")] = 0,
) -> None:
    import triton

    if arch not in (0, *SHARED_MEMORY):
        console.print(f"--arch {arch}: kernels are tuned for 80 and 90; use one of them or 0")
        raise typer.Exit(2)
    work = [
        (module, a, at)
        for a in ([arch] if arch else SHARED_MEMORY)
        for module in modules()
        for at, build in enumerate(builds(module, a))
        if only in build.name
    ]
    if not work:
        console.print(f"--only {only}: no configuration has that in its name")
        raise typer.Exit(2)
    with ProcessPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        found = list(pool.map(compile_one, *zip(*work, strict=True)))
    console.print(f"Triton {triton.__version__}")
    console.print(table(found))
    bad = [one for one in found if one.complaints]
    for one in bad:
        console.print(f"sm_{one.arch} {one.name}: {'; '.join(one.complaints)}")
    console.print(f"{len(found)} configurations, {len(bad)} not as they should be")
    raise typer.Exit(bool(bad))


def modules() -> list[str]:
    """Every module of kernels/ that lists configurations."""
    names = sorted(file.stem for file in Path(kernels.__path__[0]).glob("*.py"))
    triton_ones = [name for name in names if name.endswith(("_triton", "_builds"))]
    return [name for name in triton_ones if hasattr(load(name), "builds")]


def load(module: str) -> Any:
    return importlib.import_module(f"megatron_ring.kernels.{module}")


def builds(module: str, arch: int) -> list[Build]:
    return load(module).builds(arch)


def compile_one(module: str, arch: int, at: int) -> Compiled:
    """Compile entry `at` of a module's builds (kernels do not travel between processes)."""
    return inspect(builds(module, arch)[at], arch)


def inspect(build: Build, arch: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {name: build.signature.get(name, "constexpr") for name in names}
    pointers = [i for i, name in enumerate(names) if signature[name].startswith("*")]
    source = ASTSource(
        fn=build.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in build.constexprs.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    options = {"num_warps": build.warps, "num_stages": build.stages}
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:  # any stage of the compiler, any type
        reason = str(error).strip().splitlines()[-1]
        return Compiled(build.name, arch, 0, 0, 0, 0, 0, 0, False, (f"no code: {reason}",))
    return judge(build, arch, compiled.asm["ptx"], compiled.metadata.shared)


def judge(build: Build, arch: int, ptx: str, shared: int) -> Compiled:
    log = assemble(ptx, arch)
    registers = max(map(int, re.findall(r"Used (\d+) registers", log)), default=0)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", log)))
    wgmma, mma = ptx.count("wgmma.mma_async"), ptx.count("mma.sync")
    tma, serialised = ptx.count("cp.async.bulk.tensor"), "serializ" in log
    complaints = []
    if shared > SHARED_MEMORY[arch]:
        complaints.append(f"{shared} bytes of shared memory, {SHARED_MEMORY[arch]} are there")
    if not registers:
        complaints.append("the assembler names no registers")
    if spilled:
        complaints.append(f"{spilled} bytes of registers spilled to memory")
    if serialised:
        complaints.append("wgmma serialised")
    if build.tensor_cores and not (wgmma if arch == 90 else mma):
        complaints.append("no tensor cores")
    if build.tma and arch == 90 and not tma:
        complaints.append("no bulk tensor copies")
    return Compiled(
        build.name, arch, shared, registers, spilled, wgmma, mma, tma, serialised, tuple(complaints)
    )


def assemble(ptx: str, arch: int) -> str:
    """What ptxas says with -v."""
    from triton.backends.nvidia import compiler

    tool: Any = compiler.get_ptxas(arch)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        target = "sm_90a" if arch == 90 else f"sm_{arch}"
        done = subprocess.run(
            [tool.path, "-v", f"--gpu-name={target}", source, "-o", Path(folder, "kernel.cubin")],
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stderr + done.stdout


def table(found: list[Compiled]) -> Table:
    shown = Table(
        "kernel", "sm", "shared KiB", "registers", "spilled", "wgmma", "mma", "TMA", box=None
    )
    for one in found:
        counts = (one.arch, one.shared // 1024, one.registers, one.spilled)
        shown.add_row(one.name, *map(str, (*counts, one.wgmma, one.mma, one.tma)))
    return shown


if __name__ == "__main__":
    sys.exit(app())
