"""What a worker does: one shard through one segment, counted.

Files of a shard, all of them whole when they have their names; counts come last and say that the
shard is finished:
    work/SEGMENT/kept/NNNNN.jsonl        records that are left
    work/SEGMENT/summaries/NNNNN.jsonl   [id, summary] for the global stage behind it
    rejected/STAGE/NNNNN.jsonl           id, source, stage, reason, evidence, and the record itself
    work/SEGMENT/counts/NNNNN.json       read, kept, rejected by reason, and seconds of each stage
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_ring.config.curation import CurateConfig
from megatron_ring.curation.collect.adapt import complete, to_record
from megatron_ring.curation.reading import Piece, read_piece
from megatron_ring.curation.recipe import Segment, Step, make_stage, segments_of
from megatron_ring.curation.record import BatchStage, Record, Rejection
from megatron_ring.curation.shards import dump, read_json, read_lines, write_json, write_lines

ROLES = ("system", "user", "assistant", "tool")
RECORDED = "segment.json"  # in a segment's folder: its fingerprint and what it follows from
CARD, REPORT = "card.json", "report.json"  # in the output, the last files of a run
JOB = "slurm_job.json"  # in a segment's tasks: the number of its job
BATCH = 256  # records that go through stages together, unless one wants more; they may be long
SHOWN = 2000  # characters of a row that made no record, kept with its rejection


@dataclass
class Counts:
    """What became of the records that a stage saw in a shard."""

    read: int = 0
    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)  # reason -> records
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """All that a worker must know to do shards of a segment, in plain values: it may be far off."""

    config: str  # JSON of the CurateConfig
    segment: int
    fingerprint: str  # of the segment
    output: str  # absolute, on a file system that all workers see

    def do(self, shard: int) -> None:
        """Do one shard, unless it is finished."""
        config, segments, pieces = _plan(self.config, self.output, self.fingerprint)
        _Shard(config, segments, self, pieces[shard], shard).do()


class Paths:
    """Where the files of a run are."""

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)
        self.work = self.output / "work"
        self.input = self.work / "input.json"

    def folder(self, segment: Segment) -> Path:
        """Of a segment."""
        return self.work / segment.name

    def kept(self, segment: Segment, shard: int) -> Path:
        return self.folder(segment) / "kept" / f"{shard:05d}.jsonl"

    def summaries(self, segment: Segment, shard: int) -> Path:
        return self.folder(segment) / "summaries" / f"{shard:05d}.jsonl"

    def decisions(self, segment: Segment) -> Path:
        """Folder with what the segment's head decided, a file a shard."""
        return self.folder(segment) / "decisions"

    def counts(self, segment: Segment, shard: int) -> Path:
        return self.folder(segment) / "counts" / f"{shard:05d}.json"

    def rejected(self, label: str) -> Path:
        """Folder of a stage's rejections."""
        return self.output / "rejected" / label


@lru_cache(maxsize=2)
def _plan(
    config: str, output: str, fingerprint: str
) -> tuple[CurateConfig, list[Segment], list[Piece]]:
    """What all shards of a job share; the fingerprint tells one input from another."""
    parsed = CurateConfig.model_validate_json(config)
    pieces = [Piece(*piece) for piece in read_json(Paths(output).input)["pieces"]]
    return parsed, segments_of(parsed), pieces


class _Shard:
    def __init__(
        self, config: CurateConfig, segments: list[Segment], job: Job, piece: Piece, number: int
    ) -> None:
        self.config, self.piece, self.number = config, piece, number
        self.fingerprint = job.fingerprint
        self.segments, self.segment = segments, segments[job.segment]
        self.paths = Paths(job.output)
        self.counts = {label: Counts() for label in self.segment.labels}
        self.rejected: dict[str, list[bytes]] = {label: [] for label in self.segment.labels}

    def do(self) -> None:
        """Records in, files out."""
        segment, paths, number = self.segment, self.paths, self.number
        if paths.counts(segment, number).exists():
            return
        self._check_recipe()
        records = self._read() if segment.head is None else self._decided(segment.head)
        steps = [(step, make_stage(step.options)) for step in segment.steps]
        tail = None if segment.tail is None else make_stage(segment.tail.options)
        kept, summaries, spent = [], [], 0.0
        for out in self._through(steps, records):
            kept.append(_dump(out, segment.labels[-1]))
            if tail is not None:
                began = time.perf_counter()
                summary = _call(segment.tail, tail.summarise, out)
                spent += time.perf_counter() - began
                summaries.append(dump([out["id"], summary]))
        self._check_recipe()
        write_lines(paths.kept(segment, number), kept)
        if tail is not None:
            write_lines(paths.summaries(segment, number), summaries)
        for label, lines in self.rejected.items():
            if lines:
                write_lines(paths.rejected(label) / f"{number:05d}.jsonl", lines)
        stages = {label: vars(counts) for label, counts in self.counts.items()}
        told = {"records": len(kept), "stages": stages, "summary_seconds": spent}
        write_json(paths.counts(segment, number), told)

    def _check_recipe(self) -> None:
        """A worker left over from another recipe must not write into this one's folder."""
        told = read_json(self.paths.folder(self.segment) / RECORDED)
        if told is None or told["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{self.paths.folder(self.segment)} is another recipe's by now; this worker ends"
            )

    def _through(
        self, steps: list[tuple[Step, Any]], records: Iterator[Record]
    ) -> Iterator[Record]:
        """What is left of the records behind the steps, so many of them at a time, in order."""
        wanted = [stage.batch for _, stage in steps if isinstance(stage, BatchStage)]
        size = max([BATCH, *wanted])
        while batch := list(islice(records, size)):
            for step, stage in steps:
                batch = self._step(step, stage, batch)
            yield from batch

    def _step(self, step: Step, stage: Any, records: list[Record]) -> list[Record]:
        began, counts, kept = time.perf_counter(), self.counts[step.label], []
        if isinstance(stage, BatchStage) and records:
            verdicts = _call(step, stage.apply_batch, records)
        else:
            verdicts = [_call(step, stage.apply, record) for record in records]
        counts.seconds += time.perf_counter() - began
        for record, verdict in zip(records, verdicts, strict=True):
            counts.read += 1
            if isinstance(verdict, Rejection):
                self._reject(step.label, record, verdict)
                continue
            counts.kept += 1
            kept.append(verdict)
        return kept

    def _read(self) -> Iterator[Record]:
        """Records of the piece of a source; what is none is counted."""
        source = complete(self.config.sources[self.piece.source])
        label, counts = self.segment.labels[0], self.counts[self.segment.labels[0]]
        rows = read_piece(source, self.piece, self.config.max_record_bytes)
        while True:
            began = time.perf_counter()
            row = next(rows, None)
            if row is None:
                return
            record = row.fault if row.fault is not None else to_record(source, row)
            if not isinstance(record, Rejection):
                record = check_record(record, row.place)
            counts.read += 1
            counts.seconds += time.perf_counter() - began
            if isinstance(record, Rejection):
                shown = row.data
                if shown is not None and len(text := repr(shown)) > SHOWN:
                    shown = text[:SHOWN]
                name = f"{source.name}/{row.number}"
                self._reject(label, {"id": name, "source": source.name}, record, shown)
                continue
            counts.kept += 1
            yield record

    def _decided(self, head: Step) -> Iterator[Record]:
        """Records of the segment before that the head lets pass."""
        before = self.segments[self.segment.number - 1]
        gone = read_json(self.paths.decisions(self.segment) / f"{self.number:05d}.json")
        counts = self.counts[head.label]
        for position, record in enumerate(read_lines(self.paths.kept(before, self.number))):
            counts.read += 1
            if str(position) in gone:
                self._reject(head.label, record, Rejection(*gone[str(position)]))
                continue
            counts.kept += 1
            yield record

    def _reject(self, label: str, record: Record, why: Rejection, shown: Any = None) -> None:
        rejected = self.counts[label].rejected
        rejected[why.reason] = rejected.get(why.reason, 0) + 1
        line = {
            "id": record["id"],
            "source": record.get("source"),
            "stage": label,
            "reason": why.reason,
            "evidence": why.evidence,
            "record": record if "messages" in record else shown,
        }
        self.rejected[label].append(_dump(line, label))


def check_record(record: Record, place: str) -> Record | Rejection:
    """The record, or how its messages are no chat: stages need not expect everything."""
    turns: Any = record.get("messages")
    if not isinstance(turns, list) or not turns:
        return Rejection("no_messages", f"{place}: messages is {str(turns)[:80]}, no list of turns")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            shown = f"turn {number} is {str(turn)[:200]}"
            return Rejection("bad_turn", f"{place}: {shown}; its role is one of {', '.join(ROLES)}")
        for key in ("content", "reasoning_content"):
            if not isinstance(turn.get(key), str | None):
                kind = type(turn[key]).__name__
                return Rejection("bad_turn", f"{place}: turn {number}: {key} is {kind}, not text")
    return record


def merge_counts(shards: Iterable[dict[str, Any]]) -> dict[str, Counts]:
    """Counts of several shards added."""
    total: dict[str, Counts] = {}
    for stages in shards:
        for label, one in stages.items():
            counts = total.setdefault(label, Counts())
            counts.read += one["read"]
            counts.kept += one["kept"]
            counts.seconds += one["seconds"]
            for reason, number in one["rejected"].items():
                counts.rejected[reason] = counts.rejected.get(reason, 0) + number
    return total


def _call(step: Step | None, function: Any, given: Record | list[Record]) -> Any:
    """What a stage says; an error of its own names the record, or the first and last of many."""
    try:
        said = function(given)
    except Exception as error:  # whatever a stage's code or its libraries raise
        one = f"record {given['id']}" if isinstance(given, dict) else ""
        many = one or f"records {given[0]['id']} to {given[-1]['id']}"
        error.add_note(f"stage {step.label if step else ''}, {many}")
        raise
    return said


def _dump(value: Any, label: str) -> bytes:
    try:
        return dump(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"stage {label} made record {value['id']} no JSON: {error}") from None
