"""A rank that stops answering, a rank that dies: one line that says so, and an end."""

import os
import re
import signal
import socket
import threading

import pytest

from megatron_ring import step, train, watchdog
from megatron_ring.config import RunConfig
from tests import ranks
from tests.runs import lines, options, run, same_losses

HOST = re.escape(socket.gethostname())


def main_with_a_signal(arguments, number, what):
    """Rank 1 sends itself the signal in update `number` (1 first)."""
    update, calls = step.update, []

    def hit(optimizer, lr):
        calls.append(None)
        if len(calls) == number and os.environ["RANK"] == "1":
            os.kill(os.getpid(), what)
        return update(optimizer, lr)

    step.update = hit
    train.main(arguments)


def stop_one(packed, run_dir, folder, *more):
    arguments = options(packed, run_dir, "parallel.ep=2", "checkpoint.async_save=false", *more)
    with pytest.raises(RuntimeError, match=rf"exit codes \[{watchdog.LOST}, -9\]"):
        ranks.run(2, main_with_a_signal, arguments, 6, signal.SIGSTOP, folder=folder)


def test_a_rank_that_stops_answering_ends_the_run(packed, tmp_path, capfd):
    run_dir = tmp_path / "run"
    stop_one(packed, run_dir, tmp_path / "a", "run.hang_timeout=8")
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1, said
    assert re.fullmatch(
        rf"error: rank 0 on {HOST} hangs: no step for \d+ s \(run.hang_timeout=8\), "
        r"last completed step 5, in main > train > \S.* \(\w+.py:\d+\); no sign of "
        rf"life from rank 1 on {HOST} \(when last heard of: last completed step \w+, .*\); "
        rf"stacks in {run_dir}/hang-rank-0.txt",
        said[0],
    ), said[0]
    assert "in train" in (run_dir / "hang-rank-0.txt").read_text()
    run(2, options(packed, run_dir, "parallel.ep=2"), tmp_path / "b")
    assert "resuming after step 4 of 8" in capfd.readouterr().out
    run(2, options(packed, tmp_path / "calm", "parallel.ep=2"), tmp_path / "c")
    same_losses(run_dir, tmp_path / "calm")


def test_a_rank_that_dies_is_told_in_a_line(packed, tmp_path, capfd):
    arguments = options(packed, tmp_path / "run", "parallel.ep=2")
    with pytest.raises(RuntimeError, match=f"(?s)rank 0:.*SystemExit: {watchdog.LOST}"):
        ranks.run(
            2, main_with_a_signal, arguments, 6, signal.SIGKILL, folder=tmp_path / "a", patience=60
        )
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1, said
    assert re.match(
        rf"error: rank 0 on {HOST}: a peer died or does not answer, last completed step 5, "
        r"in \w+ \(\w+.py:\d+\): .*(?i:connection|socket|peer).*; traceback in ",
        said[0],
    ), said[0]
    assert "Traceback" in (tmp_path / "run/lost-rank-0.txt").read_text()
    assert max(lines(tmp_path / "run")) == 5


def test_other_errors_keep_their_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    dog = object.__new__(watchdog.Watchdog)
    dog.size = 2
    with pytest.raises(RuntimeError, match="mat1 and mat2"), dog.explaining():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)")


def test_a_process_that_was_stopped_as_a_whole_is_not_hanging(tmp_path, monkeypatch):
    """The clock jumps a thousand seconds between two looks; only two ticks of it count."""
    ended = []
    monkeypatch.setattr(watchdog.Watchdog, "_end", lambda self: ended.append(self._idle))
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    dog = watchdog.Watchdog(RunConfig(dir=str(tmp_path), hang_timeout=40.0))
    dog.beat(0)
    dog.beat(1)
    times = iter([0.0, 5.0, 1005.0, 1010.0])
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(times))
    looks = iter([False, False, False, True])
    monkeypatch.setattr(dog._stop, "wait", lambda seconds: next(looks))
    dog._watch()
    assert not ended
    assert dog._idle == 20.0  # 5 + 2 ticks of 5 + 5


def test_the_first_step_may_take_four_times_as_long(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(watchdog.Watchdog, "_end", lambda self: ended.append(self._idle))
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    for beats, expected in ((0, [165.0]), (1, [165.0]), (2, [45.0])):
        ended.clear()
        dog = watchdog.Watchdog(RunConfig(dir=str(tmp_path), hang_timeout=40.0))
        for number in range(beats):
            dog.beat(number)
        clock = iter(range(0, 10_000, 5))
        monkeypatch.setattr(watchdog.time, "monotonic", lambda clock=clock: float(next(clock)))
        monkeypatch.setattr(dog._stop, "wait", lambda seconds: bool(ended))
        dog._watch()
        assert ended == expected


def main_in_the_way(arguments, number, what, run_dir):
    """Nothing can be written where stacks and tracebacks go, as on a full disk."""
    for name in ("hang", "lost"):
        (run_dir / f"{name}-rank-0.txt").mkdir(parents=True, exist_ok=True)
    main_with_a_signal(arguments, number, what)


@pytest.mark.parametrize(
    ("what", "said"),
    [(signal.SIGSTOP, "rank 0 on .* hangs: no step for"), (signal.SIGKILL, "rank 0 on .*: a peer")],
)
def test_it_ends_also_where_no_stacks_can_be_written(what, said, packed, tmp_path, capfd):
    """Of a hang the process would else never end, of a dead peer the line would be missing."""
    more = ["parallel.ep=2", "run.hang_timeout=8", "checkpoint.async_save=false"]
    arguments = options(packed, tmp_path / "run", *more)
    with pytest.raises(
        RuntimeError, match=rf"SystemExit: {watchdog.LOST}|codes \[{watchdog.LOST},"
    ):
        ranks.run(
            2,
            main_in_the_way,
            arguments,
            6,
            what,
            tmp_path / "run",
            folder=tmp_path / "a",
            patience=30,
        )
    assert re.search(said, capfd.readouterr().err)
