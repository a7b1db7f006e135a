"""What data are about: shares over the taxonomy, two data sets compared, what is in short supply.

    python tools/taxonomy_report.py kept.jsonl --output report.html
    python tools/taxonomy_report.py ours theirs.parquet --targets mine.yaml --output report.html

Reads the domain, level and topic of records (JSONL, Parquet, or folders of them) that the stage
`label` has written. Writes one HTML page that needs no network, and a PNG beside it. Shortages are
those of the first data set, against --targets, else against the second data set, else against the
shares of the Ring-Lite-Distill report.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.config import ConfigError
from megatron_ring.curation.distribution.charts import page, panels, write_png
from megatron_ring.curation.distribution.shares import (
    OWN_TARGETS,
    count,
    load_targets,
    read_labels,
    shortages,
    targets_of,
)
from megatron_ring.curation.taxonomy import OWN_FILE, load_taxonomy


def main(
    data: Annotated[list[Path], typer.Argument(help="one data set, or two: files or folders")],
    output: Annotated[Path, typer.Option(help="the HTML to write; the PNG stands beside it")],
    targets: Annotated[
        Path | None,
        typer.Option(help="YAML of wanted shares, as distribution/targets.yaml"),
    ] = None,
    taxonomy: Annotated[Path, typer.Option(help="YAML of another taxonomy")] = OWN_FILE,
    shown: Annotated[int, typer.Option(help="shortages to print")] = 10,
) -> None:
    """Report what labelled data are about."""
    if len(data) > 2:
        raise ConfigError(f"{len(data)} data sets; give one, or two to compare")
    if not output.parent.is_dir():  # known before the work, not after
        raise ConfigError(f"--output {output}: there is no folder {output.parent}")
    if output.suffix != ".html":
        raise ConfigError(f"--output {output}: wants a name that ends in .html")
    tree = load_taxonomy(taxonomy)
    names = [path.stem or str(path) for path in data]
    if len(set(names)) < len(names):
        names = [str(path) for path in data]
    sets = [(name, count(read_labels(p), tree)) for name, p in zip(names, data, strict=True)]
    if targets or len(sets) == 1:
        wanted = load_targets(targets or OWN_TARGETS, tree)
        against = str(targets) if targets else "the shares of the Ring-Lite-Distill report"
    else:
        wanted, against = targets_of(sets[1][1]), names[1]
    for name, found in sets:
        if not found.total("all"):
            raise ConfigError(f"{name} has no records")
    short = shortages(sets[0][1], wanted)
    # The other data set is in the charts as it is; its shares need no marks.
    made = panels(sets, wanted if targets or len(sets) == 1 else load_targets(OWN_TARGETS, tree))
    output.write_text(page(sets, made, short, against), encoding="utf-8")
    write_png(output.with_suffix(".png"), sets, made)
    print(f"{output} and {output.with_suffix('.png').name}")
    print(f"in short supply, against {against}:")
    for s in short[:shown]:
        print(
            f"  {s.view}: {s.id}: {s.count:,} records, {100 * s.share:.2f} % of a wanted "
            f"{100 * s.target:.2f} %; to add: {s.missing:,.0f}"
        )


if __name__ == "__main__":
    try:
        typer.run(main)
    except (ConfigError, ValueError) as error:
        sys.exit(f"error: {error}")
