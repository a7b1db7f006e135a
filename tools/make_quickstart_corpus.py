"""Problems with answers, and short chats: what `make quickstart` makes its corpus from.

    python tools/make_quickstart_corpus.py runs/quickstart/raw
    python tools/make_quickstart_corpus.py /tmp/raw --stage1 500 --valid 50 --seed 7

Problems and their answers come from the `reasoning-gym` package, chats from a small generator.
Writes problems.jsonl, one {"id", "task", "kind", "prompt", "answer"} a line, and chats.jsonl, one
{"id", "task", "kind", "messages"}. The kind is the part of the corpus that a row is for: stage1,
stage2 or valid, of chats stage2_chat or valid_chat. No solution is in them: a teacher solves the
problems and makes samples of them (configs/quickstart/curate.yaml).

As in collected data, problems come more than once, always for the same part. Of different ones
there are a few more than are wanted, since not every one will be solved. The same seed gives the
same bytes.
"""

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megatron_ring.small_corpus.problems import TASKS, Made, Row, problems, take

CHAT_SHARE = {"stage1": 0.0, "stage2": 0.4, "valid": 0.2}  # 437K of 1,082K in Ring-Lite-Distill
MORE = 0.04  # some shapes of equations are too much for the teacher
CAPITALS = dict(
    pair.split(":")
    for pair in "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Peru:Lima "
    "Austria:Vienna Greece:Athens Poland:Warsaw Sweden:Stockholm Norway:Oslo Chile:Santiago "
    "Denmark:Copenhagen Finland:Helsinki Ireland:Dublin Hungary:Budapest Japan:Tokyo "
    "China:Beijing Thailand:Bangkok Egypt:Cairo Kenya:Nairobi Cuba:Havana Canada:Ottawa".split()
)
OPPOSITES = dict(
    pair.split(":")
    for pair in "hot:cold big:small fast:slow old:young up:down left:right day:night wet:dry "
    "light:dark early:late full:empty loud:quiet near:far open:closed rich:poor hard:soft "
    "strong:weak long:short high:low happy:sad".split()
)
WORDS = (
    "apple river stone cloud bread garden window music winter summer paper mountain yellow silver "
    "horse tiger coffee table letter bridge forest island candle mirror pencil rocket"
).split()
GREETINGS = ["Hello!", "Hi there!", "Good morning!", "Hey!", "Good evening!", "Hi!"]
SYSTEMS = ["You are a helpful assistant.", "You are Ring, a small assistant.", "Answer briefly."]


def facts(rng: random.Random) -> tuple[str, str]:
    """A question about the world and its answer."""
    country, word = rng.choice(sorted(CAPITALS)), rng.choice(sorted(OPPOSITES))
    capital, opposite = CAPITALS[country], OPPOSITES[word]
    return rng.choice(
        [
            (f"What is the capital of {country}?", f"The capital of {country} is {capital}."),
            (f"Which country has the capital {capital}?", f"{capital} is in {country}."),
            (f"Name the capital of {country}.", f"{capital}."),
            (f"What is the opposite of {word}?", f"The opposite of {word} is {opposite}."),
            (f"Give me a word that means the opposite of {opposite}.", f"{word.capitalize()}."),
        ]
    )


def instructions(rng: random.Random) -> tuple[str, str]:
    """An instruction whose result is computed."""
    a, b, c = rng.sample(WORDS, 3)
    n, start = rng.randint(2, 5), rng.randint(1, 40)
    counted = ", ".join(str(i) for i in range(start, start + n + 1))
    return rng.choice(
        [
            (f"Repeat the word {a} {n} times.", " ".join([a] * n)),
            (f"Write {a} {b} in capital letters.", f"{a} {b}".upper()),
            (f"Count from {start} to {start + n}.", counted),
            (f"Write {a}, {b} and {c} one below the other.", f"{a}\n{b}\n{c}"),
            (f"Which comes first in the alphabet, {a} or {b}?", min(a, b)),
            (f"Make a list of {a}, {b}, {c}.", f"- {a}\n- {b}\n- {c}"),
            (f"How many letters has the word {a}?", f"{a} has {len(a)} letters."),
        ]
    )


def as_messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def chats(rng: random.Random) -> Iterator[Row]:
    """Endless conversations: sometimes a system prompt, sometimes a greeting, then a request."""
    while True:
        turns = []
        if rng.random() < 0.3:
            turns.append(("system", rng.choice(SYSTEMS)))
        if rng.random() < 0.3:
            hello = rng.choice(GREETINGS)
            turns += [("user", hello), ("assistant", f"{hello} How can I help you?")]
        question, answer = rng.choice([facts, instructions])(rng)
        turns += [("user", question), ("assistant", answer)]
        yield {"messages": as_messages(turns)}


def shares(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]


def make(sizes: dict[str, int], seed: int) -> dict[str, Made]:
    """Rows of each task and of "chat"; different prompts as the sizes of the parts want them."""
    wanted: dict[str, dict[str, int]] = {task: {} for task in [*TASKS, "chat"]}
    for part, size in sizes.items():
        num_chat = round(size * CHAT_SHARE[part])
        numbers = [*shares(size - num_chat, len(TASKS)), num_chat]
        for task, number in zip(wanted, numbers, strict=True):
            wanted[task][part] = math.ceil(number * (1 + MORE))
    made = {}
    for task, of_part in wanted.items():
        rng = random.Random(f"{task} {seed}")
        rows = chats(rng) if task == "chat" else problems(task, rng.randrange(2**30))
        made[task] = take(task, rows, of_part)
    return made


def write(path: Path, rows: list[Row], seed: int) -> None:
    """In an order that mixes the tasks."""
    random.Random(seed).shuffle(rows)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def show(made: dict[str, Made]) -> None:
    table = Table("task", "made", "different prompts", title="Problems and chats")
    for task, one in made.items():
        table.add_row(task, f"{len(one.rows):,}", f"{one.different:,}")
    Console().print(table)


def main(
    output: Annotated[Path, typer.Argument(help="folder for the files")],
    stage1: Annotated[int, typer.Option(help="samples of the first stage", min=1)] = 5600,
    stage2: Annotated[int, typer.Option(help="samples of the second stage", min=1)] = 2400,
    valid: Annotated[int, typer.Option(help="held-out samples", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="the same seed gives the same files", min=0)] = 1234,
) -> None:
    """Make problems.jsonl and chats.jsonl.

    Example: python tools/make_quickstart_corpus.py runs/quickstart/raw --stage1 5600
    """
    try:
        made = make({"stage1": stage1, "stage2": stage2, "valid": valid}, seed)
    except ValueError as error:
        sys.exit(str(error))
    output.mkdir(parents=True, exist_ok=True)
    solved = [row for task, one in made.items() if task != "chat" for row in one.rows]
    write(output / "problems.jsonl", solved, seed)
    write(output / "chats.jsonl", made["chat"].rows, seed)
    show(made)


if __name__ == "__main__":
    typer.run(main)
