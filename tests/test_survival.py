"""Launched runs under torchrun that are killed, restarted by it, or killed at random again."""

import contextlib
import os
import random
import shutil
import time

import psutil
import pytest

from tests.runs import (
    await_that,
    kill_all,
    launch,
    lines,
    options,
    run,
    same_losses,
    steps,
    workers,
)


def test_torchrun_restarts_a_run_that_lost_a_rank(packed, tmp_path):
    """--max-restarts: the run goes on from its last save, the losses are those of a calm run."""
    log, flag = tmp_path / "log", tmp_path / "flag"
    more = options(packed, tmp_path / "run", "parallel.ep=2")
    program = ["-m", "tests.die_once", str(flag)]
    process = launch(2, more, log, ["--max-restarts", "1", "--monitor-interval", "0.2"], program)
    assert process.wait(120) == 0, log.read_text()[-3000:]
    said = log.read_text()
    assert flag.exists()
    assert "starting at step 0 of 8" in said
    assert "resuming after step 2 of 8" in said
    run(2, options(packed, tmp_path / "calm", "parallel.ep=2"), tmp_path / "ranks")
    same_losses(tmp_path / "run", tmp_path / "calm")
    assert steps(tmp_path / "run") == steps(tmp_path / "calm")


@pytest.mark.slow
def test_fifty_random_moments(packed, tmp_path):
    """SIGKILL to one rank or to all, fifty times; MOMENTS and SEED in the environment change it.

    A kill comes some time after the ranks have started, evenly over what a life of the run takes,
    so that it hits start, steps, saves and the end. After each, the run is started again; when it
    ends by itself, losses are compared with a calm run's, and it begins anew.
    """
    moments, seed = int(os.environ.get("MOMENTS", "50")), int(os.environ.get("SEED", "0"))
    chance, log = random.Random(seed), tmp_path / "log"
    common = ["parallel.ep=2", "optim.steps=30", "checkpoint.keep_last=2"]
    began = time.monotonic()
    run(2, options(packed, tmp_path / "calm", *common), tmp_path / "ranks")
    kills, finished, where, lost = 0, 0, {}, []
    while kills < moments or finished == 0:
        run_dir = tmp_path / "run"
        arguments = options(packed, run_dir, *common)
        before = [name for name in steps(run_dir) if "." not in name]
        process = launch(2, arguments, log)
        await_that(lambda p=process: len(workers(p.pid)) == 2, process, log)
        metrics = run_dir / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else -1
        if chance.random() < 0.9:  # else at any moment of the start
            changed = lambda m=metrics, s=size: m.exists() and m.stat().st_size != s  # noqa: E731
            await_that(lambda p=process, c=changed: c() or p.poll() is not None, process, log)
        time.sleep(chance.uniform(0, 6) if kills < moments else 0)
        victims = workers(process.pid)
        if kills < moments and victims and process.poll() is None:
            kills += 1
            seen = max(lines(run_dir), default=0)
            one = chance.random() < 0.5
            if one:
                with contextlib.suppress(psutil.NoSuchProcess):
                    chance.choice(victims).kill()
                assert process.wait(120) != 0 or max(lines(run_dir)) == 30
            else:
                kill_all(process)
            there = steps(run_dir)
            whole = [name for name in there if "." not in name]
            assert not before or whole[-1] >= before[-1], "a checkpoint was lost"
            last = int(whole[-1].removeprefix("step-")) if whole else 0
            kind = f"{'one' if one else 'all'} {'in a save' if len(whole) < len(there) else ''}"
            where[kind] = where.get(kind, 0) + 1
            lost.append(max(seen - last, 0))
            print(f"kill {kills}: {kind}, after step {seen}, saved {last}", flush=True)
        elif process.wait(120) == 0:
            finished += 1
            same_losses(run_dir, tmp_path / "calm")
            if kills < moments:
                shutil.rmtree(run_dir)
    assert "DAMAGED" not in log.read_text()
    print(
        f"seed {seed}: {kills} kills ({where}), {finished} runs finished with a calm run's losses, "
        f"steps lost {lost}, {time.monotonic() - began:.0f} s"
    )
