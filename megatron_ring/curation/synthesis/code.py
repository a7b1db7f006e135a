"""Code problems: written with a solution and tests, run, kept when tests tell and it is hard.

Reasons of what is not kept, beside those of code_replies.py: solution_fails, unstable,
tests_pass_nothing, weak_tests, refused, too_easy, never_solved.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.code import CodeConfig
from megatron_ring.curation.generate import Client, RefusedError, Reply, Request
from megatron_ring.curation.record import Record, Rejection, prompt_of, response_of
from megatron_ring.curation.sandbox import SandboxError
from megatron_ring.curation.synthesis.code_answers import Runner, Tests, extract_program
from megatron_ring.curation.synthesis.code_replies import (
    named,
    prompt,
    read_reply,
    shown_seed,
)
from megatron_ring.curation.synthesis.domain import Cell
from megatron_ring.curation.synthesis.mutants import Mutant, mutants, stub

WRITING = {
    "function": """Write one new programming problem in Python, with a solution and tests.
Topic: {topic}{difficulty}

Answer in this form, with these three headings and nothing else:

## Problem
All that one must know to write the function: its name, its arguments, what it returns, and what \
holds for empty and extreme arguments. No code.

## Solution
```python
The function. It neither reads input nor prints, and it imports nothing but {modules}.
```

## Tests
```python
At least {tests} lines like: assert name(arguments) == result
```
Tests cover ordinary and extreme arguments, and one by one they fail when the function is wrong.""",
    "program": """Write one new programming problem in Python, with a solution and tests.
Topic: {topic}{difficulty}

Answer in this form, with these three headings and nothing else:

## Problem
The task, the exact format of what the program reads and prints, and the limits of all numbers. \
No code.

## Solution
```python
A program that reads standard input and prints the result. It imports nothing but {modules}.
```

## Tests
```json
[{"input": "3\\n1 2 3\\n", "output": "6\\n"}, at least {tests} such pairs, extreme ones too]
```""",
}
HARDNESS = {
    "easy": "easy; a beginner solves it in a few lines",
    "medium": "medium; it takes an idea, and care with special cases",
    "hard": "hard; it takes a good algorithm, and experienced programmers make mistakes",
}
MORE = "Another one, unlike all before."
AGAIN = MORE + "\nTopic: {topic}{difficulty}"
LIKE = "\n\nProblems of this kind, none of which is to be repeated:\n\n{problems}"


class Code:
    """The domain `code`."""

    def __init__(self, options: CodeConfig, solver: Client) -> None:
        """ConfigError where this machine cannot isolate: before anything is paid for."""
        self.options, self._solver = options, solver
        try:
            self._runner = Runner(solver, options.limits)
        except SandboxError as error:
            raise ConfigError(f"domain.kind=code runs what models write: {error}") from None

    def request(self, cell: Cell, seeds: Sequence[Record], number: int) -> Request:
        """Seeds with solution and tests are shown as earlier answers, others as problems."""
        options = self.options
        answers, problems, subjects = [], [], []
        for seed in seeds:
            shown, is_answer = self._seed(seed)
            if len(shown) <= options.seed_chars:
                (answers if is_answer else problems).append(shown)
                if is_answer:  # seeds are on subjects of their own
                    subjects.append(seed.get("extra", {}).get("subject", ""))
        subjects.append(self._subject(cell, number))
        turns = []
        for at, subject in enumerate(subjects):
            text = options.again or AGAIN if at else options.writing or WRITING[options.form]
            if at and not options.again and not subject and at < len(answers):
                text = MORE
            turns += [_filled(text, self._values(cell, subject)), *answers[at : at + 1]]
        if problems:
            turns[0] += LIKE.replace("{problems}", "\n\n---\n\n".join(problems))
        messages = tuple(
            {"role": "assistant" if at % 2 else "user", "content": turn}
            for at, turn in enumerate(turns)
        )
        return Request(messages=messages, sample=number, purpose="write")

    def _subject(self, cell: Cell, number: int) -> str:
        """What a request of a cell is about, beside its topic; "" where none are named."""
        rng = Random(f"{self.options.solver.seed} {cell.name} {number}")
        return rng.choice(self.options.subjects) if self.options.subjects else ""

    def _values(self, cell: Cell, subject: str) -> dict[str, str]:
        """What stands in the text of a request."""
        hardness = HARDNESS.get(cell.difficulty, cell.difficulty)
        modules = [name for name in self.options.allowed_imports if name != "__future__"]
        return {
            "topic": f"{cell.about}; {subject}" if subject else cell.about,
            "subject": subject or cell.about,
            "difficulty": f"\nDifficulty: {hardness}" if hardness else "",
            "tests": str(self.options.min_tests + 2),  # some are wrong, or the same
            "modules": ", ".join(modules),
        }

    def parse(self, reply: Reply, cell: Cell, number: int) -> list[Record | Rejection]:
        """One draft, or why there is none."""
        parts = read_reply(reply.text, reply.finish_reason == "length", self.options)
        if isinstance(parts, Rejection):
            return [parts]
        domain, *below = cell.path.split("/")
        draft: Record = {
            "messages": [{"role": "user", "content": prompt(parts, self.options)}],
            "domain": domain,
            "card": reply.card,
            "extra": {
                "statement": parts.statement,
                "solution": parts.solution,
                "tests": parts.tests,
                "functions": list(parts.functions),
            },
        }
        if below:
            draft["topic"] = below[-1]
        if cell.difficulty:
            draft["extra"]["difficulty"] = cell.difficulty
        if subject := self._subject(cell, number):
            draft["extra"]["subject"] = subject
        return [draft]

    async def verify(self, draft: Record) -> Record | Rejection:
        """The draft with what was measured, when solution and tests are sound and it is hard."""
        extra = draft["extra"]
        solution, tests = extra["solution"], extra["tests"]
        for reordered, reason in ((False, "solution_fails"), (True, "unstable")):
            found = await self._runner.run(solution, tests, reordered=reordered)
            if not found.passed:
                return Rejection(reason, f"{found.verdict}: {found.complaint}")
        empty = "" if not isinstance(tests, str) else stub(solution)
        if (await self._runner.run(empty, tests)).passed:
            return Rejection("tests_pass_nothing", "tests pass where every function returns None")
        killed, lived = await self._mutants(solution, tests)
        num = killed + len(lived)
        if num and killed / num < self.options.min_mutants_killed:
            shown = ", ".join(f"{mutant.kind} in line {mutant.line}" for mutant in lived)
            return Rejection(
                "weak_tests",
                f"tests notice {killed} of {num} mutants, min_mutants_killed="
                f"{self.options.min_mutants_killed:g}; not {shown}",
            )
        measured: dict[str, Any] = {"mutants": num, "mutants_killed": killed}
        if self.options.solutions:
            rated = await self._rate(draft, tests)
            if isinstance(rated, Rejection):
                return rated
            measured |= rated
        return {**draft, "extra": {**extra, **measured, "verified": True}}

    async def _mutants(self, solution: str, tests: Tests) -> tuple[int, list[Mutant]]:
        """How many broken variants tests notice, and those they do not."""
        drawn = mutants(solution, self.options.max_mutants, solution)
        found = await asyncio.gather(*(self._runner.run(mutant.program, tests) for mutant in drawn))
        lived = [mutant for mutant, one in zip(drawn, found, strict=True) if one.passed]
        return len(drawn) - len(lived), lived

    async def _rate(self, draft: Record, tests: Tests) -> dict[str, Any] | Rejection:
        """How often the solver passes, asked just what the record asks: a replay costs nothing."""
        options = self.options
        numbers = range(options.solutions)
        asked = (self._solve(draft, tests, one) for one in numbers)
        # All come to their end, so that none is paid for and then not waited for.
        found = await asyncio.gather(*asked, return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, RefusedError):
                raise one
        if refused := [one for one in found if isinstance(one, RefusedError)]:
            return Rejection("refused", str(refused[0]))
        passed = [one for one in found if one is not None]
        rate = len(passed) / len(found)
        told = f"{len(passed)} of {len(found)} answers pass"
        if rate > options.max_pass_rate:
            return Rejection("too_easy", f"{told}, max_pass_rate={options.max_pass_rate:g}")
        if not passed and not options.keep_unsolved:
            return Rejection("never_solved", f"{told}; keep_unsolved=false")
        kept = passed[: options.keep_solutions]
        return {"pass_rate": rate, "solutions": len(found), "candidates": kept}

    async def _solve(self, draft: Record, tests: Tests, number: int) -> dict[str, Any] | None:
        """An answer that passes, as a source of tools/curate.py offers answers; None: it fails."""
        messages = tuple(draft["messages"])
        request = Request(messages=messages, sample=number, purpose="solve")
        reply = await self._solver.ask(request)
        if reply.finish_reason == "length":
            return None
        if not (await self._runner.passes(reply.text, tests)).passed:
            return None
        one = {"number": number, "text": reply.text, "model": reply.card["model"]}
        return {**one, "correct": True, "finish": reply.finish_reason, "card": reply.card}

    def _seed(self, seed: Record) -> tuple[str, bool]:
        """As an answer where it has a solution and tests, else as its problem alone."""
        extra = seed.get("extra", {})
        statement = extra.get("statement") or prompt_of(seed).strip()
        tests, solution = (
            shown_seed(extra, own) or shown_seed(extra, theirs)  # own: kept in an earlier round
            for own, theirs in (
                ("tests", self.options.seed_tests),
                ("solution", self.options.seed_solution),
            )
        )
        if solution is None and (said := response_of(seed)) is not None:
            solution = extract_program(said, tests or "")
        if solution is None or tests is None:
            return statement, False
        kind = "python" if self.options.form == "function" else "json"
        statement = named(statement, solution, tests)
        return (
            f"## Problem\n{statement}\n\n## Solution\n```python\n{solution}\n```\n\n"
            f"## Tests\n```{kind}\n{tests}\n```",
            True,
        )


def _filled(text: str, values: Mapping[str, str]) -> str:
    """The text with {name} replaced, in one pass: what is put in may hold braces."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)
