"""Hugging Face folders with random weights, of any size, for tests, benchmarks and rehearsals."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megatron_ring.config import ModelConfig
from megatron_ring.convert import folder as files
from megatron_ring.convert import ling
from megatron_ring.convert.ops import inverse
from megatron_ring.convert.safetensors_file import write_file


def write_random_model(
    folder: Path, model: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> int:
    """Write `folder` (new) as a Hugging Face checkpoint; its weights' size in bytes.

    Norm weights are about 1, all others normal with `initializer_range`. One tensor is held at a
    time.
    """
    folder.mkdir(parents=True)
    shapes = {name: shape for name, (shape, _) in inverse(ling.rules(model)).items()}
    generator = torch.Generator().manual_seed(seed)

    def tensors() -> Iterator[Tensor]:
        for shape in shapes.values():
            values = torch.randn(shape, generator=generator) * model.initializer_range
            yield (values + (len(shape) == 1)).to(dtype)

    entries = {name: (dtype, shape) for name, shape in shapes.items()}
    write_file(folder / "model.safetensors", entries, tensors())
    files.write_hf_config(folder, files.hf_config(model, {}))
    return sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
