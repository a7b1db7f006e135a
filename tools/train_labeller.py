"""Fit the offline labeller from labelled data sets, or from the taxonomy alone.

    python tools/train_labeller.py DATA --output megatron_ring/curation/label/labeller.npz
    python tools/train_labeller.py --taxonomy mine.yaml --seeds mine_seeds.yaml --output mine.npz

DATA is a folder with the data sets of megatron_ring/curation/rows.yaml; of them rows are
used whose licence is in its `trainable`, and never those that tools/measure_taxonomy.py tests on.
Without DATA it learns from the taxonomy's words and the seed texts. Same data, same file.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.config import ConfigError
from megatron_ring.curation.label.evaluation import calibration
from megatron_ring.curation.label.model import fit
from megatron_ring.curation.label.rows import TABLE, capped, load_labelled, load_seeds
from megatron_ring.curation.label.scores import heads_of
from megatron_ring.curation.taxonomy import OWN_FILE, load_taxonomy


def main(
    data: Annotated[Path | None, typer.Argument(help="folder of labelled data sets")] = None,
    output: Annotated[Path, typer.Option(help="the .npz to write")] = Path("labeller.npz"),
    taxonomy: Annotated[Path, typer.Option(help="YAML of another taxonomy")] = OWN_FILE,
    table: Annotated[Path, typer.Option(help="YAML of what the labels of DATA mean")] = TABLE,
    seeds: Annotated[Path | None, typer.Option(help="YAML of texts by path")] = None,
    cap: Annotated[int, typer.Option(help="rows of one source and label, at most")] = 400,
    workers: Annotated[int, typer.Option(help="processes that calibrate")] = 1,
    keep: Annotated[float, typer.Option(help="share of the weights that are kept")] = 0.1,
) -> None:
    """Fit the offline labeller, calibrate it, write it."""
    tree = load_taxonomy(taxonomy)
    heads = heads_of(tree)
    known = load_seeds(tree, seeds)
    rows = [row for row in load_labelled(data, tree, table) if row.trainable] if data else []
    train = [row for row in capped(rows, cap) if not row.in_test]
    sources = Counter(row.source for row in train)
    about = {"rows": {"seeds and words": len(known), **sources}, "cap": cap, "keep": keep}
    labeller = fit([*known, *(row.row(strict=False) for row in train)], heads, about=about)
    if train:
        fewer = capped(train, cap // 3)  # of a fit's half minute a third, four times
        labeller = labeller.calibrated(calibration(fewer, known, heads, workers=workers))
    labeller.save(output, keep)
    print(f"{output}: {output.stat().st_size / 1e3:.0f} kB, from {len(known) + len(train)} texts")
    for name, count in about["rows"].items():
        print(f"  {name}: {count}")
    temperatures = {name: labeller.fitted[name].temperature for name in heads}
    print("temperatures:", ", ".join(f"{n or 'root'} {t:.2f}" for n, t in temperatures.items()))


if __name__ == "__main__":
    try:
        typer.run(main)
    except (ConfigError, ValueError) as error:
        sys.exit(f"error: {error}")
