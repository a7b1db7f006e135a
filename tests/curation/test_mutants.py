"""Mutants of small programs, all of them written out by hand."""

import ast

import pytest

from megatron_ring.curation.synthesis.mutants import Mutant, mutants, stub


def changes(program: str) -> set[tuple[str, int, str]]:
    """Kind, line and text of all mutants, without the lines they share with the program."""
    own = set(ast.unparse(ast.parse(program)).splitlines())
    found = set()
    for mutant in mutants(program, 1000, "seed"):
        (changed,) = set(mutant.program.splitlines()) - own
        found.add((mutant.kind, mutant.line, changed.strip()))
    return found


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("x = a < b", {("comparison", 1, "x = a >= b"), ("boundary", 1, "x = a <= b")}),
        ("x = a >= b", {("comparison", 1, "x = a < b"), ("boundary", 1, "x = a > b")}),
        ("x = a == b", {("comparison", 1, "x = a != b")}),
        ("x = a not in b", {("comparison", 1, "x = a in b")}),
        ("x = a is b", {("comparison", 1, "x = a is not b")}),
        (
            "x = a < b == c",
            {
                ("comparison", 1, "x = a >= b == c"),
                ("boundary", 1, "x = a <= b == c"),
                ("comparison", 1, "x = a < b != c"),
            },
        ),
        ("x = a + b", {("arithmetic", 1, "x = a - b")}),
        (
            "x = a // b % c",
            {("arithmetic", 1, "x = a * b % c"), ("arithmetic", 1, "x = a // b // c")},
        ),
        ("x -= a", {("arithmetic", 1, "x += a")}),
        ("x = a ** b", {("arithmetic", 1, "x = a * b")}),
        ("x = a | b", set()),
        ("x = 7", {("constant", 1, "x = 8"), ("constant", 1, "x = 6")}),
        ("x = 0.5", {("constant", 1, "x = 1.5"), ("constant", 1, "x = -0.5")}),
        ("x = True", {("constant", 1, "x = False")}),
        ("x = 'a'", set()),
        ("x = None", set()),
        ("x = a and b", {("logic", 1, "x = a or b")}),
        ("x = b if a else c", {("condition", 1, "x = b if not a else c")}),
        ("if a:\n    x = b", {("condition", 1, "if not a:")}),
        # Its opposite is there already as a comparison.
        ("if a == b:\n    x = b", {("comparison", 1, "if a != b:")}),
        ("while a.b():\n    x = b", {("condition", 1, "while not a.b():")}),
        ("def f(a):\n    '''1 + 1'''\n    return a", {("returned", 3, "return 0")}),
        ("def f(a):\n    return", set()),
        ("def f(a):\n    return 0", {("constant", 2, "return 1"), ("constant", 2, "return -1")}),
    ],
)
def test_all_mutants(program: str, wanted: set[tuple[str, int, str]]) -> None:
    assert changes(program) == wanted


PROGRAM = """def f(a, b):
    total = 0
    for number in range(a, b + 1):
        if number % 3 == 0 and number > 5:
            total += number
    return total"""


def test_a_draw_takes_each_kind_in_turn_and_is_the_same_every_time() -> None:
    every = mutants(PROGRAM, 1000, "seed")
    kinds = [one.kind for one in every]
    assert len({one.program for one in every}) == len(every) == 19
    first = ["arithmetic", "boundary", "comparison", "condition", "constant", "logic", "returned"]
    assert kinds[:7] == first and kinds.count("constant") == 10
    few = mutants(PROGRAM, 5, "seed")
    assert few == every[:5] == mutants(PROGRAM, 5, "seed")
    assert mutants(PROGRAM, 0, "seed") == []
    others = {tuple(mutants(PROGRAM, 5, str(n))) for n in range(20)}
    assert len(others) > 1
    assert all(isinstance(one, Mutant) and ast.parse(one.program) for one in every)


def test_stub() -> None:
    program = "import re\nN = 3\n\n@cache\ndef f(a, *, b=N):\n    '''Doc.'''\n    return a\n\n"
    program += "class A(dict):\n    x = 1\n\n    async def g(self):\n        return self.x"
    assert stub(program) == (
        "import re\nN = 3\n\n@cache\ndef f(a, *, b=N):\n    return None\n\n"
        "class A(dict):\n    x = 1\n\n    async def g(self):\n        return None"
    )
