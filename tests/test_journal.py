"""What a run writes of itself, over all its lives."""

import json
import time

import pytest

from megatron_ring import journal, spikes
from megatron_ring.config import SpikesConfig
from tests.test_metrics import load

LINE = {"loss": 2.5, "lr": 1e-3, "grad_norm": 1.25, "step_seconds": 0.5, "aux_loss": 1.0}
LINE |= {"tokens_per_second": 1234.0, "load_max_over_mean": 1.5, "memory_gib": 2.0}


def read(file):
    return [json.loads(text) for text in file.read_text().splitlines()]


def test_lines_to_be_run_again_are_forgotten(alone, tmp_path, capsys):
    """A run killed after step 5 (in the middle of a line) resumes from the checkpoint of 3."""
    file = tmp_path / "metrics.jsonl"
    with journal.opened(load(f"run.dir={tmp_path}", "log.wandb=disabled"), 9, 0) as log:
        log.valid(0, {"loss": 6.0, "supervised": 100})
        for done in range(1, 6):
            log.step({"step": done} | LINE)
        log.valid(5, {"loss": 5.0, "supervised": 100})
    file.write_text(file.read_text() + '{"step": 6, "lo')
    with journal.opened(load(f"run.dir={tmp_path}", "log.wandb=disabled"), 9, 3) as log:
        log.step({"step": 4} | LINE | {"loss": 9.0})
    lines = read(file)
    assert abs(lines[0].pop("time") - time.time()) < 60
    assert lines[0] == {"step": 0, "valid_loss": 6.0, "valid_supervised": 100}
    assert [(line["step"], line.get("loss")) for line in lines[1:]] == [
        (1, 2.5),
        (2, 2.5),
        (3, 2.5),
        (4, 9.0),
    ]
    assert "step 0: held out, loss 6.0000" in capsys.readouterr().out


def test_the_diary_is_kept_over_all_lives(alone, tmp_path):
    """Killed while writing a line, resumed, failed, resumed and finished."""
    made, file = load(f"run.dir={tmp_path}", "log.wandb=disabled"), tmp_path / "events.jsonl"
    with journal.opened(made, 3, 0) as log:
        log.note("hello")
        log.step({"step": 1} | LINE)
        log.step({"step": 2} | LINE)
        log.saved(1, "saved step-1")  # in the background, while step 2 was made
    file.write_text(file.read_text() + '{"time": 1, "ki')
    with pytest.raises(FloatingPointError), journal.opened(made, 3, 1) as log:
        log.saved(1, "WARNING: no copy")
        raise FloatingPointError("no number")
    with journal.opened(made, 3, 1) as log:
        log.step({"step": 3} | LINE)
    texts = file.read_text().splitlines()
    events = [json.loads(text) for text in texts if text != '{"time": 1, "ki']
    assert len(events) == len(texts) - 1
    assert [(event["kind"], event["step"], event["text"]) for event in events] == [
        ("start", 0, "start after step 0"),
        ("note", 0, "hello"),
        ("saved", 1, "saved step-1"),
        ("stopped", 2, "stopped after step 2 of 3"),
        ("resume", 1, "resume after step 1"),
        ("warning", 1, "WARNING: no copy"),
        ("failed", 1, "FloatingPointError: no number"),
        ("resume", 1, "resume after step 1"),
        ("finished", 3, "finished after step 3"),
    ]
    starts = [event for event in events if "restart" in event]
    assert [(e["restart"], e["total"], e["world_size"]) for e in starts] == [
        (0, 3, 1),
        (1, 3, 1),
        (2, 3, 1),
    ]


def test_goodput_is_training_over_all_that_has_passed(alone, tmp_path):
    """The first life began 100 s ago and kept 2 steps of 4 s; two more lines of 3 × 4 s follow.

    A line of a step that is run again counts once; skipped steps, two a line, do not count.
    """
    diary, metrics = tmp_path / "events.jsonl", tmp_path / "metrics.jsonl"
    first = {"time": time.time() - 100, "step": 0, "kind": "start", "text": ""}
    diary.write_text(json.dumps(first) + "\n")
    lines = [{"step": step, "step_seconds": 4.0, "steps": 1} for step in (1, 2, 3)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with journal.opened(load(f"run.dir={tmp_path}", "log.wandb=disabled"), 9, 2) as log:
        for step in (5, 8):
            log.step({"step": step} | LINE | {"step_seconds": 4.0, "steps": 5, "updates": 3})
    said = [line["goodput"] for line in read(metrics) if "goodput" in line]
    assert said == pytest.approx([0.20, 0.32], abs=0.01)


def test_what_is_left_may_take_days(alone, tmp_path, capsys):
    with journal.opened(load(f"run.dir={tmp_path}", "log.wandb=disabled"), 200_001, 0) as log:
        log.step({"step": 1} | LINE | {"step_seconds": 1.5})
    assert "eta 3 days, 11:20:00" in capsys.readouterr().out  # 300,000 s


def test_a_heat_map_has_a_line_of_its_own(alone, tmp_path):
    made = load(f"run.dir={tmp_path}", "log.wandb=disabled", "model.first_k_dense_replace=1")
    with journal.opened(made, 1, 0) as log:
        log.step({"step": 1} | LINE, [[1.0, 1.0], [0.5, 1.5]])
    numbers, chart = read(tmp_path / "metrics.jsonl")
    assert "expert_load" not in numbers
    assert chart["expert_load"] == [[1.0, 1.0], [0.5, 1.5]]
    assert (chart["step"], chart["first_layer"]) == (1, 2)


def test_the_diary_knows_steps_without_a_line(alone, tmp_path):
    """log.every=10: what is saved and where it ended is told of the step, not of the last line."""
    with journal.opened(load(f"run.dir={tmp_path}", "log.wandb=disabled"), 12, 0) as log:
        log.step({"step": 5} | LINE)
        log.tried(7, spikes.Guard(SpikesConfig(), 1, 13, {}), None, None)
        log.saved(7, "saved step-7")
    events = read(tmp_path / "events.jsonl")
    assert [(event["step"], event["text"]) for event in events[1:]] == [
        (7, "saved step-7"),
        (7, "stopped after step 7 of 13"),
    ]


def test_a_run_that_starts_over_has_its_first_validation_once(alone, tmp_path):
    """Killed before its first save."""
    for loss in (6.0, 5.0):
        with journal.opened(load(f"run.dir={tmp_path}", "log.wandb=disabled"), 9, 0) as log:
            log.valid(0, {"loss": loss, "supervised": 100})
    assert [line["valid_loss"] for line in read(tmp_path / "metrics.jsonl")] == [5.0]


def test_a_full_disk_is_named_and_hides_no_other_error(alone, tmp_path):
    """/dev/full is a disk without room."""
    made = load(f"run.dir={tmp_path}", "log.wandb=disabled")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(OSError) as error, journal.opened(made, 9, 1) as log:
        log.file = open("/dev/full", "a")  # noqa: SIM115
        log.step({"step": 2} | LINE)
    assert str(error.value) == (
        "could not write to /dev/full: [Errno 28] No space left on device; make room on its disk "
        "and start the same command again, it resumes from its newest checkpoint"
    )
    with pytest.raises(ValueError, match="the cause"), journal.opened(made, 9, 1) as log:
        log.events = open("/dev/full", "a")  # noqa: SIM115
        raise ValueError("the cause")
