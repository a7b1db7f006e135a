"""Answers changed into others, to see whether a comparison tells them from the gold one.

A change is one that makes another answer by its construction, so that nothing but arithmetic and
the form of the text has to be believed. What could be the same in another writing is left out.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction

from megatron_ring.curation.collect.answers import as_number, normal

WORD = re.compile(r"\\text\{([A-Za-z ]+)\}")
LETTER = re.compile(r"(\\text\{\(?)?\(?([A-E])\)?(\)?\})?")
RELATION = re.compile(r"=|<|>|\\in\b|\\[lg]eq?\b|\\pm|\\cup|\\text|\\mbox|,")
INTEGER = re.compile(r"(?<![\d.])\d+(?![\d.])")
SIMPLE = r"\{([^{}]*)\}"  # an argument without braces in it
INTERVAL = re.compile(r"([(\[])([^()\[\],]+),([^()\[\],]+)([)\]])")
CHANGED_BRACKET = {"(": "[", "[": "(", ")": "]", "]": ")"}


def changed_number(answer: str, value: Fraction) -> Iterator[tuple[str, str | None]]:
    """Other numbers than an exact one: (kind of change, text), None where it would be the same."""
    for kind, other in (
        ("plus one", value + 1),
        ("minus one", value - 1),
        ("ten times", 10 * value),
    ):
        yield kind, written(other) if other != value else None
    yield "sign", written(-value) if value else None
    digits = answer.replace(",", "")
    if digits.isdigit() and len(digits) > 1:
        swapped = digits[:-2] + digits[-1] + digits[-2]
        yield "last digits swapped", swapped if int(swapped) != value else None
    if value.denominator > 1:
        other = 1 / value
        yield "fraction turned over", written(other) if other != value else None


def written(value: Fraction) -> str:
    """A number as LaTeX."""
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def changed_formula(answer: str, words: list[str], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Other answers than one that is no plain number, (kind of change, text)."""
    letter = LETTER.fullmatch(answer)
    if letter is not None:
        other = rng.choice([one for one in "ABCDE" if one != letter[2]])
        yield "other letter", answer[: letter.start(2)] + other + answer[letter.end(2) :]
        return
    if WORD.fullmatch(answer):
        others = sorted({word for word in words if normal(word) != normal(answer)})
        if others:
            yield "other word", rng.choice(others)
        return
    yield from changed_integer(answer, rng)
    yield from changed_brackets(answer)
    fraction = re.search(r"\\[dt]?frac" + SIMPLE + SIMPLE, answer)
    if fraction is not None and len({as_number(normal(part)) for part in fraction.groups()}) == 2:
        turned = rf"\frac{{{fraction[2]}}}{{{fraction[1]}}}"
        # a/b = b/a only where a = b or a = -b
        if fraction[1].strip("-") != fraction[2].strip("-"):
            yield "fraction turned over", answer.replace(fraction[0], turned, 1)
    root = re.search(r"\\sqrt" + SIMPLE, answer)
    if root is not None and root[1].isdigit() and int(root[1]) > 1:
        yield "root left out", answer.replace(root[0], f"({root[1]})", 1)
    pair = re.fullmatch(r"(.*\()([^()\[\],]+),([^()\[\],]+)(\).*)", answer)
    if pair is not None and normal(pair[2]) != normal(pair[3]) and "cup" not in answer:
        yield "order swapped", f"{pair[1]}{pair[3]},{pair[2]}{pair[4]}"
    if not RELATION.search(answer):
        yield from changed_terms(answer)


def changed_integer(answer: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """One integer one greater, and another base where digits have one.

    Not beside a power or a product with 0 or 1, which may hide it, nor inside of words.
    """
    based = re.fullmatch(r"(\d+)_\{?(\d+)\}?", answer)
    if based is not None:
        if len(based[1]) > 1:  # one digit is the same in each base
            yield "other base", f"{based[1]}_{{{int(based[2]) + 1}}}"
        yield "an integer plus one", f"{int(based[1]) + 1}_{{{based[2]}}}"
        return
    # Words, and the power of a unit behind them, become blanks.
    words = r"(?:\\(?:text|mbox)\{[^{}]*\}|\b[cdkm]m(?=\^))(?:\^\{?\d\}?)?"
    bare = re.sub(words, lambda found: " " * len(found[0]), answer)
    places = list(INTEGER.finditer(bare))
    if places and not re.search(r"(?<!\d)[01]\s*(?:\^|\\cdot|\\times|\()", bare):
        one = rng.choice(places)
        text = str(int(one[0]) + 1)
        yield "an integer plus one", answer[: one.start()] + text + answer[one.end() :]


def changed_brackets(answer: str) -> Iterator[tuple[str, str]]:
    """One end of an interval open instead of closed, or closed instead of open, where it is finite.

    A pair becomes an interval that is open at one end, which is another thing too.
    """
    plain = answer.replace("\\left", "").replace("\\right", "")
    for found in INTERVAL.finditer(plain):
        for place, part in ((4, found[3]), (1, found[2])):
            if "infty" not in part:
                at = found.start(place)
                other = CHANGED_BRACKET[found[place]]
                yield "bracket", plain[:at] + other + plain[at + 1 :]
                return


def changed_terms(answer: str) -> Iterator[tuple[str, str]]:
    """A sum with its first or its last term negated, or without the last."""
    depth, places = 0, []
    for place, letter in enumerate(answer):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(letter, 0)
        if depth == 0 and letter in "+-" and answer[:place].strip():
            places.append(place)
    if "begin" in answer or re.match(r"\s*[(\[]", answer) or re.search(r"_", answer):
        return
    yield "sign", answer.strip()[1:] if answer.strip()[0] == "-" else f"-{answer.strip()}"
    if places and not re.fullmatch(r"[-+\s0]*", answer[places[-1] :]):
        at = places[-1]
        yield "last term left out", answer[:at]
        yield "last sign", answer[:at] + ("-" if answer[at] == "+" else "+") + answer[at + 1 :]


def words_of(golds: Iterable[str]) -> list[str]:
    """The golds that are words, which can stand in for each other."""
    return [f"\\text{{{found[1]}}}" for gold in golds if (found := WORD.fullmatch(gold))]


def changes(
    answer: str, words: list[str], seed: str, left_out: Counter[str]
) -> list[tuple[str, str]]:
    """All changes that are made of an answer; why others are not goes to `left_out`."""
    value = as_number(normal(answer))
    if value is not None:
        made = []
        for kind, text in changed_number(answer, value):
            if text is None:
                left_out[f"{kind}: the same number"] += 1
            else:
                made.append((kind, text))
        return made
    formulas = list(changed_formula(answer, words, random.Random(f"{seed} {answer}")))
    different = [(kind, text) for kind, text in formulas if normal(text) != normal(answer)]
    left_out["no change is surely another answer"] += not different
    return different
