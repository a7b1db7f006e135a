"""What a run's folder says of the run, as plain structures: for reports, the terminal and plots.

`metrics.jsonl` holds a JSON object a line, each with a "step"; `events.jsonl` is the run's diary
across restarts; `config.yaml` is the resolved configuration. A folder is read while a run writes to
it: the last line may be torn, and of an older run some of the files or keys are missing.
"""

import json
import math
from pathlib import Path
from typing import Any

import yaml

Line = dict[str, Any]  # "step", often "time" (seconds since 1970), and what was measured
Curve = tuple[list[int], list[float]]  # steps, values

NUMBERS = int | float
EVENT = {"time", "step", "kind", "text"}  # what each event has


def read_lines(run: Path) -> list[Line]:
    """Lines of RUN/metrics.jsonl; ValueError names the file and line of one that is damaged.

    A last line without its line break is what a killed run leaves, and is not read.
    """
    file = run / "metrics.jsonl"
    if not run.is_dir():
        raise ValueError(f"there is no folder {run}; name the run.dir of a run")
    if not file.is_file():
        raise ValueError(f"{run} is not the folder of a run: there is no {file}")
    lines = []
    for number, text in _whole_lines(file):
        line = _parsed(text, f"{file}:{number}")
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f'{file}:{number}: not an object with a whole "step": {text[:60]}')
        lines.append(line)
    return lines


def curve(lines: list[Line], key: str) -> Curve:
    """Steps and values of `key` in the order of the lines; null is nan, text and lists are none."""
    return curves([{"step": line["step"], key: line[key]} for line in lines if key in line]).get(
        key, ([], [])
    )


def curves(lines: list[Line]) -> dict[str, Curve]:
    """All curves by key, see `curve`, in one walk over the lines; "step" is none."""
    found: dict[str, Curve] = {}
    for line in lines:
        step = line["step"]
        for key, value in line.items():
            if value is None:
                value = math.nan
            elif not isinstance(value, NUMBERS) or key == "step":
                continue
            if key not in found:
                found[key] = ([], [])
            steps, values = found[key]
            steps.append(step)
            values.append(float(value))
    return found


def read_events(run: Path) -> list[Line]:
    """Lines of RUN/events.jsonl; none where there is no such file.

    A kill may have torn a line that later ones follow. It becomes a warning at the step and time of
    the event before it: the diary of a run that was killed often must stay readable.
    """
    file = run / "events.jsonl"
    events: list[Line] = []
    for number, text in _whole_lines(file) if file.is_file() else []:
        try:
            event = _parsed(text, f"{file}:{number}")
            if not isinstance(event, dict) or not event.keys() >= EVENT:
                keys = ", ".join(sorted(EVENT))
                raise ValueError(f"{file}:{number}: not an object with {keys}: {text[:60]}")
        except ValueError as error:
            before = events[-1] if events else {"time": None, "step": 0}
            place = {key: before[key] for key in ("time", "step")}
            event = place | {"kind": "warning", "text": str(error)}
        events.append(event)
    return events


def read_spikes(run: Path) -> list[Line]:
    """Lines of RUN/spikes.jsonl, see `spikes.say`; none where there is no such file."""
    file = run / "spikes.jsonl"
    found = _whole_lines(file) if file.is_file() else []
    return [_parsed(text, f"{file}:{number}") for number, text in found]


def read_config(run: Path) -> dict[str, Any]:
    """RUN/config.yaml as nested dicts, {} where there is none; ValueError when it is damaged."""
    file = run / "config.yaml"
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: not a configuration, but {str(config)[:60]}")
    return config


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested configuration under dotted keys, as one types them to override."""
    leaves = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _whole_lines(file: Path) -> list[tuple[int, str]]:
    """Lines with their numbers from 1; without what stands after the last line break."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return list(enumerate(text.split("\n")[:-1], 1))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
