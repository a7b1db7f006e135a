"""The study in numbers and as Markdown: means with intervals, beside the paper's table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from megatron_ring.effects import paper

CONFIDENCE = 0.95
REFERENCE = "RCT-only DR"  # what differences are to
OTHERS = ("RCT-only T", "naive pooling")  # what the automatic choice stands beside as well
AUTO = "CIO, auto"
TITLE = "Effects from randomized and historical rows: a study"
HISTORIES = ("complete", "treated_only", "control_only")
HEAD = ("method", "√PEHE", f"difference from {REFERENCE}", "", "mean error")


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
        if abs(self.apart) <= self.apart_reach:
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


def lines(records: Sequence[dict[str, Any]], reference: str = REFERENCE) -> list[Line]:
    """A line a method, over the draws of one cell and base; paired by seed with `reference`.

    Methods of one draw are left out: a stopped study has such.
    """
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        by_method.setdefault(record["method"], {})[record["seed"]] = record
    beside = {seed: r["root_pehe"] for seed, r in by_method.get(reference, {}).items()}
    found = []
    for method, own in by_method.items():
        both = [r["root_pehe"] - beside[seed] for seed, r in own.items() if seed in beside]
        if len(both) < 2:
            continue
        mean, reach = interval([r["root_pehe"] for r in own.values()])
        apart, apart_reach = interval(both)
        bias = float(np.mean([r["bias"] for r in own.values()]))
        chosen = ""
        if method == AUTO:
            picks = [r["chosen"] for r in own.values()]
            chosen = ", ".join(f"{name} {picks.count(name)}" for name in sorted(set(picks)))
        found.append(Line(method, len(own), mean, reach, apart, apart_reach, bias, chosen))
    return found


def by_cell(
    records: Sequence[dict[str, Any]],
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Records by design, history and base, in the study's order."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault((record["design"], record["history"], record["base"]), []).append(record)
    designs = list(dict.fromkeys(design for design, *_ in found))
    order = sorted(found, key=lambda w: (designs.index(w[0]), HISTORIES.index(w[1])))
    return {where: found[where] for where in order}


def sections(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str, list[Line]]]:
    """Design, history, base and lines of each cell that has two draws, in the study's order."""
    for where, own in by_cell(records).items():
        if found := lines(own):
            yield (*where, found)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """All of it: a table of all cells a base, one of each cell, and the paper's."""
    parts = [f"# {TITLE}\n", " ".join(said(records)) + "\n"]
    for base in dict.fromkeys(r["base"] for r in records):
        parts += [f"## All cells, {base}\n", _markdown_table(*overview(records, base))]
    for design, history, base, own in sections(records):
        parts.append(f"## {design}, {words(history)}, {base}, {own[0].draws} draws\n")
        parts.append(_markdown_table(HEAD, [line.cells() for line in own]))
    parts.append("## Beside the paper's table\n")
    for rows in beside_paper(records).values():
        parts.append(_markdown_table(rows[0], rows[1:]))
    parts.append(f"{paper.CAPTION}\n\n" + "".join(f"- {text}\n" for text in paper.DIFFERS))
    return "\n".join(parts)


def overview(
    records: Sequence[dict[str, Any]], base: str
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Heads and rows of one base: √PEHE of each method in each cell.

    **Bold** is better than REFERENCE by its interval, *italic* worse.
    """
    found = [(d, h, own) for d, h, b, own in sections(records) if b == base]
    methods = list(dict.fromkeys(line.method for *_, own in found for line in own))
    marks = {"better": "**", "worse": "*", "": ""}
    rows = []
    for design, history, own in found:
        by_method = {line.method: line for line in own}
        cells = []
        for method in methods:
            line = by_method.get(method)
            mark = marks[line.verdict] if line else ""
            cells.append(f"{mark}{line.mean:.2f} ± {line.reach:.2f}{mark}" if line else "–")
        rows.append((f"{design}, {words(history)}", *cells))
    return ["√PEHE", *methods], rows


def told(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All of it as plain values, for a page. Differences are shares of REFERENCE's mean."""
    found = list(sections(records))
    bases = list(dict.fromkeys(base for _, _, base, _ in found))
    methods = list(dict.fromkeys(line.method for *_, own in found for line in own))
    columns = [method for method in methods if method != REFERENCE]
    charts: dict[str, list[dict[str, Any]]] = {base: [] for base in bases}
    cells = []
    for design, history, base, own in found:
        title = f"{design}, {words(history)}"
        shares = _shares(own)
        charts[base].append({"title": title, "cells": [shares.get(name) for name in columns]})
        rows = [{"cells": line.cells(), "verdict": line.verdict} for line in own]
        cells.append({"title": f"{title}, {base}, {own[0].draws} draws", "rows": rows})
    return {
        "title": TITLE,
        "said": said(records),
        "reference": REFERENCE,
        "columns": columns,
        "charts": charts,
        "head": HEAD,
        "cells": cells,
        "paper": beside_paper(records),
        "caption": paper.CAPTION,
        "differs": paper.DIFFERS,
    }


def _shares(own: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Difference of each method from REFERENCE, as a share of its mean."""
    scale = next(line.mean for line in own if line.method == REFERENCE)
    found = {}
    for line in own:
        value, reach = line.apart / scale, line.apart_reach / scale
        ends = {"low": value - reach, "high": value + reach}
        found[line.method] = {"value": value, **ends, "sure": bool(line.verdict)}
    return found


def beside_paper(records: Sequence[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """The paper's table by base, its head first, with our means beside its own."""
    means: dict[str, paper.Means] = {}
    for design, history, base, own in sections(records):
        where = means.setdefault(base, {})
        where.update({(design, history, line.method): line.mean for line in own})
    return {base: paper.table(base, found) for base, found in means.items()}


def said(records: Sequence[dict[str, Any]]) -> list[str]:
    """What intervals are, and in how many cells the automatic choice is better or worse."""
    apart = (
        f"Means over draws ± half of a {CONFIDENCE:.0%} interval (Student's); differences are "
        "paired by draw."
    )
    return [apart, *(_against(records, other) for other in (REFERENCE, *OTHERS))]


def _against(records: Sequence[dict[str, Any]], other: str) -> str:
    """The automatic choice beside one method, over all cells."""
    compared = (line for own in by_cell(records).values() for line in lines(own, other))
    verdicts = [line.verdict for line in compared if line.method == AUTO]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    return (
        f"{AUTO}, is better than {other} in {better} of {len(verdicts)} cells, worse in {worse}, "
        f"and not to be told from it in {len(verdicts) - better - worse}."
    )


def words(history: str) -> str:
    return f"{history.replace('_', ' ')} history"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)
