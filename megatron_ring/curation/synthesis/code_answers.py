"""Answers that are code: the program in one, and how it fares with tests in the sandbox."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from megatron_ring.config.curation.code import ProgramLimits
from megatron_ring.curation import sandbox
from megatron_ring.curation.generate import Client
from megatron_ring.curation.sandbox import Job, Limits, Verdict
from megatron_ring.curation.synthesis.code_rules import defined, parsed, used
from megatron_ring.curation.synthesis.code_text import answer_of, pieces

# Asserts that run after a program among its names; or what a program reads, and what it must write:
# [{"input": ..., "output": ...}].
Tests = str | Sequence[Mapping[str, str]]
# Sets of texts come out in another order for another hash seed, and the sandbox's own is fixed.
REORDERED = """import os, subprocess, sys
with open("given.txt", "rb") as given:
    code = subprocess.run(
        [sys.executable, "again.py"], stdin=given, env={**os.environ, "PYTHONHASHSEED": "1"}
    ).returncode
if code:
    raise SystemExit(f"exit code {code} with another order of sets")
"""
COMPLAINT_CHARS = 200


@dataclass(frozen=True)
class Outcome:
    """What came of a program and its tests."""

    verdict: Verdict
    complaint: str = ""  # the last line it wrote on stderr, or the first pair that is wrong

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASSED


def limits_of(options: ProgramLimits) -> Limits:
    """For the sandbox, in bytes."""
    return Limits(
        seconds=options.seconds,
        cpu_seconds=options.cpu_seconds,
        memory=options.memory_mb << 20,
        processes=options.processes,
    )


def extract_program(text: str, tests: Tests = "") -> str | None:
    """The last Python block behind </think>; of several, the last that defines what tests use.

    None where there is none, or the thought is open. A block without language counts as Python.
    """
    answer = answer_of(text)
    blocks = [] if answer is None else [p.text for p in pieces(answer) if p.is_python]
    if not blocks:
        return None
    tree = parsed(tests) if isinstance(tests, str) else None
    wanted = used(tree) if tree is not None else set()
    for block in reversed(blocks):
        known = parsed(block)
        if known is not None and wanted.intersection(defined(known)):
            return block
    return blocks[-1]


def passes(text: str, tests: Tests, limits: Limits) -> Verdict:
    """How the program in an answer fares; blocks, and remembers nothing (Runner does).

    An answer without a program has failed. SandboxError where nothing can be isolated.
    """
    program = extract_program(text, tests)
    return Verdict.FAILED if program is None else execute(program, tests, limits).verdict


def execute(program: str, tests: Tests, limits: Limits, *, reordered: bool = False) -> Outcome:
    """Run a program with its tests; `reordered`: with another hash seed. Blocks."""
    if not isinstance(tests, str):
        for number, pair in enumerate(tests, 1):
            found = _one_pair(program, pair, limits, reordered)
            if not found.passed:
                return Outcome(found.verdict, f"pair {number}: {found.complaint}")
        return Outcome(Verdict.PASSED)
    job = Job(program=program, tests=tests)
    if reordered:
        job = Job(program=REORDERED, files=_again(f"{program}\n{tests}\n"), tests="")
    result = sandbox.run(**vars(job), limits=limits)
    return Outcome(result.verdict, _last_line(result.stderr))


class Runner:
    """Runs programs beside requests, and remembers outcomes: a resumed run decides the same.

    SandboxError when it is made, where this machine cannot isolate: nothing was paid by then.
    """

    def __init__(self, client: Client, options: ProgramLimits) -> None:
        sandbox.proven()
        self._client, self._limits = client, limits_of(options)

    async def run(self, program: str, tests: Tests, *, reordered: bool = False) -> Outcome:
        """What came of it, now or before."""
        limits = asdict(self._limits)
        told = json.dumps([program, tests, limits, reordered], sort_keys=True)
        key = f"sandbox {hashlib.sha256(told.encode()).hexdigest()}"
        value = self._client.memory.recall(key)
        if value is None:
            value = await self._client.aside(self._execute, program, tests, reordered)
            earlier = self._client.memory.recall(key)  # the same program, asked for meanwhile
            if earlier is None:
                self._client.memory.keep(key, value)
            value = earlier or value
        return Outcome(Verdict(value["verdict"]), value["complaint"])

    async def passes(self, text: str, tests: Tests) -> Outcome:
        """How the program in an answer fares."""
        program = extract_program(text, tests)
        if program is None:
            return Outcome(Verdict.FAILED, "no program in the answer")
        return await self.run(program, tests)

    def _execute(self, program: str, tests: Tests, reordered: bool) -> dict[str, str]:
        found = execute(program, tests, self._limits, reordered=reordered)
        return {"verdict": found.verdict.value, "complaint": found.complaint}


def _one_pair(program: str, pair: Mapping[str, str], limits: Limits, reordered: bool) -> Outcome:
    if reordered:
        files = _again(program, pair["input"])
        result = sandbox.run(REORDERED, files=files, limits=limits)
    else:
        result = sandbox.run(program, stdin=pair["input"], limits=limits)
    if result.verdict is not Verdict.PASSED:
        return Outcome(result.verdict, _last_line(result.stderr))
    if _lines(result.stdout) != _lines(pair["output"]):
        wrote = json.dumps(result.stdout, ensure_ascii=False)[:COMPLAINT_CHARS]
        return Outcome(Verdict.FAILED, f"it wrote {wrote}")
    return Outcome(Verdict.PASSED)


def _again(program: str, given: str = "") -> dict[str, str]:
    return {"again.py": program, "given.txt": given}


def _lines(text: str) -> list[str]:
    """Output as judges compare it: without blanks at the end of lines and of all."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _last_line(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return lines[-1].strip()[:COMPLAINT_CHARS] if lines else ""
