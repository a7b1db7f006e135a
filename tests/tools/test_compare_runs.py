"""Two runs compared: by hand, on real runs, and what cannot be compared."""

import json
import math
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests import runs
from tools import compare_runs

APP = typer.Typer()
APP.command()(compare_runs.main)


def training(step: int, **more: object) -> dict:
    line = {"step": step, "time": 17.0 * step, "loss": 4.0 / step, "grad_norm": 1.0, "lr": 0.5}
    return line | {"tokens": 100, "step_seconds": 0.1, "seconds/data": 0.1, "mfu": 0.3} | more


def write(
    folder: Path, lines: list[dict], config: dict | None = None, resumed: tuple[int, ...] = ()
) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    events = [{"time": 0.0, "step": s, "kind": "resume", "text": "resuming"} for s in resumed]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def told(*arguments: object) -> tuple[int, list[str]]:
    """Exit status, and the lines printed."""
    done = CliRunner().invoke(APP, [str(argument) for argument in arguments])
    return done.exit_code, (done.stdout + done.stderr).splitlines()


def test_identical_runs(tmp_path: Path) -> None:
    lines = [training(step) for step in (1, 2, 3)] + [{"step": 2, "valid_loss": 2.0}]
    a = write(tmp_path / "a", lines, {"optim": {"lr": 0.5}, "run": {"dir": "a"}})
    slower = [line | {"time": 1.0, "step_seconds": 9.0, "mfu": 0.1} for line in lines]
    b = write(tmp_path / "b", slower, {"optim": {"lr": 0.5}, "run": {"dir": "b"}})
    assert told(a, b) == (
        0,
        [
            f"A  {a}: 3 steps logged, the last 3",
            f"B  {b}: 3 steps logged, the last 3",
            "configurations (A | B):",
            "  run.dir: a | b",
            "times, speeds, memory and goodput are not compared",
            "identical: 3 common steps, 1 to 3, 5 keys: loss, grad_norm, lr, tokens, valid_loss",
        ],
    )


def test_where_two_runs_part(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [training(step, z=1.0) for step in range(1, 6)])
    changed = [training(step, z=1.0) for step in range(1, 8)]
    changed[2] |= {"z": 1.25, "grad_norm": 1.5}  # step 3
    changed[4] |= {"loss": 1.3, "grad_norm": 1.1}  # step 5: 0.8 in A
    b = write(tmp_path / "b", changed)
    status, said = told(a, b)
    assert status == 1
    assert said[2:] == [
        f"configurations: not compared, there is no config.yaml in {a} and in {b}",
        "B is longer: 2 logged steps after step 5",
        "times, speeds, memory and goodput are not compared",
        "they part at step 3, in grad_norm: A 1.0, B 1.5, difference 0.5 (relative 0.333)",
        "  there also z: A 1.0, B 1.25, difference 0.25 (relative 0.2)",
        "the 2 common steps before are identical",
        "largest differences (5 common steps, 1 to 5):",
        "  loss: 0.5 at step 5 (relative 0.385)",
        "  grad_norm: 0.5 at step 3 (relative 0.333)",
        "  z: 0.25 at step 3 (relative 0.2)",
        "equal throughout: lr, tokens",
    ]
    status, said = told(b, a, "--keys", "loss")
    assert status == 1 and "A is longer: 2 logged steps after step 5" in said
    assert "they part at step 5, in loss: A 1.3, B 0.8, difference 0.5 (relative 0.385)" in said
    assert told(a, b, "--keys", "lr,tokens")[0] == 0


def test_rtol_by_hand(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [training(1, loss=1.0), training(2, loss=2.0)])
    b = write(tmp_path / "b", [training(1, loss=1.0 + 2**-10), training(2, loss=2.0)])
    assert told(a, b)[0] == 1
    assert told(a, b, "--rtol", "9e-4")[0] == 1  # 2**-10 / (1 + 2**-10) = 9.756e-4
    status, said = told(a, b, "--rtol", "9.8e-4")
    assert status == 0 and said[-1].startswith("equal within 0.00098 (relative): 2 common steps")


@pytest.mark.parametrize(
    ("a", "b", "rtol", "expected"),
    [
        (math.nan, math.nan, 0, True),
        (math.nan, 1.0, 1.0, False),
        (math.inf, math.inf, 0, True),
        (math.inf, 1.0, 1.0, False),
        (math.inf, -math.inf, 1.0, False),
        (0, 0.0, 0, True),
        (1, 1.0 + 1e-15, 0, False),
        ("nan", "nan", 0, True),
        ("nan", 1.0, 1.0, False),
        (None, 1.0, 1.0, False),
    ],
)
def test_equality_by_hand(a: object, b: object, rtol: float, expected: bool) -> None:
    assert compare_runs.same(a, b, rtol) == expected
    if not expected:
        assert compare_runs._told(compare_runs.Difference(1, "k", a, b))


def test_nan_equals_nan_and_parts_from_a_number(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [training(1, loss=math.nan), training(2, loss=math.nan)])
    b = write(tmp_path / "b", [training(1, loss=math.nan), training(2, loss=3.0)])
    assert told(a, a)[0] == 0
    status, said = told(a, b)
    assert status == 1
    assert "they part at step 2, in loss: A nan, B 3.0, difference inf (relative inf)" in said


def test_lines_that_sum_up_different_steps(tmp_path: Path) -> None:
    """Logged every 1 and every 2 steps: losses are means of other steps, norms are not."""
    a = write(tmp_path / "a", [training(step) for step in (1, 2, 3, 4)])
    b = write(tmp_path / "b", [training(step, loss=9.0, tokens=200) for step in (2, 4)])
    status, said = told(a, b)
    assert status == 0
    assert said[3] == (
        "at 2 steps, the first 2, the lines sum up different steps (after 1 in A, after 0 in B: "
        "log.every, or a restart between lines); there only what is of the step itself is compared"
    )
    assert said[-1] == "identical: 2 common steps, 2 to 4, 2 keys: grad_norm, lr"
    assert told(a, b, "--keys", "lr")[1][-1] == "identical: 2 common steps, 2 to 4, 1 key: lr"
    assert told(a, b, "--keys", "loss") == (
        2,
        [
            f"error: nothing can be compared: {a} and {b} have no step at which both logged loss "
            "over the same steps; compare runs with the same log.every, or --keys grad_norm,lr"
        ],
    )


def test_a_restart_between_two_lines(tmp_path: Path) -> None:
    """Logged every 10 steps, killed and resumed from 15: the line of 20 is of five steps."""
    a = write(tmp_path / "a", [training(step) for step in (10, 20, 30)])
    lines = [training(10), training(20, loss=7.0, tokens=50), training(30)]
    b = write(tmp_path / "b", lines, resumed=(15,))
    status, said = told(a, b)
    assert status == 0 and said[-1].startswith("identical: 3 common steps, 10 to 30")
    assert said[3].startswith("at 1 step, the first 20, the lines sum up different steps (after 10")
    assert told(a, write(tmp_path / "c", lines))[0] == 1


def test_intervals_by_hand() -> None:
    assert compare_runs._intervals([10, 20, 30], []) == {10: 0, 20: 10, 30: 20}
    assert compare_runs._intervals([10, 20, 30], [15]) == {10: 0, 20: 15, 30: 20}
    # Resumed from 25, then, that checkpoint being damaged, from 5: 10, 20 and 30 are new.
    assert compare_runs._intervals([10, 20, 30], [25, 5]) == {10: 5, 20: 10, 30: 20}
    assert compare_runs._intervals([10, 20, 30], [5, 25]) == {10: 5, 20: 10, 30: 25}


def test_a_heat_map_is_compared_expert_by_expert(tmp_path: Path) -> None:
    line = {"step": 1, "expert_load": [[1.0, 2.0], [3.0, 4.0]], "first_layer": 2}
    a = write(tmp_path / "a", [training(1), line])
    b = write(tmp_path / "b", [training(1), line | {"expert_load": [[1.0, 2.0], [3.5, 4.25]]}])
    status, said = told(a, b)
    assert status == 1
    first = "they part at step 1, in expert_load/layer 3/expert 0: A 3.0, B 3.5, difference 0.5 "
    assert f"{first}(relative 0.143)" in said
    assert "  expert_load/layer 3/expert 0: 0.5 at step 1 (relative 0.143)" in said
    assert said[-1] == "equal throughout: loss, grad_norm, lr, tokens, expert_load of 2 experts"


def test_maps_of_different_steps_are_not_compared(tmp_path: Path) -> None:
    """One run drew its map at step 1 and 2, the other only at 2: that one is of both steps."""
    maps = [{"step": step, "expert_load": [[0.5 * step, 1.0]], "first_layer": 1} for step in (1, 2)]
    both = [training(1), training(2)]
    a = write(tmp_path / "a", [*both, *maps])
    b = write(tmp_path / "b", [*both, {**maps[1], "expert_load": [[0.75, 1.0]]}])
    status, said = told(a, b)
    assert status == 0
    assert said[-1] == "identical: 2 common steps, 1 to 2, 4 keys: loss, grad_norm, lr, tokens"
    c = write(tmp_path / "c", [*both, maps[0], {**maps[1], "expert_load": [[0.75, 1.0]]}])
    assert told(a, c)[0] == 1


def test_keys_of_one_run_only_are_told(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [training(1, **{"loss/math": 1.0})])
    b = write(tmp_path / "b", [training(1)])
    assert "only in A: loss/math" in told(a, b)[1]
    assert "only in B: loss/math" in told(b, a)[1]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [training(1)])
    empty, later = write(tmp_path / "empty", []), write(tmp_path / "later", [training(2)])
    damaged = write(tmp_path / "damaged", [training(1)])
    (damaged / "metrics.jsonl").write_text("{\n")
    for arguments, message in (
        ((a, tmp_path / "none"), f"error: there is no folder {tmp_path}/none; name the run.dir of"),
        ((a, empty), f"error: {empty}/metrics.jsonl has no line yet"),
        ((damaged, a), f"error: {damaged}/metrics.jsonl:1: not JSON"),
        (
            (a, later),
            f"error: nothing can be compared: {a} and {later} have no step at which both ",
        ),
        (
            (a, a, "--keys", "los"),
            f"error: --keys los: {a} has no such key; it has loss, grad_norm",
        ),
        ((a, a, "--plot", tmp_path / "no" / "x.png"), "error: [Errno 2] No such file or directory"),
    ):
        status, said = told(*arguments)
        assert status == 2 and said[0].startswith(message), said
    assert told(a, a, "--rtol", "-1")[0] == 2
    assert told(a)[0] == 2


def test_the_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "tools/compare_runs.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    said = " ".join(done.stdout.split())
    for part in (
        "Exit status: 0 the same, 1 they part, 2 they cannot be compared",
        "--rtol",
        "--keys",
    ):
        assert part in said
    assert "Example: python tools/compare_runs.py" in said


def test_the_plot_shows_both_and_their_difference(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [training(step) for step in (1, 2, 3)])
    b = write(tmp_path / "b", [training(step, loss=5.0 / step) for step in (1, 2, 3)])
    output = tmp_path / "difference.png"
    status, said = told(a, b, "--plot", output)
    assert status == 1 and said[-1] == f"wrote {output}"
    pixels = (matplotlib.image.imread(output)[..., :3] * 255).round().reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # blue and orange
        assert (pixels == colour).all(1).any()


def test_real_runs(packed: Path, tmp_path: Path) -> None:
    """The same seed: identical. Killed and resumed: identical. Another learning rate: not."""
    whole, parts, other = tmp_path / "whole", tmp_path / "parts", tmp_path / "other"
    constant = ["optim.schedule=constant", "optim.warmup_steps=0"]
    runs.run(1, runs.options(packed, whole, *constant, "optim.steps=4"), tmp_path / "0")
    for steps in (2, 4):
        more = [*constant, f"optim.steps={steps}"]
        runs.run(1, runs.options(packed, parts, *more), tmp_path / f"to{steps}")
    runs.run(
        1, runs.options(packed, other, *constant, "optim.steps=4", "optim.lr=2e-2"), tmp_path / "1"
    )
    status, said = told(whole, parts)
    assert status == 0 and said[-1].startswith("identical: 4 common steps, 1 to 4"), said
    status, said = told(whole, other)
    assert status == 1 and "  optim.lr: 0.01 | 0.02" in said
    assert any(line.startswith("they part at step 1, in lr: A 0.01, B 0.02") for line in said)
    status, said = told(whole, other, "--keys", "loss,grad_norm")
    assert any(line.startswith("they part at step 2, in loss: A ") for line in said)
    assert "the 1 common step before is identical" in said
