"""One program in the sandbox: start, watch, stop, judge."""

import fcntl
import json
import os
import platform
import secrets
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import IO

from megatron_ring.curation.sandbox.isolation import (
    NOBODY,
    Isolation,
    SandboxError,
    filter_program,
    why_refused,
)

START_SECONDS = 120.0  # for bubblewrap and Python, before the program's own time begins
TICK_SECONDS = 0.05  # between two looks at memory and files
PAGE = os.sysconf("SC_PAGE_SIZE")
OPEN_FILES = 64  # of a process; each may hold a pipe's or a socket's buffer
LEAST = {"memory": 1 << 26, "processes": 1, "disk": 1 << 16, "file_bytes": 1 << 12, "files": 1}
LEAST |= {"output": 1, "seconds": 0.001, "cpu_seconds": 1}


class Verdict(StrEnum):
    """How a program ended. Only `failed` says that it is wrong."""

    PASSED = "passed"  # exit code 0, and tests, if any, came to their end
    FAILED = "failed"  # another exit code: an exception, a failed assertion; or no end of the tests
    TIMEOUT = "timeout"  # wall time or CPU time is over
    MEMORY = "memory"  # MemoryError, or all processes together above the limit
    OUTPUT = "output"  # more on stdout or stderr than is kept
    FILES = "files"  # more files than allowed
    KILLED = "killed"  # by a signal, as by a segmentation fault


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use; sizes in bytes. ValueError for what no program could live with."""

    seconds: float = 30.0  # wall time, from the program's first line
    cpu_seconds: int = 10  # of each process
    memory: int = 1 << 30  # resident of all processes, and address space of each
    processes: int = 32  # and threads, the first included
    disk: int = 1 << 26  # all files
    file_bytes: int = 1 << 24  # a file
    files: int = 1000  # and folders
    output: int = 1 << 20  # of stdout, and of stderr

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = vars(self)[name]
            if not value >= least:
                raise ValueError(f"{name}={value}: the least a program can live with is {least}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A Python program, what it reads, and tests that run after it among its names."""

    program: str
    stdin: str = ""
    files: Mapping[str, str] = field(default_factory=dict)  # by path below the working folder
    tests: str | None = None

    def __post_init__(self) -> None:
        for name in self.files:
            parts = PurePosixPath(name).parts
            if not parts or parts[0] == "/" or ".." in parts or "\0" in name or name[-1] == "/":
                raise ValueError(f"files: {name!r} is no path below the working folder")
            if str(PurePosixPath(name)) == "main.py":
                raise ValueError("files: main.py is the program; give the file another name")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out. Bytes of output that are no UTF-8 are shown as \\xNN."""

    verdict: Verdict
    stdout: str
    stderr: str
    exit_code: int | None  # None where it was stopped; 128 + signal where a signal ended it
    seconds: float = field(compare=False)  # wall time; two runs are equal without it


def run_job(isolation: Isolation, job: Job, limits: Limits) -> Result:
    """Run a job; when this returns or raises, no process of it is left.

    SandboxError when it could not be started.
    """
    token = secrets.token_hex(16)  # nothing but the end of the tests says it
    with ExitStack() as stack:
        given = (_told(job, limits, token), job.stdin.encode("utf-8", "backslashreplace"))
        job_fd, stdin_fd = (_sealed(stack, content) for content in given)
        filter_fd = _sealed(stack, filter_program(platform.machine()))
        info, said, go = (_pipe(stack) for _ in range(3))
        theirs = (info[1], said[1], go[0])
        command = isolation.command(filter_fd, info[1].fileno(), limits.disk)
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if isolation.drop else {}
        try:
            process = subprocess.Popen(
                [*command, "--", *isolation.boot(job_fd, said[1].fileno(), go[0].fileno())],
                stdin=stdin_fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(job_fd, filter_fd, *(end.fileno() for end in theirs)),
                env={},
                cwd="/",
                start_new_session=True,
                **user,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxError(f"{isolation.bubblewrap} did not start: {error}") from None
        for end in theirs:
            end.close()  # so that the sandbox's end is the end of what is read
        watched = _Watched(process, limits, info[0].fileno(), said[0].fileno(), go[1])
        try:
            watched.watch()
        finally:
            watched.end()
        return watched.judge(token if job.tests is not None else "")


class _Watched:
    """A started sandbox."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        limits: Limits,
        info: int,
        said: int,
        go: IO[bytes],
    ) -> None:
        self.process, self.limits, self.go = process, limits, go
        self.begun = time.monotonic()
        self.started: float | None = None  # when the program's own time began
        self.seconds = 0.0
        self.stopped: Verdict | None = None
        self.pid: int | None = None  # of the first process inside, as seen from here
        self.inside: int | None = None  # file descriptor of that process
        self.folder: int | None = None  # file descriptor of its tmpfs
        assert process.stdout and process.stderr, "both are pipes"
        self.info, self.said = info, said
        self.out, self.err = process.stdout.fileno(), process.stderr.fileno()
        self.read = {fd: bytearray() for fd in (info, said, self.out, self.err)}
        self.most = {fd: limits.output for fd in (self.out, self.err)} | {info: 4096, said: 4096}

    def watch(self) -> None:
        """Until the program is at its end, or has gone beyond a limit."""
        looked = 0.0
        outer = os.pidfd_open(self.process.pid)
        with selectors.DefaultSelector() as selector:
            try:
                for fd in (*self.read, outer):
                    selector.register(fd, selectors.EVENT_READ)
                while self.stopped is None:
                    ready = [key.fd for key, _ in selector.select(TICK_SECONDS)]
                    for fd in ready:
                        if fd != outer and not self.take(fd):
                            selector.unregister(fd)
                    if outer in ready:
                        return
                    now = time.monotonic()
                    if now - looked >= TICK_SECONDS:
                        looked = now
                        self.look()
            finally:
                os.close(outer)
                now = time.monotonic()
                self.seconds = now - (now if self.started is None else self.started)

    def take(self, fd: int) -> bool:
        """Read what is there; False at the end of it."""
        chunk = os.read(fd, 1 << 16)
        kept = self.read[fd]
        kept += chunk[: self.most[fd] + 1 - len(kept)]
        if len(kept) > self.most[fd]:
            self.stopped = Verdict.OUTPUT
        if fd == self.info and self.inside is None and b"}" in kept:
            self.pid = json.loads(kept)["child-pid"]
            with suppress(ProcessLookupError):  # at its end already
                self.inside = os.pidfd_open(self.pid)
        if self.started is None and self.pid is not None and self.read[self.said][:1] == b"s":
            self.start()
        return bool(chunk)

    def start(self) -> None:
        """Boot is done and waits: the program may begin, and its time."""
        with suppress(FileNotFoundError, ProcessLookupError, BrokenPipeError):  # killed meanwhile
            self.folder = os.open(self._inside("tmp"), os.O_RDONLY | os.O_DIRECTORY)
            self.started = time.monotonic()
            self.go.write(b"g")

    def _inside(self, path: str) -> str:
        """Where we see what lies at `path` below the program's own root."""
        return os.path.join("/proc", str(self.pid), "root", path)

    def look(self) -> None:
        """Compare time, memory and files with their limits."""
        now = time.monotonic()
        if self.started is None:
            if now - self.begun > START_SECONDS:
                raise SandboxError(f"the sandbox did not start in {START_SECONDS:g} seconds")
            return
        if now - self.started > self.limits.seconds:
            self.stopped = Verdict.TIMEOUT
        elif self.pid is not None and resident_bytes(self.pid) > self.limits.memory:
            self.stopped = Verdict.MEMORY
        elif self.num_files() > self.limits.files:
            self.stopped = Verdict.FILES

    def num_files(self) -> int:
        """In the tmpfs, the working folder and its parent not counted."""
        assert self.folder is not None, "opened at the start"
        facts = os.fstatvfs(self.folder)
        return facts.f_files - facts.f_ffree - 2

    def end(self) -> None:
        """Kill all that is inside, and wait until it is gone.

        With the first process of its namespace the kernel kills every other, whatever session,
        parent or signals it gave itself, and only then is that first one gone.
        """
        if self.inside is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.inside, signal.SIGKILL)
            gone = select.poll()
            gone.register(self.inside, select.POLLIN)
            gone.poll()
            os.close(self.inside)
        else:
            self.process.kill()  # inside, all ends with it: --die-with-parent
        self.process.wait()
        if self.folder is not None:
            if self.stopped is None and self.num_files() > self.limits.files:
                self.stopped = Verdict.FILES
            os.close(self.folder)
        for fd in (self.said, self.out, self.err):
            while self.stopped is not Verdict.OUTPUT and self.take(fd):
                pass
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None, "both are pipes"
            pipe.close()

    def judge(self, token: str) -> Result:
        """The result; `token` is what the end of the tests says."""
        out, err = (bytes(self.read[fd][: self.most[fd]]) for fd in (self.out, self.err))
        stderr = err.decode("utf-8", "backslashreplace")
        if self.started is None:
            if self.process.returncode == 1 and "Traceback" in stderr:  # of boot.py
                raise SandboxError(f"the sandbox could not be set up inside: {stderr.strip()}")
            raise SandboxError(why_refused(stderr))
        code, said = self.process.returncode, bytes(self.read[self.said])
        if self.stopped:
            verdict = self.stopped
        elif code == 128 + signal.SIGXCPU:
            verdict = Verdict.TIMEOUT
        elif code > 128:
            verdict = Verdict.KILLED
        elif code == 0:
            verdict = Verdict.PASSED if token.encode() in said else Verdict.FAILED
        else:
            verdict = Verdict.MEMORY if said[1:2] == b"m" else Verdict.FAILED
        return Result(
            verdict=verdict,
            stdout=out.decode("utf-8", "backslashreplace"),
            stderr=stderr,
            exit_code=None if self.stopped else code,
            seconds=self.seconds,
        )


def resident_bytes(pid: int) -> int:
    """Memory of a process and all below it; what two share counts twice.

    Inside, the first process adopts every orphan, so none is ever outside of the tree below it.
    """
    total, todo = 0, [pid]
    while todo:
        at = todo.pop()
        try:
            with open(f"/proc/{at}/statm") as file:
                total += int(file.read().split()[1]) * PAGE
            for thread in os.listdir(f"/proc/{at}/task"):
                with open(f"/proc/{at}/task/{thread}/children") as file:
                    todo += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # at its end
    return total


def _told(job: Job, limits: Limits, token: str) -> bytes:
    """What boot.py reads."""
    cpu = int(limits.cpu_seconds)
    caps = {
        "RLIMIT_AS": (limits.memory, limits.memory),
        "RLIMIT_CPU": (cpu, cpu + 1),  # SIGXCPU, and a second later SIGKILL
        "RLIMIT_FSIZE": (limits.file_bytes, limits.file_bytes),
        "RLIMIT_NOFILE": (OPEN_FILES, OPEN_FILES),
        "RLIMIT_NPROC": (limits.processes + 1, limits.processes + 1),  # bubblewrap's is one
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_MEMLOCK": (0, 0),
    }
    files = {**job.files, "main.py": job.program}
    size = sum(len(text) for text in files.values())
    if size > limits.disk // 2 or len(files) > limits.files:
        raise ValueError(
            f"{len(files)} files of {size} characters for disk={limits.disk}, files={limits.files}:"
            " program and files may take half of it; raise the limits"
        )
    told = {"files": files, "tests": job.tests, "token": token, "limits": caps}
    return json.dumps(told).encode("ascii")


def _sealed(stack: ExitStack, content: bytes) -> int:
    """A file descriptor to read `content` from, which nobody can change."""
    fd = os.memfd_create("given", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, fd)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """Its end to read and its end to write, unbuffered."""
    ends = zip(os.pipe(), ("rb", "wb"), strict=True)
    read, write = (stack.enter_context(os.fdopen(fd, mode, buffering=0)) for fd, mode in ends)
    return read, write
