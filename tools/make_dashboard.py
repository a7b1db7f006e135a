"""The charts of the report as a wandb workspace: published with a login, a file without one.

\b
Examples:
    python tools/make_dashboard.py --entity my-team --project megatron-ring
    python tools/make_dashboard.py --output dashboard.json

Both have the sections SFT, DPO, MoE health, speed and spikes, from the table of
megatron_ring/report/charts.py. Needs `pip install -e .[dashboard]`. The file is JSON of the
library's own model (wandb_workspaces.workspaces.internal.View, what it sends to wandb), and is read
back into that model before the tool says it is written.
"""

import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_ring.report.charts import SECTIONS, Chart
from megatron_ring.trackers import has_wandb_login

COLUMNS = 2
PLOTS = {"lines": "line", "spikes": "line", "stacked": "stacked-area", "shares": "pct-area"}
SMOOTHING = 0.6  # of an exponential mean; the values stay visible behind it


def workspace(entity: str, project: str, name: str) -> Any:
    """The `wandb_workspaces` Workspace of all sections."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=section.title,
            panels=[panel(chart) for chart in section.charts],
            is_open=True,
            layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=3),
        )
        for section in SECTIONS
    ]
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections)


def panel(chart: Chart) -> Any:
    """A line plot of the chart's keys, those with "/*" by a regular expression; or the pictures."""
    import wandb_workspaces.reports.v2 as wr

    if chart.kind == "heat map":
        return wr.MediaBrowser(title=chart.title, media_keys=list(chart.keys), gallery_axis="step")
    many = [re.escape(key[:-2]) for key in chart.keys if key.endswith("/*")]
    exact = [key for key in chart.keys if not key.endswith("/*")]
    if many and exact:
        raise ValueError(f"chart {chart.title!r} mixes keys and patterns, which a panel cannot")
    if chart.kind == "spikes":
        exact.append("spike_loss")
    smoothed = {
        "smoothing_type": "exponentialTimeWeighted",
        "smoothing_factor": SMOOTHING,
        "smoothing_show_original": True,
    }
    return wr.LinePlot(
        title=chart.title,
        y=exact,
        metric_regex=f"^({'|'.join(many)})/" if many else None,
        title_y=chart.unit,
        log_y=chart.log or None,
        plot_type=PLOTS[chart.kind],
        **(smoothed if chart.smooth and chart.kind == "lines" else {}),
    )


def write(made: Any, file: Path) -> None:
    """The workspace as JSON, read back; ValueError when the library makes something else of it."""
    from wandb_workspaces.workspaces.internal import View

    model = made._model  # the library has no public way to a file
    file.parent.mkdir(parents=True, exist_ok=True)
    text = model.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
    back = View.model_validate_json(file.read_text(encoding="utf-8"))
    again = back.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    if again != text:
        raise ValueError(
            f"{file} is not what was written when wandb_workspaces reads it; use another version "
            "of that package"
        )


def main(
    entity: Annotated[str, typer.Option(help="wandb user or team [that of the login]")] = "",
    project: Annotated[str, typer.Option(help="wandb project, as log.project")] = "megatron-ring",
    name: Annotated[str, typer.Option(help="name of the workspace")] = "Megatron-Ring",
    output: Annotated[Path | None, typer.Option(help="write a file, publish nothing")] = None,
) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, at its import
            import wandb_workspaces  # noqa: F401
    except ImportError:
        sys.exit("error: wandb-workspaces is not installed: pip install -e .[dashboard]")
    try:
        if output is None and has_wandb_login():
            publish(entity, project, name)
            return
        write(workspace(entity, project, name), output or Path("dashboard.json"))
    except ValueError as error:
        sys.exit(f"error: {error}")
    if output is None:
        print("no wandb login here (`wandb login` makes one), so the dashboard became a file")
    print(f"wrote {output or 'dashboard.json'}")


def publish(entity: str, project: str, name: str) -> None:
    """Save the workspace in wandb and print where it is."""
    import wandb

    owner = entity or wandb.Api().default_entity
    if not owner:
        raise ValueError("the login has no default entity; name one with --entity")
    print(f"published {workspace(owner, project, name).save().url}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=__doc__)(main)
    app()
