"""Following a run's files: what is new, what was replaced, and states judged by hand."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ring import following
from megatron_ring.following import Follower, History, Holder, State, Watcher


def text(*lines: dict) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def numbered(*steps: int) -> list[dict]:
    return [{"step": step, "loss": 10.0 - step / 100} for step in steps]


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    follower = Follower(file)
    assert follower.poll() == ([], False)  # not there yet
    file.write_text(text(*numbered(1, 2)) + '{"step": 3, "lo')
    assert follower.poll() == (numbered(1, 2), True)
    assert follower.poll() == ([], False)  # the torn line is none
    with file.open("a") as stream:
        stream.write('ss": 9.97}\n{"step"')
    assert follower.poll() == (numbered(3), False)
    with file.open("a") as stream:
        stream.write(": 4}\nnothing\n[1]\n")
    assert follower.poll() == ([{"step": 4}], False)
    assert follower.damaged == 2


def test_a_resumed_run_puts_a_shorter_file_in_place(tmp_path: Path) -> None:
    file, other = tmp_path / "metrics.jsonl", tmp_path / "metrics.tmp"
    follower = Follower(file)
    file.write_text(text(*numbered(*range(1, 21))))
    follower.poll()
    other.write_text(text(*numbered(1, 2)))
    other.replace(file)
    assert follower.poll() == (numbered(1, 2), True)
    # Between two looks the new one may also have outgrown the old.
    other.write_text(text(*numbered(*range(1, 31))))
    other.replace(file)
    assert follower.poll() == (numbered(*range(1, 31)), True)
    # And where the number of the file is the same, what was read last tells.
    changed = text(*({"step": step, "loss": 1.25} for step in range(1, 61)))
    file.write_text(changed)
    assert follower.poll() == ([json.loads(line) for line in changed.splitlines()], True)
    file.unlink()
    assert follower.poll() == ([], True)
    assert follower.poll() == ([], False)


def test_of_a_long_file_the_end_and_samples_are_read(tmp_path: Path) -> None:
    lines = numbered(*range(1, 5001))
    lines.insert(700, {"step": 700, "valid_loss": 3.0})
    lines.insert(900, {"step": 900, "valid_loss": 2.0})
    lines.insert(950, {"step": 950, "expert_load": [[1.0]]})
    file = tmp_path / "metrics.jsonl"
    file.write_text(text(*lines))
    whole = len(text(*numbered(*range(4001, 5001))))
    news = Follower(file, tail=whole).poll()
    assert news.lines[-1000:] == numbered(*range(4001, 5001))
    old = news.lines[:-1000]
    assert following.SAMPLES * 0.9 < len(old) <= following.SAMPLES + 2
    assert old[0] == numbered(1)[0]
    assert [line["step"] for line in old] == sorted(line["step"] for line in old)
    gaps = [b["step"] - a["step"] for a, b in zip(old, old[1:], strict=False)]
    assert max(gaps) <= 30  # 4,000 lines by 200 samples, at most a line apart from even
    assert {"step": 900, "valid_loss": 2.0} in old
    assert {"step": 950, "expert_load": [[1.0]]} in old


def test_a_large_file_costs_no_seconds(tmp_path: Path) -> None:
    """The oracle is what is read: after opening, only the bytes that are new."""
    file = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "loss": 2.0, "filler": "x" * 1000}) + "\n"
    file.write_text(line * 20_000)
    follower = Follower(file)
    news = follower.poll()
    assert len(news.lines) < following.TAIL / len(line) + following.SAMPLES + 3
    with file.open("a") as stream:
        stream.write(text({"step": 2}))
    assert follower.poll().lines == [{"step": 2}]
    assert follower._position == file.stat().st_size


def test_history_keeps_the_curve_thin_and_the_last_of_each_kind() -> None:
    history = History()
    for step in range(1, 10_001):
        history.add({"step": step, "loss": float(step)})
    assert history.MOST / 2 <= len(history.curve) <= history.MOST
    assert history.curve[-1] == (10_000, 10_000.0)
    assert [s for s, _ in history.curve] == sorted({s for s, _ in history.curve})
    for line in ({"step": 5, "valid_loss": 1.0}, {"step": 7, "spike_loss": 9.0}):
        history.add(line)
    history.add({"step": 8, "expert_load": [[1.0]]})
    assert history.valid[-1]["step"] == 5 and history.spikes[-1]["step"] == 7
    assert history.load == {"step": 8, "expert_load": [[1.0]]}
    assert history.last["step"] == history.step == 10_000
    history.forget()
    assert history.last == {} and history.curve == [] and history.step == 0


def test_pace_by_hand() -> None:
    history = History()
    assert history.seconds_a_step(0.0) is None
    for step, when in ((10, 100.0), (20, 120.0), (20, 5000.0), (30, 5030.0), (40, 5080.0)):
        history.add({"step": step, "loss": 1.0, "time": when, "step_seconds": step / 10})
    # The run was started again at 4990, and goes on after step 10.
    assert history.seconds_a_step(4990.0) == (5080 - 5000) / 20
    # One line does not tell: the median of 1, 2, 2, 3, 4 seconds.
    assert history.seconds_a_step(5050.0) == 2.0
    assert history.seconds_a_step(0.0) == 2.0  # no start known: restarts may lie between


SILENT = State("silent", "no sign of life for 1 min 1 s; {}")
LOCK = {"process": 7, "host": "here", "since": 1000.0}


@pytest.mark.parametrize(
    ("held", "event", "newest", "usual", "now", "expected"),
    [
        (None, None, None, None, 0, State("waiting", "nothing has been written yet")),
        (True, ("start", 1010), 1500, 5, 1510, State("running")),
        (None, ("start", 1010), 1500, 5, 1510, State("running")),  # somewhere without locks
        (True, ("start", 1010), 1500, 5, 1561, SILENT),
        (True, ("start", 1010), 1500, 30, 1790, State("running")),  # a line comes every 30 s
        (True, ("start", 1010), 1020, None, 1600, State("running")),  # no line yet: it loads
        (False, ("start", 1010), 1500, 5, 1510, "process 7 ended without a word 10 s ago"),
        (False, ("finished", 1500), 1500, 5, 9999, State("finished")),
        (True, ("finished", 1500), 1500, 5, 1501, State("finished")),  # it is just leaving
        (False, ("failed", 1500), 1500, 5, 9999, State("failed")),
        (False, ("stopped", 1500), 1500, 5, 9999, State("stopped")),
        (True, ("stopped", 900), 900, None, 1010, State("starting")),  # again, since 1000
        (None, ("stopped", 900), 900, None, 9999, State("stopped")),
        (False, ("stopped", 900), 900, None, 1010, State("stopped")),  # again, and gone at once
        (True, None, None, None, 1010, State("starting")),
        (True, None, 1500, 5, 1510, State("running")),  # an older run without events
        ("elsewhere", ("start", 1010), 1500, 5, 1510, State("running")),
        ("elsewhere", ("start", 1010), 1500, 5, 1561, SILENT),
        ("elsewhere", ("finished", 1500), 1500, 5, 1501, State("finished")),
        ("elsewhere", ("stopped", 900), 900, None, 1010, State("starting")),
    ],
)  # fmt: skip
def test_states_by_hand(
    held: bool | str | None,
    event: tuple[str, float] | None,
    newest: float | None,
    usual: float | None,
    now: float,
    expected: State | str,
) -> None:
    alive = None if held == "elsewhere" else held
    lock = None if held is None else Holder(**LOCK, alive=alive)
    last = {"kind": event[0], "time": event[1], "step": 0} if event else None
    found = following.state(lock, last, newest, usual, now)
    if isinstance(expected, str):
        assert found == State("killed", expected)
        return
    assert found == expected._replace(remark=expected.remark.format("process 7 on here"))


def test_an_older_run_that_made_all_steps_is_finished() -> None:
    lock = Holder(**LOCK, alive=False)
    assert following.state(lock, None, 1500.0, 5.0, 1510.0, complete=True) == State("finished")
    assert following.state(lock, None, 1500.0, 5.0, 1510.0).word == "killed"


def test_the_holder_of_the_lock_lives_or_not(tmp_path: Path) -> None:
    assert following.holder(tmp_path) is None
    lock, here = tmp_path / "lock", socket.gethostname()
    lock.write_text("")
    assert following.holder(tmp_path) is None  # being written
    lock.write_text(f"process {os.getpid()} on {here}")
    found = following.holder(tmp_path)
    assert found.process == os.getpid() and found.host == here and found.alive is True
    assert abs(found.since - time.time()) < 10
    # The same number, but of a process that is younger than the lock.
    os.utime(lock, (1000, 1000))
    assert following.holder(tmp_path).alive is False
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock.write_text(f"process {ended.pid} on {here}")
    assert following.holder(tmp_path).alive is False
    lock.write_text(f"process {os.getpid()} on some-other-node")
    assert following.holder(tmp_path).alive is None


def test_looking_takes_no_lock(tmp_path: Path) -> None:
    """A run that starts while it is watched must find its folder free."""
    from megatron_ring.checkpoint import CheckpointError, locked

    with locked(tmp_path):
        watcher = Watcher(tmp_path)
        watcher.look(time.time())
        assert watcher.state == State("starting")
        with pytest.raises(CheckpointError, match="is in use by process"), locked(tmp_path):
            pass
    watcher.look(time.time())
    with locked(tmp_path):
        pass


def test_a_watcher_across_a_restart(tmp_path: Path) -> None:
    run, watcher = tmp_path / "run", Watcher(tmp_path / "run")
    watcher.look(100.0)
    assert watcher.state.word == "waiting" and watcher.total is None and watcher.left() is None
    run.mkdir()
    start = {"time": 100.0, "step": 0, "kind": "start", "text": "", "total": 50, "world_size": 2}
    (run / "events.jsonl").write_text(text(start | {"restart": 0}))
    lines = [line | {"time": 100.0 + line["step"]} for line in numbered(*range(1, 31))]
    (run / "metrics.jsonl").write_text(text(*lines))
    watcher.look(131.0)
    assert (watcher.history.step, watcher.total, watcher.left()) == (30, 50, 20.0)
    # Killed after step 30, resumed from step 10, and now twice as slow.
    resumed = start | {"time": 500.0, "step": 10, "kind": "resume", "restart": 1}
    with (run / "events.jsonl").open("a") as stream:
        stream.write(text(resumed))
    new = [line | {"time": 500.0 + 2 * line["step"]} for line in numbered(*range(11, 16))]
    (run / "metrics.tmp").write_text(text(*lines[:10], *new))
    (run / "metrics.tmp").replace(run / "metrics.jsonl")
    watcher.look(531.0)
    assert watcher.start == resumed and watcher.history.step == 15
    assert [step for step, _ in watcher.history.curve] == list(range(1, 16))
    assert watcher.left() == 35 * 2.0


def test_the_total_of_older_runs_is_in_their_configuration(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    (tmp_path / "config.yaml").write_text("optim: {steps: 40}\n")
    watcher.look(1.0)
    assert watcher.total == 40
    (tmp_path / "config.yaml").write_text("optim: [\n")
    os.utime(tmp_path / "config.yaml", (2000, 2000))
    watcher.look(2.0)
    assert "config.yaml: not YAML" in watcher.problem


def test_lengths_of_time_by_hand() -> None:
    said = [following.seconds(n) for n in (-3, 59.4, 60, 3599, 3600, 100_000, 200_000)]
    assert said == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "27 h 46 min",
        "2 d 7 h",
    ]
