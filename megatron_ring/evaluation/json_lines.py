"""Files of benchmarks: JSON objects, one a line, plain or gzipped."""

import gzip
import json
from pathlib import Path
from typing import Any

from megatron_ring.config.base import ConfigError


def read_lines(path: Path, needs: tuple[str, ...], benchmark: str) -> list[dict[str, Any]]:
    """Objects of `path` in order, each with the keys `needs`.

    ConfigError, which says what file `benchmark` wants, when there is none or a line is not one.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; {benchmark}")
    opened = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{path} line {number}: no JSON ({error}); {benchmark}") from None
            missing = needs if not isinstance(row, dict) else [k for k in needs if k not in row]
            if missing:
                raise ConfigError(f"{path} line {number}: no {', '.join(missing)}; {benchmark}")
            rows.append(row)
    return rows


def given(path: Path | None, name: str, benchmark: str) -> Path:
    """The path; ConfigError when a recipe leaves it out, and what `benchmark` wants there."""
    if path is None:
        raise ConfigError(f"tasks.{name}.file is not set; {benchmark}")
    return path
