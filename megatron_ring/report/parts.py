"""Pieces of HTML that the pages of tables share."""

import html
from collections.abc import Sequence
from typing import Any


def text_of(value: Any) -> str:
    """Text that is no HTML."""
    return html.escape(str(value))


def small_print(text: str) -> str:
    """Small print."""
    return f'<p class="caption">{text_of(text)}</p>'


def folded(title: str, body: str) -> str:
    """A body under a line that unfolds it."""
    return f"<details><summary>{text_of(title)}</summary>{body}</details>"


def chart_card(name: str, title: str, unit: str, wide: bool = False) -> str:
    """A card with the place of a chart, which a script draws by its name."""
    return (
        f'<div class="card{" wide" * wide}" data-title="{text_of(title)}"><div class="top">'
        f"<h3>{text_of(title)} <small>{text_of(unit)}</small></h3></div>"
        f'<div class="plot" data-chart="{name}"></div></div>'
    )


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML already."""
    head = "".join(f'<th scope="col">{text_of(name)}</th>' for name in heads)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def signed(value: float) -> str:
    """A share as points: +3.1, -0.4, 0.0"""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
