"""A real Slurm of two nodes on this machine: started by start.sh, ended by stop.sh."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests import ranks

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PATIENCE_SECONDS = 240  # a rank starts in ten seconds, in a minute where others compute beside it


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    lacking = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if lacking:
        return (
            f"no {', '.join(lacking)} here; as root .ci/run installs Debian's slurm-wlm and munge"
        )
    return None


class Slurm:
    """Commands of the Slurm in `folder`, in an environment where the tests' Python is `PYTHON`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.environment = clean | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "PATH": PATH,
        }

    def __call__(self, *command: object, **more: str) -> str:
        """What the command prints; AssertionError with its complaint when it fails."""
        ended = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=self.environment | more,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, f"{command}: {ended.stderr}"
        return ended.stdout.strip()

    def kill(self, daemon: str) -> None:
        """SIGKILL to a daemon, by the name of its pid file."""
        psutil.Process(int((self.folder / f"{daemon}.pid").read_text())).kill()

    def submit(self, script: str, *arguments: object, log: Path, options: tuple = ()) -> "Job":
        """`sbatch OPTIONS launch/SCRIPT ARGUMENTS`, with the output in `log`."""
        number = self(
            "sbatch", "--parsable", f"--output={log}", *options, f"launch/{script}", *arguments
        )
        return Job(self, number, log)


class Job:
    """A job of a Slurm."""

    def __init__(self, slurm: Slurm, number: str, log: Path) -> None:
        self.slurm, self.number, self.log = slurm, number, log

    def facts(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self.slurm("scontrol", "--oneliner", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def said(self) -> str:
        """The job's output so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, what: str, happened: Callable[[], object], every: float = 0.1) -> None:
        """Wait until `happened()`; AssertionError with the job's output after PATIENCE_SECONDS."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            facts = self.facts() if time.monotonic() > deadline else {}
            assert not facts, f"{what} did not happen: {facts}\n{self.said()[-5000:]}"
            time.sleep(every)

    def end(self) -> str:
        """Wait for the job's end; its state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait("the end", lambda: self.facts()["JobState"] in over, every=0.3)
        return self.facts()["JobState"]


@contextmanager
def still(word: str) -> Iterator[list[psutil.Process]]:
    """All ranks with `word` among their arguments, stopped meanwhile: clocks go on, they do not.

    Slurm may set them going itself: it sends SIGCONT with some signals.
    """
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0] == sys.executable
        and any(word in argument for argument in process.info["cmdline"])
    ]
    for process in found:
        process.suspend()
    try:
        yield found
    finally:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def is_told(process: psutil.Process, number: int) -> bool:
    """Does a signal wait for the stopped process, or did it go already?"""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return True
    masks = [line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:")]
    return bool(int(masks[0], 16) >> (number - 1) & 1)


@contextmanager
def started() -> Iterator[Slurm]:
    """A Slurm with names and ports of its own: several may run on a machine."""
    folder = Path(tempfile.mkdtemp(prefix="ring-slurm-", dir="/tmp"))  # sockets want a short path
    ports = [str(ranks.free_port()) for _ in range(3)]
    try:
        subprocess.run([HERE / "start.sh", folder, *ports], check=True)
        yield Slurm(folder)
    finally:
        subprocess.run([HERE / "stop.sh", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)
