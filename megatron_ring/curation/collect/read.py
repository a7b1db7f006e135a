"""A source's files, and the rows of a hub's data set; those of files are read in reading.py."""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import SourceConfig
from megatron_ring.curation.record import Rejection

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row, or why there is none."""

    file: str  # stem of its file, or name of the data set
    number: int  # line of the file, or row of the table; 1 first
    place: str  # as errors name it: file:line, file row number
    data: dict[str, Any] | None = None
    fault: Rejection | None = None  # with evidence that names the place
    revision: str | None = None  # commit of a hub's data set, where it could be told


def paths_of(source: SourceConfig) -> list[Path]:
    """The local files of a source, in order of their names.

    ConfigError when there are none, and for what is a folder or of another kind.
    """
    found = sorted(map(Path, glob.glob(source.path or "")))
    if not found:
        raise ConfigError(f"source {source.name}: path={source.path}: there is no such file")
    for path in found:
        said = f"source {source.name}: path={source.path}: {path.name}"
        if path.is_dir():
            raise ConfigError(f"{said} is a folder; name its files, as in path={path}/*.jsonl")
        if not path.name.removesuffix(".gz").endswith(SUFFIXES):
            raise ConfigError(f"{said} is none of {', '.join(SUFFIXES)} (.gz too)")
    return found


def stem_of(path: Path) -> str:
    """Name of a file without its suffixes."""
    return re.sub(r"(\.(jsonl|ndjson|json|parquet))?(\.gz)?$", "", path.name)


def hub_rows(source: SourceConfig) -> Iterator[Row]:
    """Rows of a hub's data set in order, at most `limit`; ConfigError when it is not to be had."""
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
    for number, data in enumerate(islice(table, source.limit), 1):
        place = f"{source.hub} row {number}"
        yield Row(source.hub.split("/")[-1], number, place, dict(data), revision=revision)


def commit_of(checksums: dict[str, Any] | None) -> str | None:
    """The commit that a hub's files were loaded from, as their addresses tell."""
    found = (re.search(r"@([0-9a-f]{40})/", address) for address in checksums or {})
    return next((match[1] for match in found if match), None)
