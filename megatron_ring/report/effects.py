"""Effects of changes, as one HTML file: tables here, charts by effects.js.

It draws what tools/effects.py report computed (effects.json), and knows nothing else of it.
"""

import time
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
SCRIPTS, SHEETS = ("dots", "effects"), ("comparison",)
HEADER = """<div id="runs" role="group" aria-label="estimates shown"></div>
<nav>{nav}</nav>"""


def render(told: dict[str, Any], title: str) -> str:
    """The page. `told`: effects.json."""
    parts = [
        (f"effect-{number}", one["name"], _intervention(told, one, number))
        for number, one in enumerate(told["interventions"])
    ]
    if told["notes"]:
        parts.append(("notes", "Notes", _list(told["notes"])))
    nav = "".join(f'<a href="#{key}">{text_of(name)}</a>' for key, name, _ in parts)
    main = "\n".join(
        f'<section id="{key}"><h2>{text_of(name)}</h2>{body}</section>' for key, name, body in parts
    )
    footer = f"Written {time.strftime('%Y-%m-%d %H:%M')} by tools/effects.py report."
    return framed(title, HEADER.format(nav=nav), main, footer, told, SCRIPTS, SHEETS)


def _intervention(told: dict[str, Any], one: dict[str, Any], number: int) -> str:
    unit = f"points of {told['metric']}; filled: the interval does not hold 0"
    cards = chart_card(f"effects-{number}", "Effect by topic", unit, wide=True)
    cards += chart_card(f"points-{number}", "Runs", _axes(one))
    arms = sorted({arm for by_arm in one["bias"].values() for arm in by_arm})
    if arms:
        unit = "points that history lies above randomized runs, as CIO has it"
        cards += chart_card(f"bias-{number}", "Bias of history", unit)
    body = f"<p>{text_of(one['about'])}</p>" if one["about"] else ""
    body += f'{_counts(one)}<div class="grid">{cards}</div>{_table(told, one)}'
    body += small_print(told["caption"])
    for name, lines in (("Logs that mislead", "findings"), ("To be wary of", "warnings")):
        body += f"<h3>{name}</h3>{_list(one[lines])}" if one[lines] else ""
    if one["held_out"]:
        body += folded("Held-out loss against randomized runs alone", _held_out(one))
    return body


def _counts(one: dict[str, Any]) -> str:
    rows = [[kind, f"{on:,}", f"{off:,}"] for kind, (off, on) in one["runs"].items()]
    said = f"{one['choice']}; {one['items']:,} items."
    return table_of(("runs", "with it", "without"), rows) + small_print(said)


def _axes(one: dict[str, Any]) -> str:
    known = all(point["tokens"] for point in one["points"])
    return f"mean score, per cent, by {'tokens of training' if known else 'run'}"


def _table(told: dict[str, Any], one: dict[str, Any]) -> str:
    heads = "".join(f'<th scope="col">{text_of(name)}</th>' for name in told["columns"])
    lines = ""
    for row in one["rows"]:
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in row["cells"])
        kind = ' class="mean"' if row["kind"] == "mean" else ""
        of = f"<small>{text_of(row['of'])}</small>"
        lines += f'<tr{kind}><th scope="row">{text_of(row["title"])}{of}</th>{cells}</tr>'
    return (
        f'<div class="table compared"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(cell: dict[str, Any] | None) -> str:
    """Value, interval, and whether it is off the truth."""
    if cell is None:
        return NOTHING
    value, low, high = (signed(cell[key]) for key in ("value", "low", "high"))
    kind = ("good" if cell["value"] > 0 else "bad") if cell["sure"] else "unsure"
    mark = (" ▲" if cell["value"] > 0 else " ▼") if cell["sure"] else ""
    off = " ✗" * bool(cell.get("off")) + " ±" * bool(cell.get("wrong_sign"))
    return f'<em class="{kind}">{value}{mark}</em>{off} <span>({low} to {high})</span>'


def _held_out(one: dict[str, Any]) -> str:
    heads = ("candidate", "loss", "less than randomized only by", "its standard error", "slope")
    rows = []
    for name, found in one["held_out"].items():
        figures = [found["loss"], -found["difference"], found["error"], found["slope"]]
        rows.append([text_of(name), *(f"{figure:.4g}" for figure in figures)])
    return table_of(heads, rows)


def _list(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{text_of(line)}</li>' for line in lines)}</ul>"
