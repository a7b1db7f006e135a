"""Sources cut into pieces, and the rows of a piece: what cannot be read is a row with a fault.

A piece is what one shard holds: so many lines or rows of one file. Lines are found by their
offset and rows of Parquet by their number, so that processes can begin anywhere; compressed files,
UTF-16 and data sets of a hub are gone through from their start.
"""

import codecs
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ring.config.curation.collect import SourceConfig
from megatron_ring.curation.collect.read import Row, hub_rows, paths_of, stem_of
from megatron_ring.curation.record import Rejection

SHOWN = 2000  # characters of a line that could not be read, kept with its rejection
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException)  # what damaged files raise


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a source; `start` and `stop` are bytes of lines, else positions."""

    source: int
    file: str | None  # None: a hub's data set
    kind: str  # lines, packed (lines of .gz, UTF-16), array, parquet, hub
    start: int
    stop: int
    first: int  # number of the first line or row; 1 first
    num_rows: int  # lines that are not blank, or rows


def cut_source(source: SourceConfig, number: int, size: int, max_bytes: int) -> list[Piece]:
    """Pieces of `size` lines or rows, at most `limit` rows in all; sources.`number` is meant.

    A file that is empty has no pieces; one that cannot be opened has one, whose row says so.
    """
    pieces: list[Piece] = []
    left = source.limit
    for path in [None] if source.path is None else paths_of(source):
        for piece in _cut(source, number, path, size, max_bytes):
            if left is not None and piece.num_rows > left:
                piece = _shorten(piece, left, max_bytes)
            left = None if left is None else left - piece.num_rows
            if piece.num_rows:
                pieces.append(piece)
            if left == 0:
                return pieces
    return pieces


def read_piece(source: SourceConfig, piece: Piece, max_bytes: int) -> Iterator[Row]:
    """Rows in order, or why there is none. Reading goes on behind every fault."""
    if piece.kind == "hub":
        yield from islice(hub_rows(source), piece.start, piece.stop)
        return
    path = Path(piece.file or "")
    if piece.kind == "array":
        found = _load_array(str(path), source.rows, path.stat().st_mtime_ns)
        items = found if isinstance(found, list) else [found]
        numbered = enumerate(items[piece.start : piece.stop], piece.first)
        rows = ((number, f"{path} row {number}", item) for number, item in numbered)
    elif piece.kind == "parquet":
        numbered = _table_rows(path, piece.start, piece.stop)
        rows = ((number, f"{path} row {number}", item) for number, item in numbered)
    else:
        rows = _parsed_lines(path, piece, max_bytes)
    for number, place, item in rows:
        if not isinstance(item, dict | Rejection):
            item = Rejection("not_an_object", f"a JSON {type(item).__name__}: {str(item)[:200]}")
        if isinstance(item, Rejection):
            fault = Rejection(item.reason, f"{place}: {item.evidence}")
            yield Row(stem_of(path), number, place, fault=fault)
        else:
            yield Row(stem_of(path), number, place, item)


def sha256_of(path: Path) -> str:
    """Checksum of a file, as sha256sum prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cut(
    source: SourceConfig, number: int, path: Path | None, size: int, max_bytes: int
) -> Iterator[Piece]:
    if path is None:
        total = sum(1 for _ in hub_rows(source))
        yield from _ranges(number, None, "hub", total, size)
        return
    kind = _kind(source, path)
    if kind == "lines":
        yield from _cut_lines(number, path, size, max_bytes)
    elif kind == "packed":
        total = sum(1 for _ in _packed_lines(path, max_bytes))
        yield from _ranges(number, str(path), kind, total, size)
    elif kind == "array":
        found = _load_array(str(path), source.rows, path.stat().st_mtime_ns)
        total = len(found) if isinstance(found, list) else 1
        yield from _ranges(number, str(path), kind, total, size)
    else:
        try:
            total = pq.ParquetFile(path).metadata.num_rows
        except BROKEN:
            total = 1  # the fault
        yield from _ranges(number, str(path), kind, total, size)


def _ranges(number: int, file: str | None, kind: str, total: int, size: int) -> Iterator[Piece]:
    for start in range(0, total, size):
        stop = min(start + size, total)
        yield Piece(number, file, kind, start, stop, start + 1, stop - start)


def _kind(source: SourceConfig, path: Path) -> str:
    """How a file is gone through (see Piece.kind)."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    if suffixes[-1:] == [".parquet"]:
        return "parquet"
    if source.rows is not None:
        return "array"
    if suffixes[-1:] == [".json"]:
        try:
            with _opened(path) as file:
                head = next((text for text in file if text.strip()), b"")
        except BROKEN:
            head = b""
        if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            return "array"
    with path.open("rb") as file:
        is_utf16 = file.read(2) in UTF16
    return "packed" if path.suffix == ".gz" or is_utf16 else "lines"


def _bounded(file: BinaryIO, limit: int) -> Iterator[tuple[bytes, int]]:
    """Lines, of longer ones than `limit` only the beginning, and their bytes."""
    while head := file.readline(limit + 1):
        length, last = len(head), head
        while not last.endswith(b"\n") and (last := file.readline(1 << 20)):
            length += len(last)
        yield head, length


def _cut_lines(number: int, path: Path, size: int, max_bytes: int) -> Iterator[Piece]:
    start = at = num_rows = 0
    first = line = 1
    with path.open("rb") as file:
        for head, length in _bounded(file, max_bytes):
            at, line, num_rows = at + length, line + 1, num_rows + bool(head.strip())
            if line - first == size:
                yield Piece(number, str(path), "lines", start, at, first, num_rows)
                start, first, num_rows = at, line, 0
    if num_rows:
        yield Piece(number, str(path), "lines", start, at, first, num_rows)


def _shorten(piece: Piece, num_rows: int, max_bytes: int) -> Piece:
    """The first `num_rows` rows of a piece."""
    stop = piece.start + num_rows
    if piece.kind == "lines":
        stop, seen = piece.start, 0
        with Path(piece.file or "").open("rb") as file:
            file.seek(piece.start)
            for head, length in _bounded(file, max_bytes):
                if seen == num_rows:
                    break
                stop, seen = stop + length, seen + bool(head.strip())
    return Piece(piece.source, piece.file, piece.kind, piece.start, stop, piece.first, num_rows)


def _parsed_lines(path: Path, piece: Piece, max_bytes: int) -> Iterator[tuple[int, str, Any]]:
    """Number, place and value of each line that is not blank."""
    if piece.kind == "packed":
        lines = islice(_packed_lines(path, max_bytes), piece.start, piece.stop)
    else:
        lines = _plain_lines(path, piece, max_bytes)
    for number, line in lines:
        if isinstance(line, Rejection) or line.strip():
            value = line if isinstance(line, Rejection) else _parse(line)
            yield number, f"{path}:{number}", value


def _plain_lines(
    path: Path, piece: Piece, max_bytes: int
) -> Iterator[tuple[int, bytes | Rejection]]:
    at = piece.start
    with path.open("rb") as file:
        file.seek(at)
        numbered = enumerate(_bounded(file, max_bytes), piece.first)
        while at < piece.stop:
            number, (head, length) = next(numbered)
            at += length
            yield number, _within(head, length, max_bytes)


def _packed_lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes | Rejection]]:
    """Lines of a compressed or UTF-16 file that are not blank, as UTF-8, with their numbers.

    Behind damage nothing more can be read: it is the last line.
    """
    number = 0
    try:
        with _opened(path) as file:
            for number, (head, length) in enumerate(_bounded(file, max_bytes), 1):
                if head.strip():
                    yield number, _within(head, length, max_bytes)
    except BROKEN as error:
        yield number + 1, Rejection("unreadable_file", f"the rest cannot be read: {error}")


def _within(head: bytes, length: int, max_bytes: int) -> bytes | Rejection:
    if length <= max_bytes:
        return head
    told = f"{length:,} bytes, max_record_bytes={max_bytes:,}"
    return Rejection("too_large", f"{told}; begins {head[:200].decode(errors='replace')!r}")


def _opened(path: Path) -> BinaryIO:
    """The bytes of a file as UTF-8, decompressed."""
    file: Any = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    if file.peek(2)[:2] not in UTF16:
        return file
    return io.BufferedReader(_Recoded(io.TextIOWrapper(file, "utf-16", errors="replace")))


class _Recoded(io.RawIOBase):
    """Text as a stream of UTF-8; what was no text is the replacement character."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.text, self.rest = text, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest:
            self.rest = self.text.read(1 << 16).encode("utf-8", "replace")
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count

    def close(self) -> None:
        self.text.close()
        super().close()


def _parse(line: bytes) -> Any:
    """The value of a line of JSON, or why it has none."""
    line = line.removeprefix(codecs.BOM_UTF8).strip()
    try:
        value = json.loads(line.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        near = line[max(0, error.start - 20) : error.start + 20]
        bad = f"byte {error.start} is {line[error.start]:#04x}"
        return Rejection("not_utf8", f"{bad}, near {near.decode(errors='replace')!r}")
    except (ValueError, RecursionError) as error:
        shown = line[:SHOWN].decode(errors="replace").rstrip()
        return Rejection("malformed_json", f"{error}: {shown}")
    if SURROGATE.search(line):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Rejection("not_unicode", f"half of a surrogate pair in {line[:200].decode()}")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@lru_cache(maxsize=1)
def _load_array(path: str, key: str | None, changed: int) -> list[Any] | Rejection:
    """The array that a JSON file is or, with a key, has there; `changed` is when it was."""
    try:
        with _opened(Path(path)) as file:
            value = json.loads(file.read().removeprefix(codecs.BOM_UTF8), parse_constant=_refuse)
    except BROKEN as error:
        return Rejection("unreadable_file", str(error))
    except (ValueError, RecursionError) as error:  # JSON or UTF-8
        return Rejection("malformed_json", f"the whole file: {error}")
    if key is not None:
        if not isinstance(value, dict) or key not in value:
            known = f" (its keys: {', '.join(value)})" if isinstance(value, dict) else ""
            return Rejection("malformed_json", f"no key rows={key!r}{known}")
        value = value[key]
    if not isinstance(value, list):
        return Rejection("malformed_json", f"a JSON {type(value).__name__}, no array")
    return value


def _table_rows(path: Path, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Rows [start, stop) of a Parquet file, 1 first; damage costs the rows of its row group."""
    try:
        table = pq.ParquetFile(path)
    except BROKEN as error:
        yield 1, Rejection("unreadable_file", f"no Parquet: {error}")
        return
    end = 0
    for index in range(table.num_row_groups):
        begin, end = end, end + table.metadata.row_group(index).num_rows
        first, last = max(start, begin), min(stop, end)
        if first >= last:
            continue
        try:
            group = table.read_row_group(index).slice(first - begin, last - first)
        except BROKEN as error:
            lost = Rejection("unreadable_file", f"row group {index} of the file: {error}")
            yield from ((number, lost) for number in range(first + 1, last + 1))
            continue
        for offset in range(group.num_rows):
            yield first + offset + 1, _table_row(group.slice(offset, 1))


def _table_row(row: pa.Table) -> Any:
    """A row as plain JSON: dates in ISO's form, NaN as none."""
    try:
        text = json.dumps(row.to_pylist()[0], default=_plain)
        json.dumps(value := json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)
    except UnicodeDecodeError as error:
        return Rejection("not_utf8", str(error))
    except (ValueError, TypeError) as error:
        return Rejection("not_json", str(error))
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, date | time):  # datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"a column of {type(value).__name__}")
