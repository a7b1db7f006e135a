"""Fill a model's weights from any source of global tensors, on any layout.

megatron-core's `sharded_state_dict` says for each local tensor which part of which global tensor
it is; a source answers `read(key, offsets, shape)`. Fresh weights, a Hugging Face folder and
a Megatron checkpoint all load through this one door, so all give the same model on every layout.
"""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    apply_factories,
    is_main_replica,
)
from torch import Tensor

from megatron_ring.config import Config, ConfigError, ModelConfig
from megatron_ring.convert import ling
from megatron_ring.convert.folder import newest
from megatron_ring.convert.sources import HFSource
from megatron_ring.convert.torch_dist import TorchDistReader
from megatron_ring.model.ling import LingModel

CHECKSUM_CHUNK = 1 << 22  # elements; their indices take twice the room of the weights
GOLDEN_RATIO = 0x9E3779B97F4A7C15 - (1 << 64)  # 2⁶⁴ / φ, as Fibonacci hashing uses it, in int64


def metadata() -> dict[str, Any]:
    """How megatron-core describes tensors for a checkpoint; new, for it keeps groups in here."""
    return {
        "non_homogeneous_layers": True,  # a key a layer, none stacked
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,
    }


class Source(Protocol):
    """Global tensors under the names of the Megatron checkpoint."""

    def keys(self) -> dict[str, tuple[int, ...]]:
        """Every tensor there is, with its global shape."""

    def read(self, key: str, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The part of tensor `key` that starts at `offsets` and has `shape`."""


def model_tensors(stages: list[LingModel]) -> list[ShardedTensor]:
    """Every local tensor of the model, as a part of its global tensor; `.data` is the storage."""
    tensors = []
    for stage in stages:
        state = stage.sharded_state_dict(metadata=metadata())
        apply_factories(state)  # gate and up halves of a fused projection become two parts
        tensors += [value for value in nested_values(state) if isinstance(value, ShardedTensor)]
    return tensors


def fill(stages: list[LingModel], source: Source) -> None:
    """Copy the source's tensors into the model, converting dtype.

    Raises ConfigError when the source lacks a tensor or has another shape.
    """
    there = source.keys()
    for part in model_tensors(stages):
        _check_tensor(there, part.key, tuple(part.global_shape))
        data = source.read(part.key, tuple(part.global_offset), tuple(part.local_shape))
        with torch.no_grad():
            part.data.copy_(data.view(part.data.shape))


def check(model: ModelConfig, source: Source) -> None:
    """ConfigError when `source` lacks a tensor of `model`, or has it in another shape."""
    there = source.keys()
    for rule in ling.rules(model):
        _check_tensor(there, rule.key, rule.shape)


def _check_tensor(there: dict[str, tuple[int, ...]], key: str, shape: tuple[int, ...]) -> None:
    if key not in there:
        raise ConfigError(f"{key} is missing from the weights to start from")
    if tuple(there[key]) != tuple(shape):
        raise ConfigError(
            f"{key} has shape {tuple(there[key])} in the weights to start from, "
            f"but {tuple(shape)} in the configured model"
        )


def fingerprint(stages: list[LingModel]) -> str:
    """Hex checksum of the weights of all ranks as they stand in memory, equal on every layout.

    Σ over all tensors and elements of bits × a number drawn from name and position, modulo 2⁶⁴. It
    tells weights apart that differ by accident (another step, another dtype), not a forger's.
    """
    total = torch.zeros((), dtype=torch.int64)
    for part in model_tensors(stages):
        if is_main_replica(part.replica_id):
            total += _checksum(part)
    total = total.to(torch.cuda.current_device())
    dist.all_reduce(total)
    return f"{int(total) % 2**64:016x}"


def _checksum(part: ShardedTensor) -> Tensor:
    shape, offsets = tuple(part.local_shape), tuple(part.global_offset)
    strides = np.cumprod([1, *part.global_shape[:0:-1]])[::-1].tolist()  # of the global tensor
    data = part.data.detach().view(shape)
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    seed = int.from_bytes(hashlib.sha256(part.key.encode()).digest()[:7], "big")
    rows = max(CHECKSUM_CHUNK // max(data[0].numel(), 1), 1)
    for first in range(0, shape[0], rows):
        chunk = data[first : first + rows]
        position = torch.full((), seed, device=data.device)
        for axis, (size, stride) in enumerate(zip(chunk.shape, strides, strict=True)):
            start = offsets[axis] + (first if axis == 0 else 0)
            steps = torch.arange(start, start + size, device=data.device)
            position = position[..., None] + steps * stride
        mixed = position * GOLDEN_RATIO  # integers wrap around
        bits = chunk.float().view(torch.int32).long()
        total += (bits * (mixed ^ (mixed >> 29))).sum()
    return total.cpu()


def load_first(config: Config, stages: list[LingModel]) -> None:
    """Weights to start from: run.init_from (a checkpoint of either kind), or fresh ones."""
    start = config.run.init_from
    if start is None:
        fill(stages, FreshWeights(stages, config.model.initializer_range, config.run.seed))
    else:
        fill(stages, open_weights(start))


def open_weights(path: str | Path) -> Source:
    """A checkpoint of either kind, or a run's newest, as a source; ConfigError when it is none."""
    folder = newest(path)
    return TorchDistReader(folder) if is_megatron(folder) else HFSource(folder)


def is_megatron(path: str | Path) -> bool:
    """Is this a Megatron checkpoint, or else a Hugging Face folder? ConfigError if neither."""
    if (Path(path) / "ring.json").is_file():
        return True
    if (Path(path) / "config.json").is_file():
        return False
    raise ConfigError(
        f"{path} is neither a Megatron checkpoint (no ring.json) nor a Hugging Face folder "
        "(no config.json), nor a run's folder with a complete checkpoint in it"
    )


class FreshWeights:
    """Normal weights of standard deviation `std`, norms of ones; the same on every layout.

    Each tensor (each expert of a stack) has its own generator, seeded by its name.
    """

    def __init__(self, stages: list[LingModel], std: float, seed: int) -> None:
        self._shapes = {p.key: tuple(p.global_shape) for p in model_tensors(stages)}
        self._std, self._seed = std, seed

    def keys(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def read(self, key: str, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        if key.endswith("layernorm.weight"):
            return torch.ones(shape)
        if len(shape) == 3:  # a stack of experts
            first, count = offsets[0], shape[0]
            whole = [self._normal(f"{key}.{e}", shape[1:]) for e in range(first, first + count)]
            return torch.stack(whole)
        whole = self._normal(key, self._shapes[key])
        return whole[tuple(slice(o, o + n) for o, n in zip(offsets, shape, strict=True))]

    def _normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randn(shape, generator=generator) * self._std
