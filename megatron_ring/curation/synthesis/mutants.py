"""Broken variants of a program: tests that tell right from wrong must notice them.

The operators are the usual ones of mutation testing (DeMillo, Lipton, Sayward 1978: Hints on Test
Data Selection; the set of sufficient operators of Offutt et al. 1996), those that suit short Python
functions. Some mutants are equivalent to the program, so no tests notice all of them.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
Change = Callable[[ast.AST], None]  # changes a node where it stands


@dataclass(frozen=True)
class Mutant:
    """A program with one change."""

    kind: str  # comparison, boundary, arithmetic, constant, condition, logic, returned
    line: int  # of the program as it was
    program: str


def mutants(program: str, most: int, seed: str) -> list[Mutant]:
    """At most so many different ones, drawn by the seed: each kind in turn, as far as it has any.

    The same for the same program and seed. `program` is Python that can be parsed.
    """
    tree = ast.parse(program)
    by_kind: dict[str, list[tuple[int, int]]] = {}
    for place, node in enumerate(ast.walk(tree)):
        for number, (kind, _) in enumerate(_changes(node)):
            by_kind.setdefault(kind, []).append((place, number))
    rng = Random(seed)
    waiting = [(kind, by_kind[kind]) for kind in sorted(by_kind)]
    for _, places in waiting:
        rng.shuffle(places)
    seen, drawn = {ast.unparse(tree)}, []
    while len(drawn) < most and any(places for _, places in waiting):
        for kind, places in waiting:
            if not places or len(drawn) == most:
                continue
            mutant = _changed(program, *places.pop(), kind)
            if mutant.program not in seen:
                seen.add(mutant.program)
                drawn.append(mutant)
    return drawn


def stub(program: str) -> str:
    """The program with functions and methods that do nothing: `return None`."""
    empty = ast.parse(program)
    for node in ast.walk(empty):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Return(ast.Constant(None))]
    return ast.unparse(ast.fix_missing_locations(empty))


def _changed(program: str, place: int, number: int, kind: str) -> Mutant:
    """With one change, which is the `number`-th of those at the `place`-th node."""
    tree = ast.parse(program)  # a fresh one: copying recurses deeper than parsing does
    node = next(node for at, node in enumerate(ast.walk(tree)) if at == place)
    line = vars(node)["lineno"]
    _, change = list(_changes(node))[number]
    change(node)
    return Mutant(kind, line, ast.unparse(ast.fix_missing_locations(tree)))


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """What can be changed at a node: the kind, and what does it to the node of a copy."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for kind, table in (("comparison", OPPOSITE), ("boundary", BOUNDARY)):
                if type(operator) in table:
                    yield kind, _with_operator(place, table[type(operator)])
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield "arithmetic", _put("op", ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        for step in (1, -1):
            yield "constant", _put("value", node.value + step)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", _put("value", not node.value)
    elif isinstance(node, ast.If | ast.While | ast.IfExp) and not _is_comparison(node.test):
        yield "condition", _negate
    elif isinstance(node, ast.BoolOp):
        yield "logic", _put("op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "returned", _put("value", ast.Constant(0))


def _is_comparison(test: ast.expr) -> bool:
    """Its opposite is a mutant already."""
    return isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in OPPOSITE


def _put(name: str, value: object) -> Change:
    return lambda node: setattr(node, name, value)


def _with_operator(place: int, operator: type[ast.cmpop]) -> Change:
    def change(node: ast.AST) -> None:
        assert isinstance(node, ast.Compare), node
        node.ops[place] = operator()

    return change


def _negate(node: ast.AST) -> None:
    assert isinstance(node, ast.If | ast.While | ast.IfExp), node
    node.test = ast.UnaryOp(ast.Not(), node.test)
