"""The study as Markdown and as one HTML file: means with intervals, beside the paper's table."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from scipy.stats import t as student

CONFIDENCE = 0.95
REFERENCE = "RCT-only DR"  # what differences are to
HISTORIES = ("complete", "treated_only", "control_only")
HEAD = ("method", "√PEHE", f"difference from {REFERENCE}", "", "mean error")

# Table 1 of Yao et al. 2024 as a third party's note relays it, mean ± sd of 10 runs; not verified.
PAPER = {
    "ridge": (
        ("observational only", "21.97±1.06", "25.05±2.92", "–"),
        ("RCT-only", "9.74±2.39", "4.06±0.52", "2.49±1.06"),
        ("naive pooling", "21.43±1.06", "12.82±3.48", "15.85±0.32"),
        ("Kallus 2018", "14.62±6.18", "9.70±2.68", "–"),
        ("integrative R", "7.68±0.34", "8.52±0.71", "–"),
        ("CIO, complete history", "5.75±0.34", "2.36±0.48", "–"),
        ("CIO, incomplete history", "8.96±0.63", "2.14±0.65", "1.48±0.38"),
    ),
    "forest": (
        ("observational only", "18.35", "48.17", "–"),
        ("RCT-only", "10.41±2.87", "6.96", "2.30±0.70"),
        ("naive pooling", "17.83", "7.83", "3.84"),
        ("Kallus 2018", "11.76", "18.59", "–"),
        ("integrative R", "8.84", "9.51", "–"),
        ("CIO, complete history", "6.65±0.26", "5.61±0.93", "–"),
        ("CIO, incomplete history", "10.18±2.94", "5.35±0.96", "2.29±0.70"),
    ),
}
DIFFERS = (
    "The paper's functions of the simulation and its semi-synthetic constructions could not be "
    "had: sizes (p = 5, 200 randomized, 3,000 historical before an arm is left out) and the "
    "outcome model are its own, functions and scales are ours. Compare orders, not numbers.",
    "STAR here: AER's table has two scores, the paper's three, and other features; the coin, the "
    "effect and the choice by an unseen residual are ours.",
    "NSW here: only the 425 randomized controls, with a new coin and a known effect, so that no "
    "outcome is modelled; history is PSID's 2,490, as in the paper.",
    'CIO here compares each arm with the same arm. "CIO as relayed" takes all randomized rows as '
    "its control, which attenuates the effect.",
    "Base learners are quadratic ridge and a random forest; TARNet is left out.",
)


@dataclass(frozen=True)
class Line:
    """One method in one cell, over draws."""

    method: str
    draws: int
    mean: float
    reach: float  # half of the interval of CONFIDENCE
    apart: float  # paired difference from REFERENCE
    apart_reach: float
    bias: float
    chosen: str

    @property
    def verdict(self) -> str:
        """Which way the interval of the difference lies."""
        if self.method == REFERENCE or abs(self.apart) <= self.apart_reach:
            return ""
        return "better" if self.apart < 0 else "worse"

    def cells(self) -> tuple[str, ...]:
        apart = f"{self.apart:+.3f} ± {self.apart_reach:.3f}" if self.method != REFERENCE else "–"
        verdict = f"**{self.verdict}**" if self.verdict else ""
        name = f"{self.method} ({self.chosen})" if self.chosen else self.method
        return (name, f"{self.mean:.3f} ± {self.reach:.3f}", apart, verdict, f"{self.bias:+.3f}")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of Student's interval of CONFIDENCE; ValueError for fewer than two values."""
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} draw(s): an interval needs 2 at least; give --draws 20")
    reach = student.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return float(np.mean(values)), float(reach)


def lines(records: Sequence[dict[str, Any]]) -> list[Line]:
    """A line a method, over the draws of one cell and base; paired by seed with REFERENCE.

    Methods of one draw are left out: a stopped study has such.
    """
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        by_method.setdefault(record["method"], {})[record["seed"]] = record
    reference = {seed: r["root_pehe"] for seed, r in by_method.get(REFERENCE, {}).items()}
    found = []
    for method, own in by_method.items():
        both = [r["root_pehe"] - reference[seed] for seed, r in own.items() if seed in reference]
        if len(both) < 2:
            continue
        mean, reach = interval([r["root_pehe"] for r in own.values()])
        apart, apart_reach = interval(both)
        bias = float(np.mean([r["bias"] for r in own.values()]))
        chosen = ""
        if method.endswith("auto"):
            picks = [r["chosen"] for r in own.values()]
            chosen = ", ".join(f"{name} {picks.count(name)}" for name in sorted(set(picks)))
        found.append(Line(method, len(own), mean, reach, apart, apart_reach, bias, chosen))
    return found


def sections(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str, list[Line]]]:
    """Design, history, base and lines of each cell that has two draws, in the study's order."""
    wheres = {(r["design"], r["history"], r["base"]): 0 for r in records}
    designs = list(dict.fromkeys(where[0] for where in wheres))
    order = sorted(wheres, key=lambda w: (designs.index(w[0]), HISTORIES.index(w[1])))
    for where in order:
        own = lines([r for r in records if (r["design"], r["history"], r["base"]) == where])
        if own:
            yield (*where, own)


def write(records: Sequence[dict[str, Any]], out: Path) -> None:
    """report.md and report.html of all draws so far."""
    (out / "report.md").write_text(markdown(records), encoding="utf-8")
    (out / "report.html").write_text(page(records), encoding="utf-8")


def markdown(records: Sequence[dict[str, Any]]) -> str:
    parts = ["# Effects from randomized and historical rows: a study\n", _said(records)]
    for design, history, base, own in sections(records):
        parts.append(f"## {design}, {_words(history)}, {base}, {own[0].draws} draws\n")
        parts.append(_markdown_table(HEAD, [line.cells() for line in own]))
    parts.append("## The paper's table, as relayed\n")
    for base, rows in PAPER.items():
        parts.append(_markdown_table((base, "simulation", "STAR", "NSW"), rows))
    parts.append("What differs:\n\n" + "".join(f"- {text}\n" for text in DIFFERS))
    return "\n".join(parts)


def page(records: Sequence[dict[str, Any]]) -> str:
    """One file that needs no network: the same tables, and a chart of the differences."""
    parts = [f"<p>{html.escape(_said(records))}</p>"]
    parts.append(chart(records).to_html(full_html=False, include_plotlyjs=True))
    for design, history, base, own in sections(records):
        title = f"{design}, {_words(history)}, {base}, {own[0].draws} draws"
        parts.append(f"<h2>{html.escape(title)}</h2>")
        cells = [[cell.replace("**", "") for cell in line.cells()] for line in own]
        parts.append(_html_table(HEAD, cells))
    parts.append("<h2>The paper's table, as relayed</h2>")
    parts += [_html_table((b, "simulation", "STAR", "NSW"), rows) for b, rows in PAPER.items()]
    items = "".join(f"<li>{html.escape(text)}</li>" for text in DIFFERS)
    return FRAME.format(body="\n".join(parts) + f"<p>What differs:</p><ul>{items}</ul>")


FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Effects: a study</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto }}
table {{ border-collapse: collapse; margin: 0 0 1.5rem }}
th, td {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
h2 {{ font-size: 1.05rem }}
</style>
</head>
<body>
<h1>Effects from randomized and historical rows: a study</h1>
{body}
</body>
</html>
"""


def chart(records: Sequence[dict[str, Any]]) -> go.Figure:
    """Differences from REFERENCE in shares of its own mean, a row a cell, a colour a method."""
    by_method: dict[str, list[tuple[str, float, float]]] = {}
    for design, history, base, own in sections(records):
        base_mean = next(line.mean for line in own if line.method == REFERENCE)
        for line in own:
            where = f"{design}, {_words(history)}, {base}"
            share = (where, line.apart / base_mean, line.apart_reach / base_mean)
            by_method.setdefault(line.method, []).append(share)
    figure = go.Figure()
    for method, points in by_method.items():
        if method == REFERENCE:
            continue
        wheres, shares, reaches = zip(*points, strict=True)
        figure.add_scatter(
            x=shares,
            y=wheres,
            error_x={"array": reaches},
            mode="markers",
            name=method,
            visible=True if method.startswith("CIO,") else "legendonly",
        )
    figure.add_vline(x=0, line_width=1)
    rows = len({point[0] for points in by_method.values() for point in points})
    figure.update_layout(
        height=200 + 28 * rows,
        xaxis={"title": f"√PEHE against {REFERENCE} (left is better)", "tickformat": "+.0%"},
        yaxis={"autorange": "reversed"},
        template="plotly_white",
        margin={"l": 220},
    )
    return figure


def _said(records: Sequence[dict[str, Any]]) -> str:
    found = list(sections(records))
    auto = [line for *_, own in found for line in own if line.method == "CIO, auto"]
    counts = {v: sum(line.verdict == v for line in auto) for v in ("better", "worse", "")}
    return (
        f"Mean over draws ± half of a {CONFIDENCE:.0%} interval (Student's); differences are "
        f"paired by draw. The automatic choice is better than {REFERENCE} in {counts['better']} of "
        f"{len(auto)} cells, worse in {counts['worse']}, and not to be told from it in "
        f"{counts['']}.\n"
    )


def _words(history: str) -> str:
    return f"{history.replace('_', ' ')} history"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
