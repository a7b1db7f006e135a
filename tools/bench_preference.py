"""Speed of preference training: packed pairs, and scores made beforehand, side by side.

\b
    python tools/bench_preference.py packed/pairs --pairs 24 --threads 1
    python tools/bench_preference.py packed/pairs model.vocab_size=126464

One process, one and the same pairs, forward and backward of all of them, turn by turn:

- packed: rows as planned, scores of the reference read from the rows;
- padded: a pair a row, every row as long as the folder's longest pair (padding to the maximum);
- resident: packed, and a second model in memory scores every row again (DPO without stored scores).

Only lengths matter: token ids beyond the model's vocabulary are folded into it, so that the tiny
model need not spend its time on a head of 126,464 rows.
"""

import resource
import statistics
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from megatron_ring import config as configuration
from megatron_ring import losses, optim, parallel, platform, reference, step
from megatron_ring.config import Config, ConfigError
from megatron_ring.data.packing import best_fit
from megatron_ring.data.rows import Row, Rows, make_row
from megatron_ring.model import weights
from megatron_ring.model.ling import LingModel, build_stages
from megatron_ring.platform.timing import side_by_side

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False)


@app.command(help=__doc__)
def main(
    packed: Annotated[str, typer.Argument(help="folder written by tools/pack.py kind=pairs")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value …")] = None,
    model: Annotated[str, typer.Option(help="YAML with the architecture")] = (
        "configs/model/ling_tiny.yaml"
    ),
    pairs: Annotated[int, typer.Option(min=1, help="how many pairs, from the start")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="timed steps of each")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="0: torch's default")] = 0,
) -> None:
    device = platform.prepare()
    if threads:
        torch.set_num_threads(threads)
    try:
        rows = Rows.open(packed)
        if rows.kind != "pairs":
            raise ConfigError(f"{packed} was packed with kind={rows.kind}, not kind=pairs")
        longest = f"model.max_position_embeddings={rows.row_tokens}"
        config = configuration.load(Config, [model], ["loss.head=dpo", longest, *(overrides or [])])
        parallel.check_layout(config, 1, rows.row_tokens)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    together, apart = layouts(rows, pairs, config.model.vocab_size)
    with parallel.process_groups(config.parallel, device, seed=0):
        policy, second = (build(config, device) for _ in range(2))
        models = optim.wrap(policy, config.parallel)
        head = losses.head(config.loss, rows.sources)

        def train(batch: list[Row]) -> None:
            for ddp in models:
                ddp.zero_grad_buffer()
            step.accumulate(models, batch, head, step.Counts.of(batch, head))

        def resident() -> None:
            scores = reference.score_rows(second, second, together)[0]
            train([replace(r, reference=s.numpy()) for r, s in zip(together, scores, strict=True)])

        candidates = {
            "packed": lambda: train(together),
            "padded": lambda: train(apart),
            "resident": resident,
        }
        seconds = side_by_side(candidates, repeats)
    report(seconds, together, apart, second)


def layouts(rows: Rows, pairs: int, vocab_size: int) -> tuple[list[Row], list[Row]]:
    """The same pairs packed into rows of the folder's length, and one a row of its longest pair."""
    scores = np.zeros((len(rows.documents), 2))
    alone: list[tuple[list, list[int]]] = []  # (documents of a pair, source of each)
    for number in range(rows.num_rows):
        row = replace(rows.row(number), reference=scores[rows.documents_of(number)])
        alone += take_apart(row, vocab_size)
        if len(alone) >= pairs:
            break
    alone = alone[:pairs]
    lengths = [sum(len(tokens) for tokens, _ in documents) for documents, _ in alone]
    longest = int(rows.lengths.reshape(-1, 2).sum(axis=1).max())
    plan = best_fit(lengths, rows.row_tokens)
    groups = [[alone[i] for i in members] for members in plan]
    return (
        [lay(group, rows.row_tokens) for group in groups],
        [lay([pair], longest) for pair in alone],
    )


def take_apart(row: Row, vocab_size: int) -> list[tuple[list, list[int]]]:
    """The pairs of a row as documents; targets lie one behind the labels' mask."""
    documents = []
    for start, stop in zip(row.cu_seqlens, row.cu_seqlens[1 : row.num_documents + 1], strict=False):
        targets = np.concatenate([[False], row.mask_S[start : stop - 1]])
        documents.append((row.tokens_S[start:stop] % vocab_size, targets))
    pairs = range(0, len(documents), 2)
    return [(documents[i : i + 2], row.sources[i : i + 2].tolist()) for i in pairs]


def lay(pairs: list[tuple[list, list[int]]], row_tokens: int) -> Row:
    documents = [document for pair, _ in pairs for document in pair]
    row = make_row(documents, row_tokens, 0, [s for _, sources in pairs for s in sources])
    return replace(row, reference=np.zeros((len(documents), 2)))


def build(config: Config, device: torch.device) -> list[LingModel]:
    stages = build_stages(config, platform.dtype(config.run.dtype), device)
    weights.load_first(config, stages)
    return stages


def report(
    seconds: dict[str, list[float]], together: list[Row], apart: list[Row], second: list[LingModel]
) -> None:
    table = Table("", "rows", "filled", "s / step (median)", "min", "tokens/s", "ratio", box=None)
    tokens = sum(row.num_tokens for row in together)
    fastest = statistics.median(seconds["packed"])
    for name, times in seconds.items():
        rows, median = apart if name == "padded" else together, statistics.median(times)
        table.add_row(
            name,
            f"{len(rows)} × {len(rows[0].tokens_S):,}",
            f"{tokens / (len(rows) * len(rows[0].tokens_S)):.0%}",
            f"{median:.3f}",
            f"{min(times):.3f}",
            f"{tokens / median:,.0f}",
            f"{median / fastest:.2f}",
        )
    pairs = sum(row.num_documents for row in together) // 2
    size = sum(p.numel() * p.element_size() for stage in second for p in stage.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    kind = "GPU" if torch.cuda.is_available() else "CPU"
    console.print(
        f"{pairs} pairs of {tokens:,} tokens; torch {torch.__version__}, {kind}, "
        f"{torch.get_num_threads()} threads"
    )
    console.print(table)
    console.print(
        f"a second model's weights: {size / 2**20:,.1f} MiB, held for the whole run (the process "
        f"had {peak:,.0f} MiB at most); stored scores: 32 bytes a pair"
    )


if __name__ == "__main__":
    app()
