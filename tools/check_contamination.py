"""Searches what is about to be trained on for items of benchmarks; ends with status 1 if there are.

\b
Examples:
    python tools/check_contamination.py curated/stage1 --fingerprint fp/aime24 \\
        --fingerprint fp/math500 --salt fp/salt
    python tools/check_contamination.py packed/stage1 --fingerprint fp/aime24 --salt fp/salt

The last gate: whatever was done to the records before, this looks at the artefact itself. JSONL
(also .gz), .json and Parquet files, or folders of them: every text in them, however deep, but of
a run of tools/curate.py not what it rejected (rejected/, work/). Folders that tools/pack.py wrote:
every document, decoded; there items shorter than an n-gram are not seen. Texts are
searched by n-grams, with --neighbours for rewordings too. Nothing to read is status 2.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_ring.config.curation.decontaminate import DecontaminateConfig, NeighboursConfig
from megatron_ring.curation.decontaminate.benchmark_file import read_rows
from megatron_ring.curation.decontaminate.stage import Decontaminate

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
AT_ONCE = 512  # texts


def main(
    paths: Annotated[list[Path], typer.Argument(help="files, folders, packed folders")],
    fingerprint: Annotated[list[Path], typer.Option(help="a benchmark's; may be given again")],
    salt: Annotated[Path, typer.Option(help="the salt file they were built with")],
    coverage: Annotated[float, typer.Option(help="share of an item's n-grams")] = 0.5,
    neighbours: Annotated[bool, typer.Option(help="look for rewordings too")] = False,
    number_guard: Annotated[
        bool, typer.Option(help="the same words with other numbers are let pass")
    ] = True,
    show: Annotated[int, typer.Option(help="at most so many findings are printed")] = 50,
) -> None:
    num_texts, found = 0, 0
    try:
        options = DecontaminateConfig(
            fingerprints=fingerprint,
            salt=salt,
            coverage=coverage,
            number_guard=number_guard,
            neighbours=NeighboursConfig() if neighbours else None,
        )
        stage = Decontaminate(options)
        for batch in batches(paths):
            num_texts += len(batch)
            for (where, _), verdicts in zip(
                batch, stage.check_texts([text for _, text in batch]), strict=True
            ):
                for one in verdicts:
                    if one.contaminated:
                        found += 1
                        if found <= show:
                            span = " ".join(one.span.split())[:160]
                            score = f"{one.rule} {one.score:.2f}"
                            print(f"{where}: {one.benchmark} item {one.item}, {score}: {span}")
        if not num_texts:
            raise ValueError(f"no texts in {', '.join(map(str, paths))}; nothing was checked")
    except ValueError as error:
        print(f"error: {error}")
        raise typer.Exit(2) from None
    if found > show:
        print(f"… and {found - show} more (--show)")
    print(f"{num_texts:,} texts checked, {found} findings")
    raise typer.Exit(1 if found else 0)


def batches(paths: list[Path]) -> Iterator[list[tuple[str, str]]]:
    """Places and texts, some at a time."""
    batch: list[tuple[str, str]] = []
    for path in paths:
        for one in texts_in(path):
            batch.append(one)
            if len(batch) == AT_ONCE:
                yield batch
                batch = []
    if batch:
        yield batch


def texts_in(path: Path) -> Iterator[tuple[str, str]]:
    """Every text of a file or folder, with a name of the place it stands in."""
    if (path / "plan_documents.npy").exists():
        yield from documents_in(path)
    elif path.is_dir():
        for file in sorted(f for f in path.rglob("*") if f.is_file()):
            dropped = any(file.is_relative_to(path / part) for part in ("rejected", "work"))
            if file.name.endswith(SUFFIXES) and not dropped:
                yield from texts_in(file)
    else:
        for number, row in enumerate(read_rows(path)):
            for text in strings(row):
                yield f"{path}:{row.get('id', number)}", text


def documents_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Every document of a packed folder once, whatever the plan of its rows."""
    # Here, because they take seconds to import, and files do without.
    from megatron_ring.data.rows import Rows
    from megatron_ring.data.tokenizer import load_tokenizer

    rows = Rows.open(folder)
    tokenizer = load_tokenizer(rows.folder / "tokenizer")
    for document in rows.documents:
        where = f"{folder}: {rows.sources[document['source']]} {document['id']}"
        yield where, tokenizer.decode(document["tokens"])


def strings(value: Any) -> Iterator[str]:
    """All texts in JSON data; arguments of tool calls are JSON in a text, and stay one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command(help=__doc__)(main)

if __name__ == "__main__":
    app()
