"""The proof that a sandbox holds: a program inside tries to get out, and is seen to fail."""

import json
import os
import socket
import tempfile
from pathlib import Path

from megatron_ring.curation.sandbox.isolation import (
    ENVIRONMENT,
    NOBODY,
    OLDEST_KERNEL,
    Isolation,
    SandboxError,
)
from megatron_ring.curation.sandbox.work import Job, Limits, run_job

PROCESSES = 6  # the limit in the proof; more forks than that are tried
EXPECTED = {
    "network": "refused",
    "outside file": "absent",
    "write to /usr": "refused",
    "user": NOBODY,
    "processes seen": 2,  # bubblewrap's and itself
    "capabilities": "0000000000000000",
    "no new privileges": "1",
    "system call filter": "2",
    "environment": sorted(ENVIRONMENT),
    "forks": PROCESSES - 1,
}
PROBE = """
import json, os, socket, sys, time
told = json.loads(sys.stdin.read())
got = {}
try:
    socket.create_connection(("127.0.0.1", told["port"]), 2).close()
    got["network"] = "reached"
except OSError:
    got["network"] = "refused"
got["outside file"] = "readable" if os.path.exists(told["path"]) else "absent"
try:
    os.close(os.open("/usr/megatron_ring_probe", os.O_CREAT | os.O_WRONLY))
    got["write to /usr"] = "done"
except OSError:
    got["write to /usr"] = "refused"
got["user"] = os.getuid()
got["processes seen"] = sum(name.isdigit() for name in os.listdir("/proc"))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
got["capabilities"] = status["CapEff"].strip()
got["no new privileges"] = status["NoNewPrivs"].strip()
got["system call filter"] = status["Seccomp"].strip()
got["environment"] = sorted(os.environ)
got["forks"] = 0
try:
    while got["forks"] < told["forks"]:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        got["forks"] += 1
except OSError:
    pass
print(json.dumps(got))
"""


def prove(isolation: Isolation) -> None:
    """Run the probe once; SandboxError for the first thing that is not as it must be."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o755)
        path = Path(folder, "outside")
        path.write_text("outside")
        told = {"port": server.getsockname()[1], "path": str(path), "forks": 2 * PROCESSES}
        job = Job(program=PROBE, stdin=json.dumps(told))
        result = run_job(isolation, job, Limits(processes=PROCESSES))
    if result.verdict != "passed":
        raise SandboxError(
            f"the probe of the sandbox ended as {result.verdict}: {result.stderr.strip()}"
        )
    compare(json.loads(result.stdout))


def compare(got: dict[str, object]) -> None:
    """SandboxError when the probe saw something else than EXPECTED."""
    kernel = ".".join(map(str, OLDEST_KERNEL))
    hints = {"forks": f"; Linux {kernel} or newer counts the processes of each sandbox"}
    for name, wanted in EXPECTED.items():
        if got[name] != wanted:
            raise SandboxError(
                f"the sandbox does not hold; {name}: {got[name]}, must be {wanted}"
                + hints.get(name, "")
            )
