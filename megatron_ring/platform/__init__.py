"""Devices and library versions: every difference the rest of the program need not know about."""

import torch

from megatron_ring.platform import cpu


def prepare() -> torch.device:
    """Choose this process's device and make megatron-core work on it; call once, first.

    Without a visible GPU the few CUDA calls of megatron-core are answered on the CPU (see cpu.py);
    with one, nothing is touched.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    cpu.install()
    return torch.device("cpu")


def dtype(name: str) -> torch.dtype:
    """The number format that `run.dtype=name` means here: auto is bf16 on GPUs, fp32 on CPUs."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def dtype_name(name: str) -> str:
    """The format that `run.dtype=name` means here, as it is written in checkpoints."""
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype(name)]
