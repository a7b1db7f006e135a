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
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.curation.collect.answers import Verdict, final_answer
from megatron_ring.curation.collect.changed import changes, words_of
from megatron_ring.curation.collect.equality import MathVerifyPool


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
    words = words_of(gold for gold, _ in rows)
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
