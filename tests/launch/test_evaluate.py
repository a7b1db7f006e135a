"""launch/evaluate.sbatch: a server beside its questions; on a real Slurm, and without one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_ring.curation.shards import read_json, read_lines
from tests import ranks
from tests.launch import cluster
from tests.launch.cluster import ROOT
from tests.runs import GOLDEN

SCRIPT = "launch/evaluate.sbatch"
SUMS = [(n, n + 1) for n in range(12)]


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """Environment of a job whose engines are stand-ins, and a recipe of sums in tmp_path."""
    bins, package = tmp_path / "bin", tmp_path / "lib/sglang"
    bins.mkdir()
    package.mkdir(parents=True)
    (bins / "vllm").write_text(
        f'#!/bin/bash\nexec {sys.executable} -m tests.launch.serving vllm "$@"\n'
    )
    (bins / "vllm").chmod(0o755)
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text(
        "import sys\nfrom tests.launch import serving\nserving.main(['sglang', *sys.argv[1:]])\n"
    )
    rows = [{"question": f"{a} + {b}?", "answer": f"#### {a + b}"} for a, b in SUMS]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generator = {"endpoint": "http://127.0.0.1:1/v1", "model": "x", "max_tokens": 50}
    generator |= {"replies": str(tmp_path / "out/replies"), "retry_wait_s": 0.01, "retries": 1}
    recipe = {
        "tasks": {"gsm8k": {"file": str(tmp_path / "test.jsonl")}},
        "generator": generator | {"concurrency": 1},
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return {
        "PATH": f"{bins}:{cluster.PATH}",
        "PYTHONPATH": f"{ROOT}:{tmp_path / 'lib'}",
        "PYTHON": sys.executable,
        "SERVER_PYTHON": sys.executable,
        "SERVER_LOG": str(tmp_path / "server.log"),
        "ASKED": str(tmp_path / "asked"),
        "SLURM_JOB_ID": str(ranks.free_port() - 10_000),  # the server's port follows from it
    }


def start(job: dict[str, str], *arguments: object, **more: str) -> "subprocess.Popen[str]":
    """The script as the shell of a job, without a Slurm; `scontrol` tells what it is asked."""
    folder = Path(job["PATH"].split(":")[0])
    (folder / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"\n')
    (folder / "scontrol").chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return subprocess.Popen(
        [SCRIPT, *map(str, arguments)],
        cwd=ROOT,
        env=clean | job | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def called(job: dict[str, str], *arguments: object, **more: str) -> tuple[int, str, str]:
    """Status, output and errors of the script."""
    process = start(job, *arguments, **more)
    out, errors = process.communicate(timeout=cluster.PATIENCE_SECONDS)
    return process.returncode, out, errors


def left_behind(tmp_path: Path) -> list[list[str]]:
    """Processes that still speak of the folder."""
    found = (p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"]))
    return [line for line in found if any(str(tmp_path) in word for word in line)]


def scores(tmp_path: Path) -> Any:
    return read_json(tmp_path / "out/results.json")["tasks"]["gsm8k"]["score"]["value"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_is_asked_and_stopped(engine: str, job: dict[str, str], tmp_path: Path) -> None:
    more = {"SERVER": engine, "SERVER_OPTIONS": "--trust-remote-code", "SLURM_GPUS_ON_NODE": "2"}
    status, out, errors = called(job, GOLDEN, tmp_path / "recipe.yaml", **more)
    assert (status, errors) == (0, ""), out
    assert scores(tmp_path) == 1.0
    assert (tmp_path / "server.log").read_text() == f"{engine} serves {GOLDEN} as {GOLDEN}\n"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith(f"{GOLDEN} ") and len(asked) == len(SUMS)
    sizes = {"vllm": "--tensor-parallel-size 2", "sglang": "--tp-size 2"}
    assert sizes[engine] in out
    assert left_behind(tmp_path) == []


def test_a_server_that_dies_is_told(job: dict[str, str], tmp_path: Path) -> None:
    """Before it is ready, and amid its answers; with the end of its log."""
    for dies in ("0", "3"):
        status, _, errors = called(job, GOLDEN, tmp_path / "recipe.yaml", DIES=dies)
        assert status == 1
        assert (
            f"error: the server ended with status 3; the end of {tmp_path}/server.log:\n" in errors
        )
        assert errors.endswith("torch.OutOfMemoryError: CUDA out of memory\n")
        assert not (tmp_path / "out/results.json").exists()
        assert left_behind(tmp_path) == []
    status, out, errors = called(job, GOLDEN, tmp_path / "recipe.yaml")
    assert status == 0 and scores(tmp_path) == 1.0, out + errors
    assert len((tmp_path / "asked").read_text().splitlines()) <= len(SUMS) + 2


def test_a_server_that_is_never_ready(job: dict[str, str], tmp_path: Path) -> None:
    more = {"SERVER_SECONDS": "2", "DEAF": "1"}
    status, _, errors = called(job, GOLDEN, tmp_path / "recipe.yaml", **more)
    told = f"error: the server is not ready after SERVER_SECONDS=2; the end of {tmp_path}/server"
    assert (status, told in errors) == (1, True)
    assert errors.endswith(f"vllm serves {GOLDEN} as {GOLDEN}\n")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_told_to_stop_it_comes_back_and_ended_it_does_not(
    number: signal.Signals, job: dict[str, str], tmp_path: Path
) -> None:
    process = start(job, GOLDEN, tmp_path / "recipe.yaml", SLOW="0.3")
    asked = tmp_path / "asked"
    deadline = time.monotonic() + cluster.PATIENCE_SECONDS
    while not asked.exists() or len(asked.read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    told = number == signal.SIGUSR1
    assert process.returncode == (75 if told else 143)
    assert (f"told to stop: requeueing\nscontrol requeue {job['SLURM_JOB_ID']}\n" in out) == told
    assert ("ended by Slurm" in out) == (not told)
    assert left_behind(tmp_path) == []
    before = len(asked.read_text().splitlines())
    assert before < len(SUMS)
    status, *_ = called(job, GOLDEN, tmp_path / "recipe.yaml")
    assert status == 0 and scores(tmp_path) == 1.0
    assert len(asked.read_text().splitlines()) <= len(SUMS) + 1  # the one that was on its way


def test_what_is_wrong_is_said(job: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for arguments, more, status, message in (
        ([GOLDEN, recipe], {"SERVER": "llamas"}, 2, "SERVER=llamas is unknown; it is vllm or sgl"),
        (
            [tmp_path, recipe],
            {},
            2,
            f"{tmp_path} is no Hugging Face folder (no config.json); EXPORT=FOLDER exports a "
            "checkpoint there first",
        ),
    ):
        found = called(job, *arguments, **more)
        assert found[0] == status and f"error: {message}" in found[2]
    status, _, errors = called(job, GOLDEN)
    assert status == 2
    assert errors == (
        f"usage: sbatch SBATCH-OPTION... {SCRIPT} MODEL FILE.yaml... key.path=value...\n"
    )
    status, out, errors = called(job, GOLDEN, recipe, "tasks.gsm8k.file=no.jsonl")
    assert status == 1 and "no.jsonl" in out and "error: the server" not in errors
    assert left_behind(tmp_path) == []


def test_the_port_is_free(job: dict[str, str], tmp_path: Path) -> None:
    """The first choice is taken by another program, which would answer in the server's place."""
    first = 10_000 + int(job["SLURM_JOB_ID"])
    with socket.create_server(("127.0.0.1", first)):
        status, out, _ = called(job, GOLDEN, tmp_path / "recipe.yaml")
    assert status == 0 and f"on port {first}" not in out


@pytest.mark.slow
@pytest.mark.skipif(cluster.missing() is not None, reason=str(cluster.missing()))
def test_a_real_job_exports_serves_is_told_and_goes_on(job: dict[str, str], tmp_path: Path) -> None:
    """A checkpoint of ours; then a server that dies fails its job."""
    command = [sys.executable, ROOT / "tools/convert_checkpoint.py", "import", GOLDEN]
    subprocess.run([*command, tmp_path / "ours"], check=True, capture_output=True, cwd=ROOT)
    exported, asked = tmp_path / "hf", tmp_path / "asked"
    with cluster.started() as slurm:
        del job["SLURM_JOB_ID"]
        slurm.environment |= job | {"EXPORT": str(exported), "SLOW": "0.5"}
        arguments = [tmp_path / "ours", tmp_path / "recipe.yaml"]
        one = slurm.submit("evaluate.sbatch", *arguments, log=tmp_path / "log")
        one.wait("three answers", lambda: asked.exists() and asked.read_text().count("\n") > 3)
        slurm("scancel", "--signal=USR1", "--batch", one.number)
        assert one.end() == "COMPLETED", one.said()
        assert one.facts()["Restarts"] == "1"
        assert "told to stop: requeueing" in one.said()
        assert f"{exported} is there and is served as it is" in one.said()
        assert scores(tmp_path) == 1.0
        assert len(asked.read_text().splitlines()) <= len(SUMS) + 1
        [line] = {
            line["card"]["model"] for line in read_lines(tmp_path / "out/samples/gsm8k.jsonl")
        }
        assert line == str(exported)
        assert left_behind(tmp_path) == []

        slurm.environment |= {"DIES": "0"}
        two = slurm.submit("evaluate.sbatch", *arguments, log=tmp_path / "log2")
        assert two.end() == "FAILED" and two.facts()["Restarts"] == "0"
        assert "torch.OutOfMemoryError: CUDA out of memory" in two.said()
