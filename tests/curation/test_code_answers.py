"""Programs in answers, and what becomes of them in the sandbox."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ring.config.curation.code import ProgramLimits
from megatron_ring.curation import sandbox
from megatron_ring.curation.generate import Client
from megatron_ring.curation.sandbox import Limits, Verdict
from megatron_ring.curation.synthesis.code_answers import (
    Outcome,
    Runner,
    extract_program,
    limits_of,
    passes,
)
from tests.curation.asking import client
from tests.curation.code_replies import ASSERTS, SOLUTION, TESTS
from tests.curation.coder import SAID
from tests.curation.sandboxed import isolated

FENCED = f"```python\n{SOLUTION}\n```"
LIMITS = Limits(seconds=60, cpu_seconds=1, memory=1 << 28)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (FENCED, SOLUTION),
        (f"<think>```python\nx\n```</think>Well.\n{FENCED}\nDone.", SOLUTION),
        (f"```python\nx = 1\n```\nBetter:\n{FENCED}", SOLUTION),
        (f"```\n{SOLUTION}\n```", SOLUTION),
        (FENCED.removesuffix("```"), SOLUTION),
        (f"{FENCED}\n```text\n5\n```", SOLUTION),
        (f"{FENCED}\n```cpp\nint main(){{}}\n```", SOLUTION),
        (f"<think>{FENCED}", None),
        (f"<think>{FENCED}</think>It is as above.", None),
        ("```cpp\nint main(){}\n```", None),
        ("", None),
        (SOLUTION, None),
    ],
)
def test_extract_program(text: str, wanted: str | None) -> None:
    assert extract_program(text) == wanted


def test_of_several_blocks_the_one_that_tests_need() -> None:
    used = f"{FENCED}\nUse it:\n```python\nprint(largest_gap([1, 2]))\n```"
    assert extract_program(used) == "print(largest_gap([1, 2]))"
    assert extract_program(used, TESTS) == SOLUTION
    assert extract_program(used, "assert other()") == "print(largest_gap([1, 2]))"
    first = FENCED.replace("best = 0", "best = 1")
    assert extract_program(f"{first}\nNo:\n{FENCED}\n```\n(\n```", TESTS) == SOLUTION
    assert extract_program(used, [{"input": "", "output": ""}]) == "print(largest_gap([1, 2]))"


@isolated
@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (SAID["sound"], "passed"),
        (SAID["wrong"], "failed"),
        (SAID["none"], "failed"),
        ("```python\ndef largest_gap(n):\n    while True: pass\n```", "timeout"),
        ("```python\nx = [0] * 10**9\n```", "memory"),
        ("```python\nraise SystemExit(0)\n```", "failed"),
        ("```python\nimport os; os.kill(os.getpid(), 9)\n```", "killed"),
    ],
)
def test_passes(text: str, verdict: str) -> None:
    assert passes(text, TESTS, LIMITS) is Verdict(verdict)


@isolated
def test_passes_pairs() -> None:
    said = "```python\nprint(int(input()) + 1)\n```"
    pairs = [{"input": "1\n", "output": "2"}, {"input": "-1", "output": "0  \n\n"}]
    assert passes(said, pairs, LIMITS) is Verdict.PASSED
    assert passes(said, [*pairs, {"input": "1", "output": "3"}], LIMITS) is Verdict.FAILED
    assert passes(said, [{"input": "", "output": ""}], LIMITS) is Verdict.FAILED


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Client]:
    made = client("http://127.0.0.1:1/v1", tmp_path / "replies")
    yield made
    made.close()


@isolated
def test_outcomes_are_remembered(asked: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ProgramLimits(seconds=60, cpu_seconds=1)
    runner = Runner(asked, limits)
    fails = TESTS + "\nassert largest_gap([1, 2]) == 7, 'one " + "x" * 300 + "'"
    wanted = [
        Outcome(Verdict.PASSED),
        Outcome(Verdict.FAILED, ("AssertionError: one " + "x" * 300)[:200]),
        Outcome(Verdict.FAILED, "no program in the answer"),
    ]

    def again(runner: Runner) -> list[Outcome]:
        both = [runner.passes(FENCED, TESTS), runner.run(SOLUTION, fails)]
        return asked.gather([*both, runner.passes("Seven.", TESTS)])

    assert again(runner) == wanted
    monkeypatch.setattr(sandbox, "run", lambda *a, **k: pytest.fail("it was run again"))
    assert again(Runner(asked, limits)) == wanted
    monkeypatch.undo()
    runs: list[str] = []
    real = sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda *a, **k: (runs.append("x"), real(*a, **k))[1])
    # Other limits, tests or order of sets are another question.
    asked.gather([Runner(asked, ProgramLimits(seconds=61)).run(SOLUTION, TESTS)])
    asked.gather([runner.run(SOLUTION, TESTS, reordered=True)])
    asked.gather([runner.run(SOLUTION, ASSERTS[0])])
    assert len(runs) == 3


@isolated
def test_one_question_has_one_outcome(asked: Client) -> None:
    """Also where it is asked several times at once and the program is moody."""
    moody = "import os\nassert os.urandom(1)[0] % 2"
    runner = Runner(asked, ProgramLimits())
    for number in range(3):
        tests = f"assert {number} < 3"
        found = asked.gather([runner.run(moody, tests) for _ in range(4)])
        assert len({one.verdict for one in found}) == 1
        assert asked.gather([runner.run(moody, tests)]) == found[:1]


def test_limits() -> None:
    given = ProgramLimits(seconds=3, cpu_seconds=2, memory_mb=100, processes=7)
    assert limits_of(given) == Limits(
        seconds=3, cpu_seconds=2, memory=100 * 1024 * 1024, processes=7
    )
