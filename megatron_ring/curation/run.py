"""A recipe from its sources to records kept and rejected, resumable at every shard.

Segments run one after the other, their shards in any order on any number of workers; what a global
stage between two segments decides is decided once, here. Nothing depends on who did which shard
when, so that a run that was killed ends with the same bytes as one that was not.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.curation.mix import MixConfig
from megatron_ring.curation import finish, work
from megatron_ring.curation.collect.adapt import complete, to_record
from megatron_ring.curation.reading import read_piece
from megatron_ring.curation.recipe import READ, Segment, label_steps, make_stage, segments_of
from megatron_ring.curation.record import PaidStage, Record, Rejection, told_apart
from megatron_ring.curation.segment import (
    REPORT,
    Counts,
    Job,
    Paths,
    check_record,
    merge_counts,
)
from megatron_ring.curation.shards import read_json, read_lines, write_json

DONE = "done.json"  # in a segment's folder: its counts, when all shards are finished


class Teller:
    """What a run says while it goes on; this one says nothing. The command line has another."""

    def say(self, line: str) -> None:
        """One line for the user."""

    def begin(self, name: str, records: int, finished: int, count: Callable[[], int]) -> None:
        """A segment begins: its records, those finished before, and who counts them from now on."""

    def end(self) -> None:
        """The segment is finished, or failed."""


@dataclass(frozen=True)
class Result:
    """What a run made."""

    output: Path
    counts: dict[str, Counts]  # of all stages, in order
    report: dict[str, Any]  # as report.json has it


def run(config: CurateConfig, teller: Teller | None = None) -> Result:
    """Do what is not done yet. ConfigError, ValueError say what stands in the way."""
    teller = teller or Teller()
    began = time.perf_counter()
    paths = Paths(Path(config.output).absolute())
    with work.claimed(paths):
        old = read_json(paths.input)
        found = work.cut_input(config, old)
        pieces = work.pieces_of(found)
        segments = segments_of(config)
        described = work.describe(segments, found)
        work.drop_changed(paths, segments, described, teller.say)
        if found is not old:
            write_json(paths.input, found)
        unfinished = [s for s in segments if read_json(paths.folder(s) / DONE) is None]
        for segment in unfinished:  # what is wrong with their options is known before the work
            for step in [*segment.steps, *([segment.tail] if segment.tail else [])]:
                make_stage(step.options)
        for segment in segments:
            if segment not in unfinished:
                teller.say(f"{segment.name}: finished before")
                continue
            fingerprint = described[segment.number]["fingerprint"]
            job = Job(config.model_dump_json(), segment.number, fingerprint, str(paths.output))
            _run_segment(config, paths, segments, job, [p.num_rows for p in pieces], teller)
        counts = merge_counts(
            read_json(paths.folder(segment) / DONE)["stages"] for segment in segments
        )
        _check_chain(counts)
        report = finish.write_output(config, paths, segments, described, found, counts)
        stages = [make_stage(step.options) for segment in segments for step in segment.steps]
        report["asked"] = dict(stage.bill() for stage in stages if isinstance(stage, PaidStage))
        report["wall_seconds"] = round(time.perf_counter() - began, 3)
        write_json(paths.output / REPORT, report)
    return Result(paths.output, counts, report)


def _run_segment(
    config: CurateConfig,
    paths: Paths,
    segments: list[Segment],
    job: Job,
    num_rows: list[int],
    teller: Teller,
) -> None:
    segment, num_shards = segments[job.segment], len(num_rows)
    folder = paths.folder(segment)
    decide_seconds = 0.0
    if segment.head is not None:
        before = segments[job.segment - 1]
        decide_seconds = _decide(paths, before, segment, num_shards, teller)
        num_rows = [read_json(paths.counts(before, n))["records"] for n in range(num_shards)]
    missing = work.missing_shards(paths, segment, num_shards)
    finished = sum(num_rows) - sum(num_rows[n] for n in missing)

    def count() -> int:
        left = set(work.missing_shards(paths, segment, num_shards))
        return sum(rows for n, rows in enumerate(num_rows) if n not in left)

    teller.begin(segment.name, sum(num_rows), finished, count)
    try:
        while missing:
            from megatron_ring.curation.executors import execute  # datatrove: a quarter of a second

            execute(config, job, missing, folder / "tasks")
            left = work.missing_shards(paths, segment, num_shards)
            if len(left) == len(missing):
                raise ValueError(
                    f"{len(left)} shards of {segment.name} were not done, without an error from a "
                    f"worker; look at the logs in {folder / 'tasks'}"
                )
            missing = left
    finally:
        teller.end()
    shards = [read_json(paths.counts(segment, n)) for n in range(num_shards)]
    counts = merge_counts(shard["stages"] for shard in shards)
    for label in segment.labels:  # also where there is no shard at all
        counts.setdefault(label, Counts())
    if segment.head is not None:
        counts[segment.head.label].seconds += decide_seconds
    if segment.tail is not None:
        spent = sum(shard["summary_seconds"] for shard in shards)
        counts[segment.tail.label] = Counts(seconds=spent)
    told = {label: vars(one) for label, one in counts.items()}
    write_json(folder / DONE, {"stages": told})
    shutil.rmtree(folder / "tasks", ignore_errors=True)


def _decide(
    paths: Paths, before: Segment, segment: Segment, num_shards: int, teller: Teller
) -> float:
    """Write what the head of a segment decides, a file a shard; seconds that it took."""
    folder = paths.decisions(segment)
    told = folder / "seconds.json"
    if folder.exists():
        return read_json(told)["seconds"]
    assert segment.head is not None, segment
    began = time.perf_counter()
    teller.say(f"{segment.head.label}: deciding")
    summaries = Summaries(paths, before, num_shards)
    gone = dict(make_stage(segment.head.options).decide(summaries))
    new = folder.with_name("decisions.new")
    shutil.rmtree(new, ignore_errors=True)
    used = 0
    for shard in range(num_shards):
        verdicts = {}
        for position, name in summaries.names(shard):
            if name in gone:
                verdicts[position] = [gone[name].reason, gone[name].evidence]
        used += len(verdicts)
        write_json(new / f"{shard:05d}.json", verdicts)
    if used != len(gone):
        raise ValueError(
            f"stage {segment.head.label} rejects {len(gone)} records, {used} of them known"
        )
    seconds = time.perf_counter() - began
    write_json(new / told.name, {"seconds": seconds})
    new.rename(folder)
    return seconds


class Summaries:
    """(id, summary) of all records that reach a global stage, in order; as often as wanted."""

    def __init__(self, paths: Paths, segment: Segment, num_shards: int) -> None:
        self.files = [paths.summaries(segment, shard) for shard in range(num_shards)]
        self.again: dict[tuple[int, int], str] = {}  # (shard, position) -> name given here
        seen: Counter[str] = Counter()
        for shard, file in enumerate(self.files):
            for position, (name, _) in enumerate(read_lines(file)):
                if (own := told_apart(name, seen)) != name:
                    self.again[shard, position] = own

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for shard, file in enumerate(self.files):
            for position, (name, summary) in enumerate(read_lines(file)):
                yield self.again.get((shard, position), name), summary

    def names(self, shard: int) -> Iterator[tuple[int, str]]:
        """Positions in a shard, and the names used."""
        for position, (name, _) in enumerate(read_lines(self.files[shard])):
            yield position, self.again.get((shard, position), name)


def _check_chain(counts: dict[str, Counts]) -> None:
    """Kept + rejected = read at every stage, and each stage reads what the one before kept."""
    before: tuple[str, int] | None = None
    for label, one in counts.items():
        rejected = sum(one.rejected.values())
        if one.kept + rejected != one.read:
            raise ValueError(
                f"stage {label} read {one.read} records, but kept {one.kept} and rejected "
                f"{rejected}, {one.kept + rejected} in all; remove work/ and run again"
            )
        if before is not None and one.read != before[1]:
            raise ValueError(
                f"stage {label} read {one.read} records of the {before[1]} that {before[0]} kept; "
                "remove work/ and run again"
            )
        before = (label, one.kept)


@dataclass(frozen=True)
class Try:
    """The first record of a source, through the whole chain."""

    source: str
    num_rows: int
    num_shards: int
    before: Record | None  # as it was read; None when there is none
    after: Record | None  # as it is kept
    fate: str  # kept; which stage rejects it, and why; or which would ask a model for it, and what


def _for_one(options: Any) -> Any:
    """Options of a stage that is shown one record: that fills no quota."""
    is_mix = isinstance(options, MixConfig)
    return options.model_copy(update={"when_short": "take_all"}) if is_mix else options


def try_out(config: CurateConfig) -> list[Try]:
    """What a run would do with the first record of each source; writes nothing."""
    found = work.cut_input(config, None)
    pieces = work.pieces_of(found)
    steps = [(step, make_stage(_for_one(step.options))) for step in label_steps(config.stages)]
    tried = []
    for index, given in enumerate(config.sources):
        source = complete(given)
        own = [piece for piece in pieces if piece.source == index]
        total = sum(piece.num_rows for piece in own)
        if source.name is None:
            raise ConfigError(f"sources.{index} has no name")
        head = (source.name, total, len(own))
        if not own:
            tried.append(Try(*head, None, None, "nothing in it"))
            continue
        row = next(iter(read_piece(source, own[0], config.max_record_bytes)))
        record = row.fault if row.fault is not None else to_record(source, row)
        if not isinstance(record, Rejection):
            record = check_record(record, row.place)
        label, before, asked = READ, None if isinstance(record, Rejection) else record, None
        for step, stage in steps:
            if isinstance(record, Rejection):
                break
            label = step.label
            if isinstance(stage, PaidStage) and (asked := stage.would_ask(record)) is not None:
                break
            if step.is_global:
                name = record["id"]
                verdicts = stage.decide([(name, stage.summarise(record))])
                record = verdicts.get(name, record)
            else:
                record = stage.apply(record)
        if asked is not None:
            tried.append(Try(*head, before, None, f"{label} {asked}"))
        elif isinstance(record, Rejection):
            fate = f"{label} rejects it: {record.reason}: {record.evidence}"
            tried.append(Try(*head, before, None, fate))
        else:
            tried.append(Try(*head, before, record, "kept"))
    return tried
