"""Mixing: the records that a training stage takes, by quota, and the manifest that packs them.

Which records are taken where there are more depends on the seed and on their ids alone: not on the
order, and not on the number of workers. A larger quota takes the same ones and more.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.mix import MixConfig, Quota
from megatron_ring.curation.collect.cells import kind_of
from megatron_ring.curation.record import Record, Rejection, response_of, told_apart
from megatron_ring.curation.shards import dump, file_stem, write_json, writing

QUEUE, MANIFEST, REPORT = "queue.jsonl", "pack.yaml", "report.json"


@dataclass(frozen=True)
class Cell:
    """A quota, or the part of it that one value of its label has; a file of the mix."""

    name: str  # of the quota, or quota.value
    requested: int
    available: int
    taken: int
    weight: float  # times each is seen an epoch
    short: int  # samples that an epoch lacks, repeats counted

    @property
    def file(self) -> str:
        """Name of its file beside the manifest."""
        return _file_of(self.name)


@dataclass(frozen=True)
class MixReport:
    """What was asked for, what there was, and what was taken."""

    cells: tuple[Cell, ...]
    rejected: dict[str, int]  # reason -> records

    def lines(self) -> list[str]:
        """A line a cell, shortages told."""
        told = []
        for cell in self.cells:
            line = f"{cell.name}: {cell.taken:,} of {cell.requested:,}, {cell.available:,} there"
            line += f", each seen {cell.weight:g} times" if cell.weight != 1 else ""
            told.append(line + (f"; short of {cell.short:,}" if cell.short else ""))
        return told


class Mix:
    """The quotas as a stage that sees all records: what is not taken is rejected with a reason."""

    def __init__(self, options: MixConfig) -> None:
        self.options = options
        self.report: MixReport | None = None  # of the last decision
        self._requested = requested(options)
        files = {QUEUE: "the prompts without an answer"}
        for cell in self._requested:
            if (other := files.setdefault(_file_of(cell), cell)) != cell:
                raise ConfigError(
                    f"quotas: {cell} and {other} would both be written to {_file_of(cell)}; give "
                    "one another name"
                )

    def summarise(self, record: Record) -> dict[str, Any]:
        """The cell of a record, and whether it has an answer to learn."""
        cell, why = cell_of(record, self.options)
        summary: dict[str, Any] = {"cell": cell} if cell is not None else {"why": why}
        return summary if response_of(record) is not None else {"queue": True}

    def decide(self, summaries: Iterable[tuple[str, Any]]) -> dict[str, Rejection]:
        """Ids of the records that are not taken, and why; ConfigError by when_short=error.

        Reasons: no_answer (its prompt is for the queue), no_quota, no_share, over_quota.
        """
        found: dict[str, list[tuple[str, str]]] = {name: [] for name in self._requested}
        rejected: dict[str, Rejection] = {}
        for name, summary in summaries:
            if "queue" in summary:
                rejected[name] = Rejection("no_answer", f"its prompt is in {QUEUE}")
            elif "why" in summary:
                rejected[name] = Rejection(*summary["why"])
            else:
                found[summary["cell"]].append((priority(self.options.seed, name), name))
        cells = []
        for cell, ranked in found.items():
            quota = self._requested[cell]
            ranked.sort()
            for _, name in ranked[quota:]:
                evidence = f"{cell}: {quota:,} of {len(ranked):,} are taken"
                rejected[name] = Rejection("over_quota", evidence)
            cells.append(self._cell(cell, quota, len(ranked)))
        counts: dict[str, int] = {}
        for rejection in rejected.values():
            counts[rejection.reason] = counts.get(rejection.reason, 0) + 1
        self.report = MixReport(tuple(cells), dict(sorted(counts.items())))
        if self.options.when_short == "error":
            _check_enough(cells)
        return rejected

    def _cell(self, name: str, quota: int, available: int) -> Cell:
        taken, weight = min(quota, available), 1.0
        if self.options.when_short == "repeat" and 0 < taken < quota:
            weight = round(min(quota / taken, self.options.max_repeats), 6)
        return Cell(name, quota, available, taken, weight, quota - round(taken * weight))


def _check_enough(cells: list[Cell]) -> None:
    short = [cell for cell in cells if cell.short]
    if short:
        told = "; ".join(
            f"{cell.name} has {cell.available:,} of {cell.requested:,} ({cell.short:,} missing)"
            for cell in short
        )
        raise ConfigError(
            f"quotas are short: {told}; collect more, lower scale, or set when_short=take_all or "
            "when_short=repeat"
        )


def write_mix(read: Callable[[], Iterable[Record]], options: MixConfig, folder: Path) -> MixReport:
    """Writes a file a cell, queue.jsonl, pack.yaml and report.json; what was taken comes back.

    `read` gives the records that reach the mix, each time in the same order; they are gone through
    twice and never held. Files appear when they are whole. ConfigError when nothing is taken.
    """
    stage = Mix(options)
    rejected = stage.decide((name, stage.summarise(record)) for name, record in _named(read()))
    report = stage.report
    assert report is not None
    if not any(cell.taken for cell in report.cells):
        raise ConfigError(
            f"no record fits any of the quotas {', '.join(options.quotas)}: {report.rejected}"
        )
    names = [QUEUE, *(cell.file for cell in report.cells if cell.taken)]
    with ExitStack() as stack:
        files = {name: stack.enter_context(writing(folder / name, synced=True)) for name in names}
        for name, record in _named(read()):
            why = rejected.get(name)
            if why is None or why.reason == "no_answer":
                cell, _ = cell_of(record, options)
                files[QUEUE if why is not None else _file_of(str(cell))].write(dump(record))
    sources = [
        {"path": str(folder / cell.file), "name": cell.name, "weight": cell.weight}
        for cell in report.cells
        if cell.taken
    ]
    with writing(folder / MANIFEST) as file:
        file.write(yaml.safe_dump({"sources": sources}, sort_keys=False).encode())
    told = {"cells": [asdict(cell) for cell in report.cells], "rejected": report.rejected}
    write_json(folder / REPORT, told)
    return report


def _named(records: Iterable[Record]) -> Iterator[tuple[str, Record]]:
    """Records with names of their own, those that the run's decision knew them by."""
    seen: Counter[str] = Counter()
    for record in records:
        yield told_apart(record["id"], seen), record


def requested(options: MixConfig) -> dict[str, int]:
    """Cell -> records it asks for: the scaled quota, divided by its shares without a rest."""
    cells = {}
    for name, quota in options.quotas.items():
        total = max(1, round(quota.take * options.scale))
        if quota.share_by is None:
            cells[name] = total
            continue
        weight = sum(quota.shares.values())
        exact = {value: total * share / weight for value, share in quota.shares.items()}
        whole = {value: int(part) for value, part in exact.items()}
        # The largest remainders get what is left; names settle ties.
        order = sorted(exact, key=lambda value: (whole[value] - exact[value], value))
        for value in order[: total - sum(whole.values())]:
            whole[value] += 1
        cells |= {f"{name}.{value}": part for value, part in whole.items()}
    return cells


def cell_of(record: Record, options: MixConfig) -> tuple[str | None, tuple[str, str]]:
    """The cell that a record belongs to, or why it belongs to none (reason, evidence)."""
    labels = labels_of(record)
    for name, quota in options.quotas.items():
        if not _fits(labels, quota):
            continue
        if quota.share_by is None:
            return name, ("", "")
        value = labels.get(quota.share_by)
        if value in quota.shares:
            return f"{name}.{value}", ("", "")
        return None, ("no_share", f"{name} has no share for {quota.share_by}={value}")
    told = ", ".join(f"{key}={value}" for key, value in labels.items())
    return None, ("no_quota", f"no quota for {told}")


def labels_of(record: Record) -> dict[str, str]:
    """What quotas look at; a record with tools is of kind tools, others as their source says."""
    labels = {key: record[key] for key in ("domain", "level", "topic") if key in record}
    known = {"kind": kind_of(record), **labels}
    known |= {key: record.get(key) for key in ("source", "split", "licence")}
    return {key: str(value) for key, value in known.items() if value is not None}


def _fits(labels: dict[str, str], quota: Quota) -> bool:
    return all(labels.get(label) in values for label, values in quota.where.items())


def priority(seed: int, name: str) -> str:
    """A record's place in the queue for its quota: as good as random, and always the same."""
    return blake2b(f"{seed}/{name}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _file_of(cell: str) -> str:
    return f"{file_stem(cell)}.jsonl"
