"""Timing candidates side by side, for benchmarks on machines that are not quiet."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

PACKAGES = ("triton", "liger-kernel", "moe-ops", "transformers", "megatron-core")


def machine(device: torch.device) -> dict[str, str]:
    """What a figure must be told with: the device's name, versions of Python and of packages."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((li.split(": ")[1] for li in lines if "model name" in li), platform.processor())
    found = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def make_room_for(file: Path | None) -> None:
    """Before anything is measured: the folder of a file to be written, or SystemExit."""
    if file is None:
        return
    if file.is_dir():
        raise SystemExit(f"error: --json {file}: this is a folder; name a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: --json {file}: {error}") from None


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
