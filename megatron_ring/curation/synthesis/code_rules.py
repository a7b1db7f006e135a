"""What can be said of generated programs and tests without running them."""

import ast
import re
import warnings
from collections.abc import Collection, Iterable, Iterator

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
MAX_DEPTH = 150  # of nodes; ast.unparse, which recurses, gives up between 300 and 600 here
# Reading, leaving, and running text: no solution of a closed problem needs them.
FORBIDDEN = ("__import__", "breakpoint", "compile", "eval", "exec", "exit", "input", "open", "quit")


def parsed(code: str) -> ast.Module | None:
    """Its syntax tree; None where it is no Python, or nests deeper than it can be worked on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a text that is not raw
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # null bytes; nested too deep
        return None
    return tree if _depth(tree) <= MAX_DEPTH else None


def defined(tree: ast.Module) -> list[str]:
    """Functions and classes of a module, in order."""
    return list(dict.fromkeys(node.name for node in _definitions(tree)))


def used(tree: ast.AST) -> set[str]:
    """Names that are read anywhere."""
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def has_body(tree: ast.Module) -> bool:
    """Does a function of it do something, so that it is more than a signature to start from?"""
    return any(
        not _is_empty(node.body)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def asserts(tree: ast.AST) -> int:
    """Different assertions that say something: `assert True` does not."""
    found = set()
    for scope in ast.walk(tree):
        for node in ast.iter_child_nodes(scope):
            if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
                where = scope.name if isinstance(scope, Definition) else ""
                found.add((where, ast.dump(node.test)))
    return len(found)


def forbidden(tree: ast.AST, modules: Collection[str], allowed: Collection[str] = ()) -> str | None:
    """The first import or call that a program may not have; `allowed` calls are exempt."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        for name in names:
            if name.split(".")[0] not in modules:
                return f"import {name}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in FORBIDDEN and node.func.id not in allowed:
                return f"{node.func.id}()"
    return None


def separated(code: str, tree: ast.Module) -> tuple[str, str]:
    """A program without what only tries it out, and the asserts that stood in it.

    Calls at module level, as of print, and what `if __name__ == "__main__"` guards belong to
    neither; asserts there are tests as well.
    """
    program: list[ast.stmt] = []
    tests: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.Assert):
            tests.append(node)
        elif _is_main_guard(node):
            assert isinstance(node, ast.If), "a guard is an if"
            tests += [inner for inner in node.body if isinstance(inner, ast.Assert)]
        elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            continue
        elif isinstance(node, ast.FunctionDef) and _is_test(node):
            tests.append(node)
        else:
            program.append(node)
    return kept_lines(code, tree, program), "\n".join(map(ast.unparse, tests))


def cleaned_tests(code: str, tree: ast.Module, solution: ast.Module) -> str:
    """Tests that use the solution's names and no others of that name, and run their functions.

    A copy of the solution in them would be tested in its place, and a module to import it from is
    not there; both go. Functions that nobody calls are called.
    """
    names = set(defined(solution))
    kept = [node for node in tree.body if not _stands_for(node, names)]
    text = kept_lines(code, tree, kept)
    tests = ast.Module(kept, [])
    called = {
        node.func.id
        for node in ast.walk(tests)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    under_test = [name for name in defined(solution) if not name.startswith("_")]
    for node in kept:
        if isinstance(node, ast.FunctionDef) and _is_test(node) and node.name not in called:
            needed = len(node.args.args) - len(node.args.defaults)
            if needed == 0:
                text += f"\n{node.name}()"
            elif needed == 1 and under_test:  # as HumanEval's check(candidate)
                text += f"\n{node.name}({under_test[-1]})"
    return text


def signature(tree: ast.Module, name: str) -> str:
    """How a function or class of a module is called, as Python spells it."""
    node = next(node for node in _definitions(tree) if node.name == name)
    if isinstance(node, ast.ClassDef):
        methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
        shown = [f"`{_head(one)}`" for one in methods if _is_public(one.name)]
        return f"`class {name}`" + (f" with {', '.join(shown)}" if shown else "")
    return f"`{_head(node)}`"


def names_word(text: str, name: str) -> bool:
    """Does a text have the name as a word?"""
    return re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", text) is not None


def shown_asserts(tests: str, most: int) -> list[str]:
    """The first asserts at module level, as they are written."""
    tree = parsed(tests)
    nodes = [] if tree is None else [node for node in tree.body if isinstance(node, ast.Assert)]
    return [ast.get_source_segment(tests, node) or ast.unparse(node) for node in nodes[:most]]


def kept_lines(code: str, tree: ast.Module, kept: Collection[ast.stmt]) -> str:
    """The lines of these statements and the comments between; respelled where two share a line."""
    stay, go = set(), set()
    for node in tree.body:
        (stay if node in kept else go).update(_lines_of(node))
    if stay & go:
        return "\n".join(map(ast.unparse, kept))
    lines = code.splitlines()
    return "\n".join(line for at, line in enumerate(lines, 1) if at not in go).strip("\n")


def _depth(tree: ast.AST) -> int:
    """Nodes above each other, at most."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _definitions(tree: ast.Module) -> Iterator[Definition]:
    return (node for node in tree.body if isinstance(node, Definition))


def _lines_of(node: ast.stmt) -> Iterable[int]:
    decorators = node.decorator_list if isinstance(node, Definition) else []
    first = min([node.lineno, *(one.lineno for one in decorators)])
    return range(first, (node.end_lineno or node.lineno) + 1)


def _is_empty(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(node, ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in body
    )


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in used(node.test)


def _is_test(node: ast.FunctionDef) -> bool:
    return node.name.startswith(("test", "check", "run_test")) and asserts(node) > 0


def _stands_for(node: ast.stmt, names: set[str]) -> bool:
    """A definition, or an import, of what the solution defines."""
    if isinstance(node, ast.ImportFrom):
        return all(alias.name in names or alias.name == "*" for alias in node.names)
    return isinstance(node, Definition) and node.name in names


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__init__"


def _head(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """`def f(a: int) -> int`."""
    bare = ast.FunctionDef(node.name, node.args, [ast.Pass()], [], node.returns)
    line = ast.unparse(ast.fix_missing_locations(bare)).splitlines()[0]
    return ("async " if isinstance(node, ast.AsyncFunctionDef) else "") + line.removesuffix(":")
