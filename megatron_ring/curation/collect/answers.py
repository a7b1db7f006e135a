"""The short answer at the end of a response, and whether it is the gold one.

Plain comparison: texts without the marks around them, and numbers exactly, fractions included.
What it cannot decide, such as two forms of a formula, is unknown and not wrong.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from megatron_ring import think

Verdict = Literal["right", "wrong", "unknown", "timeout"]

SAID = re.compile(
    r"(?:final answer|answer|答案|故选|应选)\s*(?:is|为|是|：|:)+\s*"
    r"(.+?)\s*(?:[.。]?\s*$|[.。]\s|\n)",
    re.IGNORECASE,
)
ONE_WORD = re.compile(r"(?=.*\w)\S{1,20}")
# B, (B), B. four; not A、B, which is two of them
CHOICE = re.compile(
    r"\(?\s*([A-Ea-e])\s*(?:[).:：、](?!\s*[A-Ea-e]\s*(?:[).:：、,，]|$)).*)?", re.DOTALL
)
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
FRACTION = re.compile(r"([-+]?)\\frac\{?([-+]?\d+)\}?\{?([-+]?\d+)\}?")
BASED = re.compile(r"(\d+)_\{?(\d+)\}?")  # 52_8 or 52_{8}: digits and their base
UNWRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}")
DROPPED = re.compile(r"\\left|\\right|\\!|\\,|\\;|\\ |\\displaystyle|\\\$|\$|\\%|%|°|\^\\circ")


def boxed(text: str) -> str | None:
    """What the last \\boxed{} holds; None when there is none that closes."""
    at = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if at < 0:
        return None
    start = text.index("{", at) + 1
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip() or None
    return None


def behind_hashes(text: str) -> str | None:
    """What stands behind the last ####, as in GSM8K."""
    _, hashes, after = text.rpartition("####")
    return after.strip().split("\n")[0].strip() or None if hashes else None


def final_answer(response: str) -> str | None:
    """The short answer that a response ends with: boxed, behind ####, or "the answer is".

    Without any of them, a last line of one word or number.
    """
    said = think.answer_of(response)
    for found in (boxed(said), behind_hashes(said)):
        if found is not None:
            return found
    told = SAID.findall(said + "\n")
    if told:
        return told[-1].strip("* ")
    last = said.strip().rpartition("\n")[2].strip()
    return last if ONE_WORD.fullmatch(last) else None


def compare(given: str, gold: str) -> Verdict:
    """Is `given` the answer `gold`? Unknown where neither texts nor numbers can tell."""
    if re.fullmatch(r"[A-Ea-e]", gold.strip()):
        chosen = CHOICE.fullmatch(_bare(given).strip())
        if chosen is None:
            return "unknown"
        return "right" if chosen[1].upper() == gold.strip().upper() else "wrong"
    one, other = normal(given), normal(gold)
    if one == other:
        return "right"
    numbers = as_number(one), as_number(other)
    if None not in numbers:
        equal = numbers[0] == numbers[1]
        if ("%" in given) != ("%" in gold):
            # A percentage is the number before its sign, as benchmarks have it, or a hundredth.
            percent, plain = numbers if "%" in given else numbers[::-1]
            equal = equal or percent == 100 * plain
        return "right" if equal else "wrong"
    digits = BASED.fullmatch(one), BASED.fullmatch(other)
    if None not in digits:
        return (
            "right" if _in_base(*digits[0].groups()) == _in_base(*digits[1].groups()) else "wrong"
        )
    return "unknown"


def judge(
    one: dict[str, Any],
    gold: str | None,
    compare: Callable[[str, str], Verdict],
    min_score: float,
) -> Verdict:
    """What verifiers say of a candidate, else what comparison with the gold answer says."""
    if "score" in one:
        return "right" if one["score"] >= min_score else "wrong"
    if "correct" in one:
        return "right" if one["correct"] else "wrong"
    given = None if gold is None else final_answer(one["text"])
    return "unknown" if given is None or gold is None else compare(given, gold)


def normal(answer: str) -> str:
    """An answer without marks that mean nothing: dollars, spaces, \\left, \\text, a last dot."""
    answer = re.sub(r"\s+", " ", _bare(answer)).strip().rstrip(".。").strip()
    return answer.casefold().replace(" ", "") if len(answer) < 200 else answer


def _in_base(digits: str, base: str) -> int | str:
    """The value of a number with a base; its text where it has none."""
    if 2 <= int(base) <= 10 and all(int(digit) < int(base) for digit in digits):
        return int(digits, int(base))
    return f"{digits}_{base}"


def _bare(answer: str) -> str:
    inside = boxed(answer)
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer if inside is None else inside)
    return DROPPED.sub("", UNWRAPPED.sub(r"\1", answer))


def as_number(answer: str) -> Fraction | None:
    """The exact number that a normal answer is; None when it is none, or one with letters."""
    answer = answer.removeprefix("x=")
    found = FRACTION.fullmatch(answer)
    if found is not None:
        sign, top, bottom = found.groups()
        return None if int(bottom) == 0 else Fraction(int(sign + "1") * int(top), int(bottom))
    parts = answer.split("/")
    if len(parts) > 2 or not all(NUMBER.fullmatch(part) and part.strip("+-") for part in parts):
        return None
    values = [Fraction(part.replace(",", "")) for part in parts]
    if len(values) == 2:
        return None if values[1] == 0 else values[0] / values[1]
    return values[0]
