"""What a run begins with: seeds, what is known already, and how much of each topic there is."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.curation.collect import SourceConfig
from megatron_ring.config.curation.synthesis import SynthesisConfig
from megatron_ring.curation import work
from megatron_ring.curation.collect.adapt import complete, to_record
from megatron_ring.curation.reading import read_piece
from megatron_ring.curation.record import Record, Rejection, prompt_of, told_apart
from megatron_ring.curation.segment import check_record
from megatron_ring.curation.synthesis.domain import Cell
from megatron_ring.curation.synthesis.novelty import Novelty
from megatron_ring.curation.taxonomy import Taxonomy


class Seeds:
    """Records to write new problems after, by topic."""

    def __init__(self) -> None:
        self._at: dict[str, list[Record]] = {}  # path and all above it -> records below
        self.count = 0

    def add(self, record: Record, path: str) -> None:
        """One more, labelled as `path` says."""
        self.count += 1
        ids = path.split("/")
        for depth in range(len(ids)):
            self._at.setdefault("/".join(ids[: depth + 1]), []).append(record)

    def draw(self, cell: Cell, count: int, key: str) -> list[Record]:
        """Seeds for one request, another draw for each `key`.

        Of the cell's topic and difficulty; where these are too few, of its topic, then of its
        level, then of its domain.
        """
        rng = random.Random(key)
        drawn: dict[str, Record] = {}
        ids = cell.path.split("/")
        for depth in range(len(ids), 0, -1):
            near = self._at.get("/".join(ids[:depth]), [])
            if depth == len(ids) and cell.difficulty:
                _draw(
                    [one for one in near if _difficulty(one) == cell.difficulty], count, rng, drawn
                )
            _draw(near, count, rng, drawn)
        return list(drawn.values())


def _draw(near: list[Record], count: int, rng: random.Random, drawn: dict[str, Record]) -> None:
    """Some of `near` until there are `count`; no more are looked at than could be there already."""
    for record in rng.sample(near, min(len(near), count)):
        if len(drawn) < count:
            drawn.setdefault(record["id"], record)


def _difficulty(record: Record) -> str | None:
    return record.get("extra", {}).get("difficulty")


@dataclass
class Material:
    """Seeds, and what is known of seeds and pool together."""

    seeds: Seeds
    supply: Counter[str] = field(default_factory=Counter)  # records by path below the domain
    counts: dict[str, Any] = field(default_factory=dict)  # for the report


def find_input(config: SynthesisConfig) -> dict[str, Any]:
    """Files of seeds and pool with their checksums. ConfigError for one that is not there."""
    return {name: work.cut_input(_curate(config, name), None) for name in ("seeds", "pool")}


def read_material(
    config: SynthesisConfig, taxonomy: Taxonomy, found: dict[str, Any], novelty: Novelty
) -> Material:
    """All of it in memory: records of seeds, and of the pool what `novelty` needs."""
    material = Material(Seeds())
    seen: Counter[str] = Counter()
    roots = config.domain.roots
    for name in ("seeds", "pool"):
        read = unreadable = unlabelled = 0
        for record in _records(_curate(config, name), found[name]):
            read += 1
            if isinstance(record, Rejection):
                unreadable += 1
                continue
            record = {**record, "id": told_apart(record["id"], seen)}
            novelty.add(record["id"], prompt_of(record))
            path = taxonomy.path_of(record)
            if not _is_below(path, roots):
                unlabelled += 1
                continue
            material.supply[path] += 1
            if name == "seeds":
                material.seeds.add(record, path)
        material.counts[name] = {
            "read": read,
            "unreadable": unreadable,
            "of no topic of the domain": unlabelled,
        }
    if config.seeds and not material.seeds.count and config.seeds_per_request:
        raise ConfigError(
            f"seeds: none of {material.counts['seeds']['read']:,} records has a label below "
            f"{' or '.join(roots)}: {material.counts['seeds']}. Label them first (tools/curate.py, "
            "stage label), name the columns (columns.domain, level, topic) or state them "
            "(constants.domain); seeds_per_request=0 goes without seeds"
        )
    return material


def _curate(config: SynthesisConfig, name: str) -> CurateConfig:
    """Sources as tools/curate.py has them: what cuts and reads its input does so here."""
    sources: list[SourceConfig] = vars(config)[name]
    return CurateConfig.model_construct(sources=sources, stages=[], output=config.output)


def _records(config: CurateConfig, found: dict[str, Any]) -> Iterator[Record | Rejection]:
    sources = [complete(source) for source in config.sources]
    for piece in work.pieces_of(found):
        for row in read_piece(sources[piece.source], piece, config.max_record_bytes):
            record = row.fault if row.fault is not None else to_record(sources[piece.source], row)
            yield record if isinstance(record, Rejection) else check_record(record, row.place)


def _is_below(path: str, roots: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(f"{root}/") for root in roots)
