"""The study of effects as one HTML file: tables here, charts by study.js.

It draws what megatron_ring.effects.study_report told, and knows nothing else of it.
"""

import time
from typing import Any

from megatron_ring.report.page import framed
from megatron_ring.report.parts import chart_card, folded, small_print, table_of, text_of

SCRIPTS, SHEETS = ("dots", "study"), ("comparison",)
HEADER = """<div id="runs" role="group" aria-label="methods shown"></div>
<nav><a href="#charts">Charts</a><a href="#cells">All cells</a><a href="#paper">Paper</a></nav>"""
COLOURS = {"better": "good", "worse": "bad"}


def render(told: dict[str, Any]) -> str:
    """The page. `told`: study_report.told."""
    unit = (
        f"% that √PEHE lies off that of {told['reference']}; filled: the interval does not hold 0"
    )
    cards = "".join(chart_card(base, base, unit, wide=True) for base in told["charts"])
    said = "".join(f"<li>{text_of(line)}</li>" for line in told["said"])
    cells = "".join(_cell(told["head"], one) for one in told["cells"])
    main = (
        f'<section id="charts"><h2>Methods beside {text_of(told["reference"])}</h2>'
        f'<ul>{said}</ul><div class="grid">{cards}</div></section>'
        f'<section id="cells"><h2>All cells</h2>{cells}</section>'
        f'<section id="paper"><h2>Beside the paper\'s table</h2>{_paper(told)}</section>'
    )
    footer = f"Written {time.strftime('%Y-%m-%d %H:%M')} by tools/effects.py study."
    return framed(told["title"], HEADER, main, footer, told, SCRIPTS, SHEETS)


def _cell(head: list[str], one: dict[str, Any]) -> str:
    rows = []
    for row in one["rows"]:
        cells = [text_of(cell.replace("**", "")) for cell in row["cells"]]
        if row["verdict"]:
            place = cells.index(row["verdict"])
            cells[place] = f'<em class="{COLOURS[row["verdict"]]}">{row["verdict"]}</em>'
        rows.append(cells)
    return folded(one["title"], table_of(head, rows))


def _paper(told: dict[str, Any]) -> str:
    tables = [
        table_of(head, [[text_of(cell) for cell in row] for row in rows])
        for head, *rows in told["paper"].values()
    ]
    items = "".join(f"<li>{text_of(one)}</li>" for one in told["differs"])
    return "".join(tables) + small_print(told["caption"]) + f"<ul>{items}</ul>"
