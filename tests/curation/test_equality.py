"""math-verify in workers: what hangs, eats memory or is killed, and who outlives whom."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import pairwise, permutations
from pathlib import Path

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.collect import equality
from megatron_ring.curation.collect.equality import MathVerify, MathVerifyPool

ROOT = Path(__file__).parents[2]
SLOW = r"(10^8)!"  # a product that math-verify does not finish within hours
HEAVY = r"2^{10^9}"  # 125 MB, and more while it is made
needs_math_verify = pytest.mark.skipif(
    find_spec("math_verify") is None, reason="needs math-verify (the extra verify)"
)


def stand_in(body: str, first: str = "pass") -> list[str]:
    """A stand-in for math-verify: `body` runs for each question, `first` once at the start."""
    code = f"""
        import os, sys, time
        def say(*words):
            for word in words:
                print(word, flush=True)
        {first}
        say("ready")
        for line in sys.stdin:
            {body}
    """
    return [sys.executable, "-c", textwrap.dedent(code)]


def pid_of(verifier: MathVerify) -> int:
    assert verifier._worker is not None
    return verifier._worker.pid


def gone(pid: int) -> bool:
    """Whether a process is no more; one that nobody has waited for is none."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except FileNotFoundError:
        return True
    return state.startswith("Z")


def until(condition: object, seconds: float = 30) -> bool:
    ends = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(scope="module")
def real() -> Iterator[MathVerify]:
    verifier = MathVerify(timeout=120)
    yield verifier
    verifier.close()


def test_a_comparison_that_hangs_is_killed_and_the_next_one_answered(tmp_path: Path) -> None:
    flag = tmp_path / "asked"
    body = (
        f"first = not os.path.exists({str(flag)!r}); open({str(flag)!r}, 'w'); say('read'); "
        "time.sleep(600 if first else 0); say('right')"
    )
    verifier = MathVerify(timeout=0.5, command=stand_in(body))
    began = time.monotonic()
    assert verifier.compare("x", "y") == "timeout"
    assert time.monotonic() - began < 10
    assert verifier.compare("x", "y") == "right"
    worker = verifier._worker
    assert worker is not None and worker.poll() is None
    verifier.close()
    assert worker.returncode is not None
    verifier.close()  # twice does no harm


def test_the_timer_starts_when_the_worker_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = MathVerify(timeout=0.5, command=stand_in("time.sleep(1); say('read', 'right')"))
    assert verifier.compare("x", "y") == "right"
    verifier.close()
    # One that never reads is no timeout of a comparison.
    verifier = MathVerify(timeout=30, command=stand_in("time.sleep(600)"))
    verifier._started()
    monkeypatch.setattr(equality, "START", 0.3)
    verifier._started = lambda: MathVerify._started(verifier)  # type: ignore[method-assign]
    assert verifier._reads("x", "y") is False and verifier._worker is None


def test_a_worker_that_dies_says_nothing() -> None:
    for body in ("say('read'); sys.exit(1)", "say('read', '?')", "sys.exit(1)", "say('what')"):
        verifier = MathVerify(timeout=30, command=stand_in(body))
        assert verifier.compare("x", "y") == "unknown"
        assert verifier._worker is None
    verifier = MathVerify(timeout=30, command=[sys.executable, "-c", "pass"])
    with pytest.raises(ConfigError, match="the worker of math-verify does not start; set equality"):
        verifier.compare("x", "y")


def test_a_worker_killed_between_questions_costs_no_answer() -> None:
    verifier = MathVerify(timeout=30, command=stand_in("say('read', 'right')"))
    assert verifier.compare("x", "y") == "right"
    first = pid_of(verifier)
    os.kill(first, signal.SIGKILL)
    assert until(lambda: gone(first))
    assert verifier.compare("x", "y") == "right"
    assert pid_of(verifier) != first
    verifier.close()


def test_a_worker_that_says_it_is_the_last_time_is_replaced() -> None:
    verifier = MathVerify(timeout=30, command=stand_in("say('read', 'wrong last'); break"))
    assert verifier.compare("x", "y") == "wrong" and verifier._worker is None
    assert verifier.compare("x", "y") == "wrong"


def test_plain_comparison_needs_no_worker() -> None:
    verifier = MathVerify(timeout=30, command=["/does/not/exist"])
    assert verifier.compare("1/2", "0.5") == "right"
    assert verifier.compare("1/3", "0.333333333") == "wrong"
    with pytest.raises(FileNotFoundError):
        verifier.compare("x", "y")


@needs_math_verify
def test_what_takes_hours_is_a_timeout(real: MathVerify) -> None:
    verifier = MathVerify(timeout=60)
    assert verifier.ask("x", "y") == "wrong"
    verifier.timeout = 1.0
    first = pid_of(verifier)
    assert verifier.compare(SLOW, "7") == "timeout"
    assert gone(first)
    verifier.timeout = 60.0
    assert verifier.compare("1+x", "x+1") == "right"
    verifier.close()


@needs_math_verify
def test_what_does_not_fit_into_memory_is_unknown() -> None:
    verifier = MathVerify(timeout=120, memory=120_000_000)
    assert verifier.compare("1+x", "x+1") == "right"
    first = pid_of(verifier)
    limits = Path(f"/proc/{first}/limits").read_text()
    assert [line.split()[3] for line in limits.splitlines() if "address space" in line] == [
        "120000000"
    ]
    assert verifier.compare(HEAVY, "7") == "unknown"  # math-verify itself says that they differ
    assert gone(first)
    assert verifier.compare("1+x", "x+1") == "right"
    assert verifier.compare("2+x", "x+1") == "wrong"
    verifier.close()


@needs_math_verify
def test_a_worker_killed_at_work_says_nothing() -> None:
    verifier = MathVerify(timeout=120)
    assert verifier.compare("1+x", "x+1") == "right"
    first = pid_of(verifier)
    with ThreadPoolExecutor(1) as threads:
        said = threads.submit(verifier.compare, SLOW, "7")
        time.sleep(0.3)
        os.kill(first, signal.SIGKILL)
        assert said.result() == "unknown"
    assert verifier.compare("1+x", "x+1") == "right"
    verifier.close()


PARENT = """
import sys, threading, time
from megatron_ring.curation.collect.equality import MathVerifyPool
pool = MathVerifyPool(2, timeout=600)
for question in (sys.argv[1], "x+1"):
    threading.Thread(target=pool.ask, args=(question, "7"), daemon=True).start()
while not all(worker._worker for worker in pool._workers):
    time.sleep(0.01)
pool._workers[1].ask("x", "x+1")
time.sleep(1)
print(*(worker._worker.pid for worker in pool._workers), flush=True)
time.sleep(600)
"""


@needs_math_verify
@pytest.mark.parametrize("question", [SLOW, r"3^{10^9}"])
def test_no_worker_outlives_a_parent_that_is_killed(question: str) -> None:
    # 3^(10^9) is a few multiplications that take minutes each, with Python's lock held.
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, question], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and not any(map(gone, workers))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert until(lambda: all(map(gone, workers)), 5), "a worker is left"


@needs_math_verify
def test_a_worker_outlives_the_thread_that_started_it() -> None:
    verifier = MathVerify(timeout=60)
    thread = threading.Thread(target=verifier.compare, args=("x+1", "1+x"))
    thread.start()
    thread.join()
    first = pid_of(verifier)
    assert verifier.compare("x+1", "1+x") == "right" and pid_of(verifier) == first
    verifier.close()


def test_a_pool_has_so_many_workers_and_starts_them_when_needed(tmp_path: Path) -> None:
    start = f"open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w')"
    body = "say('read'); time.sleep(0.05); say('right')"
    with MathVerifyPool(2, timeout=30, command=stand_in(body, start)) as pool:
        assert not list(tmp_path.iterdir())
        assert [pool.compare("x", "y") for _ in range(3)] == ["right"] * 3
        assert len(list(tmp_path.iterdir())) == 1
        with ThreadPoolExecutor(8) as threads:
            said = list(threads.map(lambda n: pool.compare("x", f"y{n}"), range(40)))
        assert said == ["right"] * 40
        pids = [int(path.name) for path in tmp_path.iterdir()]
        assert len(pids) == 2
    assert all(map(gone, pids))
    with pytest.raises(ValueError, match="the pool of math-verify workers is closed"):
        pool.compare("x", "y")
    pool.close()
    with pytest.raises(ValueError, match="workers=0 of math-verify: at least 1"):
        MathVerifyPool(0, timeout=30, command=["none"])


def test_closing_ends_what_is_being_compared(tmp_path: Path) -> None:
    start = f"open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w')"
    pool = MathVerifyPool(1, 600, command=stand_in("say('read'); time.sleep(600)", start))
    with ThreadPoolExecutor(2) as threads:
        said = [threads.submit(pool.compare, "x", "y") for _ in range(2)]  # at work, and waiting
        assert until(lambda: list(tmp_path.iterdir()))
        pool.close()
        ends = {repr(one.exception() or one.result()) for one in said}
    closed = "ValueError('the pool of math-verify workers is closed')"
    assert ends <= {"'unknown'", closed} and closed in ends
    assert all(gone(int(path.name)) for path in tmp_path.iterdir())


@needs_math_verify
def test_coroutines_compare_in_threads() -> None:
    async def ask(pool: MathVerifyPool) -> list[str]:
        pairs = [("x+1", "1+x"), ("x+2", "1+x"), ("7", "7"), ("2k+2", "2(k+1)")]
        return await asyncio.gather(*(asyncio.to_thread(pool.compare, *pair) for pair in pairs))

    with MathVerifyPool(2, timeout=120) as pool:
        assert asyncio.run(ask(pool)) == ["right", "wrong", "right", "right"]


# Answers as in GSM8K and MATH, in groups of the same one. Neighbours are nearly equal.
SAME = [
    [r"x^2 + 3x - 6", r"3x - 6 + x^2", r"x(x+3)-6"],
    [r"x^2 - 3x - 6"],
    [r"\frac{3\sqrt{3}}{4}", r"\dfrac{3}{4}\sqrt3", r"\sqrt{\frac{27}{16}}"],
    [r"\frac{4}{3\sqrt{3}}"],
    [r"(3,4]", r"3 < x \le 4", r"x \in (3,4]"],
    [r"[3,4]"],
    [r"(3,4)"],
    [r"(4,3)"],
    [r"(-\infty,2)\cup(3,\infty)"],
    [r"(-\infty,2]\cup(3,\infty)"],
    [r"2, -1", r"-1, 2", r"\{-1, 2\}"],
    [r"2, 1"],
    [r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"],
    [r"1 + \sqrt{19}"],
    [r"6 - 5i", r"-5i + 6"],
    [r"6 + 5i"],
    [r"\begin{pmatrix} 1/5 \\ -3 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3 \end{pmatrix}"],
    [r"\begin{pmatrix} -3 \\ 1/5 \end{pmatrix}"],
    [r"\frac{8!}{3!}", r"\frac{8!}{3!} = 6720", "6,720"],
    [r"y = 2x + 3"],
    [r"y = 2x"],
    [r"5x - 7y + 11z + 4 = 0"],
    [r"\text{Evelyn}", "Evelyn"],
    [r"\text{Navin}"],
    [r"137 \frac{1}{2}", "137.5"],
]


@needs_math_verify
def test_answers_equal_themselves_in_other_forms_and_no_others(real: MathVerify) -> None:
    assert sum(map(len, SAME)) <= 40
    for group in SAME:
        for one, other in permutations(group, 2):
            assert real.compare(one, other) == real.ask(one, other) == "right", (one, other)
        assert real.compare(group[0], group[0]) == real.ask(group[0], group[0]) == "right"
    for some, others in pairwise(SAME):
        assert real.compare(some[0], others[0]) in ("wrong", "unknown"), (some, others)
        assert real.ask(some[0], others[0]) == "wrong", (some, others)


@needs_math_verify
@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ("0", "5x - 7y + 11z + 4 = 0", "wrong"),  # verify(gold="0", …) itself accepts it
        ("1", "2x + z = 1", "wrong"),
        ("x = 5", "5", "right"),
        ("x = 5", "y = 5", "wrong"),
        ("(1, 2)", "1 < x < 2", "right"),  # verify(gold=relation, …) takes it, not the other way
        ("9", "1 + 8 = 9", "right"),  # verify(gold="1+8=9", …) does not
        (r"\frac{1}{0}", r"\frac{2}{0}", "unknown"),  # an error is no verdict
        (r"\frac{1}{0}", "1+x", "wrong"),
        (r"\frac{1}{", "1+x", "unknown"),
        (r"\frac{1}{", r"\frac{1}{", "right"),
        ("x\n+ 1", "1 + x", "right"),
        # Its own rounding calls these equal, and its unit b leaves "a +" of both of those.
        (r"\frac{1}{2^{98}}", r"\frac{1}{3^{98}}", "wrong"),
        (r"\frac{1}{2^{98}}", r"-2^{-98}", "wrong"),
        (r"\frac{1}{2^{98}}", r"2^{-98}", "right"),
        (r"0.333333", r"\frac{1}{3}", "right"),
        (r"50\%", "0.5", "right"),
        (r"50\%", "50", "right"),
        ("a + b + c", "a + b - c", "unknown"),
        # Nor is a number out of the middle the answer.
        (r"2007 + \frac\pi 2", r"2008 + \frac\pi 2", "unknown"),
        (
            r"\begin{pmatrix} -1 & 0 \end{pmatrix}.",
            r"\begin{pmatrix} -2 & 0 \end{pmatrix}.",
            "wrong",
        ),
        (
            r"\begin{pmatrix} -1 & 0 \end{pmatrix}.",
            r"\begin{pmatrix} -1 & 0 \end{pmatrix}",
            "right",
        ),
        ("", "", "unknown"),
    ],
)
def test_the_order_of_a_question_does_not_matter(
    real: MathVerify, one: str, other: str, verdict: str
) -> None:
    assert (real.ask(one, other), real.ask(other, one)) == (verdict, verdict)
