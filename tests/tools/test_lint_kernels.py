"""Every shipped kernel compiles for GPUs that are not here; and the lint finds what is planted."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton")

# In a process of its own: the tests' is set up for Triton's interpreter, which compiles nothing.
PLANTED = """
import dataclasses
from tools.lint_kernels import inspect
from megatron_ring.kernels import experts_builds

found = {one.name: one for one in experts_builds.builds(90)}
up = found["up_kernel Ling-Lite"]
added = found["weight_gradient_kernel of w1, added Ling-Lite"]
planted = [
    dataclasses.replace(up, stages=5),
    dataclasses.replace(added, constexprs={**added.constexprs, "CHUNKS": 1}),
    dataclasses.replace(found["combine_kernel Ling-Lite"], tensor_cores=True, tma=True),
    dataclasses.replace(up, constexprs={**up.constexprs, "BK": 48}),
    up,
]
for build in planted:
    print("; ".join(inspect(build, 90).complaints) or "fine")
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=400
    )


def test_all_shipped_kernels() -> None:
    done = run("tools/lint_kernels.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 not as they should be" in done.stdout
    for name in ("up_kernel", "weight_gradient_kernel", "route_kernel", "split_and_rotate", "head"):
        assert name in done.stdout


def test_what_is_planted_is_found() -> None:
    """Five stages need too much shared memory; an unchunked epilogue spills; no tensor cores and no
    bulk copies in a plain sum; 48 columns are no block."""
    done = run("-c", PLANTED)
    shared, spilled, plain, broken, fine = done.stdout.splitlines()
    assert "bytes of shared memory, 232448 are there" in shared
    assert "bytes of registers spilled to memory" in spilled
    assert plain == "no tensor cores; no bulk tensor copies"
    assert broken.startswith("no code: ")
    assert fine == "fine"


@pytest.mark.parametrize(
    ("option", "said"),
    [(("--arch", "75"), "use one of them or 0"), (("--only", "x y"), "--only x y")],
)
def test_what_is_not_there_is_said(option: tuple[str, str], said: str) -> None:
    done = run("tools/lint_kernels.py", *option)
    assert done.returncode == 2 and said in done.stdout
