"""Seeds -> new problems, written by a model, verified, and seeds for the next round.

Usage:
    python tools/synthesize.py run FILE.yaml... [key.path=value ...] [--dry-run]
    python tools/synthesize.py status OUT
    python tools/synthesize.py show OUT [--reason REASON] [--cell CELL] [-n NUMBER]
    python tools/synthesize.py schema > configs/curate/synthesis/schema.json

Examples:
    python tools/synthesize.py run configs/curate/synthesis/maths.yaml --dry-run
    python tools/synthesize.py run recipe.yaml total=1000 writer.budget.cost=20
    python tools/synthesize.py show synthetic --reason no_agreement -n 3
    python tools/curate.py run synthetic/source.yaml stages.yaml output=curated

What is in OUT afterwards:
    kept.jsonl             records with messages, answer, domain, level, topic, seed_ids, card;
                           source.yaml is the source of them for tools/curate.py
    report.json            the funnel, in all, by round and by cell; what models were used for
    funnel.html            the same as a picture
    rounds/NN/             kept.jsonl, rejected.jsonl with reason and evidence, done.json
    card.json recipe.yaml  versions, checksums, what was paid; all keys
    work/                  the lock, and what the rounds were made from

Every reply is kept in the folder `replies`. A run that was killed, or stopped for its budget or an
endpoint that is down, is started again with the same command: it asks for what is missing alone.
`total`, `rounds` and `topics` may be raised later; what rounds were made from may not be another.

--dry-run shows the keys, what is wanted of which topic, and the first request as it would be sent;
it sends nothing and writes no output.
"""

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from megatron_ring import config as configuration
from megatron_ring.config import ConfigError
from megatron_ring.config.curation.synthesis import SynthesisConfig
from megatron_ring.curation.console import (
    Watch,
    load_recipe,
    one_folder,
    print_record,
    run_command,
    take_options,
)
from megatron_ring.curation.segment import REPORT
from megatron_ring.curation.shards import read_json, read_lines
from megatron_ring.curation.synthesis import rounds
from megatron_ring.curation.synthesis.making import DONE, Teller

TOOL = "synthesize.py"
SHOWN_CELLS = 40  # of the tables; all are in report.json


def main(arguments: list[str]) -> int:
    """Exit status; errors of the user are printed, not raised."""
    console = Console()
    commands = {"run": run, "status": status, "show": show, "schema": schema}
    return run_command(console, commands, arguments, __doc__)


def run(console: Console, arguments: list[str]) -> int:
    """Do a recipe, or with --dry-run show what it would do."""
    config, is_dry = load_recipe(SynthesisConfig, arguments)
    if is_dry:
        show_plan(console, config)
        return 0
    report = rounds.run(config, ConsoleTeller(console))
    print_report(console, report)
    output = config.output
    console.print(f"wrote {output}; look at what was rejected, and curate the others, with")
    console.print(f"    python tools/synthesize.py show {output}", highlight=False)
    command = f"python tools/curate.py run {output}/source.yaml STAGES.yaml output=curated"
    console.print(f"    {command}", highlight=False, soft_wrap=True)
    return 0


def show_plan(console: Console, config: SynthesisConfig) -> None:
    """Resolved keys, what is wanted of each cell, and the first request."""
    console.print_json(config.model_dump_json(exclude_none=True))
    outlook = rounds.look_ahead(config)
    for name, counts in outlook.material.items():
        told = ", ".join(f"{number:,} {what}" for what, number in counts.items())
        console.print(f"{name}: {told}", highlight=False, markup=False)
    table = Table(Column("cell", overflow="fold"), "there are", "wanted", "requests")
    for column in table.columns[1:]:
        column.justify = "right"
    for quota in outlook.quotas[:SHOWN_CELLS]:
        name = quota.cell.name
        row = f"{quota.supply:,.0f}", f"{quota.wanted:,}"
        table.add_row(escape(name), *row, f"{outlook.requests[name]:,}")
    console.print(table)
    if len(outlook.quotas) > SHOWN_CELLS:
        console.print(f"and {len(outlook.quotas) - SHOWN_CELLS:,} more cells", highlight=False)
    if outlook.first is None:
        return
    told = f"the first of {outlook.requests.total():,} requests, of {outlook.first.purpose}"
    console.rule(escape(told), align="left")
    for turn in outlook.first.messages:
        line = Text.assemble((f"{turn['role']}: ", "cyan"), str(turn["content"]))
        console.print(line, soft_wrap=True)


def status(console: Console, arguments: list[str]) -> int:
    """How far a run is."""
    folder = one_folder(arguments, TOOL)
    done = sorted(folder.glob(f"rounds/*/{DONE}"))
    report = read_json(folder / REPORT)
    if report is None and not (folder / "work").exists():
        raise ConfigError(f"{folder} has no run in it")
    if report is None:
        console.print(f"{len(done)} rounds finished, nothing written yet", highlight=False)
        return 0
    print_report(console, report)
    if len(done) > len(report["rounds"]):
        console.print(f"{len(done)} rounds are finished; run it again for the report of all")
    return 0


def show(console: Console, arguments: list[str]) -> int:
    """Print what was rejected."""
    wanted, left = take_options(arguments, {"--reason": "", "--cell": "", "-n": "5"})
    folder = one_folder(left, TOOL)
    shown = total = 0
    there: dict[str, set[str]] = {"reason": set(), "cell": set()}
    for path in sorted(folder.glob("rounds/*/rejected.jsonl")):
        for line in read_lines(path):
            for key, values in there.items():
                values.add(line[key])
            if any(wanted[f"--{key}"] not in ("", line[key]) for key in there):
                continue
            total += 1
            if shown < int(wanted["-n"]):
                shown += 1
                told = f"{line['id']}: {line['stage']}, {line['reason']}"
                console.rule(escape(told), align="left")
                console.print(Text(line["evidence"], style="yellow"), soft_wrap=True)
                print_record(console, line["record"])
    for key, values in there.items():
        if wanted[f"--{key}"] and wanted[f"--{key}"] not in values:
            known = ", ".join(sorted(values)) or "none"
            raise ConfigError(
                f"nothing was rejected with {key} {wanted[f'--{key}']!r}; there are: {known}"
            )
    console.rule(f"{shown:,} of {total:,} rejected", align="left")
    return 0


def schema(console: Console, arguments: list[str]) -> int:
    """Print the JSON schema of recipes, for editors."""
    sys.stdout.write(configuration.json_schema(SynthesisConfig))
    return 0


def print_report(console: Console, report: dict[str, Any]) -> None:
    """The funnel by round, what is short, and what models were used for."""
    heads = ("", "requests", "replies", "unparsable", "drafts", "known", "rejected", "kept")
    # Reasons go on in the next line where the terminal is narrow; nothing is cut.
    table = Table(*(Column(head, overflow="fold") for head in heads), title="the funnel")
    for column in table.columns[1:]:
        column.justify = "right"
    lines = [(f"round {one['round']}", one) for one in report["rounds"]]
    for name, one in [*lines, ("all", report["total"])]:
        table.add_row(
            name,
            f"{one['requests']:,}",
            f"{one['replies']:,}",
            _reasons(one["unparsable"]),
            f"{one['drafts']:,}",
            _reasons(one["known"]),
            _reasons(one["rejected"]),
            f"{one['kept']:,}",
        )
    console.print(table)
    table = Table(Column("cell", overflow="fold"), "wanted", "kept", "drafts", "rejected")
    for column in table.columns[1:4]:
        column.justify = "right"
    for name, one in list(report["cells"].items())[:SHOWN_CELLS]:
        counts = f"{one['wanted']:,}", f"{one['kept']:,}", f"{one['drafts']:,}"
        table.add_row(escape(name), *counts, _reasons(one["rejected"]))
    console.print(table)
    for purpose, one in report["used"].items():
        tokens = f"{one['input_tokens']:,} tokens read, {one['output_tokens']:,} written"
        told = f"{purpose}: {one['requests']:,} replies, {tokens}, worth {one['cost']:,.4g}"
        console.print(told, highlight=False, markup=False)
    for warning in report["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _reasons(counts: dict[str, int]) -> str:
    return escape("\n".join(f"{number:,} {reason}" for reason, number in counts.items()))


class ConsoleTeller(Teller):
    """What a run says on a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.watch: Watch | None = None
        self.done = 0

    def say(self, line: str) -> None:
        """One line for the user."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def begin(self, name: str, total: int, live: Callable[[], dict[str, float]]) -> None:
        """Count steps, with requests, tokens and cost."""
        self.done = 0

        def beside(done: int, seconds: float) -> str:
            return f"{_spent(live())}, {seconds:,.0f} s"

        self.watch = Watch(self.console, name, total, lambda: self.done, beside)

    def step(self) -> None:
        """Count."""
        self.done += 1

    def end(self) -> None:
        """Draw for the last time."""
        if self.watch is not None:
            self.watch.end()


def _spent(live: dict[str, float]) -> str:
    cost = f", cost {live['cost']:,.4g}" if live["cost"] else ""
    return f"{live['requests']:,} requests, {live['tokens']:,} tokens written{cost}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
