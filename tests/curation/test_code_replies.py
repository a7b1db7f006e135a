"""Replies with code problems: read in whatever form they come, and every reason to drop one."""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.curation.code import CodeConfig
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.record import Rejection
from megatron_ring.curation.synthesis import code_rules as rules
from megatron_ring.curation.synthesis.code_replies import Parts, prompt, read_reply
from megatron_ring.curation.synthesis.code_text import answer_of, pieces
from tests.curation.code_replies import ASSERTS, GOOD, SOLUTION, STATEMENT, TESTS, reply

SOLVER = GeneratorConfig(endpoint="http://localhost/v1", model="m", replies=Path("never"))


def read(text: str, is_cut: bool = False, **options: Any) -> Parts | Rejection:
    return read_reply(text, is_cut, CodeConfig(solver=SOLVER, **options))


def good(text: str, **options: Any) -> Parts:
    found = read(text, **options)
    assert isinstance(found, Parts), found
    return found


@pytest.mark.parametrize("name", GOOD)
def test_every_form_gives_the_same_parts(name: str) -> None:
    assert read(GOOD[name]) == Parts(STATEMENT, SOLUTION, TESTS, ("largest_gap",))


SORTING = "Write a function `order(items)` that returns the items in ascending order, as a list."
CUT_TESTS = reply().removesuffix("6\n```\n")
CUT_BEFORE = reply().split("## Tests")[0] + "Now"
CUT_BARE = GOOD["no fences"].removesuffix(" == 6")
REASONS = {
    "cut thought": (
        ("<think>I begin with a list of",),
        {},
        ("cut", "the thought is open: <think>I begin with a list of"),
    ),
    "cut tests": ((CUT_TESTS, True), {}, ("cut", f"the answer ends with: {CUT_TESTS[-160:]}")),
    "cut before": ((CUT_BEFORE, True), {}, ("cut", f"the answer ends with: {CUT_BEFORE[-160:]}")),
    "cut bare": ((CUT_BARE, True), {}, ("cut", f"the answer ends with: {CUT_BARE[-160:]}")),
    "cut to nothing": (("", True), {}, ("cut", "the answer ends with: ")),
    "empty": (("",), {}, ("no_solution", "no block of Python that defines a function")),
    "prose": (
        ("I cannot help with that.",),
        {},
        ("no_solution", "no block of Python that defines a function"),
    ),
    "only a signature": (
        (reply(solution="def largest_gap(numbers):\n    pass"),),
        {},
        ("no_solution", "no block of Python that defines a function"),
    ),
    "solution in C": (
        (reply().replace("```python\ndef", "```c\ndef"),),
        {},
        ("no_solution", "no block of Python that defines a function"),
    ),
    "broken solution": (
        (reply(solution="def f(:\n    return"),),
        {},
        ("solution_syntax", "no Python: def f(:\n    return"),
    ),
    "broken tests": (
        (reply(tests="assert largest_gap([) == 1"),),
        {},
        ("tests_syntax", "no Python: assert largest_gap([) == 1"),
    ),
    "no tests": (
        (reply(tests="print(largest_gap([1, 2]))"),),
        {},
        ("no_tests", "no block with assertions"),
    ),
    "no statement": (
        (reply(statement=""),),
        {},
        ("no_statement", "0 characters of min_statement_chars=40: ''"),
    ),
    "a short one": (
        (reply(statement="Sort."),),
        {},
        ("no_statement", "5 characters of min_statement_chars=40: 'Sort.'"),
    ),
    "a long one": (
        (reply(),),
        {"max_statement_chars": 50},
        ("long_statement", f"{len(STATEMENT)} characters of max_statement_chars=50"),
    ),
    "reads": (
        (reply(solution=f"{SOLUTION}\n\ndef ask():\n    return input()"),),
        {},
        ("forbidden", "solution: input()"),
    ),
    "opens a file": (
        (reply(tests=f"{TESTS}\nassert open('x')"),),
        {},
        ("forbidden", "tests: open()"),
    ),
    "network": (
        (reply(solution=f"from urllib.request import urlopen\n{SOLUTION}"),),
        {},
        ("forbidden", "solution: import urllib.request"),
    ),
    "own modules only": (
        (reply(solution=f"import math\n{SOLUTION}"),),
        {"allowed_imports": ["re"]},
        ("forbidden", "solution: import math"),
    ),
    "three tests": (
        (reply(tests="\n".join(ASSERTS[:3])),),
        {},
        ("too_few_tests", "3 different asserts of min_tests=4"),
    ),
    "one test four times, and one that says nothing": (
        (reply(tests="\n".join([ASSERTS[0]] * 4 + ["assert True"])),),
        {},
        ("too_few_tests", "1 different asserts of min_tests=4"),
    ),
    "tests of something else": (
        (reply(tests=TESTS.replace("largest_gap", "biggest_gap")),),
        {},
        ("unnamed_function", "tests use nothing that the solution defines: largest_gap"),
    ),
    "a name that the statement does not say": (
        (reply(statement=STATEMENT.replace("largest_gap", "largest_gaps")),),
        {"signature": False},
        ("unnamed_function", "tests use largest_gap, the statement does not"),
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_reason(name: str) -> None:
    arguments, options, (reason, evidence) = REASONS[name]
    assert read(*arguments, **options) == Rejection(reason, evidence)


def test_a_cut_reply_that_was_complete_is_read() -> None:
    assert read(reply() + "\n## Explanation\nDone", True) == read(reply())
    assert read(reply(), True) == read(reply())


def test_signature_to_start_from_stays_in_the_statement() -> None:
    start = f"{STATEMENT}\n\n```python\ndef largest_gap(numbers):\n    ...\n```"
    parts = good(reply(statement=start))
    assert (parts.statement, parts.solution) == (start, SOLUTION)
    # It has the signature already.
    assert "Write it in Python" not in prompt(parts, CodeConfig(solver=SOLVER))


def test_a_line_of_the_statement_is_no_heading() -> None:
    said = f"{STATEMENT}\nTest cases: at most 100 numbers.\nCode: none."
    assert good(reply(statement=said)).statement == said
    marked = reply().replace("## Solution", "**Solution:** It sorts.")
    assert good(marked).statement == STATEMENT


def test_tests_in_the_solution_are_used_where_there_are_no_others() -> None:
    both = good(reply(solution=f"{SOLUTION}\n\nassert largest_gap([1]) == 1"))
    assert (both.solution, both.tests) == (SOLUTION, TESTS)
    alone = reply(solution=f"{SOLUTION}\n\n{TESTS}").split("## Tests")[0]
    assert good(alone) == good(reply())
    guarded = TESTS.replace("\n", "\n    ")
    guard = f'{SOLUTION}\n\nif __name__ == "__main__":\n    {guarded}\n    print("fine")'
    assert good(reply(solution=guard).split("## Tests")[0]) == good(reply())


def test_functions_of_tests_are_called() -> None:
    body = TESTS.replace("\n", "\n    ")
    pytest_like = f"def test_gaps():\n    {body}"
    assert good(reply(tests=pytest_like)).tests == f"{pytest_like}\ntest_gaps()"
    called = f"{pytest_like}\n\ntest_gaps()"
    assert good(reply(tests=called)).tests == called
    check = f"def check(candidate):\n    {body}".replace("largest_gap", "candidate")
    parts = good(reply(tests=check))
    assert parts.tests == f"{check}\ncheck(largest_gap)" and parts.functions == ("largest_gap",)
    unusable = f"def test_gaps(a, b):\n    {body}"
    assert good(reply(tests=unusable)).tests == unusable  # never called: a stub passes, and it goes


def test_prompt() -> None:
    options = CodeConfig(solver=SOLVER, examples=2)
    assert prompt(good(reply()), options) == (
        f"{STATEMENT}\n\nWrite it in Python: `def largest_gap(numbers)`.\n\nIt must satisfy:\n"
        "```python\nassert largest_gap([1, 9, 4]) == 5\nassert largest_gap([]) == 0\n```"
    )
    bare = CodeConfig(solver=SOLVER, examples=0, signature=False)
    assert prompt(good(reply(), signature=False), bare) == STATEMENT
    shown = reply(statement=f"{STATEMENT} For example: {ASSERTS[0]}.")
    assert prompt(good(shown), options).count(ASSERTS[0]) == 1


def test_signatures() -> None:
    tree = rules.parsed(
        "async def g(a: int, *b: str, c: float = 2.0) -> list[int]:\n    return [1]\n"
        "class Bag(dict):\n    def __init__(self, n):\n        self.n = n\n"
        "    def _hidden(self):\n        pass\n    def take(self) -> int:\n        return 1\n"
        "class Empty:\n    pass\n"
    )
    assert tree is not None
    assert rules.signature(tree, "g") == (
        "`async def g(a: int, *b: str, c: float=2.0) -> list[int]`"
    )
    assert rules.signature(tree, "Bag") == (
        "`class Bag` with `def __init__(self, n)`, `def take(self) -> int`"
    )
    assert rules.signature(tree, "Empty") == "`class Empty`"


def test_lines_are_kept_as_they_are_where_that_is_possible() -> None:
    code = "import re  # why\n\n@cache\ndef f():\n    return 1  # one\n\nassert f()\nprint(f())"
    tree = rules.parsed(code)
    assert tree is not None
    program, tests = rules.separated(code, tree)
    assert (program, tests) == (code.split("\n\nassert")[0], "assert f()")
    shared = "def f(): return 1\nx = 1; print(x)"
    tree = rules.parsed(shared)
    assert tree is not None
    assert rules.separated(shared, tree) == ("def f():\n    return 1\nx = 1", "")


@pytest.mark.parametrize("code", ["def f(", "x = '\0'", "(" * 500 + ")" * 500, "x = '\ud83d'"])
def test_what_cannot_be_parsed_is_none(code: str) -> None:
    assert rules.parsed(code) is None
    assert rules.parsed("-" * 5000 + "1") is None
    assert rules.parsed("+".join(["x"] * 5000)) is None
    # Module, statement, operators, name and its context: 150 levels, then 151.
    assert rules.parsed("-" * 146 + "x") is not None
    assert rules.parsed("-" * 147 + "x") is None


def test_odd_escapes_are_no_warnings() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert rules.parsed("x = '\\d'") is not None
    assert seen == []


def test_degenerate_replies_are_read_in_no_time() -> None:
    """Rulers and marks without end, as models write that repeat themselves."""
    began = time.process_time()
    for mark in ("-", "# ", "**", "=", "1. ", "the ", "`", "problem ", ": ", "(", "\n"):
        text = "\n".join([mark * (1900 // len(mark))] * 40)
        assert isinstance(read(text), Rejection)
    assert time.process_time() - began < 5


def test_thoughts_and_pieces() -> None:
    assert answer_of("<think>a</think>\nb") == "b" and answer_of("b") == "b"
    assert answer_of("a</think>b") == "b" and answer_of("<think>a") is None
    assert answer_of("<think>a</think>b<think>c") is None
    found = pieces("hello\n````python\n```\nx\n```\n````\n```js\ny")
    assert [(p.text, p.language, p.closed) for p in found] == [
        ("hello", None, True),
        ("```\nx\n```", "python", True),
        ("y", "js", False),
    ]


PROGRAM = "n = int(input())\nprint(n * 2)"
PAIRS = [{"input": f"{n}\n", "output": f"{2 * n}\n"} for n in (1, 0, -4, 10**9)]


def program_reply(solution: str = PROGRAM, tests: Any = PAIRS) -> str:
    told = tests if isinstance(tests, str) else json.dumps(tests)
    return reply("Read an integer n, at most 10^9, and print twice n.", solution, told, "json")


def test_programs_with_pairs() -> None:
    parts = good(program_reply(), form="program")
    assert (parts.solution, parts.tests, parts.functions) == (PROGRAM, PAIRS, ())
    assert prompt(parts, CodeConfig(solver=SOLVER, form="program")) == (
        "Read an integer n, at most 10^9, and print twice n.\n\n"
        "Write a Python program that reads standard input and prints the result.\n\n"
        "Input:\n```\n1\n```\nOutput:\n```\n2\n```"
    )


@pytest.mark.parametrize(
    ("given", "reason", "evidence"),
    [
        (("x = (",), "solution_syntax", "no Python: x = ("),
        ((PROGRAM, "nothing"), "tests_syntax", "no JSON list of input and output: nothing"),
        (
            (PROGRAM, {"input": ""}),
            "tests_syntax",
            'no JSON list of input and output: {"input": ""}',
        ),
        ((PROGRAM, [1]), "tests_syntax", "no JSON list of input and output: [1]"),
        (
            (PROGRAM, [{"input": 1, "output": "2"}]),
            "tests_syntax",
            'no JSON list of input and output: [{"input": 1, "output": "2"}]',
        ),
        ((PROGRAM, PAIRS[:1] * 9), "too_few_tests", "1 different pairs of min_tests=4"),
        (("import os\n" + PROGRAM,), "forbidden", "solution: import os"),
        (("open('x')",), "forbidden", "solution: open()"),
    ],
)
def test_reasons_of_programs(given: tuple[Any, ...], reason: str, evidence: str) -> None:
    assert read(program_reply(*given), form="program") == Rejection(reason, evidence)


def test_parts_of_a_program_that_are_missing() -> None:
    no_tests, no_code = program_reply().split("## Tests")[0], STATEMENT
    assert read(no_tests, form="program") == Rejection("no_tests", "no part with tests")
    assert read(no_code, form="program") == Rejection(
        "no_solution", "no block of Python before the tests"
    )
