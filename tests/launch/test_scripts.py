"""The scripts with commands of Slurm that only print: what they ask for, and what they say."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ring import train
from tests import ranks
from tests.launch.cluster import PATIENCE_SECONDS, ROOT
from tests.runs import same_tensors
from tests.test_checkpoint import options

FAKES = {
    "srun": 'echo "srun $*"; [ -z "${TERM_FIRST:-}" ] || kill -TERM $PPID; exit "${STATUS:-0}"',
    "scontrol": """case $1 in
  show) [ "$2" = hostnames ] && echo n7 && echo n8 || echo "NodeName=n7 NodeAddr=10.0.0.7 X=y" ;;
  *) echo "scontrol $*" ;;
esac""",
    "sbatch": 'echo "$*" >>"$ASKED"; echo "$(wc -l <"$ASKED");cluster"',
}
JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[7-8]", "SLURM_JOB_NUM_NODES": "2"}


@pytest.fixture
def call(tmp_path):
    """Call a script among fake Slurm commands: its ended process."""
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def called(*command, cwd=ROOT, **more):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ASKED": str(tmp_path / "asked")}
        python = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "SLURM_CPUS_ON_NODE": "1"}
        return subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            env=clean | paths | python | JOB | more,
            capture_output=True,
            text=True,
        )

    return called


def test_a_rank_a_node_or_a_gpu_or_as_asked(call):
    said = call("launch/train.sbatch", "a.yaml", "b.c=d e").stdout
    assert "2 ranks on n[7-8]" in said
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=1 " in said
    assert said.endswith(f"rank {sys.executable} -m megatron_ring.train a.yaml b.c=d e\n")
    said = call("launch/train.sbatch", SLURM_GPUS_ON_NODE="8", SLURM_CPUS_ON_NODE="96").stdout
    assert "--ntasks=16 --ntasks-per-node=8 --cpus-per-task=12 " in said
    more = {"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "4"}
    said = call("launch/score_reference.sbatch", "runs/x", "packed/y", **more).stdout
    assert "--ntasks=8 --ntasks-per-node=4 --cpus-per-task=1 " in said
    assert said.endswith(f"rank {sys.executable} tools/score_reference.py runs/x packed/y\n")


@pytest.mark.parametrize(("script", "tool"), [("pack", "pack"), ("convert", "convert_checkpoint")])
def test_tools_of_one_process(script, tool, call):
    ended = call(f"launch/{script}.sbatch", "a", "b=c", SLURM_CPUS_ON_NODE="16", STATUS="3")
    assert ended.stdout == (
        f"srun --nodes=1 --ntasks=1 --cpus-per-task=16 {sys.executable} tools/{tool}.py a b=c\n"
    )
    assert ended.returncode == 3


@pytest.mark.parametrize("script", ["train", "pack"])
def test_containers(script, call):
    ended = call(
        f"launch/{script}.sbatch",
        SRUN_OPTIONS="--container-image=i.sqsh --container-mounts=/work",
        RUN_IN="apptainer exec --nv i.sif",
        PYTHON="python",
    )
    assert " --container-image=i.sqsh --container-mounts=/work apptainer exec --nv i.sif " in (
        ended.stdout
    )


@pytest.mark.parametrize("status", ["75", "138", "143"])
def test_told_to_stop_it_is_requeued(status, call):
    ended = call("launch/train.sbatch", STATUS=status)
    assert ended.returncode == 75
    assert ended.stdout.endswith("told to stop: requeueing\nscontrol requeue 12\n")


def test_restarts_are_limited(call):
    more = {"STATUS": "75", "RESTARTS": "3"}
    ended = call("launch/train.sbatch", SLURM_RESTART_COUNT="3", **more)
    assert ended.returncode == 75
    assert "scontrol requeue" not in ended.stdout
    assert ended.stderr == "error: restarted 3 times, which is RESTARTS; submit again to go on\n"
    ended = call("launch/train.sbatch", SLURM_RESTART_COUNT="2", **more)
    assert "scontrol requeue 12" in ended.stdout


def test_a_failure_is_not_requeued(call):
    ended = call("launch/train.sbatch", STATUS="1")
    assert ended.returncode == 1
    assert "scontrol requeue" not in ended.stdout
    assert ended.stderr == "error: status 1: that was no signal, so the job is not requeued\n"
    ended = call("launch/train.sbatch")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_slurm_ends_is_left_to_slurm(call):
    """A job that was cancelled is not to come back."""
    ended = call("launch/train.sbatch", STATUS="75", TERM_FIRST="1")
    assert ended.returncode == 75
    assert ended.stdout.endswith("ended by Slurm, status 75\n")


@pytest.mark.parametrize("script", ["train", "pack", "score_reference", "convert"])
def test_the_checkout_is_asked_for(script, call, tmp_path):
    ended = call(ROOT / f"launch/{script}.sbatch", cwd=tmp_path)
    assert ended.returncode == 2
    wanted = f"error: call sbatch in the checkout, or with --chdir; this is {tmp_path}"
    assert ended.stderr.splitlines()[-1] == wanted


def test_the_chain(call, tmp_path):
    """Each job waits for the one before; DPO's pairs are scored first, on its layout."""
    common = ["configs/model/ling_lite.yaml", "configs/parallel/8x80gb.yaml", "data.valid=packed/v"]
    ended = call("launch/chain.sh", "--nodes=1", "--time=60", "--", *common)
    assert ended.returncode == 0, ended.stderr
    layout = "parallel.tp=1 parallel.pp=1 parallel.vpp=1 parallel.cp=1 parallel.ep=8 run.dtype=auto"
    asked = [
        f"launch/train.sbatch {' '.join(common)} configs/sft_stage1.yaml",
        f"launch/train.sbatch {' '.join(common)} configs/sft_stage2.yaml",
        f"launch/score_reference.sbatch runs/sft_stage2 packed/preference {layout}",
        f"launch/score_reference.sbatch runs/sft_stage2 packed/v {layout}",
        f"launch/train.sbatch {' '.join(common)} configs/dpo.yaml",
    ]
    waits = [""] + [f"--dependency=afterok:{n} --kill-on-invalid-dep=yes " for n in (1, 2, 3, 4)]
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"--parsable --nodes=1 --time=60 {wait}{what}"
        for wait, what in zip(waits, asked, strict=True)
    ]
    assert ended.stdout.splitlines() == [f"{n} {what}" for n, what in enumerate(asked, 1)]


def test_the_chain_refuses_before_it_queues(call, tmp_path):
    ended = call("launch/chain.sh", "--nodes=1")
    assert ended.returncode == 2
    assert ended.stderr == (
        "usage: launch/chain.sh SBATCH-OPTION... -- FILE.yaml... key.path=value...\n"
    )
    ended = call("launch/chain.sh", "--", "nowhere.yaml")
    assert ended.returncode == 1
    assert ended.stderr == "error: there is no config file nowhere.yaml\n"
    assert not (tmp_path / "asked").exists()


def test_torchrun_wants_to_know_its_place(call):
    ended = call("launch/torchrun.sh", "a.yaml", NNODES="2", NODE_RANK="1")
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: NNODES=2: set NODE_RANK (0 to 1) and MASTER_ADDR (of node 0), too\n"
    )


def test_torchrun_is_told_to_stop_and_goes_on(packed, tmp_path):
    """SIGTERM and SIGINT to the whole group, as shells and terminals send them: saved; again."""
    layout = ["parallel.ep=2", "optim.steps=40", "data.rows_per_step=2", "checkpoint.save_every=99"]
    ranks.run(2, train.main, options(packed, tmp_path / "calm", *layout), folder=tmp_path / "ranks")

    run, log = tmp_path / "run", tmp_path / "log"
    command = ["launch/torchrun.sh", *options(packed, run, *layout)]
    more = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "NPROC_PER_NODE": "2"}
    start = {"cwd": ROOT, "env": os.environ | more, "start_new_session": True}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, **start)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (run / "metrics.jsonl").exists() or lines(run) < 3:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 75, log.read_text()
    assert f"SIGTERM: stopped after step {lines(run)} of 40" in log.read_text()
    assert "death signal" not in log.read_text(), "torchrun was told, too: it waits 30 seconds only"
    (saved,) = (run / "checkpoints").iterdir()
    assert lines(run) < 40

    ended = subprocess.run(command, capture_output=True, text=True, **start)
    assert ended.returncode == 0, ended.stderr
    assert f"resuming after step {int(saved.name[5:])} of 40" in ended.stdout
    final = "checkpoints/step-00000040"
    same_tensors(tmp_path / "calm" / final, run / final)


def lines(run: Path) -> int:
    return (run / "metrics.jsonl").read_text().count("\n")


def test_torchrun_is_told_before_it_has_started_a_rank(tmp_path):
    """There is nobody else to tell; the signal must not be lost while the run goes on."""
    python, there = tmp_path / "python", tmp_path / "there"
    python.write_text(f"#!/bin/bash\ntouch {there}\nexec sleep 20\n")
    python.chmod(0o755)
    began = time.monotonic()
    process = subprocess.Popen([ROOT / "launch/torchrun.sh"], env=os.environ | {"PYTHON": python})
    while not there.exists():
        assert time.monotonic() < began + 10
        time.sleep(0.01)
    time.sleep(0.5)  # until `touch` is no child of it any more
    process.terminate()
    assert process.wait() == 75
    assert time.monotonic() < began + 10, "it was waited for"


def test_signals_in_quick_succession_never_reach_torchrun_itself(tmp_path):
    """The group is told twice, 0 to 8 ms apart: the ranks, each time, and nobody else."""
    python, told, rank = tmp_path / "python", tmp_path / "told", tmp_path / "rank"
    rank.write_text(f"#!/bin/bash\ntrap : TERM\ntouch {rank}.there\nwhile :; do sleep 0.05; done\n")
    python.write_text(f"#!/bin/bash\ntrap 'touch {told}' TERM\n{rank} &\nwhile :; do wait; done\n")
    for program in (rank, python):
        program.chmod(0o755)
    process = subprocess.Popen(
        [ROOT / "launch/torchrun.sh"],
        env=os.environ | {"PYTHON": python},
        start_new_session=True,
    )
    began = time.monotonic()
    while not Path(f"{rank}.there").exists():
        assert time.monotonic() < began + 10
        time.sleep(0.01)
    (launcher,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    try:
        for apart in range(80):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(apart / 10_000)
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.02)
        assert process.poll() is None and not told.exists()
    finally:
        os.killpg(int(launcher), signal.SIGKILL)
        assert process.wait(PATIENCE_SECONDS) == 75
