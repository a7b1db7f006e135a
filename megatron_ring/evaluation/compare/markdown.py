"""A comparison as Markdown, for a README or a pull request."""

from collections.abc import Callable, Sequence
from typing import Any

from megatron_ring.evaluation.compare import words

SHOWN = 8  # ids of won and lost items; all of them are in changed.jsonl
Cell = dict[str, Any]


def markdown(told: dict[str, Any]) -> str:
    """Tables 2 and 3, those by topic, what was won and lost. `told`: as tables.build made it."""
    heads = words.heads(told)
    parts = [
        "## Table 2: scores, in per cent\n",
        _table(["benchmark", "of", *heads], told["table2"]["rows"], _score),
        told["table2"]["caption"] + "\n",
        "## Table 3: think-tag errors, in per cent\n",
    ]
    if told["table3"]["rows"]:
        parts.append(_table(["error", *heads], told["table3"]["rows"], _rate, of=False))
    parts += [told["table3"]["caption"] + "\n", "### Any error, by benchmark\n"]
    by_task = [one["rows"][0] | {"title": one["title"]} for one in told["table3"]["by_task"]]
    parts.append(_table(["benchmark", *heads], by_task, _rate, of=False))
    if told["accuracies"]["rows"]:
        names = ["score", "of", *(column["name"] for column in told["columns"])]
        parts += ["## Further scores, in per cent\n"]
        parts.append(_table(names, told["accuracies"]["rows"], _score))
    if told["items"]["pairs"]:
        parts += ["## Won and lost, item by item\n", *map(_won_and_lost, told["items"]["pairs"])]
        parts += [told["items"]["caption"] + "\n"]
    if told["topics"]["tables"]:
        parts += ["## By topic\n", *(_topic(one, heads) for one in told["topics"]["tables"])]
        parts += [told["topics"]["caption"] + "\n"]
    if told["notes"]:
        parts += ["## Notes\n", "".join(f"- {escaped(note)}\n" for note in told["notes"])]
    runs = "".join(
        f"- {escaped(column['name'])}: {', '.join(map(_code, column['runs']))}\n"
        for column in told["columns"]
    )
    return "\n".join([*parts, "## Runs\n", runs])


def escaped(text: str) -> str:
    """Text that no table and no HTML of GitHub takes for its own."""
    for sign, kept in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(sign, kept)
    return " ".join(text.split())


def _code(text: str) -> str:
    return f"`{text}`"


def _table(
    heads: Sequence[str],
    rows: Sequence[dict[str, Any]],
    said: Callable[[Cell], str],
    of: bool = True,
) -> str:
    lines = [list(map(escaped, heads)), ["---"] * len(heads)]
    for row in rows:
        title = escaped(row["title"])
        first = [f"**{title}**" if row["kind"] == "mean" else title]
        cells = [said(cell) if cell is not None else words.NOTHING for cell in row["cells"]]
        lines.append([*first, *[row["of"]] * of, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _score(cell: Cell) -> str:
    return _cell(cell, words.tokens_text(cell))


def _rate(cell: Cell) -> str:
    return _cell(cell, words.count_text(cell))


def _cell(cell: Cell, last: str) -> str:
    """A line each: value and interval, the seeds, the difference, what else there is."""
    lines = [f"**{words.percent(cell['value'])}** ({words.interval(cell)})"]
    lines += [words.spread_text(cell)]
    lines += [words.delta_text(cell["delta"])] if cell["delta"] is not None else []
    return "<br>".join(line for line in [*lines, last] if line)


def _topic(table: dict[str, Any], heads: Sequence[str]) -> str:
    """Scores; beside them the rates of tag errors, in the same cell."""
    rows = []
    for row, errors in zip(table["scores"], table["errors"], strict=True):
        cells = []
        for cell, wrong in zip(row["cells"], errors["cells"], strict=True):
            said = f"; tags {words.percent(wrong['value'])}" if wrong is not None else ""
            cells.append(None if cell is None else cell | {"tags": said})
        rows.append(row | {"cells": cells})
    made = _table(["", "of", *heads], rows, lambda cell: _score(cell) + cell["tags"])
    return f"### {escaped(table['title'])}\n\n{made}"


def _won_and_lost(pair: dict[str, Any]) -> str:
    heads = ["benchmark", "won", "lost", "both right", "neither", "p", "some that were won", "lost"]
    lines = [heads, ["---"] * len(heads)]
    for one in pair["tasks"]:
        counts = [len(one["won"]), len(one["lost"]), one["both"], one["neither"]]
        ids = [escaped(_some(one[kind])) for kind in ("won", "lost")]
        figures = [f"{count:,}" for count in counts]
        lines.append([escaped(one["title"]), *figures, words.p_text(one["p"]), *ids])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"### From {escaped(pair['one'])} to {escaped(pair['other'])}\n\n{table}"


def _some(ids: list[str]) -> str:
    more = f", … {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more
