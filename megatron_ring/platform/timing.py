"""Timing candidates side by side, for benchmarks on machines that are not quiet."""

import time
from collections.abc import Callable

import torch


def side_by_side(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list]:
    """Seconds of each repeat; one warm-up, then turn by turn, so that noise hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            _wait()
            began = time.perf_counter()
            run()
            _wait()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
