"""A run in the terminal: how far, how well, how fast, and whether it still lives.

python tools/watch.py runs/sft
python tools/watch.py runs/sft --once | less

It only reads the run's folder, so it may be started and left at any time, before the run too, and
on another machine that sees the folder. Ctrl-C leaves it; when the run is finished it leaves alone.
"""

import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from megatron_ring.following import History, Line, Watcher, changed, seconds

COLOURS = {"running": "green", "starting": "green", "finished": "bold green", "waiting": "cyan"}
COLOURS |= {"stopped": "yellow", "silent": "bold red", "killed": "bold red", "failed": "bold red"}
LABEL = 13  # columns of what stands left of a line
BARS = "▁▂▃▄▅▆▇█"
PARTS = {  # of a step, and how they are drawn
    **{"forward_backward": "█", "optimizer": "▓", "data": "▒", "checkpoint": "#"},
    **{"validation": "+", "other": "░"},
}
HEAT = ((0.5, "░"), (1.5, "▒"), (2.5, "▓"), (math.inf, "█"))  # below this load of an expert
HEAT_COLOURS = {"×": "bold red", "░": "blue", "▒": "green", "▓": "yellow", "█": "red"}
HEAT_SAYS = "× dead  ░ < 0.5  ▒ < 1.5  ▓ < 2.5  █ more of a fair share"
MOST_LAYERS, MOST_EVENTS, MOST_SOURCES = 14, 6, 8
SMALL = 40  # lines of a screen below which heat map and events are short


class Block(NamedTuple):
    """Lines that are shown or left out together; the least important go first."""

    importance: int
    lines: list[Text]


def frame(watcher: Watcher, width: int, height: int | None = None) -> list[Text]:
    """The screen, in lines of at most `width` columns, `height` lines where that is given."""
    history, last = watcher.history, watcher.history.last
    small = height is not None and height < SMALL
    blocks = [
        Block(9, _head(watcher, width)),
        Block(8, _losses(history, width)),
        Block(5, _update(last, width)),
        Block(6, _preference(last, width)),
        Block(7, _speed(last, width)),
        Block(2, _step_time(last, width)),
        Block(3, _by_source(last, width)),
        Block(5, _experts(last, width)),
        Block(4, _heat_map(history.load, width, 4 if small else MOST_LAYERS)),
        Block(5, _spikes(history, width)),
        Block(1, _checkpoints(watcher, width)),
        Block(6, _diary(watcher, width, 4 if small else MOST_EVENTS)),
    ]
    while height is not None and sum(len(block.lines) for block in blocks) > height:
        least = min((block for block in blocks if block.lines), key=lambda block: block.importance)
        excess = sum(len(block.lines) for block in blocks) - height
        keep = len(least.lines) - excess if least.importance >= 5 else 0
        del least.lines[max(keep, 0) :]
    lines = [line for block in blocks for line in block.lines]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines


def _head(watcher: Watcher, width: int) -> list[Text]:
    state, start, step = watcher.state, watcher.start, watcher.history.step
    said = [state.word]
    if start.get("restart"):
        said.append(f"restart {start['restart']}")
    if ranks := start.get("world_size"):
        said.append(f"{ranks} rank{'s' * (ranks > 1)}")
    right = Text("● " + " · ".join(said), style=COLOURS[state.word])
    left = Text(_shortened(str(watcher.run), width - len(right) - 2), style="bold")
    lines = [Text.assemble(left, " " * (width - len(left) - len(right)), right)]
    if state.remark:
        lines.append(Text(state.remark, style=COLOURS[state.word]))
    if watcher.problem:
        lines.append(Text(watcher.problem, style="red"))
    if watcher.metrics.damaged:
        lines.append(Text(f"{watcher.metrics.damaged} damaged lines in metrics.jsonl", "yellow"))
    if not watcher.history.last and state.word == "waiting":
        return lines
    total = watcher.total
    if total:
        full = width * step // total
        bar = (("━" * full, COLOURS[state.word]), ("─" * (width - full), "dim"))
        lines.append(Text.assemble(*bar))
    said = [f"step {step:,}" + (f" of {total:,} · {step / total:.1%}" if total else "")]
    left = watcher.left()
    if state.word in ("running", "starting", "silent") and left is not None and step != total:
        end = time.strftime("%a %H:%M", time.localtime(watcher.now + left))
        said.append(f"{seconds(left)} left, until {end}")
    pace = watcher.history.seconds_a_step(start.get("time", 0.0))
    if pace is not None:
        said.append(f"{pace:.3g} s a step")
    return [*lines, Text(" · ".join(said)), Text()]


def _shortened(text: str, width: int) -> str:
    """The end of a path tells more than its beginning."""
    return text if len(text) <= width else "…" + text[-max(width - 1, 1) :]


def _labelled(label: str, text: Text | str) -> Text:
    return Text.assemble((f"{label:<{LABEL}}", "cyan"), text)


def _wrapped(label: str, items: Iterable[str], width: int, most: int = 3) -> list[Text]:
    """Items with dots between them, on as many lines as they need, up to `most`."""
    lines: list[str] = []
    for item in items:
        if lines and LABEL + len(lines[-1]) + 3 + len(item) <= width:
            lines[-1] += f" · {item}"
        else:
            lines.append(item)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " …"]
    return [_labelled("" if number else label, line) for number, line in enumerate(lines)]


def _said(line: Line, formats: dict[str, str]) -> list[str]:
    """The formats filled in whose key the line has: an older run has fewer."""
    return [text.format(line[key]) for key, text in formats.items() if line.get(key) is not None]


def _losses(history: History, width: int) -> list[Text]:
    last, lines = history.last, []
    if last:
        value = f"{last['loss']:<9.4f}"
        room = width - LABEL - len(value)
        points = [(step, loss) for step, loss in history.curve if math.isfinite(loss)]
        ends = f"  {points[0][1]:.3g} → {points[-1][1]:.3g}" if points else ""
        drawn = sparkline(points, max(room - len(ends), 8))
        text = Text.assemble((value, "bold"), (drawn, "green"), ends)
        lines.append(_labelled("loss", text))
    if history.valid:
        *before, newest = history.valid
        text = f"{newest.get('valid_loss', math.nan):.4f} at step {newest['step']:,}"
        for one in before:
            text += f", before {one.get('valid_loss', math.nan):.4f} at step {one['step']:,}"
        lines.append(_labelled("held out", text))
        said = {"valid_accuracy": "accuracy {:.1%}", "valid_margin": "margin {:.3f}"}
        lines += _wrapped("", _said(newest, said), width)
    return lines


def _update(last: Line, width: int) -> list[Text]:
    said = _said(last, {"lr": "lr {:.2e}", "grad_norm": "gradient norm {:.3f}"})
    parts = {key: f"{key[10:]} {{:.3f}}" for key in last if key.startswith("grad_norm/")}
    return _wrapped("update", said + _said(last, parts), width)


def sparkline(points: list[tuple[int, float]], width: int) -> str:
    """Means over equal spans of steps as bars, one a column; an empty span repeats the last."""
    if not points:
        return ""
    first, last = points[0][0], points[-1][0]
    sums = [[0.0, 0] for _ in range(min(width, len(points)))]
    for step, value in points:
        column = (step - first) * (len(sums) - 1) // max(last - first, 1)
        sums[column][0] += value
        sums[column][1] += 1
    means: list[float] = []
    for total, count in sums:
        means.append(total / count if count else means[-1])
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def _preference(last: Line, width: int) -> list[Text]:
    if "margin" not in last:
        return []
    said = {"accuracy": "accuracy {:.1%}", "margin": "margin {:.3f}"}
    said |= {"reward_chosen": "reward of chosen {:+.3f}", "reward_rejected": "of rejected {:+.3f}"}
    return _wrapped("preference", _said(last, said | {"kl": "KL {:.4f}"}), width)


def _speed(last: Line, width: int) -> list[Text]:
    own = "tokens_per_second_per_device"
    said = {own: "{:,.0f} tokens/s a device"}
    if own not in last:
        said = {"tokens_per_second": "{:,.0f} tokens/s"}
    said |= {"mfu": "MFU {:.1%}", "memory_gib": "{:.1f} GiB", "goodput": "goodput {:.1%}"}
    return _wrapped("speed", _said(last, said), width)


def _step_time(last: Line, width: int) -> list[Text]:
    own = {part: last.get(f"seconds/{part}", 0.0) for part in PARTS}
    total = sum(own.values())
    if not total:
        return []
    shares = {part: value / total for part, value in own.items() if value / total >= 0.005}
    bar = "".join(sign * round(shares.get(part, 0) * 20) for part, sign in PARTS.items())
    said = [f"{part.replace('_', '+')} {share:.0%} {PARTS[part]}" for part, share in shares.items()]
    return _wrapped("step time", [bar, *said], width)


def _by_source(last: Line, width: int) -> list[Text]:
    """Losses of sources, largest share of tokens first; for preference accuracy and margin."""
    names = [key.removeprefix("loss/") for key in last if key.startswith("loss/")]
    names.sort(key=lambda name: -last.get(f"tokens/{name}", 0))
    said = []
    for name in names[:MOST_SOURCES]:
        text = f"{name} {last[f'loss/{name}']:.4f}"
        if f"margin/{name}" in last:
            text += f" ({last[f'accuracy/{name}']:.0%}, margin {last[f'margin/{name}']:.3f})"
        elif f"tokens/{name}" in last:
            text += f" ({last[f'tokens/{name}']:,.0f} tokens)"
        said.append(text)
    if len(names) > MOST_SOURCES:
        said.append(f"{len(names) - MOST_SOURCES} more")
    return _wrapped("by source", said, width, most=4)


def _experts(last: Line, width: int) -> list[Text]:
    said = {"load_max_over_mean": "load max/mean {:.2f}", "load_worst_layer": "worst layer {:.2f}"}
    said |= {"dead_experts": "{} dead", "load_entropy": "entropy of load {:.3f}"}
    said |= {"router_entropy": "of the router {:.3f}", "aux_loss": "aux loss {:.3f}"}
    return _wrapped("experts", _said(last, said), width)


def _heat_map(line: Line | None, width: int, most: int) -> list[Text]:
    """Layers down in at most `most` lines, experts across; a cell shows the fullest of several."""
    if line is None:
        return []
    layers, first = line["expert_load"], line.get("first_layer", 1)
    tall = -(-len(layers) // most)
    lines = []
    for top in range(0, len(layers), tall):
        rows = layers[top : top + tall]
        wide = -(-len(rows[0]) // (width - LABEL))
        text = Text()
        for left in range(0, len(rows[0]), wide):
            sign = cell([load for row in rows for load in row[left : left + wide]])
            text.append(sign, HEAT_COLOURS[sign])
        span = f"{first + top}" + (f"-{first + top + len(rows) - 1}" if len(rows) > 1 else "")
        lines.append(_labelled(f"layer {span}", text))
    lines.append(_labelled("", Text(f"{HEAT_SAYS}, step {line['step']:,}", "dim")))
    return lines


def cell(loads: list[float]) -> str:
    """The sign for experts that share a cell: a dead one shows, else the fullest."""
    if min(loads) == 0:
        return "×"
    return next(sign for limit, sign in HEAT if max(loads) < limit)


def _spikes(history: History, width: int) -> list[Text]:
    names = {name: f"{{}} {name}" for name in ("skipped", "queued", "dropped")}
    said = _said(history.counts, names)
    for line in history.spikes:
        seen = {"spike_loss": "loss {:.4g}", "spike_grad_norm": "gradient norm {:.4g}"}
        said.append(f"last at step {line['step']:,}: {', '.join(_said(line, seen))}")
    return _wrapped("spikes", said, width)


def _checkpoints(watcher: Watcher, width: int) -> list[Text]:
    folder = watcher.run / "checkpoints"
    try:
        found = sorted(path for path in folder.iterdir() if path.name.startswith("step-"))
    except OSError:
        return []
    said = [path.name.removeprefix("step-").lstrip("0") or "0" for path in found[-4:]]
    if found and (written := changed(found[-1])) is not None:
        said[-1] += f", {seconds(watcher.now - written)} ago"
    said = [f"{len(found) - 4} older", *said] if len(found) > 4 else said
    return _wrapped("checkpoints", said, width)


def _diary(watcher: Watcher, width: int, most: int) -> list[Text]:
    """The last events; warnings and failures in colour."""
    colours = {"warning": "yellow", "spike": "yellow", "failed": "red", "stopped": "yellow"}
    lines = []
    for event in watcher.events[-most:]:
        old = watcher.now - event["time"] > 12 * 3600
        when = time.strftime("%d %b %H:%M" if old else "%H:%M:%S", time.localtime(event["time"]))
        text = (str(event["text"]).splitlines() or [""])[0]  # a profile's table has many
        said = f"step {event['step']:,} {event['kind']}: {text}"
        lines.append(_labelled(when, Text(said, colours.get(event["kind"], ""))))
    return [Text(), *lines] if lines else []


def say(watcher: Watcher) -> str:
    """One line, for logs."""
    last, total = watcher.history.last, watcher.total
    said = f"{watcher.state.word}  step {watcher.history.step}{f'/{total}' if total else ''}"
    said += f"  loss {last['loss']:.4f}" if last else ""
    left = watcher.left()
    if watcher.state.word == "running" and left is not None:
        said += f"  {seconds(left)} left"
    return said + (f"  {watcher.state.remark}" if watcher.state.remark else "")


def watch(watcher: Watcher, console: Console, every: float) -> None:
    """Look and show until the run is finished; in a pipe a line whenever there is news."""
    if not console.is_terminal:
        shown = ""
        while True:
            watcher.look(time.time())
            if (line := say(watcher)) != shown:
                print(line, flush=True)
                shown = line
            if watcher.state.word == "finished":
                return
            time.sleep(every)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            watcher.look(time.time())
            live.update(Group(*frame(watcher, console.width, console.height - 1)), refresh=True)
            if watcher.state.word == "finished":
                return
            time.sleep(every)


def main(
    run: Annotated[Path, typer.Argument(help="the run's folder; it need not exist yet")],
    every: Annotated[float, typer.Option(help="seconds between two looks", min=0.1)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="print what there is and leave")] = False,
) -> None:
    """Watch a run: progress, losses, speed, experts, events, and whether it still lives.

    Written into a pipe it prints a line whenever there is news. Ctrl-C leaves.

    Example: python tools/watch.py runs/sft
    """
    console, watcher = Console(highlight=False), Watcher(run)
    try:
        if not once:
            watch(watcher, console, every)
            return
        watcher.look(time.time())
        console.print(Group(*frame(watcher, console.width)))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    typer.run(main)
