"""Resuming: bitwise on the same layout, equal losses on another, refused with other data."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import psutil
import pytest

from megatron_ring import checkpoint, train
from megatron_ring.convert.folder import read_ring
from megatron_ring.model import weights
from tests import ranks
from tests.runs import GOLDEN, lines, run, same_tensors, steps

STEPS = 6


def options(packed, run_dir, *more):
    return [
        f"model.hf_config={GOLDEN}",
        "model.initializer_range=0.05",
        f"data.train={packed}",
        "data.rows_per_step=4",
        f"run.dir={run_dir}",
        f"optim.steps={STEPS}",
        "optim.lr=1e-2",
        "checkpoint.save_every=3",
        "log.wandb=disabled",
        *more,
    ]


@pytest.fixture(scope="module")
def finished(packed, tmp_path_factory):
    """A run of six steps on EP2 × TP2, never interrupted, with its checkpoint of step 3."""
    folder = tmp_path_factory.mktemp("finished")
    layout = ["parallel.tp=2", "parallel.ep=2"]
    run(4, options(packed, folder / "run", *layout), folder / "ranks")
    return folder / "run"


def started_from(finished, run_dir, step=3):
    """A run folder that holds only the checkpoint of `step`, as after a kill."""
    name = f"step-{step:08d}"
    shutil.copytree(finished / "checkpoints" / name, run_dir / "checkpoints" / name)
    shutil.copy(finished / "metrics.jsonl", run_dir / "metrics.jsonl")
    return run_dir


def test_resuming_on_the_same_layout_is_bitwise(finished, packed, tmp_path):
    resumed = started_from(finished, tmp_path / "run")
    layout = ["parallel.tp=2", "parallel.ep=2"]
    run(4, options(packed, resumed, *layout), tmp_path / "ranks")
    for step in range(1, STEPS + 1):
        for key in ("loss", "grad_norm", "lr", "aux_loss"):
            assert lines(resumed)[step][key] == lines(finished)[step][key], (step, key)
    keys = same_tensors(
        finished / "checkpoints/step-00000006", resumed / "checkpoints/step-00000006"
    )
    assert "optimizer.state.exp_avg.decoder.layers.0.mlp.experts.w1" in keys


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (1, []),
        (2, []),
        (4, []),
        (2, ["parallel.ep=2", "parallel.overlap=true"]),
        (2, ["parallel.tp=2"]),
        (2, ["parallel.pp=2"]),
        (2, ["parallel.cp=2", "parallel.ep=2"]),
        (4, ["parallel.pp=2", "parallel.ep=2", "parallel.vpp=2"]),
    ],
)
def test_resuming_on_another_layout_gives_the_same_losses(
    world_size, layout, finished, packed, tmp_path
):
    resumed = started_from(finished, tmp_path / "run")
    run(world_size, options(packed, resumed, *layout), tmp_path / "ranks")
    for step in range(4, STEPS + 1):
        ours, theirs = lines(resumed)[step], lines(finished)[step]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_from_one_optimizer_to_two(finished, packed, tmp_path):
    """Saved by one process, resumed under EP2: dense and expert optimizers part again."""
    first = started_from(finished, tmp_path / "first")
    run(1, options(packed, first), tmp_path / "ranks1")
    # Step 6 was saved by one process; go on from it for two more steps on two layouts.
    more = ["optim.steps=8", "optim.schedule=constant"]
    for name, world_size, layout in (("a", 1, []), ("b", 2, ["parallel.ep=2"])):
        copy = started_from(first, tmp_path / name, step=6)
        run(world_size, options(packed, copy, *more, *layout), tmp_path / f"ranks-{name}")
    for step in (7, 8):
        a, b = (lines(tmp_path / name)[step]["loss"] for name in ("a", "b"))
        assert a == pytest.approx(b, abs=1e-5)


def test_killed_for_real_and_resumed(packed, tmp_path):
    """SIGKILL to both ranks in the middle; all losses are those of an undisturbed run."""
    common = ["parallel.ep=2", "optim.steps=12", "checkpoint.save_every=2"]
    run(2, options(packed, tmp_path / "calm", *common), tmp_path / "ranks")

    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(20000 + os.getpid() % 10000), "-m", "megatron_ring.train"]
    command += options(packed, tmp_path / "killed", *common)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log").open("w")
    victim = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        assert victim.poll() is None, (tmp_path / "log").read_text()[-3000:]
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.02)
    # The launcher puts its ranks into sessions of their own, so each is killed by name.
    ranks_and_launcher = [*psutil.Process(victim.pid).children(recursive=True), victim]
    for process in ranks_and_launcher:
        process.kill()
    victim.wait()
    psutil.wait_procs(ranks_and_launcher[:-1])
    assert max(lines(tmp_path / "killed")) < 12, "it was not killed in the middle"

    run(2, options(packed, tmp_path / "killed", *common), tmp_path / "ranks-again")
    for step, line in lines(tmp_path / "calm").items():
        assert lines(tmp_path / "killed")[step]["loss"] == line["loss"], step
    assert sorted(lines(tmp_path / "killed")) == list(range(1, 13))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["model.num_experts_per_tok=2"], "was trained with model.num_experts_per_tok=3, this run"),
        (["data.rows_per_step=2"], "was trained with data.rows_per_step=4, this run has 2"),
        (["data.train=OTHER"], "was trained on data with fingerprint"),
    ],
)
def test_another_run_is_refused_with_both_values(
    change, message, finished, packed, packed_other, tmp_path
):
    resumed = started_from(finished, tmp_path / "run")
    change = [option.replace("OTHER", str(packed_other)) for option in change]
    with pytest.raises(RuntimeError, match=message) as error:
        run(1, options(packed, resumed, *change), tmp_path / "ranks")
    assert "choose another run.dir" in str(error.value) or "place in the data" in str(error.value)
    assert (resumed / "checkpoints/step-00000003/ring.json").is_file()


def test_what_killed_runs_left_is_deleted_when_the_next_one_starts(tmp_path):
    """Half a save and half a deletion, whose steps need not come again; damaged ones stay."""
    for end in ("2.deleted", "2.damaged", "3", "7.tmp"):
        (tmp_path / f"checkpoints/step-0000000{end}/tokenizer").mkdir(parents=True)
    with checkpoint.locked(tmp_path):
        assert steps(tmp_path) == ["step-00000002.damaged", "step-00000003"]


def test_a_second_dir_in_use_is_named_as_such(tmp_path):
    with (
        checkpoint.locked(tmp_path),
        pytest.raises(checkpoint.CheckpointError) as error,
        checkpoint.locked(tmp_path, "checkpoint.second_dir"),
    ):
        pass
    assert str(error.value) == (
        f"checkpoint.second_dir={tmp_path} is in use by process {os.getpid()} on "
        f"{socket.gethostname()}; wait for it, stop it, or choose another checkpoint.second_dir"
    )


def test_a_full_disk_does_not_keep_a_lock_from_being_held(tmp_path, monkeypatch):
    """A second_dir that is full is told of by the copies; it must not end the run."""

    def full(*what):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with checkpoint.locked(tmp_path):
        assert (tmp_path / "lock").read_text() == ""


def test_a_folder_in_use_is_refused(packed, tmp_path):
    with (
        checkpoint.locked(tmp_path / "run"),
        pytest.raises(RuntimeError, match=f"in use by process {os.getpid()} on .* choose another"),
    ):
        run(1, options(packed, tmp_path / "run"), tmp_path / "ranks")


def test_keep_last_and_the_final_save(packed, tmp_path):
    more = ["checkpoint.save_every=1", "checkpoint.keep_last=2", "optim.steps=4"]
    run(1, options(packed, tmp_path / "run", *more), tmp_path / "ranks")
    left = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert left == ["step-00000003", "step-00000004"]


def main_believing_in_space(arguments):
    """train.main where the free space looks endless, as when others fill the disk meanwhile."""
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: usage(path)._replace(free=2**60)
    train.main(arguments)


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (train.main, r"it takes 0.00\d GB, the disk has 0.00\d GB free; make room"),
        (main_believing_in_space, "could not save .*step-00000004"),
    ],
    ids=["seen before", "while writing"],
)
def test_a_full_disk_leaves_the_earlier_checkpoint(main, message, finished, packed, tmp_path):
    """A tmpfs with room for one checkpoint and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    first = finished / "checkpoints/step-00000003"
    size = sum(path.stat().st_size for path in first.rglob("*") if path.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(size * 1.5)}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can make a small disk")
    try:
        resumed = started_from(finished, disk / "run")
        arguments = options(packed, resumed, "optim.steps=4")
        with pytest.raises(RuntimeError, match=message) as error:
            ranks.run(1, main, arguments, folder=tmp_path / "ranks")
        assert "Earlier checkpoints are untouched: step-00000003" in str(error.value)
        left = [path.name for path in (resumed / "checkpoints").iterdir()]
        assert left == ["step-00000003"]
        same_tensors(first, resumed / "checkpoints/step-00000003")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_outlives_the_weights_it_started_from(packed, tmp_path):
    """The folder of run.init_from may go away; its config.json still reaches every checkpoint."""
    start = tmp_path / "start"
    shutil.copytree(GOLDEN, start)
    first = options(packed, tmp_path / "run", f"run.init_from={start}", "optim.steps=3")
    run(1, first, tmp_path / "ranks")
    shutil.rmtree(start)
    run(1, [*first, "optim.steps=6"], tmp_path / "ranks-again")
    _, ring = read_ring(tmp_path / "run/checkpoints/step-00000006")
    assert ring["hf"] == json.loads((GOLDEN / "config.json").read_text())


def test_a_process_that_ran_before_leaves_no_groups_behind(packed, tmp_path):
    """megatron-core writes its groups into the metadata it is handed; ranks forked here see it."""
    layout = ["optim.steps=1", "parallel.tp=2", "parallel.ep=2"]
    train.main(options(packed, tmp_path / "here", "optim.steps=1"))
    run(4, options(packed, tmp_path / "after", *layout), tmp_path / "ranks")
    assert "dp_cp_group" not in weights.metadata()
