"""The safetensors format, a few rows at a time.

The `safetensors` library maps a whole file for reading and wants all tensors of a file in memory
for writing. A conversion that streams needs neither, and the format is small: 8 bytes of header
length, a JSON header {name: {dtype, shape, data_offsets}}, then the raw data. The tests compare
both directions with the library.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from megatron_ring.convert.ops import ConversionError, Shape

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation


class Stored(NamedTuple):
    """Where one tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: Shape
    start: int  # first byte in the file


def read_header(file: Path) -> dict[str, Stored]:
    """Tensors of one file. ConversionError when it is cut short, damaged, or of a foreign dtype."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > MAX_HEADER:
            raise ConversionError(f"{file} is not a safetensors file ({size:,} bytes)")
        if size < 8 + length:
            raise _truncated(file, 8 + length, size)
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ConversionError(f"the header of {file} is not JSON: {error}") from None
    tensors, end = {}, 8 + length
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ConversionError(
                f"{file}: {name} has dtype {entry['dtype']}; only {', '.join(DTYPES)} convert. "
                "A quantized checkpoint must be dequantized first"
            )
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if last - first != math.prod(shape) * dtype.itemsize:
            raise ConversionError(
                f"{file}: {name} {list(shape)} {entry['dtype']} takes "
                f"{math.prod(shape) * dtype.itemsize:,} bytes, its header says {last - first:,}"
            )
        tensors[name] = Stored(file, dtype, shape, 8 + length + first)
        end = max(end, 8 + length + last)
    if size < end:
        raise _truncated(file, end, size)
    return tensors


def read_rows(stored: Stored, row: int, out: Tensor) -> None:
    """Fill contiguous `out` [rows, *width], of the stored dtype, with the rows from `row` on."""
    buffer = memoryview(out.view(-1).view(torch.uint8).numpy())
    row_bytes = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    with stored.file.open("rb", buffering=0) as stream:
        stream.seek(stored.start + row * row_bytes)
        while buffer:
            count = stream.readinto(buffer)
            if not count:  # shrunk since its header was read
                raise ConversionError(f"{stored.file} ended {len(buffer):,} bytes too early")
            buffer = buffer[count:]


def write_file(
    file: Path, entries: Mapping[str, tuple[torch.dtype, Shape]], tensors: Iterable[Tensor]
) -> None:
    """Write one file; `tensors` come in the order of `entries` and are held one at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in entries.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8 bytes
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for (name, (dtype, shape)), tensor in zip(entries.items(), tensors, strict=True):
            assert tensor.dtype == dtype and tuple(tensor.shape) == shape, (
                f"{name}: {tensor.dtype} {tuple(tensor.shape)} announced as {dtype} {shape}"
            )
            _write_all(stream, tensor)
        stream.flush()
        os.fsync(stream.fileno())


def _write_all(stream: BinaryIO, tensor: Tensor) -> None:
    stream.write(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))


def _truncated(file: Path, expected: int, found: int) -> ConversionError:
    return ConversionError(
        f"{file} is cut short: its header asks for {expected:,} bytes, the file has {found:,}. "
        "Copy or download it again"
    )
