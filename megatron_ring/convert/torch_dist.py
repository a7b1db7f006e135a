"""Megatron's `torch_dist` checkpoint format, read and written one chunk at a time.

It is torch.distributed.checkpoint's format: `.metadata` (a pickle saying which chunk of which
tensor lies where) and `__<rank>_<n>.distcp` files (chunks, each as `torch.save` writes it, one
after the other). torch's own writer keeps every tensor of a file until the file is complete
(2.13.0: `tensor_dict` in filesystem.py), and its reader trusts the pickle; hence these two. The
tests read what we write with torch's and with megatron-core's loader.
"""

import io
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_ring.convert.ops import ConversionError, Shape

FILE_BYTES = 2 * 1024**3  # a new .distcp file after this much: ranks load files in parallel
VERSION = "1.0.0"  # of torch.distributed.checkpoint's file format

# All that a checkpoint's metadata is made of. Anything else in the pickle is an attack or a
# format this code does not know; both are refused before they are run.
ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.planner": {  # megatron-core keeps each rank's plan
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}


class Chunk(NamedTuple):
    """A box of a tensor that is written, and later read, as one."""

    key: str
    offsets: Shape
    sizes: Shape


def read_metadata(folder: Path) -> Metadata:
    """What `folder` holds, without running code from it, and with all its bytes accounted for.

    Raises ConversionError when there is no checkpoint, when the pickle asks for anything but
    torch.distributed.checkpoint's own classes, and when a data file is missing or cut short.
    """
    file = Path(folder) / ".metadata"
    if not file.is_file():
        raise ConversionError(
            f"{folder} is not a Megatron checkpoint: there is no {file}. A checkpoint is complete "
            "only then; name the folder of one step, not that of the run"
        )
    with file.open("rb") as stream:
        try:
            metadata = _MetadataUnpickler(stream, file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError) as error:
            raise ConversionError(f"{file} is damaged: {error}") from None
    if not isinstance(metadata, Metadata):
        raise ConversionError(f"{file} holds {type(metadata).__name__}, not checkpoint metadata")
    _check_files(Path(folder), metadata)
    return metadata


class TorchDistReader:
    """Slices of the tensors of a checkpoint, whatever layout it was saved on.

    The chunk read last is kept, because one chunk of a training checkpoint may hold many experts
    and they are asked for one by one. `read` is thus as small as the largest chunk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._metadata = read_metadata(self.folder)
        self._tensors = {
            key: entry
            for key, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._last: tuple[MetadataIndex, Tensor] | None = None

    def keys(self) -> dict[str, Shape]:
        """Key -> global shape of each tensor; byte objects such as random states are left out."""
        return {key: tuple(entry.size) for key, entry in self._tensors.items()}

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].properties.dtype

    def read(self, key: str, offsets: Shape, shape: Shape) -> Tensor:
        """The box of tensor `key` that starts at `offsets`, in the stored dtype."""
        out = torch.empty(shape, dtype=self.dtype(key))
        filled = 0
        for chunk in self._tensors[key].chunks:
            low = [max(a, b) for a, b in zip(offsets, chunk.offsets, strict=True)]
            high = [
                min(a + m, b + n)
                for a, m, b, n in zip(offsets, shape, chunk.offsets, chunk.sizes, strict=True)
            ]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            values = self._chunk(key, chunk)[_box(low, high, chunk.offsets)]
            out[_box(low, high, offsets)] = values
            filled += values.numel()
        if filled != out.numel():
            raise ConversionError(
                f"{self.folder}: the chunks of {key} cover {filled:,} of the {out.numel():,} "
                f"values at {list(offsets)}, sizes {list(shape)}; the checkpoint is incomplete"
            )
        return out

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        index = MetadataIndex(key, chunk.offsets)
        if self._last is None or self._last[0] != index:
            self._last = None  # freed before the next one is read
            info = self._metadata.storage_data[index]
            with (self.folder / info.relative_path).open("rb", buffering=0) as stream:
                view = io.BufferedReader(_FilePart(stream, info.offset, info.length))
                try:
                    tensor = torch.load(view, map_location="cpu", weights_only=True)
                except (RuntimeError, pickle.UnpicklingError) as error:
                    raise ConversionError(
                        f"{self.folder / info.relative_path}: the chunk of {key} at byte "
                        f"{info.offset:,} is damaged: {error}"
                    ) from None
            if tuple(tensor.shape) != tuple(chunk.sizes) or tensor.dtype != self.dtype(key):
                raise ConversionError(
                    f"{self.folder / info.relative_path}: the chunk of {key} at byte "
                    f"{info.offset:,} is {list(tensor.shape)} {tensor.dtype}, .metadata says "
                    f"{list(chunk.sizes)} {self.dtype(key)}"
                )
            self._last = (index, tensor)
        return self._last[1]


class TorchDistWriter:
    """Writes chunks in the order they come and `.metadata` at the end; holds no tensor."""

    def __init__(self, folder: Path, file_bytes: int = FILE_BYTES) -> None:
        self.folder, self.file_bytes = Path(folder), file_bytes
        self._entries: dict[str, TensorStorageMetadata] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self._num_files = 0
        self._stream: io.BufferedWriter | None = None

    def write(self, key: str, shape: Shape, offsets: Shape, tensor: Tensor) -> None:
        """Append `tensor`, the box of global tensor `key` (of `shape`) at `offsets`."""
        if self._stream is None or self._stream.tell() >= self.file_bytes:
            self._next_file()
        assert self._stream is not None
        start = self._stream.tell()
        # A stream that cannot seek: torch would otherwise take the file's start for its own.
        torch.save(tensor, _WriteOnly(self._stream))
        length = self._stream.tell() - start
        properties = TensorProperties(dtype=tensor.dtype)
        entry = self._entries.setdefault(
            key, TensorStorageMetadata(properties, torch.Size(shape), [])
        )
        assert entry.properties.dtype == tensor.dtype, (
            f"{key}: a chunk of {tensor.dtype} after one of {entry.properties.dtype}"
        )
        entry.chunks.append(ChunkStorageMetadata(torch.Size(offsets), tensor.shape))
        index = MetadataIndex(key, offsets)
        self._places[index] = _StorageInfo(self._file_name(), start, length)

    def finish(self) -> None:
        """Write `.metadata`: from here on the folder is a checkpoint."""
        self._close()
        metadata = Metadata(
            state_dict_metadata=dict(self._entries),
            planner_data={key: (key,) for key in self._entries},
            storage_data=self._places,
            storage_meta=StorageMeta(),
            version=VERSION,
        )
        with (self.folder / ".metadata").open("wb") as stream:
            pickle.dump(metadata, stream)
            _sync(stream)

    def __enter__(self) -> "TorchDistWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _file_name(self) -> str:
        return f"__0_{self._num_files - 1}.distcp"

    def _next_file(self) -> None:
        self._close()
        self._num_files += 1
        self._stream = (self.folder / self._file_name()).open("wb")

    def _close(self) -> None:
        if self._stream is not None:
            _sync(self._stream)
            self._stream.close()
            self._stream = None


def split_into_chunks(key: str, shape: Shape, itemsize: int, limit: int) -> Iterable[Chunk]:
    """Whole rows of at most `limit` bytes; a stack [E, R, W] gives each expert its own chunk."""
    if len(shape) == 3:
        yield from (Chunk(key, (e, 0, 0), (1, *shape[1:])) for e in range(shape[0]))
        return
    row_bytes = itemsize * (shape[1] if len(shape) == 2 else 1)
    rows = max(limit // row_bytes, 1)
    for row in range(0, shape[0], rows):
        sizes = (min(rows, shape[0] - row), *shape[1:])
        yield Chunk(key, (row, *[0] * (len(shape) - 1)), sizes)


class _MetadataUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BufferedReader, file: Path) -> None:
        super().__init__(stream)
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if is_dtype or name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise ConversionError(
            f"{self.file} asks to load {module}.{name}, which no checkpoint needs; it was refused "
            "and nothing was run. Do not open this file with other programs"
        )


class _FilePart(io.RawIOBase):
    """`length` bytes of a file from `start` on, as a read-only file of their own."""

    def __init__(self, stream: io.FileIO, start: int, length: int) -> None:
        super().__init__()
        self.stream, self.start, self.length, self.at = stream, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: memoryview) -> int:
        self.stream.seek(self.start + self.at)
        count = self.stream.readinto(buffer[: max(self.length - self.at, 0)])
        self.at += count
        return count


class _WriteOnly(io.RawIOBase):
    def __init__(self, stream: io.BufferedWriter) -> None:
        super().__init__()
        self.stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview) -> int:
        return self.stream.write(data)


def _check_files(folder: Path, metadata: Metadata) -> None:
    ends: dict[str, int] = {}
    for index, info in metadata.storage_data.items():
        if Path(info.relative_path).name != info.relative_path:
            raise ConversionError(
                f"{folder / '.metadata'} puts {index.fqn} outside its folder: {info.relative_path}"
            )
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in ends.items():
        file = folder / name
        if not file.is_file():
            raise ConversionError(f"{file} is missing; .metadata expects it with {end:,} bytes")
        if file.stat().st_size < end:
            raise ConversionError(
                f"{file} is cut short: .metadata expects {end:,} bytes, the file has "
                f"{file.stat().st_size:,}. Copy it again, or use an earlier checkpoint"
            )


def _box(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))


def _sync(stream: io.BufferedWriter) -> None:
    stream.flush()
    os.fsync(stream.fileno())
