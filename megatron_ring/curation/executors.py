"""Who does the shards: processes of this machine, Slurm or Ray, each through datatrove.

A task is a list of shards. That a task ends says nothing: shards are finished when their files are
there, and what is missing after all tasks is an error, or is done again.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from megatron_ring.config.curation import CurateConfig
from megatron_ring.curation.segment import JOB, Job
from megatron_ring.curation.shards import read_json, write_json, write_lines

logger.disable("datatrove")  # a run tells its own progress; errors come as exceptions
POLL_SECONDS = 2.0


class ShardsStep(PipelineStep):
    """The only step of our pipelines: the shards of a task through their segment."""

    name = "segment of a recipe"
    type = "curation"

    def __init__(self, job: Job, tasks: list[list[int]], failed: str) -> None:
        super().__init__()
        self.job, self.tasks, self.failed = job, tasks, failed

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> tuple[()]:
        """Do the shards of task `rank`; an error is written to a file too, for other machines."""
        for shard in self.tasks[rank]:
            try:
                self.job.do(shard)
            except Exception:
                text = traceback.format_exc()
                write_lines(Path(self.failed) / f"{shard:05d}.txt", [text.encode()])
                raise
        return ()


def execute(config: CurateConfig, job: Job, shards: list[int], folder: Path) -> None:
    """Do `shards`; logs and the like go to `folder`, which is empty or left by a run before.

    ValueError when a worker fails, with what it said and where the rest is.
    """
    per_task = 1 if config.executor == "local" else config.shards_per_task
    tasks = [shards[i : i + per_task] for i in range(0, len(shards), per_task)]
    failed = folder / "failed"
    for old in failed.glob("*.txt"):
        old.unlink()
    common = {"tasks": len(tasks), "workers": min(config.workers, len(tasks))}
    common |= {"skip_completed": False, "logging_dir": str(folder)}
    pipeline: list[Any] = [ShardsStep(job, tasks, str(failed))]
    if config.executor == "local":
        Local(pipeline, **common).run()
    elif config.executor == "ray":
        _run_ray(config, pipeline, common)
    else:
        _run_slurm(config, pipeline, common, folder)
    told = sorted(failed.glob("*.txt"))
    if told:
        last = told[0].read_text(encoding="utf-8").strip()
        raise ValueError(f"shard {told[0].stem} failed, see {told[0]}:\n{last}")


class Local(LocalPipelineExecutor):
    """datatrove's, on a pool that notices when a worker dies.

    The pool of multiprocessing that datatrove uses waits for ever for the result of a process that
    was killed (for its memory, say), and its manager outlives a parent that was.
    """

    def run(self) -> None:
        """Do all ranks. ValueError when workers keep dying without finishing any."""
        if self.workers == 1:
            for rank in range(self.tasks):
                self._run_for_rank(rank)
            return
        ranks = list(range(self.tasks))
        while ranks:
            done = self._run_pool(ranks)
            if len(done) < len(ranks) and not done:
                raise ValueError(
                    f"workers were killed, and none of {len(ranks)} shards was finished since; "
                    f"they may lack memory: lower workers={self.workers} or records_per_shard"
                )
            ranks = [rank for rank in ranks if rank not in done]

    def _run_pool(self, ranks: list[int]) -> set[int]:
        """Ranks that were finished before a worker died, or all."""
        done = set()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])  # workers import nothing
        with ProcessPoolExecutor(self.workers, context, _begin, (self,)) as pool:
            # submit fails too, once a worker is dead.
            try:
                futures = {pool.submit(_run_rank, rank): rank for rank in ranks}
                for future in as_completed(futures):
                    future.result()
                    done.add(futures[future])
            except BrokenProcessPool:
                pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():
                    worker.terminate()  # what is on its way in them is paid: it comes home
                raise
        return done


_own: dict[str, Local] = {}  # a worker's executor
_over = threading.Event()  # in a worker: it was told to end


def _begin(executor: Local) -> None:
    """A worker ends when its parent is gone, SIGKILL included: the pool's own would wait.

    A person's interrupt reaches it through its parent, once, as SIGTERM: a second one would cut off
    what it waits for.
    """
    _own["executor"] = executor
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by the pool"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end(number: int, frame: object) -> None:
    if not _over.is_set():
        _over.set()
        raise KeyboardInterrupt


def _run_rank(rank: int) -> None:
    if _over.is_set():  # one that the pool had handed out already
        raise KeyboardInterrupt
    _own["executor"]._run_for_rank(rank)


def _run_ray(config: CurateConfig, pipeline: list[Any], common: dict[str, Any]) -> None:
    try:
        import ray
    except ImportError:
        raise ValueError("executor=ray wants Ray: pip install 'megatron-ring[ray]'") from None
    here = {"num_cpus": config.workers, "include_dashboard": False}
    options = here if config.ray.address is None else {"address": config.ray.address}
    ray.init(log_to_driver=False, logging_level="WARNING", **options)
    try:
        RayPipelineExecutor(pipeline, mem_per_cpu_gb=config.ray.memory_gb, **common).run()
    finally:
        ray.shutdown()


class Slurm(SlurmPipelineExecutor):
    """datatrove's, without the job that adds its statistics, and with Slurm's own defaults."""

    def launch_merge_stats(self) -> None:
        """Nothing: counts are our own."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Options of sbatch; a partition that is not named is the cluster's default."""
        options = super().get_sbatch_args(max_array)
        return {key: value for key, value in options.items() if key != "partition" or value}


def _run_slurm(
    config: CurateConfig, pipeline: list[Any], common: dict[str, Any], folder: Path
) -> None:
    """Submit, unless the run before did and that job still goes; wait for its end."""
    noted = folder / JOB
    number = read_json(noted)
    if number is None or not _is_queued(number):
        path = f"export PATH={Path(sys.executable).parent}:$PATH"
        executor = Slurm(
            pipeline,
            time=config.slurm.time,
            partition=config.slurm.partition,
            mem_per_cpu_gb=config.slurm.memory_gb,
            qos=config.slurm.qos,
            sbatch_args=dict(config.slurm.sbatch),
            env_command="\n".join(filter(None, [config.slurm.setup, path])),
            max_array_size=config.slurm.max_array,
            job_name="curate",
            **common,
        )
        try:
            executor.run()
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f"executor=slurm: sbatch did not take the job: {error}") from None
        number = executor.job_id
        write_json(noted, number)
    while _is_queued(number):
        time.sleep(POLL_SECONDS)


def _is_queued(number: str) -> bool:
    """Does a job wait or run?"""
    command = ["squeue", "--noheader", "--jobs", str(number)]
    try:
        told = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"executor=slurm: no squeue here: {error}") from None
    if told.returncode and "Invalid job id" not in told.stderr:
        return True  # the controller does not answer; it may, later
    return bool(told.stdout.strip())
