"""Prints packed rows: what is learnt, where documents end, what is padding.

\b
Examples:
    python tools/show_rows.py packed/gsm8k
    python tools/show_rows.py packed/mixture --row 7 --source chat --documents 3
    python tools/show_rows.py packed/gsm8k --row 0 --plain | less
    python tools/show_rows.py packed/gsm8k --documents 0 | less -R

Rows of pairs show the two answers of each pair one after the other, tokens in format spans
underlined (with --plain in {{…}}).
"""

import sys
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from megatron_ring.data.report import LEARNT, STRUCTURE, styled
from megatron_ring.data.rows import Row, Rows
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer

app = typer.Typer(add_completion=False, rich_markup_mode=None)

PADDING = "dim"


@app.command(help=__doc__)
def main(
    folder: Annotated[str, typer.Argument(help="folder written by tools/pack.py")],
    row: Annotated[int, typer.Option(help="row of the plan, 0 first")] = 0,
    source: Annotated[str | None, typer.Option(help="only documents of this source")] = None,
    documents: Annotated[int, typer.Option(help="show at most this many; 0 shows all")] = 5,
    plain: Annotated[bool, typer.Option(help="marks [[…]] around targets, no colour")] = False,
    verify: Annotated[bool, typer.Option(help="read and hash the whole folder first")] = False,
) -> None:
    colour = None if plain else "standard"
    # Without a terminal there is a pager or a file, whose width is not ours to choose.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(color_system=colour, force_terminal=not plain, width=width, soft_wrap=True)
    try:
        rows = Rows.open(folder)
        if verify:
            rows.verify()
        packed = rows.row(row)
        if source is not None and source not in rows.sources:
            raise ValueError(f"no source {source!r}; there are {', '.join(rows.sources)}")
        tokenizer = load_tokenizer(rows.folder / "tokenizer")
    except ValueError as error:
        console.print(Text(f"error: {error}", style="red"))
        raise typer.Exit(1) from None
    console.print(headline(rows, packed, row))
    if not plain:
        structure = [(" structure", STRUCTURE)] * (rows.kind == "pairs")
        legend = Text.assemble(("learnt", LEARNT), *structure, " given ", ("padding", PADDING))
        console.print(legend)
    chosen = [
        n
        for n in range(packed.num_documents)
        if source is None or rows.sources[packed.sources[n]] == source
    ]
    shown = chosen[: documents or None]
    ids = rows.documents[rows.documents_of(row)]["id"]
    for n in shown:
        side = ("chosen", "rejected")[n % 2]
        what = f"pair {n // 2}, {side}" if rows.kind == "pairs" else f"document {n}"
        title = f"{what}: {rows.sources[packed.sources[n]]} {ids[n]}"
        console.print(document_text(packed, n, title, tokenizer, plain))
    if len(shown) < len(chosen):
        console.print(Text(f"… and {len(chosen) - len(shown)} documents (--documents 0)", "cyan"))
    console.print(padding_text(packed))


def headline(rows: Rows, packed: Row, row: int) -> Text:
    """Counts of the row."""
    samples = f"{packed.num_documents} documents"
    if rows.kind == "pairs":
        samples = f"{packed.num_pairs} pairs"
    return Text(
        f"row {row} of {rows.num_rows}: {samples}, {packed.num_tokens:,} "
        f"of {rows.row_tokens:,} tokens ({packed.num_tokens / rows.row_tokens:.1%}), "
        f"{packed.num_supervised:,} learnt ({packed.num_supervised / packed.num_tokens:.1%})",
        style="bold",
    )


def document_text(packed: Row, n: int, title: str, tokenizer: Tokenizer, plain: bool) -> Text:
    """One document under a heading; targets coloured, or in [[double brackets]]."""
    start, stop = packed.cu_seqlens[n : n + 2].tolist()
    # Token i is a target where the label before it is one.
    target, marks = (
        np.concatenate([[False], flags[start : stop - 1]])
        for flags in (packed.mask_S, packed.format_S)
    )
    heading = (f"── {title}: {stop - start} tokens from {start}\n", "cyan")
    document = styled(tokenizer, packed.tokens_S[start:stop], target, marks, plain)
    return Text.assemble(heading, document)


def padding_text(packed: Row) -> Text:
    """How the padding is cut."""
    lengths = np.diff(packed.cu_seqlens[packed.num_documents :]).tolist()
    if not lengths:
        return Text("── no padding", style=PADDING)
    pieces = f"{len(lengths)} segments of at most {max(lengths)}"
    return Text(f"── padding: {sum(lengths)} tokens in {pieces}", style=PADDING)


if __name__ == "__main__":
    app()
