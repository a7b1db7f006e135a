"""Times decontamination beside the any-8-gram rule in plain Python sets, one core, one run.

    python tools/bench_decontaminate.py DATA

The folder holds gsm8k/{train,test}.jsonl, math500/math500.jsonl and math_hendrycks_test5000. Both
read the same texts from memory and name the texts they flag. "rule": lower case, words by a regular
expression, n-grams joined to strings, a set for each text, as open-r1 and s1 do it; "rule, tuples"
is the fastest way of writing it that we found. Times are the best of --repeat runs that alternate.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_ring.config.curation.decontaminate import DecontaminateConfig
from megatron_ring.curation.decontaminate import words
from megatron_ring.curation.decontaminate.build import build
from megatron_ring.curation.decontaminate.fingerprints import open_salt
from megatron_ring.curation.decontaminate.stage import Decontaminate, batches
from megatron_ring.curation.record import prompt_of

WORD = re.compile(r"\w+")
N = 8


def joined(text: str) -> set[str]:
    found = WORD.findall(text.lower())
    return {" ".join(found[i : i + N]) for i in range(len(found) - N + 1)}


def tuples(text: str) -> set[tuple[str, ...]]:
    found = WORD.findall(text.lower())
    return set(zip(*(found[i:] for i in range(N)), strict=False))


def main(
    data: Annotated[Path, typer.Argument(help="folder of the data sets")],
    repeat: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    def column(file: str, key: str) -> list[str]:
        return [json.loads(line)[key] for line in (data / file).open(encoding="utf-8")]

    benchmarks = {
        "gsm8k": column("gsm8k/test.jsonl", "question"),
        "math500": column("math500/math500.jsonl", "problem"),
    }
    files = {
        "gsm8k train": ("gsm8k/train.jsonl", "question", "answer"),
        "math test": ("math_hendrycks_test5000/math_test_5000.jsonl", "problem", "solution"),
    }
    print("| texts | benchmark | what | texts/s | MB/s | × rule | flagged |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (file, prompt, response) in files.items():
            prompts, answers = column(file, prompt), column(file, response)
            for benchmark, items in benchmarks.items():
                compare(f"{name}, prompts", prompts, benchmark, items, Path(folder), repeat)
            both = [f"{a}\n{b}" for a, b in zip(prompts, answers, strict=True)]
            compare(f"{name}, whole", both, benchmark, items, Path(folder), repeat)


def compare(
    name: str, texts: list[str], benchmark: str, items: list[str], folder: Path, repeat: int
) -> None:
    """Print a table's rows for one set of texts against one benchmark."""
    salt = open_salt(folder / "salt", create=True)
    fingerprint, _ = build(benchmark, [(str(k), text) for k, text in enumerate(items)], salt, n=N)
    fingerprint.save(folder / "print", salt)
    files: dict[str, Any] = {"fingerprints": [folder / "print"], "salt": folder / "salt"}
    ngrams = Decontaminate(DecontaminateConfig(**files, neighbours=None))
    whole = Decontaminate(DecontaminateConfig(**files))
    records: list[Any] = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    strings = set().union(*map(joined, items))
    grams = set().union(*map(tuples, items))
    runs: dict[str, Callable[[], int]] = {
        "rule": lambda: sum(not strings.isdisjoint(joined(text)) for text in texts),
        "rule, tuples": lambda: sum(not grams.isdisjoint(tuples(text)) for text in texts),
        "words alone (floor)": lambda: split(texts, salt),
        "n-grams": lambda: flagged(ngrams, texts),
        "n-grams, neighbours, guard": lambda: flagged(whole, texts),
        "the stage, from records": lambda: stage(whole, records),
        "rule, from records": lambda: sum(
            not strings.isdisjoint(joined(prompt_of(record))) for record in records
        ),
    }
    best = dict.fromkeys(runs, float("inf"))
    counts = {}
    for _ in range(repeat):
        for what, run in runs.items():
            start = time.process_time()
            counts[what] = run()
            best[what] = min(best[what], time.process_time() - start)
    size = sum(len(text.encode()) for text in texts) / 1e6
    for what, seconds in best.items():
        print(
            f"| {name} | {benchmark} | {what} | {len(texts) / seconds:,.0f} | "
            f"{size / seconds:.1f} | {best['rule'] / seconds:.1f} | {counts[what]} |"
        )


def split(texts: list[str], salt: words.Salt) -> int:
    for start, stop in batches(texts):
        words.split(texts[start:stop], salt)
    return 0


def flagged(stage: Decontaminate, texts: list[str]) -> int:
    return sum(
        any(one.contaminated for one in found) for found in stage.check_texts(texts) if found
    )


def stage(stage: Decontaminate, records: list[Any]) -> int:
    return sum(not isinstance(one, dict) for one in stage.apply_batch(records))


if __name__ == "__main__":
    typer.run(main)
