"""Reading a run's folder: what was written, what a kill leaves, and what is damaged."""

import json
import math
import re
from pathlib import Path

import pytest

from megatron_ring import run_folder

LINES = [
    {"step": 0, "valid_loss": 8.0},
    {"step": 1, "loss": 7.0, "lr": 0.1},
    {"step": 2, "loss": math.inf, "lr": 0.2, "expert_load": [[1.0, 1.0]]},
    {"step": 2, "valid_loss": 4.5},
    {"step": 3, "loss": None, "lr": 0.1, "note": "text"},
]


def write(run: Path, lines: list[dict], tail: str = "", file: str = "metrics.jsonl") -> Path:
    run.mkdir(exist_ok=True)
    (run / file).write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return run


def test_curves_leave_out_a_torn_line_and_keep_what_is_not_finite(tmp_path: Path) -> None:
    lines = run_folder.read_lines(write(tmp_path / "run", LINES, tail='{"step": 4, "lo'))
    assert lines == LINES
    assert run_folder.curve(lines, "lr") == ([1, 2, 3], [0.1, 0.2, 0.1])
    steps, loss = run_folder.curve(lines, "loss")
    assert (steps, loss[:2], math.isnan(loss[2])) == ([1, 2, 3], [7.0, math.inf], True)
    assert run_folder.curve(lines, "note") == run_folder.curve(lines, "expert_load") == ([], [])
    assert run_folder.curve(lines, "nothing") == ([], [])
    assert set(run_folder.curves(lines)) == {"loss", "lr", "valid_loss"}
    assert run_folder.curves(lines)["valid_loss"] == ([0, 2], [8.0, 4.5])


@pytest.mark.parametrize(
    ("tail", "complaint"),
    [
        ("{\n", "metrics.jsonl:6: not JSON: Expecting property name"),
        ("\n", "metrics.jsonl:6: not JSON"),
        ("[1]\n", 'metrics.jsonl:6: not an object with a whole "step": [1]'),
        ('{"loss": 1}\n', 'metrics.jsonl:6: not an object with a whole "step": {"loss": 1}'),
        ('{"step": 1.5}\n', 'metrics.jsonl:6: not an object with a whole "step"'),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, tail: str, complaint: str) -> None:
    run = write(tmp_path / "run", LINES, tail)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        run_folder.read_lines(run)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere; name the run.dir of a"):
        run_folder.read_lines(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is not the folder of a run: there is no .*metrics"):
        run_folder.read_lines(tmp_path)


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    assert run_folder.read_events(tmp_path) == []
    start = {"time": 9.5, "step": 0, "kind": "start", "text": "", "total": 10}
    resume = {"time": 20.0, "step": 5, "kind": "resume", "text": "", "restart": 1}
    run = write(tmp_path / "run", [start], file="events.jsonl", tail='{"time": 12, "st\n')
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(resume) + '\n{"step": 6}\n7\n{"time": 30')
    first, torn, second, short, no_object = run_folder.read_events(run)
    assert (first, second) == (start, resume)
    assert {k: torn[k] for k in ("time", "step", "kind")} == {
        "time": 9.5,
        "step": 0,
        "kind": "warning",
    }
    assert "events.jsonl:2: not JSON" in torn["text"]
    assert (short["step"], short["time"]) == (5, 20.0)
    said = "not an object with kind, step, text, time"
    assert short["text"].endswith(f'events.jsonl:4: {said}: {{"step": 6}}')
    assert no_object["text"].endswith(f"events.jsonl:5: {said}: 7")


def test_config_is_read_and_flattened(tmp_path: Path) -> None:
    assert run_folder.read_config(tmp_path) == {}
    (tmp_path / "config.yaml").write_text(
        "optim: {lr: 1.0e-3, betas: [0.9, 0.95]}\nloss: {sources: {}}\nname: null\n"
    )
    assert run_folder.flatten(run_folder.read_config(tmp_path)) == {
        "optim.lr": 1e-3,
        "optim.betas": [0.9, 0.95],
        "loss.sources": {},
        "name": None,
    }
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="config.yaml: not YAML"):
        run_folder.read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("text")
    with pytest.raises(ValueError, match="config.yaml: not a configuration, but text"):
        run_folder.read_config(tmp_path)
