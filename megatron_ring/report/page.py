"""The report as one HTML file: tables here, charts by page.js, nothing from elsewhere."""

import html
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.offline

from megatron_ring.report import curves, data
from megatron_ring.report.data import Run

HERE = Path(__file__).parent

# No request leaves the page, whatever the names in it say.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)

FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{header}
</header>
<main>
{main}
<footer>{footer}</footer>
</main>
<script type="application/json" id="data">{data}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""
HEADER = """<div id="runs" role="group" aria-label="runs shown"></div>
<div id="controls"></div>
<nav id="sections"></nav>"""
MAIN = """<section id="overview"><h2>Overview</h2>
{overview}
{config}
</section>
<div id="charts"></div>
{events}"""

NOTE = (
    "Thick lines are means over a fiftieth of a run around each step, faint ones the values. "
    "Where each run has one curve, colours are runs; where it has several, colours are curves, and "
    "dashes runs. Curves of more than {points:,} values are thinned: of each of equally long "
    "stretches the least and the greatest value are kept, so that no spike is lost; means are of "
    "all values. Areas are means over up to {stretches} stretches; of heat maps at most {maps} a "
    "run are shown. Drag in a chart to zoom all of them, double-click to see the whole run. "
    "Written {when} from {files}."
)


def render(runs: list[Run], title: str) -> str:
    """The page, with all it needs in it: it opens from a file, without a network."""
    shown = data.page_data(runs)
    footer = NOTE.format(
        points=curves.POINTS,
        maps=data.MAPS,
        stretches=data.STRETCHES,
        when=time.strftime("%Y-%m-%d %H:%M"),
        files=f"metrics.jsonl of {len(runs)} run{'s' * (len(runs) > 1)}",
    )
    main = MAIN.format(
        overview=_overview(runs), config=_config(runs), events=_events(shown["runs"])
    )
    return framed(title, HEADER, main, html.escape(footer), shown, ["page"])


def framed(
    title: str,
    header: str,
    main: str,
    footer: str,
    shown: Any,
    scripts: Sequence[str],
    sheets: Sequence[str] = (),
) -> str:
    """A page around HTML of its parts, whose scripts NAME.js, one after the other, draw `shown`.

    Style sheets NAME.css come after page.css.
    """
    css = [(HERE / f"{name}.css").read_text(encoding="utf-8") for name in ("page", *sheets)]
    return FRAME.format(
        policy=POLICY,
        title=html.escape(title),
        css="".join(css),
        header=header,
        main=main,
        footer=footer,
        data=as_json(shown),
        plotly=plotly.offline.get_plotlyjs(),
        script="".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in scripts),
    )


def as_json(value: Any) -> str:
    """JSON that may stand in a script element: no name in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _table(head: list[str], rows: list[list[str]], of: str, attributes: str = "") -> str:
    """An HTML table; all cells are text."""
    cells = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    lines = []
    for row in rows:
        first, *rest = (html.escape(cell) for cell in row)
        tds = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{tds}</tr>')
    return (
        f'<div class="table {of}"><table {attributes}><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _overview(runs: list[Run]) -> str:
    found = [data.summary(run) for run in runs]
    columns = [name for name in found[0] if any(one[name] for one in found)]
    rows = [
        [run.name, *(one[name] or "–" for name in columns)]
        for run, one in zip(runs, found, strict=True)
    ]
    return _table(["run", *columns], rows, "overview")


def _config(runs: list[Run]) -> str:
    """What differs between the runs, and the rest to unfold."""
    names = [run.name for run in runs]
    different = data.differences(runs)
    said = ""
    if different:
        rows = [[key, *map(_value, values)] for key, values in different.items()]
        said = "<h3>Where their configurations differ</h3>"
        said += _table(["key", *names], rows, "config")
    elif len(runs) > 1:
        said = "<p>Their configurations are the same.</p>"
    keys = sorted(set().union(*(run.config for run in runs)))
    if not keys:
        return said
    rows = [[key, *(_value(run.config.get(key, "(none)")) for run in runs)] for key in keys]
    every = _table(["key", *names], rows, "config")
    return f"{said}<details><summary>All {len(keys)} keys of config.yaml</summary>{every}</details>"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _events(runs: list[dict[str, Any]]) -> str:
    """The runs' diaries in one table, oldest first."""
    several = len(runs) > 1
    found = [(event, run["name"]) for run in runs for event in run["events"]]
    if not found:
        return ""
    found.sort(key=lambda pair: pair[0]["time"] or 0)
    rows = []
    for event, name in found:
        when = event["time"]
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if when else ""
        run = [name] * several
        rows.append([clock, *run, f"{event['step']:,}", event["kind"], event["text"]])
    head = ["time", *["run"] * several, "step", "kind", "what"]
    table = _table(head, rows, "events", 'id="events-table"')
    return f'<section id="events"><h2>Events</h2><div id="kinds"></div>{table}</section>'
