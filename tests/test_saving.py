"""Saving in the background, crashes in the middle of it, and copies to a second place."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from megatron_ring import step, train, writing
from megatron_ring.convert import checksums
from megatron_ring.convert.folder import read_ring
from megatron_ring.run_folder import read_events
from tests import ranks
from tests.runs import lines, options, run, same_losses, steps

RANKS = 2


def arguments(packed, run_dir, *more):
    return options(packed, run_dir, "parallel.ep=2", *more)


@pytest.fixture(scope="module")
def calm(packed, tmp_path_factory):
    """Eight steps, saved while training waits."""
    folder = tmp_path_factory.mktemp("calm")
    run(RANKS, arguments(packed, folder / "run", "checkpoint.async_save=false"), folder / "ranks")
    return folder / "run"


def same_files(one, other):
    """Data files and random states of two checkpoints are equal byte by byte."""
    a, b = checksums.read(one), checksums.read(other)
    data = [name for name in a if name.endswith((".distcp", ".safetensors"))]
    assert len(data) >= 3
    assert [a[name] for name in data] == [b[name] for name in data]


def main_with_a_slow_disk(options, run_dir):
    """The first save (step 2) is not written before the log knows step 4."""
    write = writing.Staged.write

    def wait_and_write(staged):
        deadline = time.monotonic() + 100
        while max(lines(run_dir), default=0) < 4:
            assert time.monotonic() < deadline, "training waits for the save"
            time.sleep(0.01)
        write(staged)

    writing.Staged.write = wait_and_write
    train.main(options)


def test_training_goes_on_while_a_checkpoint_is_written(calm, packed, tmp_path, capfd):
    """...and what is written is the step that was saved, not what training makes of it."""
    more = arguments(packed, tmp_path / "run")
    ranks.run(RANKS, main_with_a_slow_disk, more, tmp_path / "run", folder=tmp_path / "ranks")
    same_losses(tmp_path / "run", calm)
    assert steps(tmp_path / "run") == steps(calm)
    for name in steps(calm):
        same_files(calm / "checkpoints" / name, tmp_path / "run/checkpoints" / name)
    assert "saved step-00000002 in" in capfd.readouterr().out


def main_that_dies(options, where, victims, number):
    """SIGKILL to the ranks `victims`, in update or save `number` (1 first) of this process."""
    calls = 0

    def die_or(original, early):
        def counted(*args):
            nonlocal calls
            calls += 1
            if calls == number and int(os.environ["RANK"]) in victims:
                if not early:
                    original(*args)  # all is written, nothing published
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        return counted

    if where == "step":
        step.update = die_or(step.update, early=True)
    else:
        writing.Staged.write = die_or(writing.Staged.write, early=where == "save")
    train.main(options)


@pytest.mark.parametrize(
    ("where", "number", "left", "victims"),
    [
        ("step", 6, 4, (1,)),
        ("save", 3, 4, (0, 1)),
        ("end of save", 2, 2, (1,)),
        pytest.param("step", 6, 4, (0, 1), marks=pytest.mark.slow),
        pytest.param("save", 3, 4, (1,), marks=pytest.mark.slow),
        pytest.param("end of save", 2, 2, (0, 1), marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(where, number, left, victims, calm, packed, tmp_path, capfd):
    """Nothing is lost beyond the last save, and the losses are the same bit by bit."""
    # Between saves: what has been published by then is only known where training waits for it.
    waiting = ["checkpoint.async_save=false"] * (where == "step")
    killed = arguments(packed, tmp_path / "run", *waiting)
    with pytest.raises(RuntimeError, match=r"died: exit codes \[.*-9"):
        ranks.run(RANKS, main_that_dies, killed, where, victims, number, folder=tmp_path / "a")
    whole = [name for name in steps(tmp_path / "run") if not name.endswith(".tmp")]
    assert whole[-1] == f"step-{left:08d}"
    for name in whole:
        same_files(calm / "checkpoints" / name, tmp_path / "run/checkpoints" / name)
    capfd.readouterr()
    run(RANKS, killed, tmp_path / "b")
    assert f"resuming after step {left} of 8" in capfd.readouterr().out
    same_losses(tmp_path / "run", calm)
    assert steps(tmp_path / "run") == steps(calm), "no rest of the cut-off save"


def main_with_a_full_disk(options):
    """The second save fails on rank 1 alone."""
    write, calls = writing.Staged.write, []

    def fail(staged):
        calls.append(None)
        if len(calls) == 2 and os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(staged)

    writing.Staged.write = fail
    train.main(options)


def test_a_disk_that_fills_up_in_the_background(packed, tmp_path):
    """Every rank ends with the message, at a step boundary; what was there is still there."""
    more = arguments(packed, tmp_path / "run")
    with pytest.raises(RuntimeError, match="rank 1: .*No space left on device") as error:
        ranks.run(RANKS, main_with_a_full_disk, more, folder=tmp_path / "ranks")
    assert "could not save" in str(error.value)
    assert "Earlier checkpoints are untouched: step-00000002" in str(error.value)
    assert steps(tmp_path / "run") == ["step-00000002"]


def test_a_second_place_outlives_the_first(calm, packed, tmp_path, capfd):
    """Each checkpoint is copied, and used when run.dir is gone or damaged."""
    second = tmp_path / "second"
    both = ["checkpoint.keep_last=2", f"checkpoint.second_dir={second}"]
    run(
        RANKS, arguments(packed, tmp_path / "run", *both, "optim.schedule=constant"), tmp_path / "a"
    )
    assert steps(second) == ["step-00000006", "step-00000008"]
    for name in steps(second):
        files = checksums.read(second / "checkpoints" / name)
        assert all(
            checksums.problem(second / "checkpoints" / name, *f) is None for f in files.items()
        )
        assert files == checksums.read(tmp_path / "run/checkpoints" / name)
    assert f"copied step-00000008 to {second}/checkpoints in" in capfd.readouterr().out
    saved = [event for event in read_events(tmp_path / "run") if event["kind"] == "saved"]
    assert {event["text"].split()[0] for event in saved} == {"saved", "copied"}
    for event in saved:  # in the background, but of its own step
        assert f"step-{event['step']:08d}" in event["text"]

    for file in (tmp_path / "run/checkpoints/step-00000008").glob("*.distcp"):
        file.write_bytes(b"")
    more = [*both, "optim.schedule=constant", "optim.steps=8"]
    run(RANKS, arguments(packed, tmp_path / "run", *more), tmp_path / "b")
    assert "resuming after step 8 of 8" in capfd.readouterr().out

    shutil.rmtree(tmp_path / "run/checkpoints")
    more = [*both, "optim.schedule=constant", "optim.steps=10"]
    run(RANKS, arguments(packed, tmp_path / "run", *more), tmp_path / "c")
    assert "resuming after step 8 of 10" in capfd.readouterr().out
    assert steps(tmp_path / "run") == ["step-00000010"]
    assert read_ring(second / "checkpoints/step-00000010")[1]["progress"]["step"] == 10
    long = tmp_path / "long"
    run(RANKS, arguments(packed, long, "optim.schedule=constant", "optim.steps=10"), tmp_path / "d")
    same_losses(tmp_path / "run", long)


def test_a_second_place_that_fails_is_told_and_costs_nothing(calm, packed, tmp_path, capfd):
    second = tmp_path / "second"
    (second).mkdir()
    (second / "checkpoints").write_text("in the way")
    run(
        RANKS,
        arguments(packed, tmp_path / "run", f"checkpoint.second_dir={second}"),
        tmp_path / "a",
    )
    said = capfd.readouterr().out
    assert "WARNING: step-00000008 could not be copied to " in said
    assert Path(second / "checkpoints").read_text() == "in the way"
    same_losses(tmp_path / "run", calm)
