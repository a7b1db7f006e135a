"""The sandbox: what programs come to, and that nothing gets out or stays behind."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from megatron_ring.curation import sandbox
from megatron_ring.curation.sandbox import Job, Limits, attacks
from megatron_ring.curation.sandbox import isolation as isolating
from megatron_ring.curation.sandbox.work import resident_bytes, run_job
from tests.curation.sandboxed import isolated


def processes(mark: str) -> list[int]:
    """Processes of this machine with `mark` among their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@isolated
@pytest.mark.parametrize("attack", attacks.ATTACKS, ids=lambda a: a.name.replace(" ", "-"))
def test_attack_is_contained(attack: attacks.Attack) -> None:
    with attacks.host() as facts:
        result = sandbox.run(**vars(attack.job(facts)), limits=attacks.LIMITS)
        assert attack.complaint(result) == ""
        assert os.listdir(str(facts["folder"])) == ["secret"]
    assert len(result.stdout) <= 1 << 16 and len(result.stderr) <= 1 << 16


def test_complaints_of_an_attack() -> None:
    attack = attacks.Attack("a", "", sandbox.Verdict.PASSED, "refused\n")
    result = sandbox.Result(
        verdict=sandbox.Verdict.PASSED, stdout="refused\n", stderr="", exit_code=0, seconds=1
    )
    assert attack.complaint(result) == ""
    out = sandbox.Result(**{**vars(result), "stdout": "reached\n"})
    assert attack.complaint(out) == "it printed 'reached\\n'"
    late = sandbox.Result(**{**vars(result), "verdict": sandbox.Verdict.TIMEOUT, "stderr": "e\n"})
    assert attack.complaint(late) == "timeout instead of passed: e"


STAYS = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", "MARK"])
        os._exit(0)
print("left", flush=True)
time.sleep(float("SECONDS"))
"""


@isolated
@pytest.mark.parametrize(("seconds", "verdict"), [("0.5", "passed"), ("60", "timeout")])
def test_nothing_stays_behind(seconds: str, verdict: str) -> None:
    mark = f"mark{random.getrandbits(64):x}"
    program = STAYS.replace("MARK", mark).replace("SECONDS", seconds)
    seen = []
    thread = threading.Thread(
        target=lambda: seen.append(sandbox.run(program, limits=Limits(seconds=4))), daemon=True
    )
    thread.start()
    most = 0
    while thread.is_alive():
        most = max(most, len(processes(mark)))
        time.sleep(0.02)
    assert most == 2, "they were there"
    assert (seen[0].verdict, seen[0].stdout) == (verdict, "left\n")
    assert processes(mark) == []


@isolated
def test_user_is_not_ours() -> None:
    sleeping = "import os\nos.write(1, b'x')\nimport time; time.sleep(2)"
    seen: list[sandbox.Result] = []
    thread = threading.Thread(target=lambda: seen.append(sandbox.run(sleeping)))
    thread.start()
    users = set()
    while thread.is_alive():
        for pid in processes("dont_inherit=True"):
            try:
                users.add(Path(f"/proc/{pid}").stat().st_uid)
            except FileNotFoundError:
                pass
        time.sleep(0.05)
    thread.join()
    # Right after the fork a process is still ours, for a moment; none of bubblewrap's is root's.
    wanted = isolating.NOBODY if os.geteuid() == 0 else os.geteuid()
    assert wanted in users and seen[0].stdout == "x"
    assert 0 not in users


@isolated
def test_secrets_of_the_environment_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2hunter2")
    program = """
import glob
for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
    try:
        print("hunter2" * 2 in open(path).read())
    except PermissionError:
        pass
"""
    result = sandbox.run(program)
    assert "True" not in result.stdout and result.stdout.count("False") >= 2


@isolated
def test_program_with_input_and_files() -> None:
    program = "import lib.a, sys\nprint(lib.a.x * int(input()), __name__, sys.argv)\nsys.exit(3)"
    result = sandbox.run(program, stdin="7\n", files={"lib/a.py": "x = 6", "json.py": "1 / 0"})
    assert (result.stdout, result.stderr) == ("42 __main__ ['/tmp/box/main.py']\n", "")
    assert (result.verdict, result.exit_code) == ("failed", 3)
    assert 0 < result.seconds < 30


@isolated
def test_text_arrives_as_it_is() -> None:
    text = "a\r\nä\ud800\n"
    program = (
        "import sys; print(ascii(sys.stdin.buffer.read()), ascii(open('f', newline='').read()))"
    )
    result = sandbox.run(program, stdin=text, files={"f": text})
    assert result.stdout == "b'a\\r\\n\\xc3\\xa4\\\\ud800\\n' 'a\\r\\n\\xe4\\\\ud800\\n'\n"


@isolated
def test_output_that_is_no_text() -> None:
    result = sandbox.run("import os; os.write(1, b'a\\xff\\x00b'); os.write(2, b'\\xc3')")
    assert (result.stdout, result.stderr) == ("a\\xff\x00b", "\\xc3")


@isolated
@pytest.mark.parametrize(
    ("solution", "tests", "verdict"),
    [
        ("def f(x):\r\n\treturn x + 1", "assert f(1) == 2", "passed"),
        ("def f(x): return x", "assert f(1) == 2", "failed"),
        ("def f(x): return", "assert f(1) == 2 +", "failed"),
        ("import sys; sys.exit(0)", "assert f(1) == 2", "failed"),
        ("import os; os._exit(0)", "assert f(1) == 2", "failed"),
        ("def f(x): exit(0)", "assert f(1) == 2", "failed"),
        ("def f(x):\n while True: pass", "assert f(1) == 2", "timeout"),
        ("def f(x): return [x] * (1 << 40)", "assert f(1) == 2", "memory"),
        ("import os\ndef f(x): os.kill(os.getpid(), 11)", "assert f(1) == 2", "killed"),
        ("def f(x): return f(x)", "assert f(1) == 2", "failed"),
        ("x = '\ud800'\ndef f(x): return 2", "assert f(1) == 2", "failed"),
    ],
)
def test_tests_are_judged(solution: str, tests: str, verdict: str) -> None:
    assert sandbox.run_tests(solution, tests, limits=Limits(seconds=20, cpu_seconds=1)) == verdict


@isolated
def test_cpu_time_ends_a_program_before_its_wall_time() -> None:
    result = sandbox.run("while True: pass", limits=Limits(seconds=100, cpu_seconds=1))
    assert (result.verdict, result.exit_code) == ("timeout", 128 + signal.SIGXCPU)


@isolated
def test_memory_that_is_refused_can_be_handled() -> None:
    program = "try: bytes(1 << 29)\nexcept MemoryError: print('no')"
    result = sandbox.run(program, limits=Limits(memory=1 << 28))
    assert (result.verdict, result.stdout) == ("passed", "no\n")


@isolated
def test_time_begins_with_the_program(folder: Path) -> None:
    slow = folder / "bwrap"
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {sandbox.proven().bubblewrap} "$@"\n')
    slow.chmod(0o755)
    shut_in = isolating.Isolation(**{**vars(sandbox.proven()), "bubblewrap": str(slow)})
    result = run_job(shut_in, Job(program="print(1)"), Limits(seconds=0.8))
    assert (result.verdict, result.stdout) == ("passed", "1\n") and result.seconds < 0.8


@isolated
def test_results_do_not_depend_on_workers() -> None:
    jobs = [
        Job(
            program=f"print({n} * {n}, {{'a', 'b', 'c', '{n}'}})\nassert {n} % 3",
            tests=f"{n} % 5 or 1 / 0",
        )
        for n in range(12)
    ]
    one = list(sandbox.run_many(jobs, workers=1))
    assert [r.verdict == "passed" for r in one] == [bool(n % 3 and n % 5) for n in range(12)]
    assert [r.stdout.split()[0] for r in one] == [str(n * n) for n in range(12)]
    assert list(sandbox.run_many(iter(jobs), workers=4)) == one


@isolated
def test_many_can_be_left() -> None:
    read = []
    jobs = (read.append(n) or Job(program=f"print({n})") for n in range(1000))
    results = sandbox.run_many(jobs, workers=2)
    assert next(results).stdout == "0\n"
    results.close()
    assert len(read) <= 5


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "a\0b", "a/"])
def test_files_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError) as error:
        Job(program="", files={name: ""})
    assert str(error.value) == f"files: {name!r} is no path below the working folder"


@isolated
def test_links_inside_lead_nowhere() -> None:
    program = "import os\nos.symlink('/etc/shadow', 'a')\nprint(os.path.exists('a'))"
    assert sandbox.run(program).stdout == "False\n"


def test_messages() -> None:
    with pytest.raises(ValueError) as error:
        Job(program="", files={"./main.py": ""})
    assert str(error.value) == "files: main.py is the program; give the file another name"
    with pytest.raises(ValueError) as error:
        Limits(memory=5)
    assert str(error.value) == "memory=5: the least a program can live with is 67108864"
    with pytest.raises(ValueError) as error:
        next(sandbox.run_many([], workers=-1))
    assert str(error.value) == "workers=-1: give the number of programs at a time, or 0"


@isolated
def test_files_beyond_the_disk_are_refused() -> None:
    with pytest.raises(ValueError) as error:
        sandbox.run("x", files={"a": "b" * 40000}, limits=Limits(disk=1 << 16))
    assert str(error.value) == (
        "2 files of 40001 characters for disk=65536, files=1000: program and files may take half "
        "of it; raise the limits"
    )


def test_memory_of_children_is_counted() -> None:
    before = resident_bytes(os.getpid())
    pid = os.fork()
    if pid == 0:
        kept = bytearray(b"x" * (64 << 20))
        time.sleep(60)
        os._exit(len(kept))
    try:
        deadline = time.monotonic() + 20
        while resident_bytes(os.getpid()) < before + (64 << 20) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert resident_bytes(os.getpid()) >= before + (64 << 20)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert resident_bytes(pid) == 0
