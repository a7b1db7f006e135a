"""What the page is told of a run: sums and times by hand, which cards there are, what is wrong."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.report import data

LINES = [
    {"step": 0, "time": 1000.0, "valid_loss": 8.0},
    {"step": 1, "time": 1010.0, "loss": 7.0, "lr": 0.1, "tokens": 100, "tokens/a": 30},
    {"step": 2, "time": 1020.0, "loss": 5.0, "lr": 0.2, "tokens": 100, "tokens/a": 10},
    {"step": 3, "time": 4600.0, "loss": None, "lr": 0.1, "tokens": 120, "tokens/b": 5},
    {"step": 3, "time": 4600.0, "expert_load": [[0.0, 2.0]], "first_layer": 2},
    {"step": 4, "time": 8200.0, "loss": 4.0, "tokens": 80, "goodput": 0.5, "odd": 1},
]
EVENTS = [
    {"time": 990.0, "step": 0, "kind": "start", "text": "", "total": 8, "restart": 0},
    {"time": 4500.0, "step": 2, "kind": "resume", "text": "", "total": 10, "restart": 1},
]


def write(
    run: Path, lines: list[dict[str, Any]] = LINES, events: list[dict[str, Any]] = EVENTS
) -> Path:
    run.mkdir(parents=True)
    for name, rows in (("metrics", lines), ("events", events)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def read_one(run: Path) -> data.Run:
    return data.read([run])[0]


def titles(page: dict[str, Any]) -> dict[str, list[str]]:
    return {s["title"]: [card["title"] for card in s["cards"]] for s in page["sections"]}


def test_summary_by_hand(tmp_path: Path) -> None:
    said = data.summary(read_one(write(tmp_path / "run")))
    assert said["steps"] == "4 of 10"
    assert said["tokens"] == "400"
    assert said["time"] == "2 h 00 min"  # 990 to 8200 s
    assert (said["goodput"], said["restarts"], said["held-out loss"]) == ("50.0%", "1", "8.0000")
    assert (said["loss"], said["head"], said["MFU"]) == ("4.0000", "sft", "")
    assert said["status"].startswith("running, or killed; last line 1970-01-01")


def test_a_run_that_ends_with_spikes_is_counted_to_its_end(tmp_path: Path) -> None:
    """Planned were 10 steps; the last batch spiked and came again twice."""
    ends = [{"step": s, "spike_loss": 9.0, "skipped": s - 9, "queued": 1} for s in (10, 11, 12)]
    said = data.summary(read_one(write(tmp_path / "run", [*LINES, *ends])))
    assert (said["steps"], said["skipped"], said["loss"]) == ("12 of 12", "3", "4.0000")


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["start", "finished"], "finished"),
        (["start", "failed", "resume", "stopped", "note"], "stopped, can go on"),
        (["start", "failed"], "failed"),
        (["start", "finished", "resume"], "running, or killed"),
    ],
)
def test_the_last_word_of_the_diary_is_the_status(
    tmp_path: Path, kinds: list[str], said: str
) -> None:
    events = [{"time": 1.0, "step": 0, "kind": kind, "text": ""} for kind in kinds]
    assert data.status(read_one(write(tmp_path / "run", events=events))).startswith(said)


def test_axes_by_hand(tmp_path: Path) -> None:
    run = read_one(write(tmp_path / "run"))
    steps, hours = data.clock(run)
    assert steps == [0, 1, 2, 3, 3, 4]
    seconds = [10, 20, 30, 3610, 3610, 7210]
    assert hours == pytest.approx([second / 3600 for second in seconds])
    axes = data.page_data([run])["runs"][0]["axes"]
    assert axes["tokens"] == [[1, 2, 3, 4], [100, 200, 320, 400]]
    assert axes["hours"][0] == [0, 1, 2, 3, 4]


def test_older_runs_without_times_have_hours_in_steps(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": 1.0, "step_seconds": 360.0} for s in (10, 20, 25)]
    run = read_one(write(tmp_path / "run", lines, events=[]))
    assert data.clock(run) == ([10, 20, 25], pytest.approx([1.0, 2.0, 2.5]))
    assert data.status(run) == ""


def test_cards_are_those_of_keys_that_are_there(tmp_path: Path) -> None:
    page = data.page_data([read_one(write(tmp_path / "run"))])
    assert titles(page) == {
        "SFT": [
            "Loss",
            "Held-out loss",
            "Tokens by source",
            "Learning rate",
            "Tokens between two lines",
        ],
        "MoE health": ["Load of the experts"],
        "Speed and memory": ["Goodput"],
        "Spikes and events": ["Loss with spikes and events"],
        "Other numbers": ["odd"],
    }
    assert page["runs"][0]["maps"] == {
        "first_layer": 2,
        "steps": [3],
        "load": [[[0, 2]]],
        "count": 1,
    }
    assert page["runs"][0]["curves"]["loss"]["num_not_finite"] == 1


def test_areas_are_means_at_the_same_steps_with_0_where_a_key_is_missing(tmp_path: Path) -> None:
    page = data.page_data([read_one(write(tmp_path / "run"))])
    card = next(c for c in page["sections"][0]["cards"] if c["title"] == "Tokens by source")
    assert (card["steps"], card["values"]) == ([1, 2, 3], [[30, 10, 0], [0, 0, 5]])
    long = [{"step": s, "tokens/a": s, "tokens/b": math.nan} for s in range(3_000)]
    page = data.page_data([read_one(write(tmp_path / "long", long))])
    card = next(c for c in page["sections"][0]["cards"] if c["title"] == "Tokens by source")
    assert card["steps"][:2] == [5, 15] and len(card["steps"]) == data.STRETCHES
    assert card["values"][0][:2] == [4.5, 14.5]
    assert card["values"][1][:2] == [0, 0]


def test_sft_and_dpo_runs_have_sections_of_their_own(tmp_path: Path) -> None:
    pairs = [{"step": 1, "loss": 0.69, "preference_loss": 0.69, "margin": 0.0, "lr": 1.0}]
    runs = data.read([write(tmp_path / "a"), write(tmp_path / "b", pairs)])
    sections = {s["title"]: s for s in data.page_data(runs)["sections"]}
    assert {r for card in sections["SFT"]["cards"] for r in card["runs"]} == {0}
    assert {r for card in sections["DPO"]["cards"] for r in card["runs"]} == {1}
    drawn = [card["title"] for card in sections["DPO"]["cards"]]
    assert drawn == ["Preference loss", "Loss", "Margin", "Learning rate"]


def test_spikes_say_what_was_skipped(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    spike = {"step": 3, "batch": 2, "retry": 0, "loss": "nan", "grad_norm": 9.5, "verdict": "kept"}
    spike |= {"again_at": 7, "lr_scale": 1.0, "rows": [4, 5], "sources": ["a", "b"]}
    (run / "spikes.jsonl").write_text(json.dumps(spike) + "\n")
    assert data.page_data([read_one(run)])["runs"][0]["spikes"] == [
        {
            "step": 3,
            "loss": None,
            "kind": "kept",
            "text": "step 3: loss nan, gradient norm 9.5. A spike, no update; rows 4 to 5 come "
            "again at step 7 (sources: a, b)",
        }
    ]


def test_spikes_without_their_file_come_from_lines_and_diary(tmp_path: Path) -> None:
    lines = [*LINES, {"step": 5, "spike_loss": 30.0, "spike_grad_norm": 9.0}]
    events = [*EVENTS, {"time": 1.0, "step": 5, "kind": "spike", "text": "told"}]
    found = data.page_data([read_one(write(tmp_path / "run", lines, events))])["runs"][0]["spikes"]
    assert found == [{"step": 5, "loss": 30.0, "kind": "spike", "text": "told"}]


def test_a_long_diary_keeps_what_is_rare(tmp_path: Path) -> None:
    saves = [{"time": 1.0, "step": s, "kind": "saved", "text": ""} for s in range(900)]
    run = read_one(write(tmp_path / "run", events=[*EVENTS, *saves]))
    told = data.page_data([run])["runs"][0]["events"]
    assert told[0]["text"] == "402 older lines of the kinds note, saved left out"
    assert [event["kind"] for event in told[1:3]] == ["start", "resume"]
    assert [event["step"] for event in told[3:]] == list(range(402, 900))


def test_configurations_differ_by_key(tmp_path: Path) -> None:
    for name, lr in (("a", 1.0), ("b", 2.0)):
        text = f"optim: {{lr: {lr}, steps: 3}}\nrun: {{dir: {name}}}\n"
        (write(tmp_path / name) / "config.yaml").write_text(text)
    runs = data.read([tmp_path / "a", tmp_path / "b"])
    assert data.differences(runs) == {"optim.lr": [1.0, 2.0]}
    assert data.differences(runs[:1]) == {}


def test_names_are_unique_or_the_error_says_which(tmp_path: Path) -> None:
    one, two = write(tmp_path / "x/run"), write(tmp_path / "y/run")
    assert [run.name for run in data.read([one, two])] == [str(one), str(two)]
    with pytest.raises(ValueError, match=r"run is named 2 times; name each run once"):
        data.read([one, one])


def test_a_run_without_lines_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics.jsonl has no line yet; wait for the first"):
        data.read([write(tmp_path / "run", lines=[])])
