"""Rows of a benchmark: from files as their authors publish them, or from the hub."""

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import TaskConfig

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")  # also with .gz behind them
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
    inside: str = ""  # of many files, those in whose path this regular expression is found
    advice: str = ""  # what data are wanted; where there is some, the hub is not asked by itself
    needs: tuple[str, ...] = ()  # columns of all rows


def rows(name: str, options: TaskConfig, source: Source) -> list[tuple[str, Row]]:
    """(path inside of what was given, row), in the order of paths and rows.

    ConfigError where there is nothing, or it cannot be read, or a row lacks what it needs.
    """
    key = f"tasks.{name}"
    if options.file is None:
        found = [("", row) for row in _hub_rows(key, options, source)]
    else:
        found = [
            (path, row)
            for path, content in files(name, options, source)
            for row in _read(f"{key}.file={options.file}", path, content, source.heads)
        ]
        if not found:
            raise ConfigError(f"{key}.file={options.file}: no row in its files{_wanted(source)}")
    for number, (path, row) in enumerate(found, 1):
        if missing := [column for column in source.needs if column not in row]:
            raise ConfigError(
                f"{key}: row {number}{path and ' of '}{path} has no {', '.join(missing)}"
                f"{_wanted(source)}"
            )
    return found


def files(name: str, options: TaskConfig, source: Source) -> Iterator[tuple[str, bytes]]:
    """(path inside of what was given, content) of the files that count, by path.

    ConfigError where there is none.
    """
    key, given = f"tasks.{name}.file", options.file
    if given is None:
        raise ConfigError(f"missing config key {key}: {source.advice}")
    if not given.exists():
        raise ConfigError(f"{key}: there is no file {given}{_wanted(source)}")
    found = False
    for path, content in _files(given, source.inside):
        found = True
        yield path, gzip.decompress(content) if path.endswith(".gz") else content
    if not found:
        inside = f"with {source.inside!r} in its path " if source.inside else ""
        raise ConfigError(
            f"{key}={given}: no file {inside}that ends in {', '.join(ENDINGS)}{_wanted(source)}"
        )


def _wanted(source: Source) -> str:
    return f"; wanted is {source.advice}" if source.advice else ""


def _files(given: Path, inside: str) -> Iterator[tuple[str, bytes]]:
    """Hidden files are left out: zip archives made on a Mac have one beside each file."""

    def counts(path: str) -> bool:
        hidden = PurePosixPath(path).name.startswith(".")
        return not hidden and _ending(path) in ENDINGS and bool(re.search(inside, path))

    if given.is_dir():
        for path in sorted(given.rglob("*")):
            name = path.relative_to(given).as_posix()
            if counts(name) and path.is_file():
                yield name, path.read_bytes()
    elif given.suffix == ".zip":
        with zipfile.ZipFile(given) as archive:
            for name in sorted(archive.namelist()):
                if counts(name):
                    yield name, archive.read(name)
    else:
        yield given.name, given.read_bytes()


def _ending(path: str) -> str:
    return PurePosixPath(path.removesuffix(".gz")).suffix


def _read(told: str, path: str, content: bytes, heads: tuple[str, ...]) -> list[Row]:
    try:
        return _parsed(path, content, heads)
    except (ValueError, OSError) as error:  # those of JSON, CSV and Arrow are such
        raise ConfigError(f"{told}: cannot read {path}: {error}") from None


def _parsed(path: str, content: bytes, heads: tuple[str, ...]) -> list[Row]:
    ending = _ending(path)
    if ending == ".parquet":
        return pq.read_table(io.BytesIO(content)).to_pylist()
    text = content.decode("utf-8-sig")
    if ending == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline=""), heads or None))
    # Some publish an object a line as .json.
    whole = ending == ".json" and text.lstrip().startswith("[")
    found = json.loads(text) if whole else list(_lines(text))
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("a list of objects is wanted, or an object a line")
    return found


def _lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None


def _hub_rows(key: str, options: TaskConfig, source: Source) -> Iterator[Row]:
    hub = source.hub
    if options.hub is not None:
        hub = Hub(options.hub) if hub is None else Hub(options.hub, hub.split, hub.subset)
    if hub is None or (source.advice and options.hub is None):
        raise ConfigError(f"missing config key {key}.file: {source.advice}")
    import datasets  # slow to import, and files do without

    told = f"{key}: {hub.name} of the Hugging Face hub"
    try:
        loaded = datasets.load_dataset(hub.name, hub.subset, split=hub.split)
    except (OSError, ValueError) as error:  # not found, no network, no such subset or split
        raise ConfigError(f"{told} cannot be loaded: {error}; set {key}.file") from None
    return map(dict, loaded)
