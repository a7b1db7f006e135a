"""Told to stop: at once before the first step, between two steps after; saved, and resumable."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_ring import checkpoint, signals, step, train
from tests import ranks
from tests.runs import lines, same_tensors
from tests.test_checkpoint import options

LAYOUT = ["parallel.ep=2", "optim.steps=12", "checkpoint.save_every=100"]


@pytest.fixture(autouse=True)
def _as_from_a_terminal():
    """SIGHUP as a shell leaves it, also where the tests run under nohup; children inherit it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_names():
    assert [signals.name(number) for number in (10, 15)] == ["SIGUSR1", "SIGTERM"]


def test_a_signal_is_noted_and_handlers_are_given_back():
    before = {number: signal.getsignal(number) for number in signals.STOPS}
    with signals.caught() as told:
        told.begin()
        assert told.number == 0
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.raise_signal(number)
            assert told.number == number
    assert {number: signal.getsignal(number) for number in signals.STOPS} == before


def test_nohup_stays():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.caught():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_before_the_first_step_it_leaves_at_once(name):
    """Without unwinding: nobody is to be waited for, and nothing to be written."""
    program = (
        "import signal\nfrom megatron_ring import signals\n"
        "with signals.caught():\n"
        "    try:\n"
        f"        signal.raise_signal(signal.{name})\n"
        "    finally:\n"
        "        print('unwound')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (75, "")
    assert ended.stderr == f"{name}: leaving at once, there is nothing to save\n"


def told_to_stop(arguments: list[str], metrics: Path, after: int, numbers: list[int]) -> list[int]:
    """[exit status, signals sent]; rank 1 is told after `after` steps, and again while it saves."""
    left, begin = list(numbers), checkpoint.begin

    def tell() -> None:
        while not (metrics.exists() and metrics.read_text().count("\n") >= after):
            time.sleep(0.005)
        os.kill(os.getpid(), left.pop(0))

    def told_again(*saved: object) -> object:
        while left and os.environ["RANK"] == "1":
            signal.raise_signal(left.pop(0))
        return begin(*saved)

    checkpoint.begin = told_again
    if os.environ["RANK"] == "1":
        threading.Thread(target=tell, daemon=True).start()
    try:
        train.main(arguments)
    except SystemExit as end:
        return [end.code, len(numbers) - len(left)]
    return [0, len(numbers) - len(left)]


@pytest.fixture(scope="module")
def calm(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    ranks.run(2, train.main, options(packed, folder / "run", *LAYOUT), folder=folder / "ranks")
    return folder / "run"


def test_one_rank_is_told_and_all_save_the_same_step(calm, packed, tmp_path, capfd):
    """The saved run goes on as if nothing had been; a second and third signal cost nothing."""
    run = tmp_path / "run"
    arguments = options(packed, run, *LAYOUT)
    numbers = [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT]
    said = ranks.run(
        2, told_to_stop, arguments, run / "metrics.jsonl", 3, numbers, folder=tmp_path / "ranks"
    )
    assert said == [[75, 0], [75, 3]]
    (saved,) = (run / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert 3 <= step < 12
    console = capfd.readouterr().out
    assert f"SIGUSR1: stopped after step {step} of 12\n" in console
    assert "the same command goes on from here\n" in console

    ranks.run(2, train.main, arguments, folder=tmp_path / "again")
    assert f"resuming after step {step} of 12" in capfd.readouterr().out
    same_tensors(calm / "checkpoints/step-00000012", run / "checkpoints/step-00000012")
    assert list(lines(run)) == list(range(1, 13))


def told_in_the_last_step(arguments: list[str]) -> int:
    """Trains two steps and is told in the second; SystemExit would be an error here."""
    gradient = step.gradient

    def told(*what: object) -> object:
        if told.steps == 1:
            signal.raise_signal(signal.SIGTERM)
        told.steps += 1
        return gradient(*what)

    told.steps = 0
    step.gradient = told
    train.main(arguments)
    return told.steps


def test_told_in_the_last_step_it_is_finished(packed, tmp_path, capfd):
    arguments = options(packed, tmp_path / "run", "optim.steps=2")
    assert ranks.run(1, told_in_the_last_step, arguments, folder=tmp_path / "ranks") == [2]
    assert (tmp_path / "run/checkpoints/step-00000002/ring.json").is_file()
    assert "stopped" not in capfd.readouterr().out


def told_after(arguments: list[str], number: int) -> int:
    """The exit status; told in step `number`, the first being 1."""
    gradient, tried = step.gradient, []

    def told(*what: object) -> object:
        tried.append(None)
        if len(tried) == number:
            signal.raise_signal(signal.SIGTERM)
        return gradient(*what)

    step.gradient = told
    try:
        train.main(arguments)
    except SystemExit as end:
        return end.code
    return 0


def test_a_stop_between_two_log_lines_loses_no_step(packed, tmp_path):
    """Each step is in one line, lines end where a save was, and tokens add up to a calm run's."""
    more = ["log.every=4", "checkpoint.save_every=6", "optim.steps=8"]
    for name, numbers in (("told", (3, 0)), ("calm", (0,))):
        for life, number in enumerate(numbers):
            arguments = options(packed, tmp_path / name, *more)
            status = ranks.run(1, told_after, arguments, number, folder=tmp_path / f"{name}-{life}")
            assert status == [75 if number else 0]
    told, calm = lines(tmp_path / "told"), lines(tmp_path / "calm")
    assert [(s, line["steps"]) for s, line in told.items()] == [(3, 3), (4, 1), (6, 2), (8, 2)]
    assert [(s, line["steps"]) for s, line in calm.items()] == [(4, 4), (6, 2), (8, 2)]
    assert told[3]["tokens"] + told[4]["tokens"] == calm[4]["tokens"]
    for number in (6, 8):
        assert told[number]["loss"] == calm[number]["loss"]
