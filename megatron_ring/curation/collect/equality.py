"""Comparison of answers by math-verify, in a process that can be killed.

Its own time limits do not always hold (Math-Verify issue 65), and a comparison that hangs is
neither right nor wrong. The timer starts when the worker has imported everything and reads the
question. The worker is a plain program and no multiprocessing child, as curation may itself run in
processes that may have none.
"""

import json
import select
import subprocess
import sys
from importlib.util import find_spec

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.collect.answers import Verdict

# What the worker runs; -c keeps it free of this package's imports, which take longer than its own.
WORKER = """
import json, sys
from math_verify import parse, verify
print("ready", flush=True)
for line in sys.stdin:
    given, gold = json.loads(line)
    both = [parse(f"${text.strip('$ ')}$", parsing_timeout=None) for text in (gold, given)]
    known = all(both)
    right = known and verify(*both, timeout_seconds=None)
    print("right" if right else "wrong" if known else "unknown", flush=True)
"""


class MathVerify:
    """Compares answers one after the other; a worker that hangs is killed and another started."""

    def __init__(self, timeout: float, command: list[str] | None = None) -> None:
        """`timeout` in seconds for one comparison; ConfigError when math-verify is not there."""
        self._worker: subprocess.Popen[bytes] | None = None
        if command is None and find_spec("math_verify") is None:
            raise ConfigError(
                "equality=math_verify needs the package math-verify: "
                "pip install 'math-verify[antlr4-9-3]', or set equality=plain"
            )
        self.timeout = timeout
        self.command = command or [sys.executable, "-c", WORKER]

    def compare(self, given: str, gold: str) -> Verdict:
        """right, wrong, unknown (one of them cannot be parsed, or the worker died), or timeout."""
        worker = self._started()
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(json.dumps([given, gold]).encode() + b"\n")
            worker.stdin.flush()
        except OSError:  # the pipe of a worker that died
            self.close()
            return "unknown"
        if not select.select([worker.stdout], [], [], self.timeout)[0]:
            self.close()
            return "timeout"
        said = worker.stdout.readline().decode().strip()
        if said not in ("right", "wrong", "unknown"):
            self.close()
            return "unknown"
        return said

    def close(self) -> None:
        """Kills the worker, if there is one."""
        if self._worker is None:
            return
        self._worker.kill()
        self._worker.wait()
        for pipe in (self._worker.stdin, self._worker.stdout):
            if pipe is not None:
                pipe.close()
        self._worker = None

    def __del__(self) -> None:
        self.close()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._worker is None:
            self._worker = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            assert self._worker.stdout is not None
            if self._worker.stdout.readline().strip() != b"ready":
                self.close()
                raise ConfigError("the worker of math-verify does not start; set equality=plain")
        return self._worker
