"""The funnel of a run as a page of HTML that needs no network."""

import html
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects
import plotly.io
import plotly.offline

from megatron_ring.curation.distribution import shares

PAGE = Path(shares.__file__).with_name("page.html")
STEPS = {
    "requests": "requests",
    "replies": "answered",
    "drafts": "problems written",
    "new": "new",
    "kept": "verified, kept",
}
KEPT, LEFT = "#2f6fbf", "#c9ccd1"
# Apart for the colour-blind too (Okabe and Ito).
COLOURS = ("#2f6fbf", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#999999")


def page(report: dict[str, Any], name: str) -> str:
    """Steps of each round, why drafts go, and each cell against what was wanted of it."""
    figures = [_steps(report), _reasons(report), _cells(report)]
    cards = "".join(f'<div class="card">{_html(figure)}</div>' for figure in figures)
    total = report["total"]
    told = f"{total['kept']:,} of {report['wanted']:,} problems in {len(report['rounds'])} rounds"
    title = html.escape(f"New problems: {name}")
    body = f'<p class="legend"><span>{told}</span></p><div class="grid">{cards}</div>'
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=title, plotly=plotly.offline.get_plotlyjs(), body=body
    )


def _steps(report: dict[str, Any]) -> plotly.graph_objects.Figure:
    rounds = [
        plotly.graph_objects.Funnel(
            name=f"round {one['round']}",
            y=list(STEPS.values()),
            x=[one[key] for key in STEPS],
            textinfo="value",
            marker_color=COLOURS[number % len(COLOURS)],
        )
        for number, one in enumerate(report["rounds"])
    ]
    figure = plotly.graph_objects.Figure(rounds)
    return _titled(figure, "From requests to kept problems, by round", 380, "stack")


def _reasons(report: dict[str, Any]) -> plotly.graph_objects.Figure:
    total = report["total"]
    stages = {"unparsable": "no draft", "known": "not new", "rejected": "not verified"}
    found = [
        (f"{told}: {reason}", number)
        for key, told in stages.items()
        for reason, number in total[key].items()
    ]
    refused = total["requests"] - total["replies"]
    found = ([("refused", refused)] if refused else []) + found
    bars = plotly.graph_objects.Bar(
        y=[html.escape(reason) for reason, _ in found],
        x=[number for _, number in found],
        text=[f"{number:,}" for _, number in found],
        orientation="h",
        marker_color=KEPT,
    )
    figure = plotly.graph_objects.Figure([bars])
    return _titled(figure, "What went, and why", 130 + 26 * len(found), "group")


def _cells(report: dict[str, Any]) -> plotly.graph_objects.Figure:
    cells = report["cells"]
    names = [html.escape(name) for name in cells]
    kept = [one["kept"] for one in cells.values()]
    short = [max(one["wanted"] - one["kept"], 0) for one in cells.values()]
    bars = [
        plotly.graph_objects.Bar(y=names, x=values, name=name, orientation="h", marker_color=colour)
        for name, values, colour in (("kept", kept, KEPT), ("missing", short, LEFT))
    ]
    figure = plotly.graph_objects.Figure(bars)
    return _titled(figure, "Kept and missing, by cell", 140 + 20 * len(names), "stack")


def _titled(
    figure: plotly.graph_objects.Figure, title: str, height: int, mode: str
) -> plotly.graph_objects.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 14}},
        height=height,
        barmode=mode,
        funnelmode="stack",
        margin={"l": 10, "r": 40, "t": 44, "b": 24},
        yaxis={"autorange": "reversed", "automargin": True},
        legend={"orientation": "h"},
        template="plotly_white",
        font={"size": 12},
    )
    return figure


def _html(figure: plotly.graph_objects.Figure) -> str:
    return plotly.io.to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        config={"responsive": True, "displayModeBar": False},
    )
