"""Runs as the page takes them: thinned curves, heat maps, spikes, events and what they come to."""

import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ring import spikes
from megatron_ring.report import charts, curves
from megatron_ring.report.charts import Chart, Section
from megatron_ring.run_folder import (
    Curve,
    Line,
    flatten,
    read_config,
    read_events,
    read_lines,
    read_spikes,
)
from megatron_ring.run_folder import curves as read_curves

KNOTS = 1_000  # steps whose tokens and time the page knows; between them it interpolates
MAPS = 60  # heat maps a run
STRETCHES = 300  # of a run, in charts of curves that are added
EVENTS = 500  # lines of a run's diary in the table
ENDS = {"finished": "finished", "stopped": "stopped, can go on", "failed": "failed"}
COUNTED = {"saved", "note"}  # kinds of events of which old ones are left out when there are many


@dataclass(frozen=True)
class Run:
    """What was read of a run's folder."""

    name: str  # unique on the page
    lines: list[Line]
    events: list[Line]
    spikes: list[Line]
    config: dict[str, Any]  # dotted keys
    curves: dict[str, Curve]

    @property
    def keys(self) -> set[str]:
        return set(self.curves)

    def curve(self, key: str) -> Curve:
        """Steps and values; none where the run has no such key."""
        return self.curves.get(key, ([], []))

    @property
    def head(self) -> str:
        known = self.config.get("loss.head")
        return known or ("dpo" if "preference_loss" in self.keys else "sft")


def read(folders: list[Path]) -> list[Run]:
    """The runs of `folders`; ValueError says which file, or line of it, is missing or damaged."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} is named {names.count(twice)} times; name each run once")
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Run:
    lines = read_lines(folder)
    if not lines:
        raise ValueError(f"{folder / 'metrics.jsonl'} has no line yet; wait for the first")
    config = flatten(read_config(folder))
    return Run(name, lines, read_events(folder), read_spikes(folder), config, read_curves(lines))


def page_data(runs: list[Run]) -> dict[str, Any]:
    """All that the page's script draws: plain lists and numbers."""
    sections = [*charts.SECTIONS]
    rest = charts.left_over(set().union(*(run.keys for run in runs)))
    if rest:
        sections.append(Section("Other numbers", rest))
    drawn = [_section(section, runs) for section in sections]
    drawn = [section for section in drawn if section["cards"]]
    wanted = _wanted(drawn)
    return {
        "runs": [_run(run, wanted.get(index, {})) for index, run in enumerate(runs)],
        "sections": drawn,
    }


def _section(section: Section, runs: list[Run]) -> dict[str, Any]:
    """A section's cards: one a chart, and one a run of those that cannot be overlaid."""
    shown = [i for i, run in enumerate(runs) if section.head in (None, run.head)]
    cards = []
    for chart in section.charts:
        if chart.kind == "heat map":
            cards += [_card(chart, [i], []) for i in shown if _maps(runs[i])]
        elif chart.kind in ("stacked", "shares"):
            cards += [_stack(chart, i, runs[i]) for i in shown]
        elif chart.kind == "lines" or any(run.spikes or run.events for run in runs):
            cards.append(_card(chart, shown, _series(chart, [runs[i] for i in shown])))
    cards = [card for card in cards if card["series"] or card["kind"] == "heat map"]
    return {"title": section.title, "cards": cards}


def _card(chart: Chart, runs: list[int], series: list[dict[str, Any]]) -> dict[str, Any]:
    shown = asdict(chart)
    del shown["keys"]
    return shown | {"runs": runs, "series": series}


def _series(chart: Chart, runs: list[Run]) -> list[dict[str, Any]]:
    """The chart's curves: key, name, and which colour; a held-out twin has its training curve's."""
    keys = set().union(*(run.keys for run in runs))
    found = [(p, key) for p in chart.keys for key in sorted(keys) if charts.matches(p, key)]
    colours = list(dict.fromkeys(charts.not_held_out(key) for _, key in found))
    both = len({key.startswith("valid_") for _, key in found}) > 1
    return [
        {
            "key": key,
            "label": charts.label(pattern, key, both),
            "colour": colours.index(charts.not_held_out(key)),
            "held_out": key.startswith("valid_"),
        }
        for pattern, key in found
    ]


def _stack(chart: Chart, index: int, run: Run) -> dict[str, Any]:
    """A card of curves that are added: means over the same stretches of the run, 0 where missing.

    Thinned each for itself they would not stand at the same steps.
    """
    series = _series(chart, [run])
    keys = [one["key"] for one in series]
    lines = [line for line in run.lines if any(key in line for key in keys)]
    values = np.array([[line.get(key) or 0.0 for key in keys] for line in lines], dtype=float)
    width = -(-len(lines) // STRETCHES) or 1
    starts = range(0, len(lines), width)
    means = [np.nan_to_num(values[start : start + width]).mean(0) for start in starts]
    steps = [lines[min(start + width // 2, len(lines) - 1)]["step"] for start in starts]
    columns = [curves.short(column, 4) for column in np.array(means).T]
    return _card(chart, [index], series) | {"steps": steps, "values": columns}


def _wanted(sections: list[dict[str, Any]]) -> dict[int, dict[str, bool]]:
    """Of each run the keys that some card draws, and whether one of them smooths it."""
    wanted: dict[int, dict[str, bool]] = {}
    overlaid = [card for section in sections for card in section["cards"] if "steps" not in card]
    for card in overlaid:
        for run in card["runs"]:
            for key in (one["key"] for one in card["series"]):
                own = wanted.setdefault(run, {})
                own[key] = own.get(key, False) or card["smooth"]
    return wanted


def _run(run: Run, wanted: dict[str, bool]) -> dict[str, Any]:
    drawn = {}
    for key, smoothed in wanted.items():
        steps, values = run.curve(key)
        if steps:
            held_out = key.startswith("valid_")
            drawn[key] = curves.prepare(steps, values, smoothed and not held_out)._asdict()
    return {
        "name": run.name,
        "axes": _axes(run),
        "curves": drawn,
        "maps": _maps(run),
        "spikes": _spikes(run),
        "events": _events(run),
    }


def clock(run: Run) -> tuple[list[int], list[float]]:
    """Steps and hours since the run's first start; without times, hours in steps alone."""
    timed = [line for line in run.lines if line.get("time") is not None]
    if timed:
        starts = [event["time"] for event in run.events if event["time"] is not None]
        first = min([timed[0]["time"], *starts[:1]])
        hours = [(line["time"] - first) / 3600 for line in timed]
        return [line["step"] for line in timed], hours
    steps, seconds = run.curve("step_seconds")
    passed = np.cumsum(np.nan_to_num(seconds) * np.diff(steps, prepend=0)) / 3600
    return steps, passed.tolist()


def tokens_seen(run: Run) -> tuple[list[int], list[float]]:
    """Steps, and tokens of all rows up to there."""
    steps, tokens = run.curve("tokens")
    return steps, np.cumsum(np.nan_to_num(tokens)).tolist()


def _axes(run: Run) -> dict[str, list[Any]]:
    """Knots of what the x axis may show instead of steps."""
    axes: dict[str, list[Any]] = {}
    for name, (steps, values) in (("tokens", tokens_seen(run)), ("hours", clock(run))):
        # Held-out rows and spikes have lines of their own at the same step; the last one counts.
        known = dict(zip(steps, np.maximum.accumulate(values or [0.0]).tolist(), strict=False))
        some = np.unique(np.linspace(0, max(len(known) - 1, 0), KNOTS).astype(int)) if known else []
        at, value = list(known), list(known.values())
        digits = 12 if name == "tokens" else 6
        shown = curves.short(np.array([value[i] for i in some], dtype=float), digits)
        axes[name] = [[at[i] for i in some], shown]
    return axes


def _maps(run: Run) -> dict[str, Any] | None:
    """At most MAPS heat maps of the experts' load, evenly chosen, the first and last among them."""
    lines = [line for line in run.lines if line.get("expert_load")]
    if not lines:
        return None
    some = np.unique(np.linspace(0, len(lines) - 1, MAPS).astype(int))
    return {
        "first_layer": lines[0].get("first_layer", 1),
        "steps": [lines[i]["step"] for i in some],
        "load": [
            [curves.short(np.array(layer, dtype=float), 3) for layer in lines[i]["expert_load"]]
            for i in some
        ],
        "count": len(lines),
    }


def _spikes(run: Run) -> list[dict[str, Any]]:
    """Steps that spiked, or whose batch came again: loss, kind, and what was done."""
    if run.spikes:
        return [
            {
                "step": spike["step"],
                "loss": curves.short(np.array([float(spike["loss"])]))[0],
                "kind": spike["verdict"],
                "text": f"{spikes.say(spike)} (sources: {', '.join(spike['sources'])})",
            }
            for spike in run.spikes
        ]
    said = dict.fromkeys(line["step"] for line in run.lines if "spike_grad_norm" in line)
    said |= {event["step"]: event["text"] for event in run.events if event["kind"] == "spike"}
    losses = {line["step"]: line["spike_loss"] for line in run.lines if "spike_loss" in line}
    return [
        {"step": step, "loss": losses.get(step), "kind": "spike", "text": said.get(step) or "spike"}
        for step in sorted(said | losses)
    ]


def _events(run: Run) -> list[dict[str, Any]]:
    """The run's diary; of frequent kinds only the newest, when it is long."""
    frequent = [i for i, event in enumerate(run.events) if event["kind"] in COUNTED]
    room = max(EVENTS - (len(run.events) - len(frequent)), 0)
    dropped = set(frequent[: max(len(frequent) - room, 0)])
    kept = [event for i, event in enumerate(run.events) if i not in dropped]
    events = [{key: event[key] for key in ("time", "step", "kind", "text")} for event in kept]
    if dropped:
        text = f"{len(dropped)} older lines of the kinds {', '.join(sorted(COUNTED))} left out"
        events.insert(0, {"time": None, "step": 0, "kind": "report", "text": text})
    return events


def summary(run: Run) -> dict[str, str]:
    """The run's row in the overview, by column; "" where nothing is known."""
    starts = [event for event in run.events if event["kind"] in ("start", "resume")]
    last = max(line["step"] for line in run.lines)
    total = starts[-1].get("total") if starts else None  # spikes make a run longer
    hours, tokens = clock(run)[1], tokens_seen(run)[1]
    restarts = sum(event["kind"] == "resume" for event in run.events)
    skipped = _last(run, "skipped")
    return {
        "status": status(run),
        "head": run.head,
        "steps": f"{last:,}" + (f" of {max(total, last):,}" if total else ""),
        "tokens": _large(tokens[-1]) if tokens else "",
        "time": _duration(hours[-1]) if hours else "",
        "goodput": _percent(_last(run, "goodput")),
        "tokens/s/device": _number(_last(run, "tokens_per_second_per_device"), ",.0f"),
        "MFU": _percent(_last(run, "mfu")),
        "loss": _number(_recent(run, "loss"), ".4f"),
        "held-out loss": _number(_last(run, "valid_loss"), ".4f"),
        "restarts": str(restarts) if run.events else "",
        "skipped": _number(skipped, ".0f"),
    }


def status(run: Run) -> str:
    """How the run ended, by the last word of its diary."""
    told = [event for event in run.events if event["kind"] in {*ENDS, "start", "resume"}]
    if told and told[-1]["kind"] in ENDS:
        return ENDS[told[-1]["kind"]]
    when = run.lines[-1].get("time")
    said = f"last line {time.strftime('%Y-%m-%d %H:%M', time.localtime(when))}" if when else ""
    return f"running, or killed; {said}" if told and said else said


def differences(runs: list[Run]) -> dict[str, list[Any]]:
    """Config keys whose values differ between the runs; names and folders of their own aside."""
    own = {"run.dir", "run.name", "checkpoint.second_dir"}
    keys = sorted(set().union(*(run.config for run in runs)) - own)
    rows = {key: [run.config.get(key, "(none)") for run in runs] for key in keys}
    return {key: row for key, row in rows.items() if any(a != b for a, b in pairwise(row))}


def _last(run: Run, key: str) -> float | None:
    values = run.curve(key)[1]
    return values[-1] if values else None


def _recent(run: Run, key: str) -> float | None:
    """Mean over the last fiftieth of the values, as the curves are smoothed."""
    values = run.curve(key)[1]
    return float(np.mean(values[-max(len(values) // 50, 1) :])) if values else None


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _large(value: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.4g} {name}"
    return f"{value:.0f}"


def _duration(hours: float) -> str:
    minutes = round(hours * 60)
    if minutes < 1:
        return f"{hours * 3600:.0f} s"
    days, hours_left = divmod(minutes // 60, 24)
    return (f"{days} d " if days else "") + f"{hours_left} h {minutes % 60:02d} min"
