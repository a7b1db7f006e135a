"""Problems of reasoning-gym with their answers, and how prompts are dealt to parts of a corpus."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import reasoning_gym

Row = dict[str, Any]
BLOCK = 500  # problems drawn at once; reasoning-gym seeds problem i with seed + i
Settings = dict[str, dict[str, Any]]  # task of reasoning-gym: what keeps its problems small
TASKS: Settings = {  # of the quickstart
    "chain_sum": {"max_terms": 4, "max_digits": 1},
    "gcd": {"max_value": 60},
    "simple_equations": {"max_terms": 3, "max_value": 12},
    "letter_counting": {"min_words": 3, "max_words": 5},
    "calendar_arithmetic": {"tasks": ["is_leap_year"], "leap_year_range": 1000},
    "count_bits": {"max_n": 2000},
}
# Of the reproduction: answers are hardly guessed without a thought, and the thoughts are short
# enough for a model of two million weights.
FAMILIES: Settings = {
    "chain_sum": {"max_terms": 4, "max_digits": 1},
    "gcd": {"max_value": 99},
    "simple_equations": {"max_terms": 3, "max_value": 12},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "max_instances": 9},
}


def problems(task: str, seed: int, settings: Settings = TASKS) -> Iterator[Row]:
    """Endless problems of a task, with their answers."""
    while True:
        for entry in reasoning_gym.create_dataset(task, seed=seed, size=BLOCK, **settings[task]):
            yield {"prompt": entry["question"].strip(), "answer": str(entry["answer"])}
        seed += BLOCK


@dataclass
class Made:
    """What a task gave: rows in order, and how many prompts differ."""

    rows: list[Row]
    different: int


def take(task: str, rows: Iterator[Row], wanted: dict[str, int], patience: int = 5000) -> Made:
    """Rows until there are as many different prompts as the parts want, each with its kind.

    ValueError when no new prompts come any more. Parts are dealt at random over all prompts: small
    problem sets often begin with their easiest problems. Chats come once each.
    """
    is_chat = task == "chat"
    kept: list[tuple[str, Row]] = []
    different: list[str] = []
    seen: set[str] = set()
    idle, total = 0, sum(wanted.values())
    while len(different) < total:
        row = next(rows)
        prompt = row.get("prompt") or json.dumps(row["messages"][:-1])
        idle = idle + 1 if prompt in seen else 0
        if idle > patience:
            raise ValueError(
                f"{task} has only {len(different)} different prompts, {total} are wanted; "
                "ask for fewer with --stage1 or --stage2"
            )
        if prompt not in seen or not is_chat:
            kept.append((prompt, row))
        if prompt not in seen:
            seen.add(prompt)
            different.append(prompt)
    random.Random(f"{task} {total}").shuffle(different)
    parts = iter([part for part, number in wanted.items() for _ in range(number)])
    part_of = dict(zip(different, parts, strict=True))
    end = "_chat" if is_chat else ""
    named = [
        {"id": f"{task}-{i}", "task": task, "kind": f"{part_of[prompt]}{end}", **row}
        for i, (prompt, row) in enumerate(kept)
    ]
    return Made(named, total)
