"""Fingerprints of benchmarks, built from your own copy; the text itself is never needed again.

\b
Examples:
    python tools/fingerprint.py build aime24 aime24.jsonl --column problem \\
        --output fp/aime24 --salt fp/salt --background aime_1983_2023.json
    python tools/fingerprint.py show fp/aime24

The salt is drawn with the first fingerprint; all that are used together need the same. Keep it as
you keep the benchmarks: with it guesses of an item's text can be checked, without it a
fingerprint tells name, ids, the source's SHA-256 and how many hashes there are.
"""

import datetime
import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.curation.decontaminate.benchmark_file import read_items, read_rows, sha256_of
from megatron_ring.curation.decontaminate.build import COMMON
from megatron_ring.curation.decontaminate.build import build as build_fingerprint
from megatron_ring.curation.decontaminate.fingerprints import about_file, open_salt

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="of the benchmark, as verdicts show it")],
    file: Annotated[Path, typer.Argument(help="JSONL (also .gz), .json array or Parquet")],
    column: Annotated[str, typer.Option(help="column with the text of an item")],
    output: Annotated[Path, typer.Option(help="file to write")],
    salt: Annotated[Path, typer.Option(help="salt file; drawn where there is none")],
    id_column: Annotated[str | None, typer.Option(help="ids; absent: row numbers")] = None,
    n: Annotated[int, typer.Option(help="words an n-gram", min=2)] = 8,
    background: Annotated[
        list[Path] | None,
        typer.Option(help="texts without the benchmark, whose common n-grams are boilerplate"),
    ] = None,
    date: Annotated[str | None, typer.Option(help="YYYY-MM-DD; absent: today")] = None,
) -> None:
    """Write the fingerprint of a benchmark."""
    try:
        fresh = not salt.exists()
        secret = open_salt(salt, create=True)
        texts = [text for one in background or [] for text in texts_of(one)]
        fingerprint, spared = build_fingerprint(
            name,
            read_items(file, column, id_column),
            secret,
            n=n,
            date=date or datetime.date.today().isoformat(),
            source=sha256_of(file),
            background=texts,
        )
        fingerprint.save(output, secret)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if fresh:
        print(f"{salt}: a new salt; all fingerprints used together need it, keep it to yourself")
    items = fingerprint.items
    whole = sum(item.whole for item in items)
    print(
        f"{output}: {name}, {len(items)} items, {output.stat().st_size / len(items):.0f} bytes "
        f"each; {whole} are short or mostly boilerplate and must be found whole"
    )
    if spared:
        print(
            f"the background has more than half of the {n}-grams of {len(spared)} items at least "
            f"{COMMON} times and masks none of theirs: is the benchmark in it? "
            + ", ".join(spared[:10])
        )


@app.command()
def show(files: Annotated[list[Path], typer.Argument(help="fingerprints")]) -> None:
    """Print what fingerprints tell without their salt."""
    for file in files:
        try:
            about = about_file(file)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        ids = about.pop("ids")
        print(json.dumps({"file": str(file), **about, "items": len(ids)}, ensure_ascii=False))


def texts_of(file: Path) -> list[str]:
    """Every text of a file's rows, those of one row together."""
    return ["\n".join(v for v in row.values() if isinstance(v, str)) for row in read_rows(file)]


if __name__ == "__main__":
    app()
