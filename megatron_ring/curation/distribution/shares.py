"""How a data set spreads over the taxonomy: shares, and what is in short supply.

The views are those of the report's Figures 3 to 6: domains; levels of mathematics; topics of each
level; tasks of code; topics of physics, chemistry and biology.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.taxonomy import OTHERS, UNKNOWN, Taxonomy

OWN_TARGETS = Path(__file__).with_name("targets.yaml")
ALL = "all"  # the view of domains, and the name of its shares in a file of targets
LABELS = ("domain", "level", "topic")


@dataclass(frozen=True)
class Targets:
    """Wanted shares, from 0 to 1: by view, then by id or by the name of a group."""

    shares: dict[str, dict[str, float]]
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shortage:
    """Something of which there is less than wanted."""

    view: str
    id: str
    count: int
    share: float  # of its view, from 0 to 1
    target: float  # from 0 to 1
    missing: float  # records to add until the share is met, all others staying; inf for all of it


class Distribution:
    """Counts of records by place in the taxonomy."""

    def __init__(self, taxonomy: Taxonomy, counts: dict[str, Counter[str]]) -> None:
        self.taxonomy = taxonomy
        self.counts = counts  # by view: "all", or the path of a node; then by id of what is below

    def total(self, view: str) -> int:
        """Records of the view."""
        return self.counts[view].total() if view in self.counts else 0

    def shares(
        self, view: str, groups: dict[str, tuple[str, ...]] | None = None
    ) -> dict[str, float]:
        """From 0 to 1, by id; with `groups`, those ids are summed under the group's name."""
        name_of = {id: name for name, ids in (groups or {}).items() for id in ids}
        counts: Counter[str] = Counter()
        for id, count in self.counts.get(view, Counter()).items():
            counts[name_of.get(id, id)] += count
        return {id: count / counts.total() for id, count in counts.most_common()}

    def views(self) -> list[str]:
        """All that hold records, in the order of the taxonomy."""
        return [view for view in (ALL, *self.taxonomy.nodes) if self.total(view)]

    def ids(self, view: str) -> list[str]:
        """What may be below the view, in the order of the taxonomy; then `unknown`."""
        below = self.taxonomy.domains if view == ALL else self.taxonomy.nodes[view].children
        return [*(node.id for node in below), UNKNOWN]


def count(records: Iterable[dict[str, Any]], taxonomy: Taxonomy) -> Distribution:
    """What `records` are about. Labels that the taxonomy does not know are `unknown`."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        path = taxonomy.path_of(record)
        ids = path.split("/") if path else []
        for depth in range(len(ids) + 1):
            view = "/".join(ids[:depth]) or ALL
            if depth < len(ids):
                counts.setdefault(view, Counter())[ids[depth]] += 1
            elif view == ALL or taxonomy.nodes[view].children:
                counts.setdefault(view, Counter())[UNKNOWN] += 1
    return Distribution(taxonomy, counts)


def read_labels(path: Path) -> Iterator[dict[str, Any]]:
    """Labels of each record of a JSONL or Parquet file, or of all such files below a folder.

    Of a folder of tools/curate.py run what it kept.

    ValueError names file and line of what is no record; ConfigError, a path without any.
    """
    path = path / "kept" if (path / "kept").is_dir() else path
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in (".jsonl", ".parquet")]
    if not files or not path.exists():
        raise ConfigError(f"{path}: there is no .jsonl or .parquet file")
    for file in files:
        if file.suffix == ".parquet":
            yield from _parquet_labels(file)
            continue
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _line_labels(line, f"{file}:{number}")


def _line_labels(line: str, at: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{at}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{at}: not a record but {line.strip()[:40]!r}")
    return {key: record[key] for key in LABELS if record.get(key)}


def _parquet_labels(file: Path) -> Iterator[dict[str, Any]]:
    table = pyarrow.parquet.ParquetFile(file)
    columns = [key for key in LABELS if key in table.schema_arrow.names]
    for batch in table.iter_batches(columns=columns):
        for row in batch.to_pylist():
            yield {key: value for key, value in row.items() if value}


def load_targets(file: Path, taxonomy: Taxonomy) -> Targets:
    """Wanted shares from YAML, as targets.yaml; ConfigError names what is not right in it.

    Shares that add up to more than 100 % (as rounded ones do) are scaled down to it.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the targets {file}: {error}") from None
    if not isinstance(tree, dict) or "shares" not in tree or set(tree) - {"shares", "groups"}:
        raise ConfigError(f"{file}: wants `shares` and, for several domains in one, `groups`")
    domains = [node.id for node in taxonomy.domains]
    groups = {name: tuple(ids) for name, ids in tree.get("groups", {}).items()}
    for name, ids in groups.items():
        if unknown := [id for id in ids if id not in domains]:
            raise ConfigError(f"{file}: groups.{name}: {unknown[0]!r} is no domain")
    shares = {}
    for view, wanted in tree["shares"].items():
        if view != ALL and view not in taxonomy.nodes:
            raise ConfigError(f"{file}: shares.{view}: no such path; {ALL} is the view of domains")
        below = taxonomy.domains if view == ALL else taxonomy.nodes[view].children
        known = [*(node.id for node in below), *(groups if view == ALL else ())]
        for id, share in wanted.items():
            if id not in known:
                raise ConfigError(f"{file}: shares.{view}: no {id!r}; there: {', '.join(known)}")
            if type(share) not in (int, float) or not 0 <= share <= 100:
                raise ConfigError(
                    f"{file}: shares.{view}.{id}={share!r} is not 0 to 100 (per cent)"
                )
        total = sum(wanted.values())
        if total > 102:
            raise ConfigError(f"{file}: shares.{view} add up to {total:g} %, more than 100")
        shares[view] = {id: share / max(total, 100) for id, share in wanted.items()}
    return Targets(shares, groups)


def targets_of(other: Distribution) -> Targets:
    """The shares of another data set as what is wanted; what it does not know is not."""
    shares = {}
    for view in other.views():
        of_view = other.shares(view)
        shares[view] = {id: s for id, s in of_view.items() if id not in (UNKNOWN, OTHERS)}
    return Targets(shares)


def shortages(found: Distribution, targets: Targets) -> list[Shortage]:
    """What there is less of than wanted, the most records missing first.

    n records of N, wanted share t: adding (t N - n) / (1 - t) of them meets it.
    """
    result = []
    for view, wanted in targets.shares.items():
        total = found.total(view)
        if not total:
            continue
        shares = found.shares(view, targets.groups if view == ALL else None)
        for id, target in wanted.items():
            share = shares.get(id, 0.0)
            if share < target:
                missing = (target - share) * total / (1 - target) if target < 1 else math.inf
                result.append(Shortage(view, id, round(share * total), share, target, missing))
    return sorted(result, key=lambda s: (-s.missing, s.view, s.id))
