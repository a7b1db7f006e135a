"""Python that nobody has read, run where it can do no harm: bubblewrap, no network, hard limits.

Nothing is run where isolation is not proven: SandboxError says what is missing, and there is no
other way. A program shares its process with its tests, so one that sets out to can forge that it
passed; it cannot leave the sandbox. The kernel is the host's: a hole in it is a hole here.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from megatron_ring.curation.sandbox.isolation import Isolation, SandboxError, find_isolation
from megatron_ring.curation.sandbox.probe import prove
from megatron_ring.curation.sandbox.work import Job, Limits, Result, Verdict, run_job

__all__ = ["Job", "Limits", "Result", "SandboxError", "Verdict"]
__all__ += ["proven", "run", "run_many", "run_tests"]

DEFAULT = Limits()
_lock = threading.Lock()
_proven: list[Isolation] = []


def proven() -> Isolation:
    """What this machine isolates with, proven once in this process; SandboxError when it cannot."""
    with _lock:
        if not _proven:
            found = find_isolation()
            prove(found)
            _proven.append(found)
        return _proven[0]


def run(
    program: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    tests: str | None = None,
    limits: Limits = DEFAULT,
) -> Result:
    """Run a Python program with `stdin`, in a folder with `files` (text by relative path).

    `tests` is run after it among its names. When this returns, no process of it is left.
    ValueError for a path that leads elsewhere; SandboxError when it could not be isolated.
    """
    job = Job(program=program, stdin=stdin, files=files or {}, tests=tests)
    return run_job(proven(), job, limits)


def run_tests(solution: str, tests: str, *, limits: Limits = DEFAULT) -> Verdict:
    """How a solution fares with tests that raise when it is wrong, as MBPP's and HumanEval's do."""
    return run(solution, tests=tests, limits=limits).verdict


def run_many(
    jobs: Iterable[Job], *, workers: int = 0, limits: Limits = DEFAULT
) -> Iterator[Result]:
    """Results in the order of `jobs`, of which a few are read ahead. Default: a worker per core.

    Results do not depend on `workers`, unless they are so many that wall time runs out.
    """
    if workers < 0:
        raise ValueError(f"workers={workers}: give the number of programs at a time, or 0")
    workers = workers or len(os.sched_getaffinity(0))
    shut_in = proven()
    # Threads suffice, for they wait; and a sandbox dies with the thread that started it.
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(run_job, shut_in, job, limits))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
