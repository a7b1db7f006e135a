"""Seconds to plan the rows of one million documents; the goal is 6 s.

Example: python tools/bench_packing.py --documents 1000000 --row-tokens 16384
"""

import time
from typing import Annotated

import numpy as np
import typer

from megatron_ring.data.packing import best_fit


def main(
    documents: Annotated[int, typer.Option(help="how many lengths to draw")] = 1_000_000,
    row_tokens: Annotated[int, typer.Option(help="capacity of a row, in tokens")] = 16_384,
) -> None:
    """Time best fit on log-normal lengths (long reasoning answers) and on short chat turns."""
    rng = np.random.default_rng(0)
    mixes = {
        "reasoning, median 3000": rng.lognormal(np.log(3000), 0.8, documents),
        "chat, median 300": rng.lognormal(np.log(300), 1.0, documents),
        "uniform over 1..S": rng.uniform(1, row_tokens + 1, documents),
    }
    for name, drawn in mixes.items():
        lengths = np.clip(drawn, 16, row_tokens).astype(np.int64)
        start = time.perf_counter()
        rows = best_fit(lengths, row_tokens)
        seconds = time.perf_counter() - start
        fill = lengths.sum() / (len(rows) * row_tokens)
        print(f"{name:24} {seconds:6.2f} s  {len(rows):8,} rows  fill {fill:.3%}")


if __name__ == "__main__":
    typer.run(main)
