"""Comparison of answers by math-verify, in processes that can be killed.

Its own time limits do not always hold (Math-Verify issue 65), and a comparison that hangs is
neither right nor wrong. A worker is a plain program and no multiprocessing child, as curation may
itself run in processes that may have none. It ends with its parent, however that ends.
"""

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.collect import answers
from megatron_ring.curation.collect.answers import Verdict

# -P: the folder of the worker holds a select.py of its own.
WORKER = [sys.executable, "-P", str(Path(__file__).with_name("math_verify_worker.py"))]
MEMORY = 1 << 30  # bytes of address space; it needs 64 MB to start
START = 120.0  # seconds for a worker to import sympy, or to be given a processor
CLOSED = "the pool of math-verify workers is closed"


class MathVerify:
    """Compares answers one after the other; a worker that hangs is killed and another started."""

    def __init__(
        self, timeout: float, command: list[str] | None = None, memory: int = MEMORY
    ) -> None:
        """`timeout` in seconds for one comparison; ConfigError when math-verify is not there.

        `command` stands in for the worker, and is given the worker's arguments.
        """
        self._worker: subprocess.Popen[bytes] | None = None
        self._held = -1  # our end of the pipe whose other end tells the worker that we are there
        self._said = b""
        self._closing = threading.Lock()  # nothing starts while stop() looks for what runs
        self._stopped = False
        if command is None and find_spec("math_verify") is None:
            raise ConfigError(
                "equality=math_verify needs the package math-verify: "
                "pip install math-verify==0.9.0, or set equality=plain"
            )
        self.timeout = timeout
        self.memory = memory
        self.command = command or WORKER

    def compare(self, given: str, gold: str) -> Verdict:
        """right, wrong, unknown (not a formula, or the worker died or lacks memory), or timeout.

        Texts and exact numbers are decided here; the worker is asked for the rest.
        """
        verdict = answers.compare(given, gold)
        return self.ask(given, gold) if verdict == "unknown" else verdict

    def ask(self, given: str, gold: str) -> Verdict:
        """What math-verify alone says; the order of the two does not matter."""
        if not self._reads(given, gold) and not self._reads(given, gold):
            return "unknown"
        said = self._line(self.timeout)
        verdict, _, last = (said or "").partition(" ")
        if last or verdict not in ("right", "wrong", "unknown"):
            self.close()
        if said is None:
            return "timeout"
        return verdict if verdict in ("right", "wrong", "unknown") else "unknown"

    def _reads(self, given: str, gold: str) -> bool:
        """Whether a worker reads the question; not when it died since the one before.

        The timer of a comparison starts after this, whatever the load of the machine.
        """
        worker = self._started()
        assert worker.stdin is not None
        try:
            worker.stdin.write(json.dumps([given, gold]).encode() + b"\n")
            read = self._line(START) == "read"
        except OSError:
            read = False
        if not read:
            self.close()
        return read

    def stop(self) -> None:
        """Kills the worker from another thread than the one that asks; no other is started."""
        with self._closing:
            self._stopped = True
            if self._worker is not None:
                self._worker.kill()

    def close(self) -> None:
        """Kills the worker, if there is one; the next question starts another."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        os.close(self._held)
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                pipe.close()
        self._said = b""

    def __del__(self) -> None:
        self.close()

    def _line(self, seconds: float) -> str | None:
        """The next line of the worker, "" when it ends, None when it takes longer."""
        assert self._worker is not None and self._worker.stdout is not None
        ends = time.monotonic() + seconds
        out = self._worker.stdout
        while b"\n" not in self._said:
            if not select.select([out], [], [], max(ends - time.monotonic(), 0))[0]:
                return None
            more = out.read(4096)
            if not more:
                return ""
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._worker is None:
            theirs, ours = os.pipe()
            try:
                with self._closing:
                    if self._stopped:
                        raise ValueError(CLOSED)
                    self._worker = subprocess.Popen(
                        [*self.command, str(self.memory), str(theirs)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        pass_fds=[theirs],
                        bufsize=0,
                    )
                    self._held = ours
            finally:
                os.close(theirs)
                if self._worker is None:
                    os.close(ours)
            if self._line(START) != "ready":
                self.close()
                if self._stopped:
                    raise ValueError(CLOSED)
                raise ConfigError("the worker of math-verify does not start; set equality=plain")
        return self._worker


class MathVerifyPool:
    """Several workers for threads that compare at the same time; each starts when first needed."""

    def __init__(
        self,
        workers: int,
        timeout: float,
        command: list[str] | None = None,
        memory: int = MEMORY,
    ) -> None:
        """`timeout` in seconds for one comparison, `memory` in bytes for each worker."""
        if workers < 1:
            raise ValueError(f"workers={workers} of math-verify: at least 1")
        self._workers = [MathVerify(timeout, command, memory) for _ in range(workers)]
        # The last one used comes first: no more workers start than are needed at a time.
        self._free: queue.LifoQueue[MathVerify] = queue.LifoQueue()
        for worker in reversed(self._workers):
            self._free.put(worker)

    def compare(self, given: str, gold: str) -> Verdict:
        """As MathVerify.compare, from any thread; waits for a free worker where it needs one."""
        verdict = answers.compare(given, gold)
        return self.ask(given, gold) if verdict == "unknown" else verdict

    def ask(self, given: str, gold: str) -> Verdict:
        """As MathVerify.ask, from any thread. ValueError when the pool is closed."""
        worker = self._free.get()
        try:
            return worker.ask(given, gold)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """Kills all workers for good: what is being compared is unknown, later questions errors."""
        for worker in self._workers:
            worker.stop()
        taken = [self._free.get() for _ in self._workers]
        for worker in taken:
            worker.close()
            self._free.put(worker)

    def __enter__(self) -> "MathVerifyPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
