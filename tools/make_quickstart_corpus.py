"""Chat samples with answers that were checked: what `make quickstart` trains on.

    python tools/make_quickstart_corpus.py runs/quickstart/corpus
    python tools/make_quickstart_corpus.py /tmp/corpus --stage1 500 --valid 50 --seed 7

Problems come from the `reasoning-gym` package. The worked solution of each is computed here from
the question's text alone and kept only when reasoning-gym's own grader accepts its answer. Short
chat turns come from a small generator. Writes stage1.jsonl (problems), stage2.jsonl (problems and
chat) and valid.jsonl (held out), with no prompt in two of them, one {"id", "task", "messages"
[, "answer"][, "damage"]} a line; the same seed gives the same bytes. As in distilled data, the
think tags of some samples to learn from are damaged.
"""

import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import reasoning_gym
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from megatron_ring.curation import corrupt_tags

Worked = tuple[str, str]  # what is thought, line by line, and the final answer
Sample = dict[str, Any]
CHAT_SHARE = {"stage1": 0.0, "stage2": 0.4, "valid": 0.2}  # 437K of 1,082K in Ring-Lite-Distill
DAMAGED_SHARE = {"stage1": 0.2, "stage2": 0.15, "valid": 0.0}  # of the samples that think
BLOCK = 500  # problems drawn at once; reasoning-gym seeds problem i with seed + i


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def chain_sum(question: str) -> Worked:
    """Running totals, left to right."""
    expression = question.split(":")[1].strip(" =")
    total, *rest = re.findall(r"[+-]? ?\d+", expression)
    value, lines = int(total), []
    for term in rest:
        sign, number = term.split()
        after = value + int(number) if sign == "+" else value - int(number)
        lines.append(f"{value} {sign} {number} = {after}")
        value = after
    return "\n".join(lines), str(value)


def euclid(a: int, b: int) -> list[str]:
    """Euclid's algorithm; the last line has remainder 0."""
    a, b, lines = max(a, b), min(a, b), []
    while b:
        lines.append(f"{a} = {a // b} * {b} + {a % b}")
        a, b = b, a % b
    return lines


def gcd(question: str) -> Worked:
    a, b = numbers(question)
    answer = math.gcd(a, b)
    return "\n".join([*euclid(a, b), f"The last divisor is {answer}."]), str(answer)


def simple_equations(question: str) -> Worked | None:
    """a*x + b = c or b - a*x = c, solved in two steps; None for other shapes."""
    left, right = question.split(": ")[1].split(" = ")
    unknown = re.fullmatch(r"(?:(?P<a>\d+)\*)?(?P<x>[a-z])(?: (?P<sign>[+-]) (?P<b>\d+))?", left)
    mirrored = re.fullmatch(r"(?P<b>\d+) (?P<sign>[+-]) (?:(?P<a>\d+)\*)?(?P<x>[a-z])", left)
    found = unknown or mirrored
    if found is None:
        return None
    a, b, c, x = int(found["a"] or 1), int(found["b"] or 0), int(right), found["x"]
    lines = []
    if mirrored and found["sign"] == "-":
        lines.append(f"{a}*{x} = {b} - {c} = {b - c}".replace("- -", "+ "))
        c = b - c
    elif b:
        undo = "-" if found["sign"] == "+" else "+"
        after = c - b if undo == "-" else c + b
        lines.append(f"{a}*{x} = {c} {undo} {b} = {after}")
        c = after
    if c % a:
        return None
    if a > 1:
        lines.append(f"{x} = {c} / {a} = {c // a}")
    return "\n".join(lines) or f"{x} = {c}", str(c // a)


def letter_counting(question: str) -> Worked:
    """A running count, word by word; case does not matter to the task."""
    letter, text = re.search(r'letter "(.)" appear in the text: "(.*)"', question).groups()
    count, lines = 0, []
    for word in text.split():
        count += word.lower().count(letter)
        lines.append(f"{' '.join(word)}: {count}")
    return "\n".join(lines), str(count)


def calendar_arithmetic(question: str) -> Worked:
    """Leap years: the rules for 4, 100 and 400 in turn."""
    year = numbers(question)[0]
    lines, leap = [f"{year} = 4 * {year // 4} + {year % 4}"], year % 4 == 0
    if leap and year % 100 == 0:
        leap = year % 400 == 0
        lines += [f"{year} = 100 * {year // 100}", f"{year} = 400 * {year // 400} + {year % 400}"]
    return "\n".join(lines), "Yes" if leap else "No"


def count_bits(question: str) -> Worked:
    """Halving: each odd number on the way is a 1 bit."""
    rest, count, lines = numbers(question)[-1], 0, []
    while rest:
        count += rest % 2
        lines.append(f"{rest} = 2 * {rest // 2} + {rest % 2}, count {count}")
        rest //= 2
    return "\n".join(lines), str(count)


SOLVE: dict[str, tuple[Callable[[str], Worked | None], dict[str, Any]]] = {
    # task of reasoning-gym: (worked solution, the settings that keep its problems small)
    "chain_sum": (chain_sum, {"max_terms": 4, "max_digits": 1}),
    "gcd": (gcd, {"max_value": 60}),
    "simple_equations": (simple_equations, {"max_terms": 3, "max_value": 12}),
    "letter_counting": (letter_counting, {"min_words": 3, "max_words": 5}),
    "calendar_arithmetic": (
        calendar_arithmetic,
        {"tasks": ["is_leap_year"], "leap_year_range": 1000},
    ),
    "count_bits": (count_bits, {"max_n": 2000}),
}

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


def chat(rng: random.Random) -> Iterator[Sample]:
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
        yield {"task": "chat", "messages": as_messages(turns)}


@dataclass
class Counts:
    """What became of a task's problems."""

    made: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def problems(task: str, seed: int, counts: Counts) -> Iterator[Sample]:
    """Endless verified samples of a task; those that do not verify are counted."""
    solve, settings = SOLVE[task]
    while True:
        dataset = reasoning_gym.create_dataset(task, seed=seed, size=BLOCK, **settings)
        for entry in dataset:
            counts.made += 1
            worked = solve(entry["question"])
            if worked is None:
                counts.dropped["no worked solution"] += 1
            elif dataset.score_answer(worked[1], entry) != 1.0:
                counts.dropped["not verified"] += 1
            else:
                thought, answer = worked
                said = f"<think>\n{thought}\n</think>\n{answer}"
                turns = [("user", entry["question"].strip()), ("assistant", said)]
                yield {"task": task, "messages": as_messages(turns), "answer": answer}
        seed += BLOCK


def take(
    samples: Iterator[Sample], wanted: int, counts: Counts, seen: set[str], patience: int = 5000
) -> list[Sample]:
    """The first `wanted` samples with prompts never seen; ValueError if they stop coming."""
    kept, idle = [], 0
    for sample in samples:
        prompt = json.dumps(sample["messages"][:-1])
        idle = idle + 1 if prompt in seen else 0
        if idle > patience:
            raise ValueError(
                f"{sample['task']} has only {len(kept)} different prompts, {wanted} are wanted; "
                "ask for fewer with --stage1 or --stage2"
            )
        if prompt in seen:
            counts.dropped["seen before"] += 1
            continue
        seen.add(prompt)
        kept.append(sample)
        if len(kept) == wanted:
            break
    counts.kept = len(kept)
    return kept


def shares(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]


def damage(samples: list[Sample], share: float, seed: int) -> None:
    """Damage the think tags of a random share of the samples that think, and note the kind."""
    thinking, rng = [s for s in samples if s["task"] != "chat"], random.Random(seed)
    for i, sample in enumerate(rng.sample(thinking, round(share * len(thinking)))):
        sample["damage"] = corrupt_tags.KINDS[i % len(corrupt_tags.KINDS)]
        turn = sample["messages"][-1]
        turn["content"] = corrupt_tags.corrupt(turn["content"], sample["damage"], rng)


def make(sizes: dict[str, int], seed: int) -> tuple[dict[str, list[Sample]], dict[str, Counts]]:
    """Shuffled samples of each part, and what became of each task's problems."""
    wanted: dict[str, dict[str, int]] = {task: {} for task in [*SOLVE, "chat"]}
    for part, size in sizes.items():
        num_chat = round(size * CHAT_SHARE[part])
        nums = [*shares(size - num_chat, len(SOLVE)), num_chat]
        for task, num in zip(wanted, nums, strict=True):
            wanted[task][part] = num
    parts: dict[str, list[Sample]] = {part: [] for part in sizes}
    report, seen = {}, set()
    for task, of_part in track(wanted.items(), "Working", console=Console(stderr=True)):
        counts = report[task] = Counts()
        rng = random.Random(f"{task} {seed}")
        endless = chat(rng) if task == "chat" else problems(task, rng.randrange(2**30), counts)
        samples = take(endless, sum(of_part.values()), counts, seen)
        counts.made = counts.made or counts.kept + sum(counts.dropped.values())
        # One draw for all: small problem sets often begin with their easiest problems.
        rng.shuffle(samples)
        numbered = iter([{"id": f"{task}-{i}", **s} for i, s in enumerate(samples)])
        for part, num in of_part.items():
            parts[part] += islice(numbered, num)
    for part, samples in parts.items():
        random.Random(seed).shuffle(samples)
        damage(samples, DAMAGED_SHARE[part], seed)
    return parts, report


def show(report: dict[str, Counts]) -> None:
    table = Table("task", "made", "kept", "dropped, and why", title="Samples")
    for task, counts in report.items():
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.dropped.items()))
        table.add_row(task, str(counts.made), str(counts.kept), why or "-")
    Console().print(table)
    solved = sum(c.kept for task, c in report.items() if task in SOLVE)
    print(f"{solved} answers verified by reasoning-gym; {report['chat'].kept} chat samples.")


def main(
    output: Annotated[Path, typer.Argument(help="folder for the files")],
    stage1: Annotated[int, typer.Option(help="samples of the first stage", min=1)] = 5600,
    stage2: Annotated[int, typer.Option(help="samples of the second stage", min=1)] = 2400,
    valid: Annotated[int, typer.Option(help="held-out samples", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="the same seed gives the same files", min=0)] = 1234,
) -> None:
    """Make the quickstart's corpus: stage1.jsonl, stage2.jsonl and valid.jsonl.

    Example: python tools/make_quickstart_corpus.py runs/quickstart/corpus --stage1 5600
    """
    try:
        parts, report = make({"stage1": stage1, "stage2": stage2, "valid": valid}, seed)
    except ValueError as error:
        sys.exit(str(error))
    output.mkdir(parents=True, exist_ok=True)
    for name, samples in parts.items():
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
        (output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        damaged = sum("damage" in sample for sample in samples)
        print(f"{output / name}.jsonl: {len(lines)} samples, {damaged} with damaged think tags")
    show(report)


if __name__ == "__main__":
    typer.run(main)
