"""What shuts a program in: bubblewrap, a filter of system calls, an unprivileged user.

Inside there are the system (/usr, read-only), one Python, one tmpfs, and nothing else.
"""

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BOOT = Path(__file__).with_name("boot.py")
HOME = "/tmp/box"  # inside
NOBODY = 65534
OLDEST_BUBBLEWRAP = (0, 8)  # the first with --disable-userns
OLDEST_PYTHON = (3, 9)
OLDEST_KERNEL = (5, 14)  # since then each user namespace counts its own processes
DEV_BYTES = 1 << 16
# All that the environment holds. A fixed hash seed: sets come out in one order every time. One
# arena: each more reserves 64 MiB of the address space, which is what is limited.
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": HOME,
    "PWD": HOME,
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "1",
}

# System calls that are refused, by machine: ways to memory that no limit counts (memfd_create,
# memfd_secret, shmget, msgget, semget, mq_open, add_key), and parts of the kernel no solution needs
# and many an escape began with (request_key, keyctl, io_uring_setup, bpf, perf_event_open,
# userfaultfd, unshare, setns, mount, ptrace, process_vm_readv, process_vm_writev).
# Numbers: linux v6.1, arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
# fmt: off
REFUSED = {
    "x86_64": (319, 447, 29, 68, 64, 240, 248, 249, 250, 425, 321, 298, 323, 272, 308, 165, 101,
               310, 311),
    "aarch64": (279, 447, 194, 186, 190, 180, 217, 218, 219, 425, 280, 241, 282, 97, 268, 40, 117,
                270, 271),
}
# fmt: on
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # include/uapi/linux/audit.h
SOCKET = {"x86_64": 41, "aarch64": 198}
FAMILIES = (1, 2, 10)  # unix, IPv4, IPv6: network namespaces hold them; vsock, say, they do not
X32 = 0x40000000  # a second set of numbers for the same calls, on x86_64


class SandboxError(RuntimeError):
    """Nothing was run, because it cannot be isolated here; says what to install or to set."""


@dataclass(frozen=True)
class Isolation:
    """What a machine isolates with: paths of bubblewrap and Python, what is bound besides /usr."""

    bubblewrap: str
    version: str  # of bubblewrap
    python: str
    binds: tuple[str, ...]  # further arguments of bubblewrap
    drop: bool  # started as root: another user is taken first

    def command(self, filter_fd: int, info_fd: int, disk: int) -> list[str]:
        """The command line up to the program. `disk`: bytes of the tmpfs, all that is writable."""
        # Each kind is named: --unshare-all leaves out silently what the kernel refuses.
        line = [self.bubblewrap]
        line += ["--unshare-user", "--disable-userns", "--unshare-ipc", "--unshare-pid"]
        line += ["--unshare-net", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
        line += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL"]
        line += ["--new-session", "--die-with-parent", "--clearenv"]
        for name, value in ENVIRONMENT.items():
            line += ["--setenv", name, value]
        line += ["--seccomp", str(filter_fd), "--info-fd", str(info_fd)]
        line += ["--ro-bind", "/usr", "/usr", *self.binds, "--proc", "/proc"]
        line += ["--perms", "0755", "--size", str(DEV_BYTES), "--tmpfs", "/dev"]
        for name in ("null", "zero", "full", "random", "urandom"):
            line += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        line += ["--symlink", "/proc/self/fd", "/dev/fd", "--symlink", "/tmp", "/dev/shm"]
        line += ["--remount-ro", "/dev", "--size", str(disk), "--tmpfs", "/tmp"]
        return [*line, "--dir", HOME, "--remount-ro", "/", "--chdir", HOME]

    def boot(self, job_fd: int, said_fd: int, go_fd: int) -> list[str]:
        """What is run inside: Python, without the user's packages, on boot.py."""
        text = BOOT.read_text(encoding="utf-8")
        return [self.python, "-s", "-B", "-c", text, *map(str, (job_fd, said_fd, go_fd))]


def find_isolation() -> Isolation:
    """What there is on this machine, not yet proven; SandboxError for what is missing."""
    path = shutil.which("bwrap")
    if path is None:
        raise SandboxError(
            "bubblewrap is not installed (no bwrap on PATH), and nothing runs without it: "
            "apt-get install bubblewrap, or dnf install bubblewrap"
        )
    version = _version([path, "--version"])
    if version < OLDEST_BUBBLEWRAP:
        raise SandboxError(
            f"{path} is version {_dotted(version)}; {_dotted(OLDEST_BUBBLEWRAP)} or newer is "
            "wanted: install bubblewrap of Debian 12, Ubuntu 24.04 or later"
        )
    if platform.machine() not in REFUSED:
        known = ", ".join(REFUSED)
        raise SandboxError(
            f"the sandbox knows the system calls of {known}, not of {platform.machine()}; "
            "add their numbers to REFUSED in isolation.py"
        )
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise SandboxError(
            "the kernel does not tell a process's children, so the memory of a sandbox cannot be "
            "watched: it was built without CONFIG_PROC_CHILDREN"
        )
    python, binds = _find_python()
    return Isolation(os.path.abspath(path), _dotted(version), python, binds, os.geteuid() == 0)


def filter_program(machine: str) -> bytes:
    """The filter of system calls as the kernel reads it (classic BPF): what is refused is EPERM.

    Offsets are those of struct seccomp_data: number 0, architecture 4, first argument 16.
    """
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    kill, refuse, unknown, allow = 0x80000000, 0x00050001, 0x00050061, 0x7FFF0000
    code = [(load, 0, 0, 4), (equal, 1, 0, ARCHITECTURE[machine]), (answer, 0, 0, kill)]
    code += [(load, 0, 0, 0)]
    if machine == "x86_64":
        code += [(at_least, 0, 1, X32), (answer, 0, 0, kill)]
    for number in REFUSED[machine]:
        code += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    code += [(equal, 1, 0, SOCKET[machine]), (answer, 0, 0, allow), (load, 0, 0, 16)]
    for family in FAMILIES:
        code += [(equal, 0, 1, family), (answer, 0, 0, allow)]
    code += [(answer, 0, 0, unknown)]
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def why_refused(said: str) -> str:
    """What to change so that bubblewrap starts, from the kernel's settings and what it said."""
    said = said.strip() or "it said nothing"
    told = []
    for name, bad, good in (
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user.max_user_namespaces", "0", "10000"),
    ):
        path = Path("/proc/sys") / name.replace(".", "/")
        if path.exists() and path.read_text().strip() == bad:
            told.append(f"sysctl -w {name}={good} (it is {bad})")
    hint = " and ".join(told) or (
        "user namespaces must be allowed; in a container that is docker run "
        "--security-opt seccomp=unconfined --security-opt systempaths=unconfined, "
        "in Kubernetes procMount: Unmasked with seccompProfile: Unconfined"
    )
    return f"bubblewrap could not isolate: {said}; to allow it: {hint}"


def _find_python() -> tuple[str, tuple[str, ...]]:
    """A Python that another user can read, and what must be bound for it besides /usr."""
    binds: list[str] = []
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        path = Path("/", name)
        if path.is_symlink():
            binds += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            binds += ["--ro-bind", str(path), str(path)]
    binds += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path in (Path("/usr/bin/python3"), Path("/usr/local/bin/python3")):
        if path.exists() and _version([str(path), "-I", "--version"]) >= OLDEST_PYTHON:
            return str(path), tuple(binds)
    own = Path(sys.base_prefix)
    python = own / "bin" / f"python3.{sys.version_info.minor}"
    closed = [path for path in (own, *own.parents) if not path.stat().st_mode & 0o001]
    if python.exists() and not closed:
        return str(python), (*binds, "--ro-bind", str(own), str(own))
    raise SandboxError(
        f"no Python {_dotted(OLDEST_PYTHON)} or newer in /usr, and {own} is not open to other "
        "users: apt-get install python3"
    )


def _version(command: list[str]) -> tuple[int, ...]:
    """Of what a program says about itself; nothing of it is () and older than all."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={}, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    return tuple(map(int, found[0].split("."))) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version)) or "unknown"
