"""The command line of evaluation: what it prints, and what it leaves alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ring import config as configuration
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.evaluation.tasks import TASKS
from tests.curation import scripted
from tests.evaluation.evaluating import tree
from tools import evaluate

CONFIGS = scripted.ROOT / "configs" / "evaluate"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and what was printed."""
    status = evaluate.main(list(map(str, arguments)))
    return status, capsys.readouterr().out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe that was run; the endpoint is gone afterwards."""
    made = tmp_path_factory.mktemp("done")
    with scripted.serve(made, script="tests.evaluation.adding:adds") as server:
        given = tree(made, server.url, [(1, 2), (1, 90), (1, 91)])
        (made / "recipe.yaml").write_text(json.dumps(given))
        yield made


def test_the_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = call(capsys, "run", folder / "recipe.yaml", "--dry-run")
    assert status == 0 and not (folder / "out").exists()
    assert "GSM8K: 3 items, 6 answers; the first item:" in said
    assert "user: 1 + 2?" in said and '"temperature": 0.6' in said

    status, said = call(capsys, "run", folder / "recipe.yaml")
    assert status == 0 and "6 requests were sent by this run" in said
    assert "2 no_answer" in said and "2 truncated" in said and "GSM8K: pass@1 " in said
    assert f"python tools/evaluate.py show {folder / 'out'}" in said.replace("\n", "")
    status, said = call(capsys, "run", folder / "recipe.yaml")
    assert "GSM8K: 6 answers, sampled before" in said and "0 requests were sent" in said

    results = (folder / "out/results.json").read_bytes()
    status, said = call(capsys, "grade", folder / "out")
    assert status == 0 and "2 truncated" in said
    assert (folder / "out/results.json").read_bytes() == results

    status, said = call(capsys, "show", folder / "out", "--verdict", "no_answer", "-n", "1")
    assert status == 0 and "gsm8k 2 sample 0: no_answer" in said
    assert "I do not know." in said and "1 of 2 answers" in said
    assert "taken for the answer: None; no final answer behind the thought" in said
    status, said = call(capsys, "show", folder / "out", "--task", "mmlu")
    assert (status, said) == (1, "error: no grades of the task 'mmlu'; there are: gsm8k\n")
    status, said = call(capsys, "show", folder / "out", "--verdict", "great")
    assert status == 1 and "error: no answer with verdict 'great'; there are: no_answer, " in said


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = call(capsys, "grade", tmp_path)
    assert (status, said) == (1, f"error: {tmp_path} has no run in it: there is no recipe.yaml\n")
    status, said = call(capsys, "run", CONFIGS / "gsm8k.yaml")
    assert (status, said) == (1, "error: missing config key generator.model\n")
    status, said = call(capsys, "ask")
    assert status == 1 and "unknown command 'ask'; known: run, grade, show, tasks, schema" in said


def test_all_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = call(capsys, "tasks")
    assert status == 0 and all(name in said for name in TASKS)
    status, said = call(capsys)
    assert status == 0 and "python tools/evaluate.py grade OUT" in said


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_load(path: Path) -> None:
    recipe = configuration.load(EvaluationConfig, [str(path)], ["generator.model=m"])
    assert set(recipe.tasks) <= set(TASKS)
    sampling = recipe.generator.temperature, recipe.generator.top_p
    assert sampling == (0.6, 0.95)  # the report's
    if path.stem == "benchmarks":
        assert recipe.tasks["aime24"].samples == 64


def test_the_schema_is_that_of_the_keys() -> None:
    assert (CONFIGS / "schema.json").read_text() == configuration.json_schema(EvaluationConfig)
