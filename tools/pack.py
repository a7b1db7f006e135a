"""Chat samples -> a folder of packed rows that training reads.

Usage:
    python tools/pack.py FILE.yaml... [key.path=value ...] [--dry-run]

Examples:
    python tools/pack.py configs/data/gsm8k.yaml tokenizer=path/to/tokenizer output=packed/gsm8k
    python tools/pack.py tokenizer=tok.model output=packed 'sources=[{path: chats.jsonl}]'
    python tools/pack.py configs/data/gsm8k.yaml sources.0.weight=0.5 epochs=2 overwrite=true
    python tools/pack.py kind=pairs tokenizer=Ling-lite output=pairs 'sources=[{path: pairs.jsonl}]'

A sample is a conversation: {"messages": [{"role": "user", "content": "..."}, ...]}, with the roles
system, user, assistant, tool; only assistant turns are learnt, and not those with "train": false.
Plain text goes by sources.0.prompt=COLUMN sources.0.response=COLUMN. ShareGPT's turns ({"from":
"human", "value": "..."}) serve as well, with sources.0.messages=conversations.

kind=pairs packs preference samples for DPO, two answers to one prompt, always in one row:
{"prompt": "2+2?", "chosen": "<think>two twos</think>4", "rejected": "two twos</think>4"}. All three
are text, a turn, or lists of turns; the prompt may also be a column of messages, or what both
answers begin with. Tokens around think tags are marked as structure (sources.0.format_spans), so
that a loss can look at them alone.

--dry-run checks everything, shows the configuration and the first sample of each source, and writes
nothing.
"""

import sys
from collections.abc import Iterator

import datasets
from rich.console import Console
from rich.progress import track
from rich.text import Text

from megatron_ring import config as configuration
from megatron_ring.config import PackConfig
from megatron_ring.data import documents
from megatron_ring.data.build import check_output, pack
from megatron_ring.data.documents import Document, Item, Pair, Rejected
from megatron_ring.data.report import styled, summary
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer


def main(arguments: list[str]) -> int:
    """Exit status; errors of the user are printed, not raised."""
    console = Console()
    if not arguments or {"-h", "--help"} & set(arguments):
        console.print(__doc__, markup=False, highlight=False, soft_wrap=True)
        print_keys(console)
        return 0
    dry_run = "--dry-run" in arguments
    given = [argument for argument in arguments if argument != "--dry-run"]
    files = [argument for argument in given if "=" not in argument]
    try:
        config = configuration.load(PackConfig, files, [a for a in given if "=" in a])
        if dry_run:
            show_plan(console, config)
            return 0
        datasets.disable_progress_bars()  # ours is shown instead

        def progress(items: Iterator[Item], total: int) -> Iterator[Item]:
            return track(items, "tokenizing", total, console=console)

        rows = pack(config, progress)
    except ValueError as error:
        console.print(Text(f"error: {error}", style="red"), soft_wrap=True)
        return 1
    console.print(summary(rows.manifest, rows.lengths))
    console.print(f"\nwrote {rows.folder}; look at lengths.png and rejected.jsonl in it, and at")
    console.print(f"    python tools/show_rows.py {rows.folder}", highlight=False)
    return 0


def print_keys(console: Console) -> None:
    """The keys of the configuration, with their defaults."""
    for cls, prefix in ((PackConfig, ""), (documents.SourceConfig, "sources.N.")):
        for name, field in cls.model_fields.items():
            default = "" if field.is_required() else f" [{field.default}]"
            about = f"{default}  {field.description or ''}"
            console.print(Text.assemble((f"  {prefix}{name}", "bold"), about), soft_wrap=True)


def show_plan(console: Console, config: PackConfig) -> None:
    """Resolved keys, and the first sample of each source as it would be learnt."""
    console.print_json(config.model_dump_json())
    check_output(config)
    names = documents.source_names(config.sources)
    tokenizer = load_tokenizer(config.tokenizer, config.chat_template)
    for index, name in enumerate(names):
        total, samples = documents.open_source(config, index)
        first = next(samples, None)
        console.rule(f"{name}: {total:,} samples", align="left")
        if first is None:
            continue
        item = documents.tokenize_sample(config, tokenizer, first)
        if isinstance(item, Rejected):
            console.print(f"dropped: {item.reason}")
        elif isinstance(item, Pair):
            show_document(console, tokenizer, item.chosen, "chosen: ")
            show_document(console, tokenizer, item.rejected, "rejected: ")
        else:
            show_document(console, tokenizer, item)


def show_document(
    console: Console, tokenizer: Tokenizer, document: Document, title: str = ""
) -> None:
    """A document as it would be learnt, and how much of it."""
    tokens, targets, marks = document.tokens, document.targets, document.format
    text = styled(tokenizer, tokens, targets, marks)
    console.print(Text.assemble((title, "cyan"), text))
    told = f"{len(tokens)} tokens, {targets.mean():.0%} learnt (green)"
    if marks is not None:
        told += f", {marks.sum()} in format spans (underlined)"
    console.print(told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
