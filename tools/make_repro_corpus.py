"""The corpora of the small reproduction: pre-training, two stages, tests.

    python tools/make_repro_corpus.py runs/repro/seed-0/raw --seed 0

Reasoning problems come from the `reasoning-gym` package, general samples (facts, instructions,
calls of tools, sums, repeats) from megatron_ring/small_corpus. Writes
    pretrain.jsonl     chats of all kinds; problems have their answer alone, no thought
    problems.jsonl     for both stages: problems that a teacher is to work out
    general.jsonl      general chats of stage 2
    test/TASK.jsonl    held-out: reasoning, facts, instructions, calls

No prompt of the tests is in any other file, but for the facts, which are learnt by heart: all are
in pretrain.jsonl, and half of them in general.jsonl too, so that the tests show what is left of
those that were rehearsed and of the others. The tests are the same for all seeds. The same seed
gives the same bytes.
"""

import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megatron_ring.small_corpus import general
from megatron_ring.small_corpus.problems import FAMILIES, Row, problems, take

MORE = 0.04  # some shapes of equations are too much for the teacher
REHEARSED = 1  # the half of the facts that stage 2 has, too


def prompt_of(sample: Row) -> str:
    """All that is asked, as one text; tools are no part of it."""
    return "\n".join(turn["content"] for turn in sample["messages"][:-1])


def fresh(samples: Iterator[Row], number: int) -> list[Row]:
    """So many with different prompts."""
    seen: set[str] = set()
    kept = []
    while len(kept) < number:
        sample = next(samples)
        if prompt_of(sample) not in seen:
            seen.add(prompt_of(sample))
            kept.append(sample)
    return kept


def reasoning(sizes: dict[str, int], seed: int | str, seen: set[str]) -> dict[str, list[Row]]:
    """Problems by part, so many different ones of each, none seen; of all tasks as many."""
    parts: dict[str, list[Row]] = {part: [] for part in sizes}
    for task in FAMILIES:
        wanted = {part: size // len(FAMILIES) for part, size in sizes.items()}
        rows = problems(task, random.Random(f"{task} {seed}").randrange(2**30), FAMILIES)
        for row in take(task, (row for row in rows if row["prompt"] not in seen), wanted).rows:
            parts[row["kind"]].append(row)
    return parts


def direct(row: Row) -> Row:
    """A problem as a sample without a thought."""
    turns = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    return {"id": row["id"], "topic": "reasoning", "task": row["task"], "messages": turns}


def thoughtless(sample: Row) -> Row:
    """The same without what is thought."""
    *before, last = sample["messages"]
    kept = {key: value for key, value in last.items() if key != "reasoning_content"}
    return {**sample, "messages": [*before, kept]}


def held_out(size: int) -> dict[str, list[Row]]:
    """The tests: the same for all seeds, so that their scores are of the same items."""
    rng = random.Random("tests")
    dealt = reasoning({"test": size}, "tests", set())["test"]
    rehearsed = {question for question, _, _ in general.questions(REHEARSED)}
    return {
        "reasoning": _once(map(direct, dealt)),
        "facts": [
            {**row, "rehearsed": "yes" if prompt_of(row) in rehearsed else "no"}
            for row in fresh(general.facts(rng), min(size, len(general.questions())))
        ],
        "instructions": fresh(general.instructions(rng), size),
        "calls": fresh(general.calls(rng), size),
    }


def make(sizes: dict[str, int], general_size: int, test: int, seed: int) -> dict[str, list[Row]]:
    """Rows by file."""
    tests = held_out(test)
    seen = {prompt_of(row) for name, rows in tests.items() if name != "facts" for row in rows}
    dealt = reasoning(sizes, seed, seen)
    rng = random.Random(f"general {seed}")
    third = general_size // 3
    chats = [
        *islice(general.facts(rng, REHEARSED), third),
        *_unseen(general.instructions(rng), seen, third),
        *_unseen(general.calls(rng), seen, third),
    ]
    base = sizes["pretrain"]
    plain = [
        *islice(general.facts(rng), 3 * base),  # each fact several times: it is learnt by heart
        *islice(general.arithmetic(rng), 3 * base),
        *islice(general.repeats(rng), 5 * base),  # to copy comes late, and calls need it
        *_unseen(general.instructions(rng), seen, 2 * base),
        *_unseen(general.calls(rng), seen, 4 * base),
    ]
    mixed = [*map(direct, dealt["pretrain"]), *map(thoughtless, plain)]
    stages = [row for part in ("stage1", "stage2") for row in dealt[part]]
    files = {"pretrain": mixed, "problems": stages, "general": chats}
    return {**files, **{f"test/{name}": rows for name, rows in tests.items()}}


def _unseen(samples: Iterator[Row], seen: set[str], number: int) -> Iterator[Row]:
    """As many samples, none of a prompt that was seen."""
    return islice((one for one in samples if prompt_of(one) not in seen), number)


def _once(samples: Iterator[Row]) -> list[Row]:
    return list({prompt_of(one): one for one in samples}.values())


def main(
    output: Annotated[Path, typer.Argument(help="folder for the files")],
    pretrain: Annotated[int, typer.Option(help="different problems for pre-training")] = 1200,
    stage1: Annotated[int, typer.Option(help="different problems of stage 1")] = 14400,
    stage2: Annotated[int, typer.Option(help="different problems of stage 2")] = 1800,
    general: Annotated[int, typer.Option(help="general chats of stage 2")] = 1800,
    test: Annotated[int, typer.Option(help="items of each test, at most")] = 240,
    seed: Annotated[int, typer.Option(help="the same seed gives the same files", min=0)] = 0,
) -> None:
    """Make all files of one seed."""
    sizes = {"pretrain": pretrain, "stage1": stage1, "stage2": stage2}
    try:
        made = make(sizes, general, test, seed)
    except ValueError as error:
        sys.exit(str(error))
    table = Table("file", "rows", title=f"Corpus of seed {seed}")
    for name, rows in made.items():
        random.Random(f"{name} {'' if name.startswith('test/') else seed}").shuffle(rows)
        path = output / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"id": f"{name}-{i}", **row}) + "\n" for i, row in enumerate(rows)]
        path.write_text("".join(lines), encoding="utf-8")
        table.add_row(f"{name}.jsonl", f"{len(rows):,}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
