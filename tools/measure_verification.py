"""Whether gold answers agree with themselves, and with nothing that differs from them.

    python tools/measure_verification.py DATA

DATA holds gsm8k/{train,test}.jsonl (openai/grade-school-math), math500/math500.jsonl (the 500
problems of PRM800K) and, where it is there, math_train_answers/math_train_7474.json (deepscaler).
Each gold answer meets itself, the answer at the end of its worked solution where there is one, and
changed answers. A change is one that makes another answer by its construction, so that nothing
but arithmetic and the form of the text has to be believed; what could be the same in another
writing is left out and counted. Each pair is asked twice: as curation does, plain comparison first,
and of math-verify alone.
"""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.curation.collect.answers import Verdict, as_number, final_answer, normal
from megatron_ring.curation.collect.equality import MathVerifyPool

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
    words = r"\\(?:text|mbox)\{[^{}]*\}(?:\^\{?\d\}?)?"
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


def read(data: Path) -> dict[str, list[tuple[str, str | None]]]:
    """Gold answers by set, and the answer at the end of the worked solution where there is one."""
    grade_school = []
    for split in ("train", "test"):
        with open(data / "gsm8k" / f"{split}.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line)["answer"] for line in file]
        grade_school += [(row.rpartition("#### ")[2], final_answer(row)) for row in rows]
    with open(data / "math500" / "math500.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    sets: dict[str, list[tuple[str, str | None]]] = {"GSM8K": grade_school}
    sets["MATH-500"] = [(row["answer"], final_answer(row["solution"])) for row in rows]
    more = data / "math_train_answers" / "math_train_7474.json"
    if more.is_file():
        rows = json.loads(more.read_text(encoding="utf-8"))
        some = [row["answer"] for row in rows if row["answer"]]
        print(f"MATH train: {len(rows) - len(some)} of {len(rows)} rows have no answer")
        sets["MATH train"] = [(answer, None) for answer in some]
    return sets


def pairs_of(
    rows: list[tuple[str, str | None]], seed: str, left_out: Counter[str]
) -> tuple[list[tuple[str, str, str]], int]:
    """(kind, given, gold) of each question, and how many solutions end without an answer."""
    words = [f"\\text{{{found[1]}}}" for gold, _ in rows if (found := WORD.fullmatch(gold))]
    pairs, without = [], 0
    for gold, worked in rows:
        pairs.append(("itself", gold, gold))
        if worked is None:
            without += 1
        else:
            pairs.append(("its solution", worked, gold))
        pairs += [(kind, text, gold) for kind, text in changes(gold, words, seed, left_out)]
    return pairs, without


def measure(
    name: str, rows: list[tuple[str, str | None]], seed: str, pool: MathVerifyPool, workers: int
) -> bool:
    """Prints what was said, and each exception; whether there is none in curation's way."""
    left_out: Counter[str] = Counter()
    pairs, without = pairs_of(rows, seed, left_out)
    distinct = list(dict.fromkeys((given, gold) for _, given, gold in pairs))
    print(
        f"{name}: {len(rows)} answers, {without} without one in a worked solution, {len(pairs)} "
        f"pairs, {len(distinct)} of them distinct; left out {dict(left_out)}"
    )
    good = without in (0, len(rows))  # a set has solutions, or none
    for way, ask in (("plain first", pool.compare), ("math-verify alone", pool.ask)):
        begun = time.monotonic()
        with ThreadPoolExecutor(workers) as threads:
            said: list[Verdict] = list(threads.map(lambda pair, ask=ask: ask(*pair), distinct))
        took = time.monotonic() - begun
        verdicts = dict(zip(distinct, said, strict=True))
        print(f"  {way}: {took:.0f} s, {len(distinct) / took:.0f}/s with {workers} workers")
        counts: dict[str, Counter[str]] = {}
        for kind, given, gold in pairs:
            counts.setdefault(kind, Counter())[verdicts[given, gold]] += 1
        for kind, count in counts.items():
            print(f"    {kind}: {dict(count)}")
        for kind, given, gold in dict.fromkeys(pairs):
            verdict = verdicts[given, gold]
            if (verdict == "right") != (kind in ("itself", "its solution")):
                print(f"    ! {kind}: {given!r} for {gold!r}: {verdict}")
                good = good and way != "plain first"
    return good


def main(
    data: Annotated[Path, typer.Argument(help="folder of the data sets")],
    workers: Annotated[int, typer.Option(help="comparisons at a time")] = 2,
    seconds: Annotated[float, typer.Option(help="time of one comparison")] = 30.0,
    seed: Annotated[str, typer.Option(help="of the changes")] = "0",
    only: Annotated[str, typer.Option(help="one set: GSM8K, MATH-500 or MATH train")] = "",
) -> None:
    """Count verdicts; exit status 1 where one of curation's is not as it should be."""
    with MathVerifyPool(workers, seconds) as pool:
        sets = {name: rows for name, rows in read(data).items() if name in (only or name)}
        good = [measure(name, rows, seed, pool, workers) for name, rows in sets.items()]
    if not all(good):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
