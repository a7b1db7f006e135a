"""A benchmark's own file: its items, and the hash that a fingerprint remembers it by."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ring.config.base import ConfigError


def read_items(file: Path, column: str, id_column: str | None = None) -> list[tuple[str, str]]:
    """Pairs of id and text from JSONL (also .gz), a .json array or Parquet; ids are row numbers
    where no column holds them. ConfigError names the file, and the row that has no text."""
    items = []
    for number, row in enumerate(read_rows(file)):
        for key in [column] + [id_column] * (id_column is not None):
            if key not in row:
                raise ConfigError(
                    f"{file}: row {number} has no column {key!r}; it has {', '.join(row)}"
                )
        if not isinstance(row[column], str):
            raise ConfigError(
                f"{file}: row {number}: {column} is {row[column]!r:.40}, but a text is needed"
            )
        items.append((str(number if id_column is None else row[id_column]), row[column]))
    if not items:
        raise ConfigError(f"{file}: no rows")
    return items


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a file. ConfigError names the file, and the line that is not an object."""
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file).to_pylist()
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError, pa.ArrowException) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    name = file.name.removesuffix(".gz")
    try:
        if name.endswith(".json"):
            parsed = json.loads(text)
            rows = parsed if isinstance(parsed, list) else [parsed]
        else:  # not splitlines: JSON may hold its other line breaks, such as U+2028, as they are
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: not JSON ({error}); expected JSONL or a .json array") from None
    wrong = next((n for n, row in enumerate(rows) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise ConfigError(f"{file}: row {wrong} is no object, but {rows[wrong]!r:.40}")
    return rows


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
