"""Checkpoints that do as they are told: runs of an evaluation whose every answer is known.

A question says what each model does with it: "3 + 4? (base=right, sft=open)". The words are those
of SAID. Light, as the endpoint's process starts with it.
"""

import csv
import io
import json
import re
from pathlib import Path
from random import Random
from typing import Any

# {} is what the model says it found; with one word too much a thought is thrown away.
SAID = {
    "right": "<think>\nI add.\n</think>\n\n\\boxed{{{}}}",
    "wrong": "<think>\nI slip.\n</think>\n\n\\boxed{{{}}}",
    "bare": "It is \\boxed{{{}}}",  # missing open, missing close; right
    "open": "<think>\nIt is \\boxed{{{}}}",  # missing close; no answer
    "twice": "<think>\nI add.\n</think>\n</think>\n\n\\boxed{{{}}}",  # redundant; right
    "before": "Well. <think>\nI add.\n</think>\n\n\\boxed{{{}}}",  # misplaced; right
    "cut": "<think>\nI add and add",  # truncated in the thought
}


def told(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> dict[str, Any]:
    """A script of the endpoint: what the last question says of this model."""
    question = messages[-1]["content"]
    a, b = map(int, re.match(r"(\d+) \+ (\d+)\?", question).groups())
    word = dict(re.findall(r"(\w+)=(\w+)", question))[body["model"]]
    content = SAID[word].format(a + b + (word == "wrong"))
    return {"content": content, "finish_reason": "length" if word == "cut" else "stop"}


def question(number: int, does: dict[str, str]) -> str:
    """Sum number `number`, and what each model does with it."""
    listed = ", ".join(f"{model}={word}" for model, word in does.items())
    return f"{number} + {number + 3}? ({listed})"


def write_data(folder: Path, benchmarks: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """Files of gsm8k, math500 and mmlu, and their part of a recipe.

    `benchmarks`: of each item what each model does with it. Items of math500 are of levels 1 and 2
    in turn, those of mmlu of two subjects.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for name, items in benchmarks.items():
        asked = [question(number, does) for number, does in enumerate(items)]
        sums = [2 * number + 3 for number in range(len(items))]
        pairs = list(zip(asked, sums, strict=True))
        if name == "mmlu":
            (folder / "mmlu/test").mkdir(parents=True, exist_ok=True)
            for part, subject in enumerate(("college_law", "high_school_physics")):
                text = io.StringIO()
                rows = [[q, n - 1, n, n + 1, n + 2, "B"] for q, n in pairs[part::2]]
                csv.writer(text).writerows(rows)
                (folder / f"mmlu/test/{subject}_test.csv").write_text(text.getvalue())
            tasks[name] = {"file": str(folder / "mmlu")}
            continue
        if name == "gsm8k":
            rows = [{"question": q, "answer": f"So\n#### {n}"} for q, n in pairs]
        else:
            rows = [
                {"problem": q, "answer": str(n), "level": 1 + i % 2, "subject": "Algebra"}
                for i, (q, n) in enumerate(pairs)
            ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks[name] = {"file": str(path)}
    return tasks


def tree_of(tasks: dict[str, Any], url: str, model: str, output: Path, **more: Any) -> Any:
    """The recipe of one run."""
    generator = {"endpoint": url, "model": model, "replies": str(output / "replies")}
    generator |= {"retry_wait_s": 0.01, "timeout_s": 20, "max_tokens": 50, "concurrency": 8}
    generator |= more.pop("generator", {})
    return {"tasks": tasks, "generator": generator, "output": str(output), **more}


MODELS = ("base", "sft", "dpo", "base2", "sft2")  # the last two are other seeds
DOES = {
    "gsm8k": [
        ("right", "right", "right", "right", "right"),
        ("right", "wrong", "right", "right", "right"),
        ("wrong", "right", "right", "wrong", "right"),
        ("wrong", "right", "right", "wrong", "right"),
        ("bare", "right", "right", "wrong", "open"),
        ("open", "right", "cut", "wrong", "wrong"),
        ("cut", "twice", "right", "wrong", "wrong"),
        ("wrong", "wrong", "wrong", "wrong", "wrong"),
    ],
    "math500": [
        ("wrong", "right", "right", "wrong", "right"),
        ("wrong", "wrong", "right", "wrong", "wrong"),
        ("right", "right", "right", "right", "right"),
        ("wrong", "right", "wrong", "wrong", "right"),
    ],
    "mmlu": [
        ("right", "wrong", "right", "right", "wrong"),
        ("right", "right", "right", "right", "right"),
        ("right", "wrong", "before", "right", "wrong"),
        ("wrong", "wrong", "wrong", "wrong", "wrong"),
    ],
}


def make_runs(folder: Path, models: tuple[str, ...] = MODELS) -> Path:
    """Runs of DOES, one a model, in folder/MODEL."""
    # The endpoint's process, which imports this file, does without these.
    from tests.curation import scripted
    from tests.evaluation.evaluating import evaluate

    does = {
        name: [dict(zip(MODELS, words, strict=True)) for words in items]
        for name, items in DOES.items()
    }
    tasks = write_data(folder / "data", does)
    with scripted.serve(folder, script="tests.evaluation.comparing:told") as server:
        for model in models:
            evaluate(tree_of(tasks, server.url, model, folder / model))
    return folder
