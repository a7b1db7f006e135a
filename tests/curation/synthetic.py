"""Models that write and solve problems by a script, and recipes of synthesis that ask them."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

TOPICS = ("sets_and_logic", "functions", "sequences")
FAULTS = {"http_500": 0.1, "http_429": 0.05, "broken_json": 0.1, "drop_middle": 0.1}
asked_before: Counter[str] = Counter()  # of this process, by problem


def writes_and_solves(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> str:
    """Writes sums, some badly, some known; solves them, each as often right as its text tells."""
    asked = messages[-1]["content"]
    if "<problem>" in asked:
        return written(rng)
    problem = asked.partition("\n\nReason")[0]
    a, b = map(int, re.findall(r"\d+", problem)[:2])
    share = Random(f"share of {problem}").randint(3, 10)
    drawn = rng.random()
    if drawn < share / 10:
        return f"<think>\n{a} and {b}.\n</think>\n\nThey make \\boxed{{{a + b}}}"
    if drawn < share / 10 + 0.05:
        return "<think>\nI do not know.\n</think>\n\nThere is none."
    return f"<think>\n{a}?\n</think>\n\n\\boxed{{{a + b + 1 + rng.randrange(2)}}}"


def written(rng: Random) -> str:
    """A reply of the writer."""
    drawn = rng.random()
    if drawn < 0.1:
        return "I would rather not."
    a, b = rng.randrange(1000), rng.randrange(1000)
    if drawn < 0.2:
        a, b = 1, rng.randrange(3)  # known soon
    two = f"<problem>{b} and {a}, what is it together?</problem>" if drawn > 0.9 else ""
    return f"<think>\nWell.\n</think>\n\n<problem>\nWhat is {a} plus {b}, in all?\n</problem>{two}"


def as_told(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> Any:
    """Answers a problem with "(answers: 3, 4, -, cut)" one after the other: - has none."""
    problem = messages[-1]["content"]
    answers = re.findall(r"[^,]+", re.search(r"\(answers: (.*?)\)", problem)[1])
    said = answers[asked_before[problem] % len(answers)].strip()
    asked_before[problem] += 1
    if said == "-":
        return "<think>\nHm.\n</think>\n\nNo idea."
    if said == "cut":
        return {"content": "<think>\nSo it is \\boxed{3} or", "finish_reason": "length"}
    return f"<think>\nLet me see.\n</think>\n\nIt is \\boxed{{{said}}}"


def model(folder: Path, url: str = "http://127.0.0.1:9/v1") -> dict[str, Any]:
    """Keys of a model behind `url`; at the one that is given here nobody answers."""
    return {
        "endpoint": url,
        "model": "scripted",
        "replies": str(folder / "replies"),
        "retry_wait_s": 0.01,
        "max_tokens": 1000,
        "concurrency": 8,
    }


def seeds_file(folder: Path, count: int = 12) -> Path:
    """Labelled problems, as JSON lines."""
    path = folder / "seeds.jsonl"
    lines = [
        {"question": f"How much is {n} and {n + 1} together?", "topic": TOPICS[n % len(TOPICS)]}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recipe(folder: Path, url: str = "http://127.0.0.1:9/v1", **keys: Any) -> dict[str, Any]:
    """Keys of a run, with its files in `folder`."""
    seeds = {
        "own": {
            "path": str(seeds_file(folder)),
            "columns": {"prompt": "question", "topic": "topic"},
            "constants": {"domain": "math", "level": "high_school"},
        }
    }
    solver = model(folder, url)
    tree = {
        "output": str(folder / "out"),
        "seeds": seeds,
        "writer": {**solver, "temperature": 1.0},
        "domain": {
            "kind": "maths",
            "solver": solver,
            "difficulties": {"easy": 1, "hard": 1},
            "solutions": 4,
            "agree": 3,
        },
        "total": 12,
        "rounds": 3,
        "topics": {f"math/high_school/{topic}": 1 for topic in TOPICS},
    }
    return {**tree, **keys}


def files(folder: Path) -> dict[str, bytes]:
    """What the same replies must make the same."""
    found = [*folder.glob("rounds/*/*"), folder / "kept.jsonl", folder / "report.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


def undated(found: dict[str, bytes]) -> dict[str, bytes]:
    """Files without the dates of replies, which differ between two folders of them."""
    return {name: re.sub(rb'"date": "[^"]*"', b'"date": ""', one) for name, one in found.items()}
