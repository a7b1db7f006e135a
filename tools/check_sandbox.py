"""Can this machine run generated programs in isolation? What is missing, attacks, throughput.

    python tools/check_sandbox.py

Exit status 1 when something is missing or an attack gets through.
"""

import os
import time
from typing import Annotated

import typer

from megatron_ring.curation import sandbox
from megatron_ring.curation.sandbox import Job, SandboxError
from megatron_ring.curation.sandbox.attacks import attack_all


def main(
    programs: Annotated[int, typer.Option(help="empty programs whose starts are timed")] = 100,
    workers: Annotated[int, typer.Option(help="at a time; 0: one per core")] = 0,
) -> None:
    """Check the sandbox of this machine."""
    workers = workers or len(os.sched_getaffinity(0))
    try:
        isolation = sandbox.proven()
    except SandboxError as error:
        print(f"not isolated: {error}")
        raise typer.Exit(1) from None
    user = "root, programs as user 65534" if isolation.drop else f"user {os.geteuid()}"
    print(f"isolated by {isolation.bubblewrap} {isolation.version}; {isolation.python}; {user}")
    complaints = 0
    for name, complaint in attack_all(isolation):
        print(f"  {name}: {complaint or 'contained'}", flush=True)
        complaints += bool(complaint)
    begun = time.monotonic()
    results = sandbox.run_many((Job(program="") for _ in range(programs)), workers=workers)
    passed = sum(result.verdict == "passed" for result in results)
    seconds = time.monotonic() - begun
    print(f"{passed} of {programs} empty programs, {workers} at a time: {programs / seconds:.1f}/s")
    if complaints or passed < programs:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
