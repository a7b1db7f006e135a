"""Interrupted in every way that Slurm knows, a run ends with the weights of one that was not."""

import signal

import pytest

from megatron_ring import train
from tests import ranks
from tests.launch import cluster
from tests.runs import GOLDEN, lines, same_tensors
from tests.test_checkpoint import options
from tests.test_reference import pack_pairs

pytestmark = pytest.mark.skipif(cluster.missing() is not None, reason=str(cluster.missing()))

STEPS = 120  # so many that a busy machine does not miss them
NODES = ("--nodes=2",)
LAYOUT = ["parallel.ep=2", f"optim.steps={STEPS}", "checkpoint.save_every=25"]


@pytest.fixture(scope="module")
def slurm():
    with cluster.started() as running:
        yield running


@pytest.fixture(scope="module")
def data(packed, tmp_path_factory):
    """Enough of the rows of `packed`."""
    from tests.test_train import pack_again

    return pack_again(packed, tmp_path_factory.mktemp("data") / "rows", epochs=16)


@pytest.fixture(scope="module")
def calm(data, tmp_path_factory):
    """The last checkpoint of an undisturbed run on two ranks."""
    folder = tmp_path_factory.mktemp("calm")
    ranks.run(2, train.main, options(data, folder / "run", *LAYOUT), folder=folder / "ranks")
    return last(folder / "run")


def last(run):
    return run / f"checkpoints/step-{STEPS:08d}"


def after(job, run, step):
    """Wait until the run has made `step` steps."""
    job.wait(f"step {step}", lambda: max(lines(run), default=0) >= step, every=0.01)


def stops(job):
    """After which steps the run said that it stopped."""
    lines = [line for line in job.said().splitlines() if ": stopped after step" in line]
    return [int(line.split()[4]) for line in lines]


def same_as(calm, run):
    same_tensors(calm, last(run))
    assert list(lines(run)) == list(range(1, STEPS + 1))


def test_signal_time_limit_and_requeue_in_one_run(slurm, data, calm, tmp_path):
    """One job, interrupted three times, comes back by itself and ends with the same weights."""
    run = tmp_path / "run"
    arguments = options(data, run, *LAYOUT)
    job = slurm.submit("train.sbatch", *arguments, log=tmp_path / "log", options=NODES)

    after(job, run, 3)
    slurm("scancel", "--signal=USR1", job.number)
    job.wait("the first stop", lambda: len(stops(job)) == 1)
    first = stops(job)[0]
    assert f"SIGUSR1: stopped after step {first} of {STEPS}" in job.said()

    after(job, run, first + 5)
    with cluster.still(str(run)) as told:
        assert len(told) == 2
        # Below the 180 seconds that train.sbatch asks to be told ahead, so: now, by Slurm's clock,
        # which goes round in half a minute.
        minutes = int(job.facts()["RunTime"].split(":")[1]) + 2
        slurm("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
        job.wait("the warning", lambda: all(cluster.is_told(p, signal.SIGUSR1) for p in told))
        slurm("scontrol", "update", f"JobId={job.number}", "TimeLimit=UNLIMITED")
    job.wait("the second stop", lambda: len(stops(job)) == 2)
    second = stops(job)[1]
    assert f"resuming after step {first} of {STEPS}" in job.said()
    assert first < second < STEPS

    after(job, run, second + 5)
    slurm("scontrol", "requeue", job.number)
    assert job.end() == "COMPLETED", job.said()
    assert job.facts()["Restarts"] == "3"
    third = stops(job)[2]  # SIGTERM, not by us: the ranks saved while Slurm was ending the job
    assert f"SIGTERM: stopped after step {third} of {STEPS}" in job.said()
    assert "ended by Slurm, status 75" in job.said()
    assert job.said().count("told to stop: requeueing") == 2
    same_as(calm, run)


def imports(run):
    """Both ranks are there, and have not yet begun to write."""
    with cluster.still(str(run)) as found:
        return len(found) == 2


def test_told_while_it_starts_it_comes_back_and_cancelled_it_does_not(slurm, data, tmp_path):
    """Python is killed in the middle of its imports, by the signal itself or as caught."""
    run = tmp_path / "run"
    job = slurm.submit("train.sbatch", *options(data, run), log=tmp_path / "log", options=NODES)
    job.wait("the ranks", lambda: imports(run))
    slurm("scancel", "--signal=USR1", job.number)
    job.wait("the second start", lambda: "restart 1: 2 ranks on n[1-2]" in job.said())
    assert "told to stop: requeueing" in job.said()
    assert not (run / "checkpoints").exists()

    after(job, run, 1)
    slurm("scancel", job.number)
    assert job.end() == "CANCELLED"
    assert job.facts()["Restarts"] == "1"


@pytest.mark.slow
def test_a_node_is_lost(slurm, data, calm, tmp_path):
    """Its rank answers no more, so nothing can be saved: the run goes on from its checkpoint."""
    run = tmp_path / "run"
    arguments = options(data, run, *LAYOUT)
    job = slurm.submit("train.sbatch", *arguments, log=tmp_path / "log", options=NODES)
    after(job, run, 30)
    with cluster.still(str(run)) as both:
        lost = next(rank for rank in both if rank.environ()["RANK"] == "1")
        others = [rank for rank in both if rank != lost]
        slurm.kill("slurmd.n2")
        slurm("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
        for rank in others:
            rank.resume()
        job.wait("the requeue", lambda: job.facts()["JobState"] == "PENDING")
        for process in (lost.parent(), lost):  # slurmstepd, which would tidy up, first
            process.kill()
    assert "DOWN" in slurm("scontrol", "show", "node", "n2")
    slurm("slurmd", "-N", "n2")
    assert job.end() == "COMPLETED", job.said()
    assert job.facts()["Restarts"] == "1"
    assert stops(job) == []
    assert f"resuming after step 25 of {STEPS}" in job.said()
    same_as(calm, run)


@pytest.mark.slow
def test_another_job_goes_first(slurm, data, calm, tmp_path):
    """Preempted with a grace time, the run saves in it and makes way."""
    run = tmp_path / "run"
    arguments, nodes = options(data, run, *LAYOUT), (*NODES, "--partition=graceful")
    job = slurm.submit("train.sbatch", *arguments, log=tmp_path / "log", options=nodes)
    after(job, run, 3)
    slurm("sbatch", *NODES, "--partition=high", "--output=/dev/null", "--wrap=true")
    assert job.end() == "COMPLETED", job.said()
    assert job.facts()["Restarts"] == "1"
    assert f"SIGTERM: stopped after step {stops(job)[0]} of {STEPS}" in job.said()
    assert "told to stop: requeueing" in job.said()
    same_as(calm, run)


@pytest.mark.slow
def test_the_three_stages(slurm, packed, tmp_path):
    """launch/chain.sh on tiny stages: four jobs, each after the one before, to the end."""
    pairs = pack_pairs(tmp_path, packed / "tokenizer", "pairs", range(2, 8))
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    stages = {
        first: f"data: {{train: {packed}}}",
        second: f"data: {{train: {packed}}}",
        third: f"data: {{train: {pairs}}}\nloss: {{head: dpo}}",
    }
    begins = {second: f", init_from: {first}", third: f", init_from: {second}"}
    for run, text in stages.items():
        begin = f"run: {{dir: {run}{begins.get(run, '')}}}\noptim: {{steps: 3}}\n"
        run.with_suffix(".yaml").write_text(begin + text + "\n")
    common = [f"model.hf_config={GOLDEN}", "parallel.ep=2", "log.wandb=disabled", "optim.lr=1e-3"]
    common += ["data.rows_per_step=4"]
    names = " ".join(str(run.with_suffix(".yaml")) for run in stages)
    log = f"--output={tmp_path}/log-%j"
    asked = slurm("launch/chain.sh", *NODES, log, "--", *common, STAGES=names).splitlines()
    assert [line.split()[1] for line in asked] == [
        f"launch/{name}.sbatch" for name in ("train", "train", "score_reference", "train")
    ]
    numbers = [line.split()[0] for line in asked]
    jobs = [cluster.Job(slurm, number, tmp_path / f"log-{number}") for number in numbers]
    for job in jobs:
        assert job.end() == "COMPLETED", job.said()
    assert f"wrote {pairs}/reference: weights" in jobs[2].said()
    assert [max(lines(run)) for run in stages] == [3, 3, 3]
    assert (third / "checkpoints/step-00000003/ring.json").is_file()
