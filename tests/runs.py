"""Small runs of the whole program, and what they left behind; for tests of checkpoints."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from megatron_ring import train
from megatron_ring.convert.torch_dist import TorchDistReader
from tests import ranks

GOLDEN = Path(__file__).parent / "golden" / "ling_lite_tiny"


def options(packed, run_dir, *more) -> list[str]:
    """Arguments of a run that saves every second step, up to the eighth."""
    return [
        f"model.hf_config={GOLDEN}",
        "model.initializer_range=0.05",
        f"data.train={packed}",
        "data.rows_per_step=4",
        f"run.dir={run_dir}",
        "optim.steps=8",
        "optim.lr=1e-2",
        "checkpoint.save_every=2",
        "checkpoint.keep_last=9",
        "log.wandb=disabled",
        *more,
    ]


def run(world_size, arguments, folder) -> None:
    ranks.run(world_size, train.main, arguments, folder=folder)


def lines(run_dir) -> dict[int, dict]:
    """What metrics.jsonl says of each training step; a line cut off by a kill is left out."""
    file = Path(run_dir) / "metrics.jsonl"
    whole = file.read_text().split("\n")[:-1] if file.exists() else []
    return {line["step"]: line for line in map(json.loads, whole) if "loss" in line}


def same_losses(one, other) -> None:
    """Bitwise the same steps, losses and gradient norms."""
    a, b = lines(one), lines(other)
    assert sorted(a) == sorted(b)
    for step in a:
        for key in ("loss", "grad_norm", "lr", "aux_loss"):
            assert a[step][key] == b[step][key], (step, key)


def same_tensors(first, second) -> dict[str, tuple[int, ...]]:
    """Bitwise equality of everything in two checkpoints; the keys compared, with shapes."""
    a, b = TorchDistReader(first), TorchDistReader(second)
    assert a.keys() == b.keys()
    for key, shape in a.keys().items():
        zero = (0,) * len(shape)
        assert torch.equal(a.read(key, zero, shape), b.read(key, zero, shape)), key
    return a.keys()


def steps(run_dir) -> list[str]:
    """What lies in its folder of checkpoints; [] before there is one."""
    folder = Path(run_dir) / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def copied(source, run_dir, *numbers) -> Path:
    """A run folder that holds only the checkpoints of these steps, as after a kill."""
    for number in numbers:
        name = f"step-{number:08d}"
        shutil.copytree(source / "checkpoints" / name, run_dir / "checkpoints" / name)
    shutil.copy(source / "metrics.jsonl", run_dir / "metrics.jsonl")
    return run_dir


def launch(world_size, arguments, log, launcher=(), program=("-m", "megatron_ring.train")):
    """The program under torchrun, its output in file `log`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
    command += ["--master-port", str(ranks.free_port()), *launcher, *program, *arguments]
    with open(log, "a") as stream:
        return subprocess.Popen(
            command, stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def await_that(condition: Callable[[], bool], process, log, seconds=120) -> None:
    """Wait until `condition`; AssertionError with the log's end when the run ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, Path(log).read_text()[-3000:]
        assert time.monotonic() < deadline, Path(log).read_text()[-3000:]
        time.sleep(0.01)


def workers(launcher: int) -> list[psutil.Process]:
    """The ranks that live under a launcher, in the order of their numbers."""
    found = []
    try:
        for process in psutil.Process(launcher).children(recursive=True):
            if "RANK" in process.environ():
                found.append((process.environ()["RANK"], process))
    except psutil.Error:  # one has just ended, and with it the launch
        return []
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def kill_all(process) -> None:
    """SIGKILL to ranks and launcher: it puts them into sessions of their own."""
    victims = psutil.Process(process.pid).children(recursive=True)
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(victims)
