"""Pairs of answers for DPO, made by rule: a better and a worse answer to one prompt.

Usage:
    python tools/make_pairs.py general SAMPLES.jsonl OUT [--of CHATS.jsonl] [key=value ...]
    python tools/make_pairs.py structure CHATS.jsonl OUT [--take N] [key=value ...]
    python tools/make_pairs.py blend RECIPE.yaml [key=value ...] [--dry-run]
    python tools/make_pairs.py keys

general: of several answers that the model gave to a prompt, one is chosen (right, well-formed, with
low n-gram overlap) and one is rejected by a rule: wrong, longer, repetitive, unfinished, tags.
structure: the same answer with right and with damaged think tags (missing_open, missing_close,
redundant, misplaced, empty, answer_inside); `format_spans` marks the characters where they part.
blend: both by quota, and no prompt in both, as the 4K + 3K of Ring-Lite-Distill.

Examples:
    python tools/sample.py RUN --input chats.jsonl --samples 8 --temperature 1 --output said.jsonl
    python tools/make_pairs.py general said.jsonl pairs/general --of chats.jsonl --take 4000
    python tools/make_pairs.py general kept.jsonl pairs/general equality=math_verify longer_ratio=2
    python tools/make_pairs.py structure chats.jsonl pairs/structure shares='{empty: 1}'
    python tools/make_pairs.py blend configs/curate/preference.yaml general.take=400 --dry-run
    python tools/pack.py pairs/general/pack.yaml tokenizer=TOKENIZER output=packed/pairs

What is read, a line each:
    {"messages": [...], "answer": "4", "extra": {"candidates": [{"text": "...", "finish": "stop"}]}}
        a record of curation: the prompt's turns, and the record's own response where the last turn
        is the assistant's; `answer` tells right from wrong
    {"prompt": "2+2?", "answer": "<think>two twos</think>4"}
        what tools/sample.py writes; lines of one prompt belong together

What is in OUT afterwards:
    general.jsonl structure.jsonl   the pairs: messages, chosen, rejected, rule or damage, why
    left_out.jsonl                  every other record, with its place, reason and evidence
    report.json pack.yaml           counts by rule and reason; what tools/pack.py takes as it is

The same seed gives the same bytes. --dry-run judges everything, shows the counts and the first pair
of each rule, and writes nothing.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from megatron_ring import config as configuration
from megatron_ring.config import Part
from megatron_ring.config.curation.preference import BlendConfig, GeneralConfig, StructureConfig
from megatron_ring.curation.preference.blend import Blend, Pair
from megatron_ring.curation.preference.offers import Offer
from megatron_ring.curation.preference.writing import check_output, summary, write_blend

SHOWN = 400  # characters of an answer
HELP = "\b\n" + __doc__.replace("\n\n", "\n\n\b\n")  # lines stay as they are

Input = Annotated[str, typer.Argument(help="JSONL; a pattern in quotes takes several files")]
Output = Annotated[str, typer.Argument(help="folder to write")]
Keys = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="`keys` lists them")
]
Take = Annotated[int | None, typer.Option(help="pairs; all that can be made when absent", min=1)]
Of = Annotated[str | None, typer.Option(help="the JSONL that the prompts of samples are from")]
Seed = Annotated[int, typer.Option(help="which prompts and answers are taken", min=0)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show, and write nothing")]

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=HELP)
console = Console(soft_wrap=True, highlight=False)


@app.command()
def general(
    samples: Input,
    output: Output,
    keys: Keys = None,
    of: Of = None,
    take: Take = None,
    seed: Seed = 1234,
    dry_run: DryRun = False,
) -> None:
    """A good answer against one that is wrong, longer or repetitive, from a model's samples."""
    source = {"path": samples, **({} if of is None else {"of": of})}
    make_part("general", source, output, keys, take, seed, dry_run)


@app.command()
def structure(
    chats: Input,
    output: Output,
    keys: Keys = None,
    of: Of = None,
    take: Take = None,
    seed: Seed = 1234,
    dry_run: DryRun = False,
) -> None:
    """Right against damaged think tags, around the same words."""
    source = {"path": chats, **({} if of is None else {"of": of})}
    make_part("structure", source, output, keys, take, seed, dry_run)


@app.command()
def blend(
    recipe: Annotated[list[str], typer.Argument(metavar="RECIPE.yaml... [key=value ...]")],
    dry_run: DryRun = False,
) -> None:
    """Both kinds by quota, as a recipe says; no prompt is in both."""
    files = [one for one in recipe if "=" not in one]
    make(files, [one for one in recipe if "=" in one], {}, dry_run)


@app.command()
def keys() -> None:
    """List the keys of a recipe, with their defaults."""
    print_keys(BlendConfig, "", skip=("general", "structure"))
    print_keys(GeneralConfig, "general.")
    print_keys(StructureConfig, "structure.")


def make_part(
    name: str,
    source: dict[str, Any],
    output: str,
    given: list[str] | None,
    take: int | None,
    seed: int,
    dry_run: bool,
) -> None:
    """A blend of one part, whose keys are given without its name before them."""
    tree = {name: {"sources": [source], "take": take}, "output": output, "seed": seed}
    own = set(BlendConfig.model_fields)
    keys = [one if one.split("=")[0] in own else f"{name}.{one}" for one in given or []]
    make([], keys, tree, dry_run)


def make(files: list[str], overrides: list[str], tree: dict[str, Any], dry_run: bool) -> None:
    """Plan and write, or show; errors of the user are printed, and the exit status is 1."""
    try:
        options = configuration.load(BlendConfig, files, overrides, tree)
        check_output(Path(options.output))
        work = Blend(options, watch)
        work.plan()
        if dry_run:
            show(work)
            return
        report = write_blend(work)
    except ValueError as error:
        console.print(Text(f"error: {error}", style="red"))
        raise typer.Exit(1) from None
    for name, told in report["parts"].items():
        print_part(name, told)
    console.print(f"wrote {options.output}; look at left_out.jsonl in it, and pack the pairs with")
    command = f"python tools/pack.py {options.output}/pack.yaml tokenizer=TOKENIZER output=packed"
    console.print(f"    {command}", markup=False)


def watch(offers: Iterator[Offer], name: str) -> Iterator[Offer]:
    """The offers, counted on a terminal as they go by."""
    if not console.is_terminal:
        yield from offers
        return
    columns = (TextColumn("{task.description}: {task.completed:,} read"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        for offer in offers:
            yield offer
            progress.advance(task)


def show(work: Blend) -> None:
    """Counts, and the first pair of each rule."""
    for name, part in work.parts.items():
        print_part(name, summary(part))
        left = {rule for rule, cell in part.cells.items() if cell.made}
        for pair in work.pairs(name):
            rule = pair["damage"] if name == "structure" else pair["rule"]
            if rule in left:
                left.remove(rule)
                print_pair(f"{name}, {rule}: {pair['id']}", pair)
            if not left:
                break
    console.print("nothing was written (--dry-run)")


def print_pair(title: str, pair: Pair) -> None:
    console.rule(escape(title), align="left")
    console.print(Text(cut(pair["messages"][-1].get("content") or ""), style="cyan"))
    for side, colour in (("chosen", "green"), ("rejected", "red")):
        text = Text(pair[side], style=colour)
        for start, stop in pair.get("format_spans", {}).get(side, []):
            text.stylize("underline bold", start, stop)
        if len(text) > SHOWN:
            text = text[:SHOWN] + Text(f" ... ({len(pair[side]):,} characters)")
        console.print(Text(f"{side}: "), text, sep="")
    if "evidence" in pair["preference"]:
        console.print(Text(pair["preference"]["evidence"], style="yellow"))


def print_part(name: str, told: dict[str, Any]) -> None:
    """A table by rule, and where the other records went."""
    table = Table(name, "asked", "possible", "made", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for rule, cell in told["by"].items():
        table.add_row(rule, *(f"{cell[key]:,}" for key in ("asked", "possible", "made")))
    table.add_row("all", f"{told['asked']:,}", "", f"{told['made']:,}", style="bold")
    console.print(table)
    why = ", ".join(f"{number:,} {reason}" for reason, number in told["left_out"].items())
    console.print(
        f"{told['records_read']:,} records read, {told['records_used']:,} used; left out: "
        f"{why or 'none'}"
    )
    if told["short"]:
        console.print(f"{name} is short of {told['short']:,} pairs", style="yellow")


def cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ... ({len(text):,} characters)"


def print_keys(cls: type[Part], prefix: str, skip: tuple[str, ...] = ()) -> None:
    """The keys of a part of the configuration, with their defaults."""
    for name, field in cls.model_fields.items():
        if name in skip:
            continue
        if isinstance(field.default, Part):
            print_keys(type(field.default), f"{prefix}{name}.")
            continue
        default = "" if field.is_required() else f" [{field.default}]"
        about = f"{default}  {field.description or ''}"
        console.print(Text.assemble((f"  {prefix}{name}", "bold"), about))


if __name__ == "__main__":
    sys.exit(app())
