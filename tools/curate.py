"""Sources of chat samples -> records that are kept, and every other with the reason it is not.

Usage:
    python tools/curate.py run FILE.yaml... [key.path=value ...] [--dry-run]
    python tools/curate.py status OUT
    python tools/curate.py show OUT [--stage STAGE] [--reason REASON] [-n NUMBER]
    python tools/curate.py stages [NAME...]
    python tools/curate.py schema > configs/curate/schema.json

Examples:
    python tools/curate.py run tests/curation/smoke.yaml --dry-run
    python tools/curate.py run recipe.yaml output=curated workers=8
    python tools/curate.py run recipe.yaml machines.yaml executor=slurm slurm.partition=cpu
    python tools/curate.py run recipe.yaml stages.1.threshold=0.7
    python tools/curate.py show curated --stage minhash -n 3

A recipe:
    sources:
      gsm8k: {path: train.jsonl, columns: {prompt: question, response: answer}, licence: MIT}
    stages:                # in this order; `curate.py stages` lists all of them
      - {stage: exact}
      - {stage: minhash, threshold: 0.8}
    output: curated

What is in OUT afterwards:
    kept/SOURCE.jsonl      records with messages, tools, source, domain ...; pack.yaml lists them:
                           python tools/pack.py OUT/pack.yaml tokenizer=TOKENIZER output=packed
    rejected/STAGE/*.jsonl each with id, source, reason, evidence, and the record itself
    report.json card.json recipe.yaml    counts and seconds; versions and checksums; all keys
    work/                  what a run that was stopped or killed goes on from; free to be removed

A run that was killed is started again with the same command and does what is missing. With another
recipe it goes on from the first stage that is another, and says so. The number of workers and the
executor change nothing in what is kept. Rows that cannot be read are rejected by the stage `read`.

--dry-run checks everything, shows the recipe, how much there is, and what becomes of the first
record of each source, and writes nothing; where a model would be asked, it shows the question.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from megatron_ring import config as configuration
from megatron_ring.config import ConfigError, Part
from megatron_ring.config.curation import CurateConfig
from megatron_ring.curation import run as curation
from megatron_ring.curation.console import (
    Watch,
    load_recipe,
    one_folder,
    print_record,
    run_command,
    take_options,
)
from megatron_ring.curation.recipe import GLOBAL_STAGES, STAGES, segments_of
from megatron_ring.curation.segment import REPORT, Paths
from megatron_ring.curation.shards import read_json, read_lines

ROOT = Path(__file__).parents[1]
TOOL = "curate.py"


def main(arguments: list[str]) -> int:
    """Exit status; errors of the user are printed, not raised."""
    console = Console()
    commands = {"run": run, "status": status, "show": show, "stages": stages, "schema": schema}
    return run_command(console, commands, arguments, __doc__, lambda: about_keys(console))


def about_keys(console: Console) -> None:
    """What the help ends with."""
    console.print("Keys of a recipe (those of stages: curate.py stages):")
    print_keys(console, CurateConfig, "")


def run(console: Console, arguments: list[str]) -> int:
    """Do a recipe, or with --dry-run show what it would do."""
    config, is_dry = load_recipe(CurateConfig, arguments)
    if is_dry:
        show_plan(console, config)
        return 0
    result = curation.run(config, ConsoleTeller(console))
    print_report(console, result.report)
    output = config.output
    console.print(f"wrote {output}; look at rejected records and pack the others with")
    console.print(f"    python tools/curate.py show {output}", highlight=False)
    manifest = "mix/pack.yaml" if (result.output / "mix").exists() else "pack.yaml"
    command = f"python tools/pack.py {output}/{manifest} tokenizer=TOKENIZER output=packed"
    console.print(f"    {command}", highlight=False, soft_wrap=True)
    return 0


def show_plan(console: Console, config: CurateConfig) -> None:
    """Resolved keys, how much there is, and the first record of each source through the chain."""
    console.print_json(config.model_dump_json(exclude_none=True))
    tried = curation.try_out(config)
    for one in tried:
        told = f"{one.source}: {one.num_rows:,} records in {one.num_shards:,} shards"
        console.rule(escape(told), align="left")
        if one.before is not None:
            print_record(console, one.before)
        if one.after is not None and one.after != one.before:
            console.print("after the stages:")
            print_record(console, one.after)
        console.print(Text(one.fate, style="green" if one.after is not None else "yellow"))
    total, shards = sum(one.num_rows for one in tried), sum(one.num_shards for one in tried)
    cuts = len(segments_of(config))
    console.rule(f"{total:,} records in {shards:,} shards, {cuts} times through", align="left")


def status(console: Console, arguments: list[str]) -> int:
    """How far a run is."""
    paths = Paths(one_folder(arguments, TOOL))
    found, report = read_json(paths.input), read_json(paths.output / REPORT)
    folders = sorted(path for path in paths.work.glob("[0-9][0-9]-*") if path.is_dir())
    if report is not None and not paths.work.exists():  # finished, and work/ was removed
        print_report(console, report)
        return 0
    if found is None or not folders:
        raise ConfigError(f"{paths.output} has no run in it")
    table = Table("segment", "stages", "shards done", "shards", title=str(paths.output))
    for folder in folders:
        labels = read_json(folder / "segment.json")["stages"]
        done = len(list((folder / "counts").glob("*.json")))
        table.add_row(folder.name, ", ".join(labels), f"{done:,}", f"{len(found['pieces']):,}")
    console.print(table)
    if report is not None and all((folder / curation.DONE).exists() for folder in folders):
        print_report(console, report)
    return 0


def show(console: Console, arguments: list[str]) -> int:
    """Print rejected records."""
    wanted, left = take_options(arguments, {"--stage": "", "--reason": "", "-n": "5"})
    folder = one_folder(left, TOOL) / "rejected"
    there = sorted(path.name for path in folder.glob("*"))
    if wanted["--stage"] and wanted["--stage"] not in there:
        raise ConfigError(
            f"stage {wanted['--stage']!r} rejected nothing; those that did: {', '.join(there)}"
        )
    number, shown, total = int(wanted["-n"]), 0, 0
    reasons: set[str] = set()
    for path in sorted(folder.glob(f"{wanted['--stage'] or '*'}/*.jsonl")):
        for line in read_lines(path):
            reasons.add(line["reason"])
            if wanted["--reason"] not in ("", line["reason"]):
                continue
            total += 1
            if shown < number:
                shown += 1
                console.rule(
                    escape(f"{line['id']}: {line['stage']}, {line['reason']}"), align="left"
                )
                console.print(Text(line["evidence"], style="yellow"), soft_wrap=True)
                print_record(console, line["record"])
    if wanted["--reason"] and not total:
        raise ConfigError(
            f"nothing was rejected for the reason {wanted['--reason']!r}; there are: "
            f"{', '.join(sorted(reasons)) or 'none'}"
        )
    console.rule(f"{shown:,} of {total:,} rejected records", align="left")
    return 0


def stages(console: Console, arguments: list[str]) -> int:
    """List the stages, with their options."""
    known = {**STAGES, **GLOBAL_STAGES}
    for name in arguments or known:
        if name not in known:
            raise ConfigError(f"unknown stage {name!r}; known: {', '.join(known)}")
        options, _ = known[name]
        about = (options.__doc__ or "").strip().split("\n\n")[0]
        seen = "; sees all records before it decides" if name in GLOBAL_STAGES else ""
        console.print(Text.assemble((name, "bold cyan"), f"  {about}{seen}"), soft_wrap=True)
        print_keys(console, options, "")
    return 0


def schema(console: Console, arguments: list[str]) -> int:
    """Print the JSON schema of recipes, for editors."""
    sys.stdout.write(configuration.json_schema(CurateConfig))
    return 0


def print_keys(console: Console, cls: type[Part], prefix: str) -> None:
    """The keys of a part of the configuration and of the parts in it, with their defaults."""
    for name, field in cls.model_fields.items():
        if name == "stage":
            continue
        part, place = _part_in(field.annotation)
        is_part = isinstance(field.default, Part)
        default = "" if field.is_required() or is_part else f" [{field.default}]"
        choices = " | ".join(map(str, _choices(field.annotation)))
        about = f"{choices and ' '}{choices}{default}  {field.description or ''}"
        console.print(Text.assemble((f"    {prefix}{name}", "bold"), about), soft_wrap=True)
        if part is not None:
            print_keys(console, part, f"{prefix}{name}.{place}")


def _part_in(annotation: Any, place: str = "") -> tuple[type[Part] | None, str]:
    """The one Part that a key holds, or a list or table of; and where in the key it stands."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation, place
    inner = {list: "N.", dict: "NAME."}.get(get_origin(annotation), "")
    found = [_part_in(one, place + inner) for one in get_args(annotation)]
    parts = [one for one in found if one[0] is not None]
    return parts[0] if len(parts) == 1 else (None, "")


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of the elements of a list."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next(filter(None, map(_choices, get_args(annotation))), ())


def print_report(console: Console, report: dict[str, Any]) -> None:
    """The table of stages."""
    table = Table("stage", "read", "kept", "rejected", "seconds", "records/s")
    for column in table.columns[1:3] + table.columns[4:]:
        column.justify = "right"
    for one in report["stages"]:
        reasons = [f"{number:,} {reason}" for reason, number in one["rejected"].items()]
        speed = one["records_per_second"]
        table.add_row(
            one["stage"],
            f"{one['read']:,}",
            f"{one['kept']:,}",
            escape("\n".join(reasons)),
            f"{one['seconds']:.1f}",
            "" if speed is None else f"{speed:,}",
        )
    console.print(table)
    console.print(f"seconds are those of all workers together; {report['wall_seconds']:.1f} passed")
    for replies, spent in report.get("asked", {}).items():
        told = f"{spent['requests']:,} requests, {spent['input_tokens']:,} tokens read and "
        told += f"{spent['output_tokens']:,} written, cost {spent['cost']:,.2f}"
        line = f"{replies} holds the replies of all runs that share it: {told}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for warning in report["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


class ConsoleTeller(curation.Teller):
    """What a run says on a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.watch: Watch | None = None

    def say(self, line: str) -> None:
        """One line for the user."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def begin(self, name: str, records: int, finished: int, count: Callable[[], int]) -> None:
        """Count, with records/s."""
        if finished:
            self.say(f"{name}: {finished:,} of {records:,} records were finished before")
        self.watch = Watch(self.console, name, records, count, _speed, "records")

    def end(self) -> None:
        """Draw for the last time."""
        if self.watch is not None:
            self.watch.end()


def _speed(done: int, seconds: float) -> str:
    return f"{done / seconds:,.0f} records/s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
