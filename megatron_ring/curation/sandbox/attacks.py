"""Programs that try to get out or to use up the host, each with what must become of it.

They read facts of the host as JSON and print one word for each way they tried.
"""

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_ring.curation.sandbox.isolation import ENVIRONMENT, Isolation
from megatron_ring.curation.sandbox.work import Job, Limits, Result, Verdict, run_job

LIMITS = Limits(
    seconds=5,
    cpu_seconds=2,
    memory=1 << 28,
    processes=8,
    disk=1 << 24,
    file_bytes=1 << 20,
    files=100,
    output=1 << 16,
)
HEAD = """
import json, os, signal, socket, subprocess, sys, time
told = json.loads(sys.stdin.read())
def tried(name, way):
    try:
        print(name, way())
    except Exception as error:
        print(name, "refused")
"""


@dataclass(frozen=True)
class Attack:
    """A program, the verdict on it, and what it prints when nothing worked."""

    name: str
    program: str
    verdict: Verdict
    prints: str | None = None  # None: what it prints says nothing

    def job(self, facts: dict[str, object]) -> Job:
        """To be run; `facts` as of `host`."""
        return Job(program=HEAD + self.program, stdin=json.dumps(facts))

    def complaint(self, result: Result) -> str:
        """What is not as it must be; nothing if all is."""
        if result.verdict != self.verdict:
            return f"{result.verdict} instead of {self.verdict}: {result.stderr.strip()[-300:]}"
        if self.prints is not None and result.stdout != self.prints:
            return f"it printed {result.stdout!r}"
        return ""


@contextmanager
def host() -> Iterator[dict[str, object]]:
    """What an attack may know of the host: a server, a file anybody can read, our process."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o777)
        path = Path(folder, "secret")
        path.write_text("secret")
        yield {
            "port": server.getsockname()[1],
            "secret": str(path),
            "folder": folder,
            "pid": os.getpid(),
            "project": str(Path(__file__).parents[3]),
            "home": str(Path.home()),
        }


def attack_all(isolation: Isolation) -> Iterator[tuple[str, str]]:
    """Each attack's name and complaint, one after the other."""
    with host() as facts:
        for attack in ATTACKS:
            yield attack.name, attack.complaint(run_job(isolation, attack.job(facts), LIMITS))


ATTACKS = (
    Attack(
        "network",
        """
tried("host", lambda: socket.create_connection(("127.0.0.1", told["port"]), 2))
tried("outside", lambda: socket.create_connection(("1.1.1.1", 53), 2))
tried("datagram", lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("1.1.1.1", 53)))
tried("names", lambda: socket.getaddrinfo("example.com", 80))
tried("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
tried("netlink", lambda: socket.socket(16, socket.SOCK_RAW))
""",
        Verdict.PASSED,
        "host refused\noutside refused\ndatagram refused\nnames refused\nvsock refused\n"
        "netlink refused\n",
    ),
    Attack(
        "reading outside",
        """
for path in ("/etc/shadow", "/etc/passwd", "/root", "/home", "/sys", "/run", "/var",
             told["secret"], told["project"], told["home"], "/dev/vda", "/dev/kmsg"):
    if os.path.exists(path):
        print(path)
print(sorted(name for name in os.listdir("/proc") if name.isdigit()))
# The first process is bubblewrap's; what it was told and holds open is not ours to read.
tried("environment", lambda: open("/proc/1/environ").read() or "empty")
tried("kernel's memory", lambda: open("/proc/kcore", "rb").read(1))
print(sorted(os.environ))
""",
        Verdict.PASSED,
        f"['1', '2']\nenvironment empty\nkernel's memory refused\n{sorted(ENVIRONMENT)}\n",
    ),
    Attack(
        "writing outside",
        """
for path in ("/usr/x", "/bin/x", "/x", "/dev/x", "/etc/x", "/proc/sys/kernel/hostname",
             told["folder"] + "/x"):
    tried(path.replace(told["folder"], "host"), lambda: open(path, "w").write("x"))
tried("the first process's /", lambda: open(os.path.join("/proc/1/root", "x"), "w").write("x"))
""",
        Verdict.PASSED,
        "/usr/x refused\n/bin/x refused\n/x refused\n/dev/x refused\n/etc/x refused\n"
        "/proc/sys/kernel/hostname refused\nhost/x refused\nthe first process's / refused\n",
    ),
    Attack(
        "signals to others",
        """
tried("ours", lambda: os.kill(told["pid"], signal.SIGKILL) if told["pid"] > 40 else 1 / 0)
print("left alone")
""",
        Verdict.PASSED,
        "ours refused\nleft alone\n",
    ),
    Attack(
        "all processes killed",
        """
tried("all", lambda: os.kill(-1, signal.SIGKILL))
os.kill(1, signal.SIGKILL)
print("alive")
""",
        Verdict.PASSED,
        "all refused\nalive\n",  # nobody is there; the first process ignores what comes from inside
    ),
    Attack(
        "more privileges",
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, arguments in (
    ("setuid", (0,)), ("unshare", (0x10000000,)), ("mount", (b"x", b"/tmp", b"tmpfs", 0, 0)),
    ("ptrace", (16, 1, 0, 0)), ("memfd_create", (b"x", 0)), ("shmget", (0, 1 << 30, 0o1600)),
):
    print(name, "refused" if getattr(libc, name)(*arguments) == -1 else "done")
print("user namespace", "refused" if libc.syscall(56, 0x10000011, 0, 0, 0, 0) == -1 else "done")
""",
        Verdict.PASSED,
        "setuid refused\nunshare refused\nmount refused\nptrace refused\nmemfd_create refused\n"
        "shmget refused\nuser namespace refused\n",
    ),
    Attack(
        "fork bomb",  # bounded: more than the limit, and far fewer than would hurt a host
        """
forks = 0
try:
    for _ in range(40):
        if os.fork() == 0:
            time.sleep(60)
        forks += 1
except OSError:
    pass
print(forks)
""",
        Verdict.PASSED,
        "7\n",
    ),
    Attack(
        "thread bomb",
        """
import threading
for count in range(1, 40):
    try:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    except RuntimeError:
        break
print(count, flush=True)
os._exit(0)
""",
        Verdict.PASSED,
        "8\n",
    ),
    Attack("memory bomb", "kept = b'x' * (1 << 34)", Verdict.MEMORY),
    Attack(
        "memory bomb, slowly", "kept = []\nwhile True: kept.append('x' * 99999)", Verdict.MEMORY
    ),
    Attack(
        "memory bomb of several processes",  # each below the limit, 600 of 256 MB together
        """
for _ in range(5):
    if os.fork() == 0:
        break
kept = bytearray(os.urandom(1) * (100 << 20))
time.sleep(60)
""",
        Verdict.MEMORY,
    ),
    Attack("endless loop", "while True: pass", Verdict.TIMEOUT),
    Attack(
        "signals ignored",
        """
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
time.sleep(60)
""",
        Verdict.TIMEOUT,
    ),
    Attack(
        "output closed", "os.close(0); os.close(1); os.close(2); time.sleep(60)", Verdict.TIMEOUT
    ),
    Attack(
        "children that stay behind",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    os._exit(0)
""",
        Verdict.PASSED,
        "",
    ),
    Attack("huge output", "while True: os.write(1, b'x' * 65536)", Verdict.OUTPUT),
    Attack("huge errors", "while True: os.write(2, b'x' * 65536)", Verdict.OUTPUT),
    Attack(
        "huge files",  # a file of 1 MiB, 16 MiB in all; the program itself takes a page
        """
tried("one", lambda: open("one", "wb").write(bytes(2 << 20)))
os.remove("one")
written = 0
try:
    for number in range(40):
        with open(str(number), "wb", buffering=0) as file:
            written += file.write(bytes(1 << 20))
except OSError:
    pass
print(written <= 16 << 20, written >= 15 << 20)
""",
        Verdict.PASSED,
        "one refused\nTrue True\n",
    ),
    Attack(
        "many files",
        "for number in range(500): open(str(number), 'w').close()",
        Verdict.FILES,
    ),
)
