"""LiveCodeBench: programs that read stdin, or methods, run on tests in the sandbox."""

import base64
import json
import pickletools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.curation.sandbox import Verdict
from megatron_ring.curation.synthesis.code_answers import execute, extract_program
from megatron_ring.evaluation.data import Row, Source, rows
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Average, Grade, Item

READS = (
    "{question}\n\nWrite a Python program that reads the input from standard input and writes the "
    "output to standard output. Give the whole program in one ```python block."
)
COMPLETES = (
    "{question}\n\nComplete this Python class:\n```python\n{starter}\n```\nGive the whole class in "
    "one ```python block."
)
# Names that LeetCode gives its programs, and that starter code uses without importing them.
GIVEN = """from typing import *
from collections import *
from itertools import *
from functools import *
from heapq import *
from bisect import *
from math import ceil, comb, factorial, floor, gcd, inf, isqrt, lcm, log, log2, sqrt
import collections, functools, heapq, bisect, itertools, math, random, re, string, sys
sys.setrecursionlimit(50000)
"""
OPCODES = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"}
STRINGS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}


@dataclass(frozen=True)
class LiveCodeBench:
    """As megatron_ring.evaluation.task.Task; rows as its release files have them."""

    name: str
    title: str
    samples: int
    version: str
    source: Source
    options: TaskConfig
    means: Means
    averages: Mapping[str, Average] = field(default_factory=dict)

    def items(self) -> list[Item]:
        """All problems in the order of the files."""
        return [self._item(row) for _, row in rows(self.name, self.options, self.source)]

    def grade(self, item: Item, text: str) -> Grade:
        """right when all tests pass; timeout, no_answer, or wrong with how the program ended."""
        if item.gold["method"]:
            tests: Any = asserts(item.gold["tests"], item.gold["method"])
        else:
            tests = item.gold["tests"]
        program = extract_program(text, tests)
        if program is None:
            return Grade(score=0.0, verdict="no_answer", detail="no program behind the thought")
        # Imports from __future__ come first in a file; such a program names what else it needs.
        given = "" if "from __future__" in program else GIVEN
        found = execute(given + program, tests, self.means.limits)
        names = {Verdict.PASSED: "right", Verdict.TIMEOUT: "timeout"}
        told = f"{found.verdict.value}: {found.complaint}".rstrip(": ")
        verdict = names.get(found.verdict, "wrong")
        return Grade(score=float(found.passed), verdict=verdict, extracted=program, detail=told)

    def _item(self, row: Row) -> Item:
        tests = tests_of(row["public_test_cases"]) + tests_of(row["private_test_cases"])
        told = row.get("metadata") or {}
        method = (json.loads(told) if isinstance(told, str) else told).get("func_name")
        starter = row.get("starter_code") or ""
        prompt = (COMPLETES if method else READS).format(
            question=row["question_content"], starter=starter
        )
        facts = {key: str(row[key]) for key in ("difficulty", "platform") if row.get(key)}
        if row.get("contest_date"):
            facts["month"] = str(row["contest_date"])[:7]
        return Item(
            id=str(row["question_id"]),
            messages=[{"role": "user", "content": prompt}],
            gold={"tests": tests, "method": method},
            facts=facts,
        )


def tests_of(given: Any) -> list[dict[str, str]]:
    """[{input, output}] of a cell: a list, its JSON, or that packed as the private tests are.

    They are a pickled text. Nothing is unpickled: its opcodes are read, and all but those of one
    text are a ValueError.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            given = json.loads(_unpacked(given))
    return [{"input": one["input"], "output": one["output"]} for one in given]


def _unpacked(packed: str) -> str:
    texts, others = [], []
    for opcode, argument, _ in pickletools.genops(zlib.decompress(base64.b64decode(packed))):
        if opcode.name in STRINGS:
            texts.append(argument)
        elif opcode.name not in OPCODES:
            others.append(opcode.name)
    if others or len(texts) != 1:
        found = ", ".join(others) or f"{len(texts)} texts"
        raise ValueError(f"private_test_cases hold more than one text: {found}; nothing was run")
    return texts[0]


def asserts(tests: Sequence[dict[str, str]], method: str) -> str:
    """Tests of a method as code: each line of an input is an argument in JSON."""
    lines = ["import json as _json"]
    for test in tests:
        arguments = [json.loads(line) for line in test["input"].split("\n") if line.strip()]
        told = repr(json.dumps([arguments, json.loads(test["output"])]))
        lines += [
            f"_arguments, _wanted = _json.loads({told})",
            f"_found = Solution().{method}(*_arguments)",
            "_found = list(_found) if isinstance(_found, tuple) else _found",
            "assert _found == _wanted, f'{_found!r} for {_wanted!r}'[:200]",
        ]
    return "\n".join(lines) + "\n"
