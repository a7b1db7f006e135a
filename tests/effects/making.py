"""Runs, results and tables whose every number is known."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from megatron_ring.effects.tables import EvalRow, ItemRow, RunRow, Tables

TOPICS = ("add", "name", "say")


def write_run(folder: Path, packed: Path, sources: dict[str, float], **config: Any) -> Path:
    """The folder of a training run of ten steps on 2 rows of 512 tokens of these shares."""
    packed.mkdir(parents=True, exist_ok=True)
    told = [
        {"name": name, "tokens": 100 * share, "documents": 4, "placements": 8}
        for name, share in sources.items()
    ]
    manifest = {"sources": told, "row_tokens": 512, "fingerprint": f"{sorted(sources.items())}"}
    (packed / "manifest.json").write_text(json.dumps(manifest))
    folder.mkdir(parents=True)
    tree = {
        "model": {"num_hidden_layers": 2, "hidden_size": 96},
        "data": {"train": str(packed), "rows_per_step": 2},
        "optim": {"steps": 10} | config.pop("optim", {}),
        "run": {"dir": str(folder), "init_from": "runs/base"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    lines = [{"step": 5, "time": 0.0, "loss": 2.0}, {"step": 10, "time": 86400.0, "loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def write_scores(path: Path, chances: list[list[float]]) -> Path:
    """A file of tools/score.py: chances of the tokens of each answer, behind a prompt of two."""
    lines = [
        {
            "logprobs": [-5.0, *map(math.log, one)],
            "tokens": [1, 2, *range(9, 9 + len(one))],
            "targets": [0, 0, *[1] * len(one)],
        }
        for one in chances
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def write_chats(path: Path, topics: list[str]) -> Path:
    """What was scored."""
    turns = [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "4"}]
    lines = [
        {"id": f"item-{number}", "topic": topic, "kind": "ab"[number % 2], "messages": turns}
        for number, topic in enumerate(topics)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def run_row(name: str, arm: int, randomized: bool, **more: Any) -> RunRow:
    told = {
        "run_id": name,
        "randomized": randomized,
        "assign_seed": 11 if randomized else None,
        "config_hash": "c",
        "scale": "2 layers of 96",
        "interventions": {"worked": arm},
    }
    return RunRow(**(told | more))


def eval_row(run: str, item: str, score: float, **more: Any) -> EvalRow:
    told = {
        "metric": "score",
        "harness_version": "h",
        "prompt_hash": f"p-{item}",
        "grader_version": "1",
    }
    return EvalRow(run_id=run, item_id=item, score=score, **(told | more))


def misleading(
    randomized: int = 6, history: int = 30, items: int = 20, seed: int = 0, name: str = "run"
) -> Tables:
    """Runs with a hidden cause: in history, those that were trained longer had the change more.

    The change is worth +0.1 in `add`, -0.1 in `name`, 0 in `say`; training four times as long is
    worth 0.2 in all of them. `randomized` is the number of runs of each arm; runs are NAME-00 ...
    """
    rng = random.Random(seed)
    effects = dict(zip(TOPICS, (0.1, -0.1, 0.0), strict=True))
    rows = [
        ItemRow(
            item_id=f"{topic}/{n}",
            benchmark=topic,
            tax_l1=topic,
            tax_l2=topic,
            difficulty=(n + 0.5) / items,
            n_tok=n % 5 + 1,
        )
        for topic in TOPICS
        for n in range(items)
    ]
    runs, evals = [], []
    for number in range(2 * randomized + history):
        is_past = number >= 2 * randomized
        longer = rng.random() < 0.5
        arm = int(rng.random() < (0.8 if longer else 0.2)) if is_past else number % 2
        if not is_past:
            longer = False
        run, level = f"{name}-{number:02}", 0.2 * longer + rng.gauss(0, 0.02)
        runs.append(run_row(run, arm, not is_past, tokens=4000 if longer else 1000))
        for row in rows:
            score = 0.6 - 0.3 * row.difficulty + level + arm * effects[row.tax_l1]
            evals.append(eval_row(run, row.item_id, score + rng.gauss(0, 0.05)))
    return Tables(runs, rows, evals)
