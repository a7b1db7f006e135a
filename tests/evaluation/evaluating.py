"""Runs of an evaluation on rows made by hand; also as a program of its own, to be killed.

`python -m tests.evaluation.evaluating '{...}'` runs the tree of an EvaluationConfig.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from megatron_ring.config import build
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.evaluation import run as evaluation
from megatron_ring.evaluation.door import EndpointDoor
from tests.curation.scripted import ROOT


def tree(folder: Path, url: str, pairs: list[tuple[int, int]], **more: Any) -> dict[str, Any]:
    """An evaluation of sums in the form of GSM8K, whose file is written to `folder`."""
    rows = [{"question": f"{a} + {b}?", "answer": f"So\n#### {a + b}"} for a, b in pairs]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generator = {"endpoint": url, "model": "m", "replies": str(folder / "out/replies")}
    generator |= {"retry_wait_s": 0.01, "timeout_s": 20, "max_tokens": 50, "concurrency": 4}
    return {
        "tasks": {"gsm8k": {"file": str(folder / "test.jsonl"), "samples": 2}},
        "generator": generator | more.pop("generator", {}),
        "output": str(folder / "out"),
        **more,
    }


def evaluate(given: dict[str, Any], teller: evaluation.Teller | None = None) -> dict[str, Any]:
    """Results of a run."""
    config = build(EvaluationConfig, given)
    door = EndpointDoor(config.generator)
    try:
        return evaluation.run(config, door, teller)
    finally:
        door.close()


def start(given: dict[str, Any]) -> "subprocess.Popen[bytes]":
    """The program, started."""
    command = [sys.executable, "-m", "tests.evaluation.evaluating", json.dumps(given)]
    return subprocess.Popen(command, cwd=ROOT)


if __name__ == "__main__":
    evaluate(json.loads(sys.argv[1]))
