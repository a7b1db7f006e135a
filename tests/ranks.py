"""Run a function in several processes over gloo, in a second instead of ten: workers are forked."""

import gc
import multiprocessing
import os
import random
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from megatron_ring import platform

TIMEOUT_SECONDS = 180


def run(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    folder: Path,
    patience: float = 0,
) -> list[Any]:
    """[function(*args) of each rank], each rank's environment as torchrun would set it.

    Results travel as torch files in `folder`. Raises RuntimeError with the first rank's traceback,
    or after TIMEOUT_SECONDS. The others of a rank that failed have `patience` seconds to end too.
    """
    platform.prepare()  # before forking, so that every worker has it already
    torch.set_num_threads(1)  # forked workers cannot use the parent's OpenMP threads
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    # Process groups that an earlier test left to the garbage collector must die here: in a worker
    # their destructor would wait for threads that were not forked.
    gc.collect()
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_work, args=(rank, world_size, port, function, args, folder))
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    deadline, left = time.monotonic() + TIMEOUT_SECONDS, list(workers)
    while left and all(worker.exitcode in (None, 0) for worker in workers):
        connection.wait([worker.sentinel for worker in left], deadline - time.monotonic())
        left = [worker for worker in left if worker.exitcode is None]
        if time.monotonic() > deadline:
            break
    deadline = time.monotonic() + patience
    for worker in left:
        worker.join(max(deadline - time.monotonic(), 0))
    for worker in left:  # the others of a rank that failed would wait for it
        worker.kill()
    for worker in workers:
        worker.join()
    errors = sorted(folder.glob("error-*.txt"))
    if errors:
        raise RuntimeError(errors[0].read_text())
    if any(worker.exitcode != 0 for worker in workers):
        codes = [worker.exitcode for worker in workers]
        raise RuntimeError(f"no answer after {TIMEOUT_SECONDS} s, or died: exit codes {codes}")
    return [torch.load(folder / f"rank-{r}.pt", weights_only=True) for r in range(world_size)]


def free_port() -> int:
    """A port below those that systems hand out to connections, which take one in the meantime."""
    for port in random.SystemRandom().sample(range(10_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("no free port found")


def _work(
    rank: int, world_size: int, port: int, function: Callable[..., Any], args: Any, folder: Path
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        torch.save(function(*args), folder / f"rank-{rank}.pt")
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)
