"""One HTML page about one or more runs: their charts overlaid, all in the file, no account needed.

\b
Examples:
    python tools/report.py runs/sft
    python tools/report.py runs/a runs/b --output compared.html --title "lr 4e-5 against 1e-5"

It opens in any browser, also without a network. tools/make_dashboard.py makes the same charts in
wandb.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.report import data, page


def main(
    runs: Annotated[list[Path], typer.Argument(help="run folders, each with a metrics.jsonl")],
    output: Annotated[Path, typer.Option(help="the page")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="its heading [the runs' names]")] = None,
) -> None:
    try:
        read = data.read(runs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    text = page.render(read, title or " · ".join(run.name for run in read))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output} ({len(text) / 2**20:.1f} MiB)")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=__doc__)(main)
    app()
