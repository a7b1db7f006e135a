"""The terminal view: what each line says, widths and heights, pipes, ctrl-c and the end."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from megatron_ring.following import Watcher
from tests import runs
from tools import watch

NOW = 1_700_000_000.0


def training(step: int, **more: object) -> dict:
    return {
        "step": step, "time": NOW - (412 - step) * 0.5, "loss": 8 - step / 100, "lr": 4e-5,
        "grad_norm": 1.25, "step_seconds": 0.5, "tokens_per_second": 99_448.0,
        "tokens_per_second_per_device": 12_431.0, "mfu": 0.312, "memory_gib": 61.24,
        "goodput": 0.971, "load_max_over_mean": 1.41, "load_worst_layer": 2.1, "dead_experts": 1,
        "load_entropy": 0.98, "router_entropy": 0.87, "aux_loss": 1.012, "skipped": 3,
        "queued": 1, "dropped": 0, "seconds/data": 0.1, "seconds/forward_backward": 0.3,
        "seconds/optimizer": 0.1, "seconds/other": 0.0, "loss/math": 2.5, "tokens/math": 300,
        "loss/code": 1.5, "tokens/code": 1200, "grad_norm/experts": 0.75, **more,
    }  # fmt: skip


def event(kind: str, step: int, text: str, ago: float, **more: object) -> dict:
    return {"time": NOW - ago, "step": step, "kind": kind, "text": text, **more}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 8 ranks after its first restart, at step 412 of 1,000, half a second each."""
    folder = tmp_path / "run"
    lines = [training(step) for step in range(1, 413)]
    lines += [{"step": 200, "valid_loss": 2.5}, {"step": 400, "valid_loss": 2.25}]
    lines += [{"step": 120, "spike_loss": 9.81, "spike_grad_norm": 33.1, "skipped": 4, "queued": 2}]
    load = [[0.0, 0.3, 1.0, 2.0, 3.0, 1.4], [1.0] * 6]
    lines += [{"step": 400, "expert_load": load, "first_layer": 2}]
    events = [
        event("start", 0, "starting", 400, total=1000, world_size=8, restart=0),
        event("resume", 100, "resuming", 300, total=1000, world_size=8, restart=1),
        event("warning", 300, "the disk is slow\nto answer", 60),
        event("saved", 400, "saved step-00000400 in 9.3 s", 6),
    ]
    for name in ("step-00000200", "step-00000400"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        os.utime(folder / "checkpoints" / name, (NOW - 185, NOW - 185))
    for name, content in (("metrics", lines), ("events", events)):
        text = "".join(json.dumps(line) + "\n" for line in content)
        (folder / f"{name}.jsonl").write_text(text)
        os.utime(folder / f"{name}.jsonl", (NOW, NOW))
    (folder / "lock").write_text(f"process {os.getpid()} on another-{socket.gethostname()}")
    os.utime(folder / "lock", (NOW - 301, NOW - 301))
    return folder


def shown(folder: Path, width: int = 100, height: int | None = None, now: float = NOW) -> list[str]:
    watcher = Watcher(folder)
    watcher.look(now)
    return [line.plain for line in watch.frame(watcher, width, height)]


def test_every_line_by_hand(run: Path) -> None:
    lines = shown(run)
    assert lines[0].startswith(str(run)[:20]) or lines[0].startswith("…")
    assert lines[0].endswith("● running · restart 1 · 8 ranks")
    assert lines[1] == "━" * 41 + "─" * 59
    end = time.strftime("%a %H:%M", time.localtime(NOW + 294))
    assert lines[2] == f"step 412 of 1,000 · 41.2% · 4 min 54 s left, until {end} · 0.5 s a step"
    assert lines[4].startswith("loss         3.8800   █") and lines[4].endswith("▁  7.99 → 3.88")
    clock = [time.strftime("%H:%M:%S", time.localtime(NOW - ago)) for ago in (400, 300, 60, 6)]
    assert lines[5:] == [
        "held out     2.2500 at step 400, before 2.5000 at step 200",
        "update       lr 4.00e-05 · gradient norm 1.250 · experts 0.750",
        "speed        12,431 tokens/s a device · MFU 31.2% · 61.2 GiB · goodput 97.1%",
        "step time    ████████████▓▓▓▓▒▒▒▒ · forward+backward 60% █ · optimizer 20% ▓ · data 20% ▒",
        "by source    code 1.5000 (1,200 tokens) · math 2.5000 (300 tokens)",
        "experts      load max/mean 1.41 · worst layer 2.10 · 1 dead · entropy of load 0.980",
        "             of the router 0.870 · aux loss 1.012",
        "layer 2      ×░▒▓█▒",
        "layer 3      ▒▒▒▒▒▒",
        "             × dead  ░ < 0.5  ▒ < 1.5  ▓ < 2.5  █ more of a fair share, step 400",
        "spikes       4 skipped · 2 queued · last at step 120: loss 9.81, gradient norm 33.1",
        "checkpoints  200 · 400, 3 min 5 s ago",
        "",
        f"{clock[0]}     step 0 start: starting",
        f"{clock[1]}     step 100 resume: resuming",
        f"{clock[2]}     step 300 warning: the disk is slow",
        f"{clock[3]}     step 400 saved: saved step-00000400 in 9.3 s",
    ]


def test_preference_is_told(run: Path) -> None:
    of = {"accuracy": 0.81, "margin": 0.88, "reward_chosen": 0.31, "reward_rejected": -0.57}
    own = {"kl": 0.012, "accuracy/math": 0.5, "margin/math": 0.1}
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(training(412, **of, **own)) + "\n")
        line = {"step": 412, "valid_loss": 0.5, "valid_accuracy": 0.75, "valid_margin": 0.5}
        stream.write(json.dumps(line) + "\n")
    lines = shown(run, 120)
    assert (
        "preference   accuracy 81.0% · margin 0.880 · reward of chosen +0.310 · of rejected -0.570 "
        "· KL 0.0120"
    ) in lines
    assert "             accuracy 75.0% · margin 0.500" in lines
    assert "by source    code 1.5000 (1,200 tokens) · math 2.5000 (50%, margin 0.100)" in lines


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("height", [None, 8, 23, 50])
def test_it_fits(run: Path, width: int, height: int | None) -> None:
    watcher = Watcher(run)
    watcher.look(NOW)
    lines = watch.frame(watcher, width, height)
    assert max(line.cell_len for line in lines) <= width
    assert height is None or len(lines) <= height
    text = "\n".join(line.plain for line in lines)
    assert "step 412" in text
    if width >= 40 and (height is None or height >= 23):
        assert "loss" in text and "tokens/s" in text
    if width >= 80 and (height is None or height >= 23):
        assert "warning: the disk is slow" in text and "×░▒▓█▒" in text


def test_many_experts_and_layers_share_cells() -> None:
    """96 layers of 300 experts in 8 lines of 40 - 13 columns: 12 layers and 12 experts a cell."""
    load = [[1.0] * 300 for _ in range(96)]
    load[13][5], load[95][299] = 9.0, 0.0
    lines = watch._heat_map({"step": 7, "expert_load": load, "first_layer": 1}, 40, 8)
    assert len(lines) == 8 + 1
    assert [line.plain[:13].strip() for line in lines[:2]] == ["layer 1-12", "layer 13-24"]
    assert lines[0].plain[13:] == "▒" * 25
    assert lines[1].plain[13:] == "█" + "▒" * 24
    assert lines[7].plain[13:] == "▒" * 24 + "×"


def test_sparkline_by_hand() -> None:
    assert watch.sparkline([], 8) == ""
    assert watch.sparkline([(1, 5.0)], 8) == "▁"
    assert watch.sparkline([(1, 0.0), (2, 7.0), (3, 3.0)], 8) == "▁█▄"
    # Two columns of steps 1 to 4 and 5 (with 9): means 1 and 8.
    assert watch.sparkline([(1, 0.0), (4, 2.0), (5, 0.0), (9, 8.0)], 2) == "▁█"
    # Nothing was logged in the middle: the value before stays.
    assert watch.sparkline([(1, 7.0), (2, 7.0), (9, 0.0), (10, 0.0)], 4) == "██▁▁"
    assert watch.sparkline([(1, 1.0), (2, 1.0)], 8) == "▁▁"


def test_an_older_run_says_what_it_has(tmp_path: Path) -> None:
    line = {"step": 3, "loss": float("nan"), "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 5000}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    lines = shown(tmp_path, 60, now=time.time())
    assert lines[0].endswith("● running") and lines[1] == "step 3"
    assert [line.strip() for line in lines[3:]] == [
        "loss         nan",
        "update       lr 1.00e-01 · gradient norm 1.000",
        "speed        5,000 tokens/s",
    ]


def test_damage_is_told(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write("{\n")
    (run / "config.yaml").write_text("a: [")
    lines = shown(run)
    assert "1 damaged lines in metrics.jsonl" in lines
    assert any(f"{run}/config.yaml: not YAML"[:80] in line for line in lines)


def test_how_it_ended_is_told(run: Path) -> None:
    lines = shown(run, now=NOW + 600)
    assert lines[0].endswith("● silent · restart 1 · 8 ranks")
    assert lines[1].startswith("no sign of life for 10 min 0 s; process ")
    with (run / "events.jsonl").open("a") as stream:
        stream.write(json.dumps(event("failed", 412, "RuntimeError: no memory", 0)) + "\n")
    lines = shown(run, now=NOW + 600)
    assert lines[0].endswith("● failed · restart 1 · 8 ranks")
    assert lines[2] == "step 412 of 1,000 · 41.2% · 0.5 s a step"


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "tools/watch.py", str(folder), *more]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(watch.__file__).parents[1]), "COLUMNS": "80"}


def test_piped_it_has_no_colour_codes(run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(run, "--once"), capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert "\x1b" not in done.stdout and "layer 2      ×░▒▓█▒" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    missing = command(tmp_path / "later", "--once")
    done = subprocess.run(missing, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert "● waiting" in done.stdout and "nothing has been written yet" in done.stdout


def test_in_a_pipe_there_is_a_line_for_news_until_the_end(run: Path) -> None:
    process = subprocess.Popen(
        command(run, "--every", "0.1"), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    first = process.stdout.readline()
    assert first.startswith("silent  step 412/1000  loss 3.8800  no sign of life for")
    with (run / "events.jsonl").open("a") as stream:
        stream.write(json.dumps(event("finished", 1000, "done", -1e9)) + "\n")
    assert process.wait(timeout=20) == 0
    assert process.stdout.read().splitlines()[-1] == "finished  step 412/1000  loss 3.8800"


def in_terminal(folder: Path) -> tuple[subprocess.Popen, int]:
    """The program with a terminal of its own, and our end of it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(folder, "--every", "0.1"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=ENVIRONMENT | {"LINES": "24", "TERM": "xterm-256color"},
        start_new_session=True,
        # Where the tests run in the background, SIGINT is ignored, and so by all they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    return process, ours


def read_until(end: int, word: bytes) -> bytes:
    text = b""
    while word not in text:
        text += os.read(end, 65536)
    return text


def rest(process: subprocess.Popen, end: int) -> bytes:
    """All that it still writes; a terminal that nobody reads would hold it up for ever."""
    text, deadline = b"", time.monotonic() + 20
    while process.poll() is None:
        assert time.monotonic() < deadline, text[-2000:]
        if select.select([end], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # Linux: the other end is closed
                text += os.read(end, 65536)
    return text


def test_ctrl_c_leaves_with_status_0_and_the_end_ends_it(run: Path) -> None:
    process, end = in_terminal(run)
    text = read_until(end, b"restart 1")
    assert b"\x1b[" in text  # colours, here
    process.send_signal(signal.SIGINT)
    assert b"Traceback" not in rest(process, end)
    assert process.returncode == 0
    os.close(end)
    process, end = in_terminal(run)
    read_until(end, b"silent")
    with (run / "events.jsonl").open("a") as stream:
        stream.write(json.dumps(event("finished", 1000, "done", -1e9)) + "\n")
    read_until(end, b"finished")
    rest(process, end)
    assert process.returncode == 0
    os.close(end)


def test_a_real_run_is_watched_from_before_to_its_end(packed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    watcher = Watcher(run_dir)
    watcher.look(time.time())
    assert watcher.state.word == "waiting"
    runs.run(1, runs.options(packed, run_dir, "optim.steps=3"), tmp_path / "0")
    watcher.look(time.time())
    assert (watcher.state.word, watcher.history.step, watcher.total) == ("finished", 3, 3)
    said = [line.plain for line in watch.frame(watcher, 80)]
    loss = runs.lines(run_dir)[3]["loss"]
    assert any(line.startswith(f"loss         {loss:.4f}") for line in said)
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(*watch.frame(watcher, 80), sep="\n")
    assert console.export_text().count("\n") == len(said)
