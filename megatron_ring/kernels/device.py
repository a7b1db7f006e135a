"""Where Triton kernels run: NVIDIA GPUs from compute capability 8.0, and Triton's interpreter."""

import functools
import importlib.util
import os

import torch

# Triton's interpreter runs kernels on a CPU, one program after the other: for tests. It reads bf16
# as 16-bit integers, silently, so only fp32 may reach it.
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


def has_triton(device: torch.device) -> bool:
    """Whether Triton kernels run on `device`."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cuda":
        nvidia = torch.version.cuda is not None and torch.cuda.is_available()
        return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and INTERPRET


@functools.cache
def fused_backend(device: torch.device) -> str:
    """The backend of operations that the configuration leaves no choice of: triton or torch.

    On a CPU torch, also where the interpreter would do.
    """
    return "triton" if device.type == "cuda" and has_triton(device) else "torch"


def architecture(device: torch.device) -> int:
    """The generation whose tile sizes fit: 90 for Hopper and data centres' Blackwell, else 80.

    Consumers' Blackwell (12.0) has less than half their shared memory.
    """
    if device.type != "cuda":
        return 80
    return 90 if (9, 0) <= torch.cuda.get_device_capability(device) < (12, 0) else 80
