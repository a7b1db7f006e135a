"""Shares over the taxonomy as pictures: one HTML page that needs no network, and one PNG."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import matplotlib
import plotly.graph_objects
import plotly.io
import plotly.offline

from megatron_ring.curation.distribution.shares import ALL, Distribution, Shortage, Targets
from megatron_ring.curation.taxonomy import OTHERS, UNKNOWN, Taxonomy

matplotlib.use("Agg")  # draws without a screen
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = ("#2f6fbf", "#d9822b")  # first set, second set; apart for the colour-blind too
TARGET_COLOUR = "#222222"
MOST_BARS = 14  # of a panel; the rest is one bar
SHOWN_SHORTAGES = 20


@dataclass(frozen=True)
class Panel:
    """One chart: bars of each data set, in per cent of the records of its view."""

    title: str
    labels: tuple[str, ...]
    percents: tuple[tuple[float, ...], ...]  # by data set, then by label
    counts: tuple[int, ...]  # records of the view, by data set
    targets: tuple[float | None, ...]  # by label; None where none is wanted


Sets = Sequence[tuple[str, Distribution]]  # names and what they are of; one or two


def panels(sets: Sets, targets: Targets) -> list[Panel]:
    """The views of Figures 3 to 6 of the report that any of the sets has records of."""
    taxonomy = sets[0][1].taxonomy
    made = []
    if targets.groups:
        made.append(_panel("Groups of domains", ALL, sets, targets, grouped=True))
    made.append(_panel("Domains", ALL, sets, targets))
    for node in taxonomy.nodes.values():
        if node.children and any(found.total(node.path) for _, found in sets):
            what = {"level": "levels", "topic": "topics"}[node.children[0].kind]
            parent = taxonomy.nodes[node.path.rpartition("/")[0]].en if "/" in node.path else ""
            name = f"{parent}, {node.en.lower()}" if parent else node.en
            made.append(_panel(f"{name}: {what}", node.path, sets, targets))
    return made


def _panel(title: str, view: str, sets: Sets, targets: Targets, grouped: bool = False) -> Panel:
    """Levels in their own order, all else by share in the first set, what is small together."""
    groups = targets.groups if grouped else None
    shares = [found.shares(view, groups) for _, found in sets]
    wanted = targets.shares.get(view, {})
    taxonomy = sets[0][1].taxonomy
    order = sets[0][1].ids(view)
    names = {node.id: node.en for node in taxonomy.nodes.values() if _parent(node.path) == view}
    ids = [id for id in order if any(id in s for s in shares) or id in wanted]
    levels = view != ALL and taxonomy.nodes[view].children[0].kind == "level"
    if not levels:
        ids.sort(key=lambda id: (id == UNKNOWN, id == OTHERS, *(-s.get(id, 0) for s in shares)))
    if grouped:
        ids = [*wanted, *(id for id in ids if id not in wanted)]
    shown, rest = ids, []
    if len(ids) > MOST_BARS:
        known = [id for id in ids if id != UNKNOWN]
        kept = MOST_BARS - 1 - (UNKNOWN in ids)  # at least two are put together
        shown = known[:kept] + [UNKNOWN] * (UNKNOWN in ids)
        rest = known[kept:]
    labels = [names.get(id, "Unknown" if id == UNKNOWN else id) for id in shown]
    percents = [[100 * s.get(id, 0.0) for id in shown] for s in shares]
    goals = [100 * wanted[id] if id in wanted else None for id in shown]
    if rest:
        labels.append(f"{len(rest)} others")
        goals.append(None)
        for values, s in zip(percents, shares, strict=True):
            values.append(100 * sum(s.get(id, 0.0) for id in rest))
    counts = tuple(found.total(view) for _, found in sets)
    return Panel(title, tuple(labels), tuple(map(tuple, percents)), counts, tuple(goals))


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or ALL


def write_png(file: Path, sets: Sets, made: Sequence[Panel]) -> None:
    """All panels in one picture, three side by side, in their order."""
    rows = [made[i : i + 3] for i in range(0, len(made), 3)]
    heights = [0.9 + 0.26 * max(len(panel.labels) for panel in row) for row in rows]
    figure, axes = plt.subplots(
        len(rows),
        3,
        figsize=(18, sum(heights) + 0.6),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for row, of_row in zip(rows, axes, strict=True):
        for panel, axis in zip(row, of_row, strict=False):
            axis.axis("on")
            _draw(axis, panel, sets)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour) for colour, _ in zip(COLOURS, sets, strict=False)
    ]
    names = [f"{name} ({found.total(ALL):,} records)" for name, found in sets]
    if any(goal is not None for panel in made for goal in panel.targets):
        handles.append(plt.Line2D([], [], color=TARGET_COLOUR, marker="|", ms=12, mew=2, ls=""))
        names.append("target")
    figure.legend(handles, names, loc="outside upper left", ncols=len(names), frameon=False)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _draw(axis: plt.Axes, panel: Panel, sets: Sets) -> None:
    thick = 0.8 / len(sets)
    top = max(max(max(p, default=0) for p in panel.percents), 1)
    top = max([top, *(goal for goal in panel.targets if goal is not None)])
    for index, percents in enumerate(panel.percents):
        places = [i - 0.4 + thick * (index + 0.5) for i in range(len(panel.labels))]
        axis.barh(places, percents, thick * 0.94, color=COLOURS[index])
        for place, percent, goal in zip(places, percents, panel.targets, strict=True):
            text = f"{percent:.1f}" if percent >= 0.05 or not percent else "<0.1"
            at = goal if _in_the_way(percent, goal, top) else percent
            axis.text(at + top * 0.01, place, text, va="center", fontsize=7 if len(sets) > 1 else 8)
    for i, goal in enumerate(panel.targets):
        if goal is not None:
            axis.plot([goal, goal], [i - 0.46, i + 0.46], color=TARGET_COLOUR, lw=2)
    axis.set_yticks(range(len(panel.labels)), panel.labels, fontsize=9)
    axis.set_ylim(len(panel.labels) - 0.4, -0.6)
    axis.set_xlim(0, top * 1.12)
    axis.set_title(f"{panel.title} (% of {_counts(panel)})", fontsize=10.5, loc="left")
    axis.grid(axis="x", alpha=0.25)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _in_the_way(percent: float, goal: float | None, top: float) -> bool:
    """Whether the target's mark stands where the figure at the end of a bar would."""
    return goal is not None and percent - 0.01 * top <= goal <= percent + 0.08 * top


def _counts(panel: Panel) -> str:
    return " and ".join(f"{count:,}" for count in panel.counts)


PAGE = Path(__file__).with_name("page.html")
SHORT = """<h2>In short supply, against {against}</h2>
<p>To add: records of it until its share is met, all others staying as they are.</p>
{table}
"""
DIFFERENCES = """<h2>Where the shares differ most</h2>
<p>In points of per cent of each view; {second} less {first}.</p>
{table}
"""


def page(sets: Sets, made: Sequence[Panel], short: Sequence[Shortage], against: str) -> str:
    """The HTML page. `short`: of the first set; `against`: where its targets are from."""
    names = [name for name, _ in sets]
    title = "What the data are about: " + " and ".join(names)
    taxonomy = sets[0][1].taxonomy
    cards = "".join(f'<div class="card">{_plotly(panel, names)}</div>' for panel in made)
    body = _legend(sets, made) + f'<div class="grid">{cards}</div>'
    if short:
        lines = [
            (
                "all" if s.view == ALL else s.view,
                _name(s.view, s.id, taxonomy),
                f"{s.count:,}",
                f"{100 * s.share:.2f}",
                f"{100 * s.target:.2f}",
                f"{s.missing:,.0f}",
            )
            for s in short[:SHOWN_SHORTAGES]
        ]
        head = ("of", "what", "records", "share, %", "target, %", "to add")
        body += SHORT.format(against=html.escape(against), table=_table(head, lines))
    if len(sets) == 2:
        first, second = map(html.escape, names)
        found = differences(sets[0][1], sets[1][1])[:SHOWN_SHORTAGES]
        lines = [
            (
                view,
                _name(view, id, taxonomy),
                f"{100 * a:.2f}",
                f"{100 * b:.2f}",
                f"{100 * (b - a):+.2f}",
            )
            for view, id, a, b in found
        ]
        table = _table(("of", "what", f"{names[0]}, %", f"{names[1]}, %", "difference"), lines)
        body += DIFFERENCES.format(first=first, second=second, table=table)
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title), plotly=plotly.offline.get_plotlyjs(), body=body
    )


def _legend(sets: Sets, made: Sequence[Panel]) -> str:
    """What the colours are; that of a target only where there is one."""
    keys = [
        f'<i style="background:{colour}"></i>{html.escape(name)}: {found.total(ALL):,} records'
        for (name, found), colour in zip(sets, COLOURS, strict=False)
    ]
    if any(goal is not None for panel in made for goal in panel.targets):
        keys.append('<i class="mark"></i>target')
    return f'<p class="legend">{"".join(f"<span>{key}</span>" for key in keys)}</p>'


def _name(view: str, id: str, taxonomy: Taxonomy) -> str:
    """The English name of what `id` is in its view; of what is no node, the id itself."""
    path = id if view == ALL else f"{view}/{id}"
    return taxonomy.nodes[path].en if path in taxonomy.nodes else id


def differences(one: Distribution, other: Distribution) -> list[tuple[str, str, float, float]]:
    """View, id and both shares of all that differs, the widest difference first.

    Only views that both have records of: of what one lacks, the view above it speaks.
    """
    rows = []
    for view in one.views():
        if other.total(view):
            a, b = one.shares(view), other.shares(view)
            rows += [(view, id, a.get(id, 0.0), b.get(id, 0.0)) for id in {**a, **b}]
    rows = [row for row in rows if row[2] != row[3]]
    return sorted(rows, key=lambda row: (-abs(row[3] - row[2]), row[0], row[1]))


def _plotly(panel: Panel, names: Sequence[str]) -> str:
    """One chart as a piece of HTML that needs the library before it."""
    labels = [html.escape(label) for label in panel.labels]
    top = max([*(max(p) for p in panel.percents), *(g for g in panel.targets if g is not None)])
    places = list(range(len(labels)))  # by number: two labels may read the same
    bars = [
        plotly.graph_objects.Bar(
            y=places,
            x=percents,
            customdata=labels,
            name=html.escape(name),
            orientation="h",
            marker_color=colour,
            text=[
                "\u2003" * 2 * _in_the_way(x, goal, top) + f"{x:.1f}"
                for x, goal in zip(percents, panel.targets, strict=True)
            ],
            hovertemplate="%{customdata}: %{x:.2f} %",
            textposition="outside",
            cliponaxis=False,
        )
        for name, percents, colour in zip(names, panel.percents, COLOURS, strict=False)
    ]
    goals = [(i, goal) for i, goal in enumerate(panel.targets) if goal is not None]
    if goals:
        bars.append(
            plotly.graph_objects.Scatter(
                y=[i for i, _ in goals],
                x=[goal for _, goal in goals],
                name="target",
                mode="markers",
                hovertemplate="target: %{x:.2f} %",
                marker={"symbol": "line-ns", "size": 18, "line": {"width": 2, "color": "#222"}},
            )
        )
    figure = plotly.graph_objects.Figure(bars)
    figure.update_layout(
        title={"text": f"{html.escape(panel.title)} (% of {_counts(panel)})", "font": {"size": 14}},
        barmode="group",
        height=110 + (18 + 12 * len(names)) * len(labels),
        margin={"l": 10, "r": 40, "t": 44, "b": 24},
        yaxis={
            "autorange": "reversed",
            "automargin": True,
            "tickvals": places,
            "ticktext": labels,
        },
        showlegend=False,  # one for all stands above
        template="plotly_white",
        font={"size": 12},
    )
    return plotly.io.to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        config={"responsive": True, "displayModeBar": False},
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Of text alone; the first two columns are headings of their line."""
    heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = ""
    for first, second, *rest in lines:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        body += f"<tr><th>{html.escape(first)}</th><th>{html.escape(second)}</th>{cells}</tr>"
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="table">{table}</div>'
