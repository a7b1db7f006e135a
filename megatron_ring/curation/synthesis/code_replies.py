"""A reply of the model that writes problems, as statement, solution and tests, or why it is none.

Reasons, in the order of the rules: cut, no_solution, solution_syntax, no_tests, tests_syntax,
no_statement, long_statement, forbidden, too_few_tests, unnamed_function.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ring.config.curation.code import CodeConfig
from megatron_ring.curation.record import Rejection
from megatron_ring.curation.synthesis import code_rules as rules
from megatron_ring.curation.synthesis import code_text as text
from megatron_ring.curation.synthesis.code_answers import Tests
from megatron_ring.curation.synthesis.code_text import Piece

SHOWN = 160  # characters of a reply in evidence


@dataclass(frozen=True)
class Parts:
    """A problem as it was written."""

    statement: str  # without what `prompt` adds
    solution: str
    tests: Tests
    functions: tuple[str, ...]  # of the solution, that tests use; none for form=program


def read_reply(reply: str, is_cut: bool, options: CodeConfig) -> Parts | Rejection:
    """The parts; `is_cut`: the reply ended at its limit of tokens."""
    answer = text.answer_of(reply)
    if answer is None:
        return Rejection("cut", f"the thought is open: {reply[-SHOWN:]}")
    found = text.first_problem(text.pieces(answer))
    if is_cut and not (found and _is_complete(found[-1])):
        return Rejection("cut", f"the answer ends with: {answer[-SHOWN:]}")
    if options.form == "program":
        read = _program_parts(found, options)
    else:
        read = _function_parts(found)
    return read if isinstance(read, Rejection) else _judge(read, options)


def prompt(parts: Parts, options: CodeConfig) -> str:
    """The problem as a model is given it: statement, signature, examples."""
    shown = [parts.statement]
    if isinstance(parts.tests, str):
        tree = ast.parse(parts.solution)
        missing = [name for name in parts.functions if f"def {name}(" not in parts.statement]
        if options.signature and missing:
            heads = ", ".join(rules.signature(tree, name) for name in missing)
            shown.append(f"Write it in Python: {heads}.")
        lines = rules.shown_asserts(parts.tests, options.examples)
        lines = [line for line in lines if line not in parts.statement]
        if lines:
            shown.append("\n".join(["It must satisfy:", "```python", *lines, "```"]))
    else:
        shown.append("Write a Python program that reads standard input and prints the result.")
        for pair in parts.tests[: options.examples]:
            given, wanted = pair["input"].rstrip("\n"), pair["output"].rstrip("\n")
            shown.append(f"Input:\n```\n{given}\n```\nOutput:\n```\n{wanted}\n```")
    return "\n\n".join(shown)


def _function_parts(found: list[Piece]) -> Parts | Rejection:
    """Solution and tests told apart by headings, and where those fail by what they are."""
    codes = [piece for piece in found if _is_code(piece)]
    solution, spare, problem = _solution(codes)
    if solution is None:
        return problem
    tree = ast.parse(solution)
    tests, broken = [], ""
    for piece in codes:
        known = rules.parsed(piece.text)
        if known is None:
            broken = broken or (piece.text if piece.role == "tests" else "")
        elif piece.role != "solution" and rules.asserts(known):
            tests.append(rules.cleaned_tests(piece.text, known, tree))
    if not tests and not broken and spare:
        tests.append(spare)
    if broken:
        return Rejection("tests_syntax", f"no Python: {broken[:SHOWN]}")
    joined = "\n".join(dict.fromkeys(tests))
    if rules.parsed(joined) is None or not joined.strip():
        return Rejection("no_tests", "no block with assertions")
    names = rules.used(ast.parse(joined))
    functions = tuple(name for name in rules.defined(tree) if name in names)
    return Parts(_statement(found), solution, joined, functions)


def _solution(codes: list[Piece]) -> tuple[str | None, str, Rejection]:
    """The first block that defines what has a body, and the asserts in it."""
    last = Rejection("no_solution", "no block of Python that defines a function")
    broken = None
    for role in ("solution", "problem", "", "tests"):
        for piece in codes:
            if piece.role != role:
                continue
            tree = rules.parsed(piece.text)
            if tree is None:
                if role == "solution":
                    broken = broken or Rejection(
                        "solution_syntax", f"no Python: {piece.text[:SHOWN]}"
                    )
                continue
            program, spare = rules.separated(piece.text, tree)
            kept = rules.parsed(program)
            if kept is not None and rules.defined(kept) and rules.has_body(kept):
                return program, rules.cleaned_tests(spare, ast.parse(spare), kept), last
        if broken is not None:
            return None, "", broken
    return None, "", last


def _program_parts(found: list[Piece], options: CodeConfig) -> Parts | Rejection:
    """A program that reads, and JSON of what it reads and writes."""
    codes = [piece for piece in found if _is_code(piece) and piece.role != "tests"]
    programs = [piece.text for piece in codes if rules.parsed(piece.text) is not None]
    if not codes:
        return Rejection("no_solution", "no block of Python before the tests")
    if not programs:
        return Rejection("solution_syntax", f"no Python: {codes[0].text[:SHOWN]}")
    given = [piece.text for piece in found if piece.role == "tests"]
    if not given:
        return Rejection("no_tests", "no part with tests")
    pairs = next((pairs for pairs in map(_pairs, given) if pairs is not None), None)
    if pairs is None:
        return Rejection("tests_syntax", f"no JSON list of input and output: {given[0][:SHOWN]}")
    return Parts(_statement(found), programs[0].strip("\n"), pairs, ())


def _pairs(given: str) -> list[dict[str, str]] | None:
    """Different pairs of texts, None where it is something else."""
    try:
        found = json.loads(given)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    pairs: list[dict[str, str]] = []
    for one in found:
        if not isinstance(one, dict) or not {"input", "output"} <= set(one):
            return None
        pair = {"input": one["input"], "output": one["output"]}
        if not all(isinstance(value, str) for value in pair.values()):
            return None
        if pair not in pairs:
            pairs.append(pair)
    return pairs


def _statement(found: list[Piece]) -> str:
    """What stands under the heading; without headings, what stands before the first code."""
    before: list[Piece] = []
    for piece in found:
        if _is_code(piece) or piece.role in ("solution", "tests"):
            break
        before.append(piece)
    own = [piece for piece in before if piece.role == "problem"]
    if len(own) == 1 and own[0].language is not None:
        return own[0].text.strip()  # all of it is in a fence
    return text.prose(own) if own else text.without_greeting(text.prose(before))


def _is_complete(last: Piece) -> bool:
    """Had the reply said all by its last piece: a whole block, or words behind the tests?"""
    if last.language is not None:
        return last.closed
    return last.role == "tests" and not _is_code(last)


def _is_code(piece: Piece) -> bool:
    """Is it a part of solution or tests? In a problem, a signature to start from is not."""
    tree = rules.parsed(piece.text)
    if piece.language is None:  # some models leave out the fences; "Done" is a name in Python too
        says = tree is not None and not all(isinstance(node, ast.Expr) for node in tree.body)
        return piece.role in ("solution", "tests") and says
    if not piece.is_python:
        return False
    if piece.role == "problem":
        return tree is not None and rules.has_body(tree)
    return piece.role != "" or tree is not None


def _judge(parts: Parts, options: CodeConfig) -> Parts | Rejection:
    """The parts, when they hold to the rules that need no running."""
    size = len(parts.statement)
    if size < options.min_statement_chars:
        return Rejection(
            "no_statement",
            f"{size} characters of min_statement_chars={options.min_statement_chars}: "
            f"{parts.statement!r}",
        )
    if size > options.max_statement_chars:
        return Rejection(
            "long_statement",
            f"{size} characters of max_statement_chars={options.max_statement_chars}",
        )
    is_function = isinstance(parts.tests, str)
    codes = [("solution", parts.solution)]
    codes += [("tests", parts.tests)] if isinstance(parts.tests, str) else []
    for name, code in codes:
        reads = () if is_function else ("input", "exit", "quit")
        seen = rules.forbidden(ast.parse(code), options.allowed_imports, reads)
        if seen is not None:
            return Rejection("forbidden", f"{name}: {seen}")
    if isinstance(parts.tests, str):
        num, what = rules.asserts(ast.parse(parts.tests)), "different asserts"
    else:
        num, what = len(parts.tests), "different pairs"
    if num < options.min_tests:
        return Rejection("too_few_tests", f"{num} {what} of min_tests={options.min_tests}")
    return _named(parts, options) if is_function else parts


def _named(parts: Parts, options: CodeConfig) -> Parts | Rejection:
    """Does the prompt say what tests call?"""
    if not parts.functions:
        known = ", ".join(rules.defined(ast.parse(parts.solution)))
        return Rejection(
            "unnamed_function", f"tests use nothing that the solution defines: {known}"
        )
    if not options.signature:
        for name in parts.functions:
            if not rules.names_word(parts.statement, name):
                return Rejection("unnamed_function", f"tests use {name}, the statement does not")
    return parts


def named(statement: str, solution: str, tests: str) -> str:
    """A seed's statement that says what tests call, as new ones must; MBPP's do not."""
    tree, checks = rules.parsed(solution), rules.parsed(tests)
    if tree is None or checks is None:
        return statement
    wanted = [name for name in rules.defined(tree) if name in rules.used(checks)]
    missing = [name for name in wanted if not rules.names_word(statement, name)]
    heads = ", ".join(rules.signature(tree, name) for name in missing)
    return f"{statement}\n\nThe function: {heads}." if missing else statement


def shown_seed(extra: dict[str, Any], key: str) -> str | None:
    """A program or tests of a seed, None where it has none."""
    found = extra.get(key)
    if isinstance(found, str) and found.strip():
        return found.replace("\r\n", "\n").strip()
    if isinstance(found, Sequence) and found and all(isinstance(one, str) for one in found):
        return "\n".join(found)
    return json.dumps(list(found), ensure_ascii=False, indent=1) if found else None
