"""megatron-core's distributed checkpoint in three steps: stage, write, finish.

`stage` plans and copies (collective, the loop waits), `Staged.write` writes this rank's files (no
collective, so it may run in a thread), `Staged.finish` writes `.metadata` (collective). Plan, file
format and metadata are megatron-core's. Its own ways of writing in the background do not serve
us: 0.16.1 forks a process for each file, which is unsafe beside CUDA and gloo threads, or starts
one that imports torch again (10 s); 0.19.2 has replaced both and asks for another package. A
thread does as well: writing and hashing release the interpreter.
"""

import queue
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.filesystem import (
    SerializationFormat,
    _StorageWriterTransforms,
    _write_item,
)

from megatron_ring.convert.checksums import Entry, HashingStream


class _Deferred(TorchDistSaveShardedStrategy):
    """Plans as megatron-core does and keeps the request that would write."""

    request: Any = None

    def _get_save_and_finalize_callbacks(self, *args: Any) -> Any:
        self.request = super()._get_save_and_finalize_callbacks(*args)
        return self.request._replace(async_fn=None, preload_fn=None, finalize_fns=[])


class Staged:
    """A checkpoint's tensors of this rank, in host memory that training does not touch."""

    def __init__(self, buckets: list[Any], results: queue.Queue | None, finalize: Any) -> None:
        self._buckets, self._results, self._finalize = buckets, results, finalize
        self.entries: dict[str, Entry] = {}  # of the files written, by name

    def write(self) -> None:
        """Write this rank's files to the disk; OSError and others as they come."""
        written = {}
        for index, (file, key, (objects, tensors)) in enumerate(self._buckets):
            transforms, kind = _StorageWriterTransforms(), SerializationFormat.TORCH_SAVE
            with HashingStream(Path(file)) as stream:
                written[index] = [
                    _write_item(transforms, stream, data, item, key, kind)
                    for item, data in [*objects, *tensors]
                ]
                self.entries[Path(file).name] = stream.finish()
        self._buckets = []  # the copies
        if self._results is not None:
            self._results.put(written)

    def finish(self) -> None:
        """Write `.metadata`, on rank 0, after all ranks have written. Collective."""
        self._finalize()


def stage(state: dict[str, Any], folder: Path) -> Staged:
    """Plan the checkpoint of `state` in `folder`, which is there and empty, and copy its tensors.

    Collective. When it returns, training may go on.
    """
    # Where megatron-core's writer leaves what it wrote; of its own it would start a process.
    filesystem_async._results_queue = queue.Queue()
    live = {
        part.data.untyped_storage().data_ptr()
        for part in nested_values(state)
        if isinstance(part, ShardedTensor | ShardedTensorFactory) and part.data is not None
    }
    strategy = _Deferred("torch_dist", 1, thread_count=2)
    dist_checkpointing.save(state, str(folder), strategy)
    request = strategy.request
    finalize = request.finalize_fns[0]
    if request.preload_fn is None:  # this rank has nothing to write
        return Staged([], None, finalize)

    def own(tensor: torch.Tensor) -> torch.Tensor:
        """From a GPU it is a copy already; on a CPU it may be the parameter itself."""
        return tensor.clone() if tensor.untyped_storage().data_ptr() in live else tensor

    buckets = [
        (file, key, (objects, [(item, own(tensor)) for item, tensor in tensors]))
        for file, key, (objects, tensors) in request.preload_fn()
    ]
    return Staged(buckets, request.async_fn_args[2], finalize)
