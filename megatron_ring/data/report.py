"""What a packed folder holds, as text and as a picture."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from megatron_ring.data.tokenizer import Tokenizer

BAR = 40  # characters of the longest histogram bar
QUANTILES = (0, 10, 50, 90, 99, 100)
LEARNT, STRUCTURE, GIVEN = "bold green", "bold underline green", "default"


def summary(manifest: dict[str, Any], lengths: np.ndarray) -> Group:
    """Sources, totals and histogram for a rich console; `lengths` in tokens, one a document."""
    lengths = _of_samples(manifest, lengths)
    sources = _pair_sources if _are_pairs(manifest) else _sources
    return Group(sources(manifest), "", _totals(manifest, lengths), "", _histogram(lengths))


def styled(
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    targets: np.ndarray,
    marks: np.ndarray | None = None,
    plain: bool = False,
) -> Text:
    """Text of a document: learnt tokens green, those in format spans (`marks`) underlined too.

    Without colours: [[learnt]], and {{structure}} within.
    """
    marks = np.zeros(len(tokens), bool) if marks is None else marks
    text = Text()
    for start, stop in pairwise([0, *(np.flatnonzero(np.diff(targets)) + 1), len(tokens)]):
        text.append("[[" * bool(plain and targets[start]))
        cuts = np.flatnonzero(np.diff(marks[start:stop])) + 1 + start
        for first, last in pairwise([start, *cuts, stop]):
            decoded = tokenizer.decode(tokens[first:last])
            if plain and marks[first]:
                decoded = f"{{{{{decoded}}}}}"
            style = (STRUCTURE if marks[first] else LEARNT) if targets[first] else GIVEN
            text.append(decoded, style=style)
        text.append("]]" * bool(plain and targets[start]))
    return text


def write_text(file: Path, manifest: dict[str, Any], lengths: np.ndarray) -> None:
    """The summary as plain text."""
    with open(file, "w", encoding="utf-8") as stream:
        Console(file=stream, width=100, color_system=None).print(summary(manifest, lengths))


def draw_lengths(
    file: Path, manifest: dict[str, Any], lengths: np.ndarray, sources: np.ndarray
) -> None:
    """PNG: how long the samples are, by source, and where the tokens lie."""
    what = "pairs" if _are_pairs(manifest) else "documents"
    sources = sources[:: len(lengths) // len(_of_samples(manifest, lengths))]
    lengths = _of_samples(manifest, lengths)
    row_tokens = manifest["row_tokens"]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    documents_axes, tokens_axes = figure.subplots(1, 2)
    edges = np.geomspace(max(lengths.min(), 1), lengths.max() + 1, 41)
    names = [source["name"] for source in manifest["sources"]]
    parts = [lengths[sources == index] for index in range(len(names))]
    documents_axes.hist(parts, edges, stacked=True, label=names)
    documents_axes.set_ylabel(what)
    tokens_axes.hist(parts, edges, weights=parts, stacked=True, label=names)
    tokens_axes.set_ylabel("tokens")
    for axes in (documents_axes, tokens_axes):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(f"tokens in the {what.removesuffix('s')}")
        axes.spines[["top", "right"]].set_visible(False)
        if lengths.max() * 4 > row_tokens:
            axes.axvline(row_tokens, color="black", linestyle=":", label=f"row, {row_tokens:,}")
    handles, labels = documents_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(
        f"{len(lengths):,} {what}, {lengths.sum():,} tokens, {manifest['num_rows']:,} rows, "
        f"fill {manifest['fill']:.2%}"
    )
    figure.savefig(file, dpi=120)


def _are_pairs(manifest: dict[str, Any]) -> bool:
    return manifest.get("kind") == "pairs"


def _of_samples(manifest: dict[str, Any], lengths: np.ndarray) -> np.ndarray:
    """Tokens of each sample, of both answers of a pair together."""
    return lengths.reshape(-1, 2).sum(axis=1) if _are_pairs(manifest) else lengths


def _pair_sources(manifest: dict[str, Any]) -> Table:
    """Mean lengths are those of the answers; `structure` is the share in format spans."""
    table = Table("source", box=None, pad_edge=False)
    titles = ("weight", "pairs", "dropped", "tokens", "chosen", "rejected")
    for title in (*titles, "structure", "without", "seen"):
        table.add_column(title, justify="right")
    for source in manifest["sources"]:
        pairs = source["pairs"]
        table.add_row(
            source["name"],
            f"{source['weight']:g}",
            f"{pairs:,}",
            f"{source['dropped']:,}",
            f"{source['tokens']:,}",
            f"{source['supervised_chosen'] / max(pairs, 1):,.0f}",
            f"{source['supervised_rejected'] / max(pairs, 1):,.0f}",
            f"{source['format_tokens'] / max(source['supervised'], 1):.1%}",
            f"{source['without_format']:,}",
            f"{source['placements'] // 2:,}",
        )
    return table


def _sources(manifest: dict[str, Any]) -> Table:
    table = Table("source", box=None, pad_edge=False)
    for title in ("weight", "samples", "dropped", "tokens", "supervised", "seen"):
        table.add_column(title, justify="right")
    for source in manifest["sources"]:
        table.add_row(
            source["name"],
            f"{source['weight']:g}",
            f"{source['documents']:,}",
            f"{source['dropped']:,}",
            f"{source['tokens']:,}",
            f"{source['supervised'] / max(source['tokens'], 1):.1%}",
            f"{source['placements']:,}",
        )
    return table


def _totals(manifest: dict[str, Any], lengths: np.ndarray) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    tokenizer = manifest["tokenizer"]
    quantiles = zip(QUANTILES, np.percentile(lengths, QUANTILES), strict=True)
    dropped, without = (
        sum(source[key] for source in manifest["sources"]) for key in ("dropped", "without_targets")
    )
    pairs = _are_pairs(manifest)
    rows_each = ", ".join(f"{rows:,}" for rows in manifest["rows_in_epoch"])
    facts = {
        "rows": f"{manifest['num_rows']:,} of {manifest['row_tokens']:,} tokens "
        f"(epochs: {rows_each})",
        "fill": f"{manifest['fill']:.2%}",
        "tokens": f"{manifest['num_tokens']:,} in all epochs, "
        f"{manifest['num_supervised'] / manifest['num_tokens']:.1%} supervised",
        "dropped": f"{dropped:,} samples",
        **(_pair_facts(manifest) if pairs else {"no target": f"{without:,} samples"}),
        "lengths": "  ".join(f"{q}%: {length:,.0f}" for q, length in quantiles),
        "tokenizer": f"{tokenizer['size']:,} ids, highest used {tokenizer['max_id']:,}, "
        f"end {tokenizer['eos_id']}, padding {tokenizer['pad_id']}",
        "seed": str(manifest["seed"]),
        "fingerprint": manifest["fingerprint"],
    }
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def _pair_facts(manifest: dict[str, Any]) -> dict[str, str]:
    """Answers' mean lengths and structure, over all sources."""
    keys = ("supervised_chosen", "supervised_rejected", "format_tokens", "without_format")
    chosen, rejected, structure, without = (
        sum(source[key] for source in manifest["sources"]) for key in keys
    )
    pairs = manifest["num_pairs"]
    return {
        "pairs": f"{pairs:,}; answers of {chosen / pairs:,.0f} (chosen) and "
        f"{rejected / pairs:,.0f} tokens (rejected) on average",
        "structure": f"{structure / (chosen + rejected):.1%} of the answers' tokens lie in format "
        f"spans; {without:,} pairs have an answer without",
    }


def _histogram(lengths: np.ndarray) -> Table:
    """Samples in each power of two of length."""
    table = Table(box=None, pad_edge=False, show_header=True)
    table.add_column("tokens", justify="right")
    table.add_column("samples", justify="right")
    table.add_column("")
    powers = np.frexp(lengths)[1]  # 2**(p-1) <= length < 2**p
    counts = np.bincount(powers)
    for power in range(powers.min(), powers.max() + 1):
        bar = "█" * round(BAR * counts[power] / counts.max())
        table.add_row(f"{2 ** (power - 1):,} to {2**power - 1:,}", f"{counts[power]:,}", bar)
    return table
