"""Rows of a benchmark: from files as their authors publish them, or from the hub."""

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import TaskConfig

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
Row = dict[str, Any]


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub."""

    name: str
    split: str = "test"
    subset: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a benchmark's rows come from, before a user says otherwise."""

    hub: Hub | None = None
    heads: tuple[str, ...] = ()  # columns of CSV files that have no line of names
    inside: str = ""  # of many files, those with this in their path
    advice: str = ""  # how to come by the data where the hub does not have them


def rows(name: str, options: TaskConfig, source: Source) -> list[tuple[str, Row]]:
    """(path inside of what was given, row), in the order of paths and rows.

    ConfigError where there is nothing, or it cannot be read.
    """
    key = f"tasks.{name}"
    if options.file is None:
        return [("", row) for row in _hub_rows(key, options, source)]
    if not options.file.exists():
        raise ConfigError(f"{key}.file: there is no file {options.file}")
    found = []
    for path, content in _files(options.file):
        if source.inside in path:
            try:
                found += [(path, row) for row in _parsed(path, content, source.heads)]
            except (ValueError, OSError) as error:  # those of JSON, CSV and Arrow are such
                raise ConfigError(
                    f"{key}.file={options.file}: cannot read {path}: {error}"
                ) from None
    if not found:
        wanted = f"with {source.inside!r} in its path " if source.inside else ""
        raise ConfigError(
            f"{key}.file={options.file}: no row in any file {wanted}that ends in "
            f"{', '.join(ENDINGS)}"
        )
    return found


def _files(given: Path) -> Iterator[tuple[str, bytes]]:
    if given.is_dir():
        for path in sorted(given.rglob("*")):
            if path.is_file() and path.suffix in ENDINGS:
                yield path.relative_to(given).as_posix(), path.read_bytes()
    elif given.suffix == ".zip":
        with zipfile.ZipFile(given) as archive:
            for name in sorted(archive.namelist()):
                if PurePosixPath(name).suffix in ENDINGS:
                    yield name, archive.read(name)
    else:
        yield given.name, given.read_bytes()


def _parsed(path: str, content: bytes, heads: tuple[str, ...]) -> list[Row]:
    ending = PurePosixPath(path).suffix
    if ending == ".parquet":
        return pq.read_table(io.BytesIO(content)).to_pylist()
    text = content.decode("utf-8-sig")
    if ending == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline=""), heads or None))
    lines = text.split("\n") if ending == ".jsonl" else []
    found = [json.loads(line) for line in lines if line.strip()] if lines else json.loads(text)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("a list of objects is wanted")
    return found


def _hub_rows(key: str, options: TaskConfig, source: Source) -> Iterator[Row]:
    hub = source.hub
    if options.hub is not None:
        hub = Hub(options.hub) if hub is None else Hub(options.hub, hub.split, hub.subset)
    if hub is None:
        raise ConfigError(f"missing config key {key}.file: {source.advice}")
    import datasets  # slow to import, and files do without

    told = f"{key}: {hub.name} of the Hugging Face hub"
    try:
        loaded = datasets.load_dataset(hub.name, hub.subset, split=hub.split)
    except (OSError, ValueError) as error:  # not found, no network, no such subset or split
        raise ConfigError(f"{told} cannot be loaded: {error}; set {key}.file") from None
    return map(dict, loaded)
