"""Checksums of a checkpoint's files: written with it, compared before it is believed.

`checksums.json` holds size and XXH3-128 of every other file of the folder (what `xxh128sum` of the
xxhash package prints). Not against forgery, but against disks, networks and copies that lie: at
several GB/s a core, it costs less than reading the file.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

FILE = "checksums.json"
BLOCK = 16 * 1024**2  # bytes read at once


class Entry(NamedTuple):
    """What a file must be."""

    num_bytes: int
    xxh128: str  # hex


class HashingStream:
    """A file being written whose checksum is known when it is complete, without reading it again.

    It has what torch.save and torch.distributed.checkpoint ask of a stream, and no seek: the bytes
    are hashed in the order they come.
    """

    def __init__(self, file: Path) -> None:
        self._stream = file.open("wb")
        self._hash = xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        self._stream.flush()

    def finish(self) -> Entry:
        """Everything is on the disk, not only with the operating system, when this returns."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return Entry(self._stream.tell(), self._hash.hexdigest())

    def __enter__(self) -> "HashingStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def write_file(file: Path, data: bytes) -> Entry:
    """Write `data` to the disk; its entry."""
    with HashingStream(file) as stream:
        stream.write(data)
        return stream.finish()


def of_file(file: Path) -> Entry:
    """Size and checksum of `file`, read in blocks."""
    digest, num_bytes = xxhash.xxh3_128(), 0
    for block in blocks(file):
        digest.update(block)
        num_bytes += len(block)
    return Entry(num_bytes, digest.hexdigest())


def blocks(file: Path) -> Iterator[bytes]:
    """The bytes of `file`, some megabytes at a time."""
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK):
            yield block


def write(folder: Path, entries: dict[str, Entry]) -> None:
    """Write `checksums.json` to the disk; names are relative to `folder`."""
    table = {name: entries[name]._asdict() for name in sorted(entries)}
    write_file(folder / FILE, json.dumps(table, indent=1).encode())


def complete(folder: Path, entries: dict[str, Entry], last: str, data: bytes) -> None:
    """Add checksums for all files of `folder`, then write `data` as file `last`: it ends the save.

    `entries` are those known already. Everything is on the disk when this returns.
    """
    known = dict(entries)
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and name not in known:
            known[name] = of_file(file)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    known[last] = Entry(len(data), xxhash.xxh3_128(data).hexdigest())
    write(folder, known)
    write_file(folder / last, data)
    sync_folder(folder)


def read(folder: Path) -> dict[str, Entry]:
    """The entries of a folder, or {} when it has no checksums; ValueError when they are damaged."""
    file = folder / FILE
    try:
        table = json.loads(file.read_bytes())
        return {str(name): Entry(**entry) for name, entry in table.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def problem(folder: Path, name: str, entry: Entry) -> str | None:
    """What is wrong with a file, with both numbers; None when it is as it was written."""
    file = folder / name
    try:
        size = file.stat().st_size
        if size != entry.num_bytes:
            return f"{file} has {size:,} bytes, {FILE} says {entry.num_bytes:,}"
        found = of_file(file)
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    if found != entry:
        return f"{file} has checksum {found.xxh128}, {FILE} says {entry.xxh128}"
    return None


def deal(entries: dict[str, Entry], rank: int, size: int) -> list[str]:
    """The files that `rank` of `size` looks at: largest first, each to who has least so far."""
    load = [0] * size
    mine = []
    for name in sorted(entries, key=lambda name: (-entries[name].num_bytes, name)):
        lightest = load.index(min(load))
        load[lightest] += entries[name].num_bytes + 1
        if lightest == rank:
            mine.append(name)
    return mine


def sync_folder(folder: Path) -> None:
    """Names and renames in `folder` are on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
