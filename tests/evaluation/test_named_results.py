"""Whole runs of benchmarks with several numbers: what results.json and the console say of them."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_ring.config import build
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.curation.shards import read_lines
from megatron_ring.evaluation import run as evaluation
from megatron_ring.evaluation.door import REFUSED, Ask, Said
from tests.evaluation import teval_rows
from tools import evaluate


class Says:
    """A door in this process; the finish of an answer is what its text has before a colon."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def described(self) -> dict[str, Any]:
        return {"model": "m"}

    def answers(self, asks: Sequence[Ask], tell: Callable[[], None]) -> list[Said]:
        pairs = (self.texts[n % len(self.texts)].split(":", 1) for n in range(len(asks)))
        return [Said(text, finish, {"output_tokens": 1}) for finish, text in pairs]


def run(folder: Path, tasks: dict[str, Any], door: Says, **more: Any) -> dict[str, Any]:
    given = {"tasks": tasks, "output": str(folder / "out"), **more}
    given["generator"] = {"endpoint": "http://localhost:1/v1", "model": "m", "replies": "none"}
    return evaluation.run(build(EvaluationConfig, given), door)


def prompts(*names: Sequence[str]) -> str:
    """Rows of IFEval with these instructions."""
    rows = [
        {"key": n, "prompt": f"{n}?", "instruction_id_list": some, "kwargs": [{}] * len(some)}
        for n, some in enumerate(names)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


COMMA, QUOTED = "punctuation:no_comma", "startend:quotation"


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "ifeval.jsonl").write_text(prompts([COMMA], [COMMA, QUOTED], [COMMA], [QUOTED]))
    # Right; right and wrong; cut, and wrong; refused.
    door = Says("stop:Yes.", "stop:No.", "length:a, b, c", f"{REFUSED}:")
    return run(tmp_path, {"ifeval": {"file": str(tmp_path / "ifeval.jsonl")}}, door)


def test_answers_that_were_refused_or_cut_count_in_all_numbers(results: dict[str, Any]) -> None:
    found = results["tasks"]["ifeval"]
    assert found["verdicts"] == {"refused": 1, "right": 1, "truncated": 1, "wrong": 1}
    numbers = found["accuracies"]
    assert {name: (one["value"], one["of"]) for name, one in numbers.items()} == {
        "instruction_strict": (pytest.approx(2 / 5), 4),
        "instruction_loose": (pytest.approx(2 / 5), 4),
        "prompt_strict": (pytest.approx(1 / 4), 4),
        "prompt_loose": (pytest.approx(1 / 4), 4),
        "instructions/1": (pytest.approx(1 / 3), 3),
        "instructions/2": (0, 1),
    }
    assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in numbers.values())
    assert found["score"] == {x: numbers["prompt_strict"][x] for x in ("value", "low", "high")}


def test_the_console_tells_them_in_a_line(results: dict[str, Any], tmp_path: Path) -> None:
    wanted = [
        "IFEval: instruction_strict 40.0, instruction_loose 40.0, prompt_strict 25.0, "
        "prompt_loose 25.0",
        "IFEval by instructions: 1 33.3, 2 0.0",
    ]
    console = Console(file=io.StringIO(), width=80)
    evaluate.print_results(console, results)
    assert console.file.getvalue().splitlines()[-2:] == wanted  # type: ignore[attr-defined]
    for more in ([], ["--task", "ifeval"]):
        console = Console(file=io.StringIO(), width=80)
        evaluate.show(console, [str(tmp_path / "out"), "-n", "1", *more])
        assert console.file.getvalue().splitlines()[-2:] == wanted  # type: ignore[attr-defined]


def test_answers_are_shown_before_there_are_results(
    results: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "out/results.json").unlink()
    console = Console(file=io.StringIO(), width=80)
    assert evaluate.show(console, [str(tmp_path / "out")]) == 0
    assert "4 of 4 answers" in console.file.getvalue()  # type: ignore[attr-defined]


def test_t_evals_score_is_of_abilities_and_items_have_weights(tmp_path: Path) -> None:
    """All say B: right in the reviews alone, one of four abilities that are graded."""
    rows = teval_rows.whole(tmp_path / "teval")
    tasks = {"teval": {"file": str(tmp_path / "teval")}}
    found = run(tmp_path, tasks, Says("stop:B"), grading={"embeddings": ""})["tasks"]["teval"]
    assert found["title"] == "T-Eval without plan and reason"
    assert found["score"]["value"] == pytest.approx(1 / 4)
    assert found["accuracies"]["review"]["value"] == 1
    assert found["verdicts"]["not_graded"] == rows["plan_json"] + rows["plan_str"] + 1
    lines = list(read_lines(tmp_path / "out/grades/teval.jsonl"))
    assert sum(line["weight"] for line in lines) == pytest.approx(1)
    assert sum(line["weight"] * line["score"] for line in lines) == pytest.approx(1 / 4)
    assert all(line["weight"] == 0 for line in lines if line["verdict"] == "not_graded")
