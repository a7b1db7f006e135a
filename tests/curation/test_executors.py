"""Who does the work changes nothing: Slurm and Ray leave the bytes that one process does."""

import os
import subprocess
import sys

import pytest

from megatron_ring.config import ConfigError
from megatron_ring.curation import run
from tests.curation.runs import load, outcome
from tests.launch import cluster

# Two segments of six shards, in two tasks each: a task of Slurm or Ray starts in seconds.
RECIPE = ["records_per_shard=7", "stages=[{stage: exact}, {stage: check_tools}]"]
PARTS = [*RECIPE, "shards_per_task=4", "workers=2"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What one process makes of the smoke recipe."""
    output = tmp_path_factory.mktemp("local") / "out"
    return outcome(run.run(load(*RECIPE, output=output)).output)


@pytest.mark.slow
def test_ray(local, tmp_path):
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'megatron-ring[ray]'")
    config = load(*PARTS, "executor=ray", output=tmp_path / "out")
    assert outcome(run.run(config).output) == local


@pytest.fixture(scope="module")
def slurm():
    if cluster.missing() is not None:
        pytest.skip(str(cluster.missing()))
    with cluster.started() as running:
        yield running


@pytest.fixture
def on_slurm(slurm, monkeypatch):
    """This process and its jobs see the tests' Slurm alone."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH"))]:
        if name not in slurm.environment:
            monkeypatch.delenv(name)
    return slurm


def test_slurm(on_slurm, local, tmp_path):
    options = ["executor=slurm", "slurm.time=00:10:00", "slurm.memory_gb=1"]
    config = load(*PARTS, *options, output=tmp_path / "out")
    assert outcome(run.run(config).output) == local


def test_slurm_tells_why_a_job_failed(on_slurm, tmp_path):
    """Its setup ends with an error on purpose; the queue is asked until the job is gone."""
    options = ["executor=slurm", "slurm.memory_gb=1", "slurm.setup=exit 3"]
    config = load(*PARTS, *options, output=tmp_path / "out")
    with pytest.raises(ValueError, match="6 shards of 00-read were not done, .* look at the logs"):
        run.run(config)


def test_slurm_refuses_what_it_does_not_know(on_slurm, tmp_path):
    options = ["executor=slurm", "slurm.partition=nosuch"]
    with pytest.raises(ValueError, match="executor=slurm: sbatch did not take the job"):
        run.run(load(*PARTS, *options, output=tmp_path / "out"))


def test_no_slurm_and_no_ray(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="executor=slurm: sbatch did not take the job: .*sbatch"):
        run.run(load(*PARTS, "executor=slurm", output=tmp_path / "slurm"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="executor=ray wants Ray: pip install 'megatron-ring"):
        run.run(load(*PARTS, "executor=ray", output=tmp_path / "ray"))


def test_an_unknown_executor_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="executor='dask': input should be 'local', 'slurm'"):
        load("executor=dask", output=tmp_path)


def test_logs_of_datatrove_are_not_on_the_terminal(tmp_path):
    command = [sys.executable, "tools/curate.py", "run", "tests/curation/smoke.yaml", "workers=2"]
    ended = subprocess.run(
        [*command, f"output={tmp_path / 'out'}"],
        cwd=cluster.ROOT,
        env=os.environ | {"PYTHONPATH": str(cluster.ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert "00-read: 35 of 35 records" in ended.stdout
