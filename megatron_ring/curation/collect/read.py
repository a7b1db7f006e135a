"""Rows of a source as they lie there: lines of files, rows of tables, of a hub's data sets.

What cannot be read is no reason to stop: it comes out as a row with a fault, and is counted.
"""

import glob
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import SourceConfig
from megatron_ring.curation.record import Rejection

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
BATCH = 256  # rows of a Parquet file in memory


@dataclass(frozen=True)
class Row:
    """One row, or why there is none."""

    file: str  # stem of its file, or name of the data set
    number: int  # line of the file, or row of the table; 1 first
    place: str  # as errors name it: file:line, file row number
    data: dict[str, Any] | None = None
    fault: Rejection | None = None  # with evidence that names the place
    revision: str | None = None  # commit of a hub's data set, where it could be told


def read_rows(source: SourceConfig) -> Iterator[Row]:
    """All rows in order, at most `limit`; ConfigError when nothing is there to be read."""
    if (source.path is None) == (source.hub is None):
        raise ConfigError(
            f"source {source.name}: give one of path (local files) and hub (a `datasets` name); "
            f"path={source.path}, hub={source.hub}"
        )
    rows = _hub_rows(source) if source.path is None else _file_rows(source, source.path)
    return islice(rows, source.limit)


def paths_of(source: SourceConfig) -> list[Path]:
    """The local files of a source, in order of their names; ConfigError when there are none."""
    found = sorted(map(Path, glob.glob(source.path or "")))
    if not found:
        raise ConfigError(f"source {source.name}: path={source.path}: there is no such file")
    return found


def stem_of(path: Path) -> str:
    """Name of a file without its suffixes."""
    return re.sub(r"(\.(jsonl|ndjson|json|parquet))?(\.gz)?$", "", path.name)


def _file_rows(source: SourceConfig, pattern: str) -> Iterator[Row]:
    for path in paths_of(source):
        kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
        if kind == ".parquet":
            yield from _parquet(source, path)
        elif kind == ".json" and (source.rows or _is_array(path)):
            yield from _array(source, path)
        elif kind in JSON_SUFFIXES:
            yield from _lines(path)
        else:
            raise ConfigError(
                f"source {source.name}: path={pattern}: {path.name} is none of .jsonl, .json, "
                ".parquet (.gz too)"
            )


def _read(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _is_array(path: Path) -> bool:
    """Is a .json file one array, not one row a line?"""
    with _read(path) as file:
        return next((line.strip()[:1] for line in file if line.strip()), b"") == b"["


def _lines(path: Path) -> Iterator[Row]:
    with _read(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _row(path, number, f"{path}:{number}", *_parse(line))


def _parse(line: bytes) -> tuple[Any, Rejection | None]:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return None, Rejection("not_utf8", f"byte {error.start} is {line[error.start]:#04x}")
    try:
        return json.loads(text), None
    except (ValueError, RecursionError) as error:
        return None, Rejection("malformed_json", str(error))


def _row(path: Path, number: int, place: str, data: Any, fault: Rejection | None) -> Row:
    if fault is None and not isinstance(data, dict):
        fault = Rejection("not_an_object", f"a JSON {type(data).__name__}")
    if fault is not None:
        return Row(
            stem_of(path),
            number,
            place,
            fault=Rejection(fault.reason, f"{place}: {fault.evidence}"),
        )
    return Row(stem_of(path), number, place, data)


def _array(source: SourceConfig, path: Path) -> Iterator[Row]:
    """Rows of a file that is one JSON array, or an object with an array under `rows`."""
    with _read(path) as file:
        try:
            array = json.loads(file.read())
        except ValueError as error:  # JSON or UTF-8
            raise ConfigError(f"source {source.name}: path={path} is no JSON: {error}") from None
    if source.rows is not None:
        if not isinstance(array, dict) or source.rows not in array:
            raise ConfigError(
                f"source {source.name}: {path} has no key rows={source.rows!r}"
                + (f" (its keys: {', '.join(array)})" if isinstance(array, dict) else "")
            )
        array = array[source.rows]
    if not isinstance(array, list):
        raise ConfigError(f"source {source.name}: {path} is a JSON {type(array).__name__}, no list")
    for number, data in enumerate(array, 1):
        yield _row(path, number, f"{path} row {number}", data, None)


def _parquet(source: SourceConfig, path: Path) -> Iterator[Row]:
    try:
        table = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"source {source.name}: path={path} is no Parquet: {error}") from None
    rows = (row for batch in table.iter_batches(BATCH) for row in batch.to_pylist())
    for number, data in enumerate(rows, 1):
        yield Row(stem_of(path), number, f"{path} row {number}", data)


def _hub_rows(source: SourceConfig) -> Iterator[Row]:
    import datasets  # half a second; local files go without it

    assert source.hub is not None, source
    try:
        table = datasets.load_dataset(
            source.hub, source.subset, split=source.split, revision=source.revision
        )
    except (OSError, ValueError) as error:  # not found, no network, no such subset or split
        raise ConfigError(
            f"source {source.name}: hub={source.hub} cannot be loaded: {error}; "
            "with a copy on this machine, give path=FILE beside the other keys"
        ) from None
    revision = commit_of(table.download_checksums) or source.revision
    for number, data in enumerate(table, 1):
        place = f"{source.hub} row {number}"
        yield Row(source.hub.split("/")[-1], number, place, dict(data), revision=revision)


def commit_of(checksums: dict[str, Any] | None) -> str | None:
    """The commit that a hub's files were loaded from, as their addresses tell."""
    found = (re.search(r"@([0-9a-f]{40})/", address) for address in checksums or {})
    return next((match[1] for match in found if match), None)
