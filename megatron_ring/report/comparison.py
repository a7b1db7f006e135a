"""Checkpoints compared, as one HTML file: tables and answers here, charts by comparison.js.

It draws what tools/evaluate.py compare counted (tables.json), and knows nothing else of it.
"""

import html
import time
from collections.abc import Callable, Sequence
from typing import Any

from megatron_ring.report.page import framed
from megatron_ring.report.parts import (
    chart_card,
    folded,
    signed,
    small_print,
    table_of,
    text_of,
)

NOTHING = "—"
SCRIPTS, SHEETS = ("dots", "comparison"), ("comparison",)
Cell = dict[str, Any]
Rows = list[dict[str, Any]]

HEADER = """<div id="runs" role="group" aria-label="checkpoints shown"></div>
<nav>{nav}</nav>"""


def render(told: dict[str, Any], shown: Sequence[dict[str, Any]], title: str) -> str:
    """The page. `told`: tables.json; `shown`: lines of changed.jsonl whose answers are printed."""
    parts = {
        "scores": ("Scores", _scores(told)),
        "tags": ("Think tags", _tags(told)),
        "items": ("Won and lost", _items(told, shown)),
        "topics": ("Topics", _topics(told)),
        "about": ("Runs", _about(told)),
    }
    there = {key: part for key, part in parts.items() if part[1]}
    nav = "".join(f'<a href="#{key}">{name}</a>' for key, (name, _) in there.items())
    sections = "\n".join(
        f'<section id="{key}"><h2>{name}</h2>{body}</section>'
        for key, (name, body) in there.items()
    )
    footer = f"Written {time.strftime('%Y-%m-%d %H:%M')} by tools/evaluate.py compare."
    header = HEADER.format(nav=nav)
    return framed(title, header, sections, footer, _for_charts(told), SCRIPTS, SHEETS)


def _for_charts(told: dict[str, Any]) -> dict[str, Any]:
    """What comparison.js draws: ids of items are counted, not listed."""
    pairs = [
        {
            "one": pair["one"],
            "other": pair["other"],
            "tasks": [
                one | {"won": len(one["won"]), "lost": len(one["lost"])} for one in pair["tasks"]
            ],
        }
        for pair in told["items"]["pairs"]
    ]
    names = [column["name"] for column in told["columns"]]
    kept = {key: told[key] for key in ("against", "table2", "table3", "topics")}
    return {**kept, "columns": names, "pairs": pairs}


def _scores(told: dict[str, Any]) -> str:
    further = ""
    if told["accuracies"]["rows"]:
        table = _table(told, told["accuracies"]["rows"], _score)
        further = folded(f"Further scores ({len(told['accuracies']['rows'])})", table)
    cards = chart_card("scores", "Scores", "per cent, with intervals", wide=True)
    if any(told["against"]):
        cards += chart_card("deltas", "Differences", "points; filled: the interval does not hold 0")
        cards += chart_card("tokens", "Length of answers", "tokens, with the thought")
    table = _table(told, told["table2"]["rows"], _score)
    caption = small_print(told["table2"]["caption"])
    return f'<div class="grid">{cards}</div><h3>Table 2</h3>{table}{caption}{further}'


def _tags(told: dict[str, Any]) -> str:
    made = told["table3"]
    cards = chart_card("errors", "Errors by kind", "per cent of finished answers, with intervals")
    cards += chart_card("errors-by-task", "Any error by benchmark", "per cent of finished answers")
    table = _table(told, made["rows"], _rate) if made["rows"] else ""
    by_task = "".join(
        folded(one["title"], _table(told, one["rows"], _rate)) for one in made["by_task"]
    )
    every = f"<h3>By benchmark</h3>{by_task}" if len(made["by_task"]) > 1 else ""
    caption = small_print(made["caption"])
    return f'<div class="grid">{cards}</div><h3>Table 3</h3>{table}{caption}{every}'


def _items(told: dict[str, Any], shown: Sequence[dict[str, Any]]) -> str:
    body = ""
    for number, pair in enumerate(told["items"]["pairs"]):
        body += f"<h3>From {html.escape(pair['one'])} to {html.escape(pair['other'])}</h3>"
        card = chart_card(f"won-{number}", "Won and lost", "items", wide=True)
        body += f'<div class="grid">{card}</div>{_changes(pair)}'
        own = [line for line in shown if line["columns"] == [pair["one"], pair["other"]]]
        for change in pair["tasks"]:
            lines = [line for line in own if line["task"] == change["task"]]
            if lines:
                about = f"{change['title']}: answers to {len(lines)} items that changed"
                body += folded(about, "".join(map(_answers, lines)))
    return body and body + small_print(told["items"]["caption"])


def _changes(pair: dict[str, Any]) -> str:
    heads = ("benchmark", "won", "lost", "both right", "neither", "p (McNemar)")
    rows = []
    for one in pair["tasks"]:
        counts = (len(one["won"]), len(one["lost"]), one["both"], one["neither"])
        p = "< 0.0001" if one["p"] < 0.0001 else f"{one['p']:.4f}"
        rows.append([html.escape(one["title"]), *(f"{count:,}" for count in counts), p])
    return table_of(heads, rows)


def _answers(line: dict[str, Any]) -> str:
    """One item with both answers beside each other."""
    sides = ""
    for name, side in zip(line["columns"], (line["one"], line["other"]), strict=True):
        good = "good" if side["score"] > 0.5 else "bad"
        took = f"taken for the answer: {side['extracted']}" if side["extracted"] else ""
        sides += (
            f'<div class="side"><p class="said {good}">{html.escape(name)}: '
            f"{html.escape(side['verdict'])}</p><pre>{html.escape(side['text'])}</pre>"
            f'<p class="took">{html.escape(took)}</p></div>'
        )
    head = f'<span class="badge {line["outcome"]}">{line["outcome"]}</span> {text_of(line["id"])}'
    prompt = f"<pre>{text_of(line['prompt'])}</pre>"
    body = f'{prompt}<div class="sides">{sides}</div>'
    return f'<article class="card item"><h3>{head}</h3>{body}</article>'


def _topics(told: dict[str, Any]) -> str:
    body = ""
    for number, table in enumerate(told["topics"]["tables"]):
        tables = _table(told, table["scores"], _score)
        tables += "<h3>Any tag error</h3>" + _table(told, table["errors"], _rate)
        chart = chart_card(f"topic-{number}", table["title"], "score, per cent", wide=True)
        body += f'<div class="grid">{chart}</div>{folded("Numbers, and tag errors", tables)}'
    return body and body + small_print(told["topics"]["caption"])


def _about(told: dict[str, Any]) -> str:
    rows = []
    for column, base in zip(told["columns"], told["against"], strict=True):
        every = [asked for run in column["asked"] for asked in run.values()]
        models = dict.fromkeys(str(asked.get("model", asked)) for asked in every)
        runs = "<br>".join(map(text_of, column["runs"]))
        rows.append(
            [text_of(column["name"]), text_of(base or NOTHING), runs, text_of(", ".join(models))]
        )
    notes = "".join(f"<li>{text_of(note)}</li>" for note in told["notes"])
    table = table_of(("checkpoint", "compared with", "runs", "model"), rows)
    return table + (f"<h3>Notes</h3><ul>{notes}</ul>" if notes else "")


def _table(told: dict[str, Any], rows: Rows, said: Callable[[Cell], str]) -> str:
    """A row a benchmark, kind or topic, a column a checkpoint."""
    heads = ""
    for column, base in zip(told["columns"], told["against"], strict=True):
        seeds = len(column["runs"])
        more = [f"{seeds} seeds"] * (seeds > 1) + [f"Δ to {base}"] * (base is not None)
        beside = f"<small>{text_of(', '.join(more))}</small>" if more else ""
        heads += f'<th scope="col">{text_of(column["name"])}{beside}</th>'
    lines = ""
    for row in rows:
        cells = "".join(
            f"<td>{said(cell) if cell is not None else NOTHING}</td>" for cell in row["cells"]
        )
        of = f"<small>{text_of(row['of'])}</small>"
        kind = ' class="mean"' if row["kind"] == "mean" else ""
        lines += f'<tr{kind}><th scope="row">{text_of(row["title"])}{of}</th>{cells}</tr>'
    return (
        f'<div class="table compared"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _score(cell: Cell) -> str:
    tokens = f"{cell['tokens']:,.0f} tokens" if cell["tokens"] is not None else ""
    return _cell(cell, tokens, more_is_better=True)


def _rate(cell: Cell) -> str:
    return _cell(cell, f"{cell['part']:,} of {cell['whole']:,}", more_is_better=False)


def _cell(cell: Cell, beside: str, more_is_better: bool) -> str:
    """The value with its interval drawn below it, the difference, what else there is."""
    low, high = 100 * cell["low"], 100 * cell["high"]
    value = 100 * cell["value"]
    drawn = (
        f'<i class="range"><i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        f'<b style="left:{value:.2f}%"></b></i>'
    )
    lines = [f"<b>{value:.1f}</b> <span>({low:.1f} to {high:.1f})</span>{drawn}"]
    if cell["delta"] is not None:
        lines.append(_delta(cell["delta"], more_is_better))
    if cell["seeds"]:
        ends = f"{100 * min(cell['seeds']):.1f} to {100 * max(cell['seeds']):.1f}"
        lines.append(f"<span>{len(cell['seeds'])} seeds: {ends}</span>")
    lines += [f"<span>{beside}</span>"] if beside else []
    return "".join(f"<div>{line}</div>" for line in lines)


def _delta(delta: dict[str, Any], more_is_better: bool) -> str:
    value, low, high = (signed(delta[key]) for key in ("value", "low", "high"))
    good = (delta["value"] > 0) == more_is_better
    kind = ("good" if good else "bad") if delta["sure"] else "unsure"
    mark = (" ▲" if delta["value"] > 0 else " ▼") if delta["sure"] else ""
    return f'<em class="{kind}">{value}{mark}</em> <span>({low} to {high})</span>'
