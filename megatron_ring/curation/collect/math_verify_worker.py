"""The program that compares answers with math-verify; equality.py runs it, nothing imports it.

It is run by its path and imports nothing of this package, whose imports take longer than its own.
Arguments: bytes of address space it may use, and a file descriptor that its parent keeps open.
Each line it reads is a JSON list of two answers; it says "read" and then right, wrong or unknown,
and "last" behind it when it ends.

math-verify's verify(gold, target) is not symmetric: it reads the 0 off an equation of a plane when
the gold answer is 0. Here two answers are equal when each is accepted with the other as the gold
one, so that the order of a question does not matter. What this would lose is done to both alike: an
equation of numbers, 8!/3! = 6720, is what stands at its end, and 1 < x < 2 is the interval (1, 2).
"""

import fcntl
import json
import logging
import os
import resource
import sys

from math_verify import LatexExtractionConfig, parse, verify
from math_verify.grader import is_equation, take_last_relation
from sympy import Basic, Expr, MatrixBase


def end_with_parent(held: int) -> None:
    """The kernel ends this process when its parent closes its end of the pipe `held`, or dies.

    Without this a worker in a long computation would notice at its next read only. A watching
    thread does not help, as one multiplication of large integers keeps Python's lock, and a death
    signal of the parent would come when the thread ends that started this worker.
    """
    fcntl.fcntl(held, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(held, fcntl.F_SETFL, fcntl.fcntl(held, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO


def peak() -> int:
    """The most memory this process has had, in bytes; ru_maxrss would count its parent's."""
    with open("/proc/self/status", encoding="ascii") as file:
        kilobytes = next(line.split()[1] for line in file if line.startswith("VmHWM"))
    return int(kilobytes) * 1024


def parsed(text: str) -> list[Basic | MatrixBase]:
    """The formula that a whole text is; nothing where it is none.

    Only LaTeX: math-verify would else take a number out of the middle of what it cannot read.
    """
    found = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)
    formulas = [one for one in found if not isinstance(one, str)]
    numbers = [one for one in formulas if is_equation(one) and not one.free_symbols]
    return [take_last_relation(one).rhs if one in numbers else one for one in formulas]


def apart(one: Basic | MatrixBase, other: Basic | MatrixBase) -> bool:
    """Whether two numbers differ by more than math-verify's six decimals allow near 1.

    It rounds to places behind the point, where 1/2^98 and 1/3^98 are both 0.
    """
    if not (isinstance(one, Expr) and isinstance(other, Expr)):
        return False
    if not (one.is_number and other.is_number):
        return False
    some, others = one.evalf(20), other.evalf(20)
    return bool(abs(some - others) > 1e-5 * max(abs(some), abs(others)))


def accepts(gold: list[Basic | MatrixBase], given: list[Basic | MatrixBase]) -> bool:
    return verify(
        gold, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True
    )


def compare(one: str, other: str) -> str:
    """right, wrong, or unknown where one of them is no formula or the comparison fails."""
    # Sorted, as one direction may raise where the other one does not. $…$ ends with its line.
    texts = sorted(" ".join(text.split()).strip("$ ").rstrip(". ") for text in (one, other))
    some, others = map(parsed, texts)
    if not some or not others:
        return "right" if texts[0] == texts[1] != "" else "unknown"
    try:
        if not (accepts(some, others) and accepts(others, some)):
            return "wrong"
        percent = any("%" in text for text in texts)  # 50% is both 50 and 0.5
        return "wrong" if not percent and apart(some[0], others[0]) else "right"
    except Exception:  # sympy raises all kinds
        return "unknown"


def main(memory: int, held: int) -> None:
    logging.disable(logging.CRITICAL)
    end_with_parent(held)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # sympy swallows a MemoryError and goes on as if the answers differed. Whoever ran out of memory
    # has had much of it: an integer doubles until it does not fit.
    much = peak() + max(memory - peak(), 0) // 4
    print("ready", flush=True)
    for line in sys.stdin:
        print("read", flush=True)
        verdict = compare(*json.loads(line))
        full = peak() > much
        if full:
            print("unknown last" if verdict == "wrong" else f"{verdict} last", flush=True)
            return
        print(verdict, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
