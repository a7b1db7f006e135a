"""The command line of evaluation: what it prints, and what it leaves alone."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ring import config as configuration
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.evaluation.tasks import TASKS
from tests import ranks
from tests.curation import scripted
from tests.evaluation.comparing import make_runs
from tests.evaluation.evaluating import tree
from tests.model.layouts import GOLDEN
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


def test_checkpoints_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_runs(tmp_path, ("base", "sft"))
    capsys.readouterr()
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = tmp_path / "tables"
    columns = [f"base={runs / 'base'}", f"sft={runs / 'sft'}"]
    more = ["--output", output, "--baseline", "first", "--taxonomy", "--wandb", "tests", "-n", "1"]
    status, said = call(capsys, "compare", *columns, *more)
    assert status == 0 and "Table 2: scores" in said and "75.0  +37.5" in said
    assert f"reading {runs / 'sft'}: 16 of 16" in said
    assert "labels of the taxonomy: 16 of 16" in said
    assert f"wrote {output}: tables.md, report.html, tables.json, changed.jsonl" in said
    assert f"wandb: {output}/wandb/offline-run-" in said
    told = json.loads((output / "tables.json").read_text())
    assert told["table2"]["rows"][1]["cells"][1]["value"] == 0.75
    assert told["topics"]["tables"][-1]["title"].endswith("of the taxonomy")
    page = (output / "report.html").read_text()
    assert "<title>base · sft</title>" in page
    assert page.count('class="card item"') == 4  # of 2 won, 4 won, 1 lost, 2 lost: one of each

    status, said = call(capsys, "compare", *columns)
    assert (status, said) == (1, "error: --output is missing: the folder of the tables\n")
    status, said = call(capsys, "compare", "--output", output)
    assert status == 1 and "error: no column is given" in said
    status, said = call(capsys, "compare", *columns, "--output", output, "--baseline", "dpo")
    assert status == 1 and "--baseline dpo: no such column; there are: previous, first, " in said
    status, said = call(capsys, "compare", *columns, "--output", output, "--nonsense")
    assert status == 1 and "unknown option '--nonsense'" in said


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = call(capsys, "grade", tmp_path)
    assert (status, said) == (1, f"error: {tmp_path} has no run in it: there is no recipe.yaml\n")
    status, said = call(capsys, "run", CONFIGS / "gsm8k.yaml")
    assert (status, said) == (1, "error: missing config key generator.model\n")
    for command in ("tasks", "schema"):
        status, said = call(capsys, command, "more")
        assert (status, said) == (1, "error: 'more': this command takes no argument\n")
    status, said = call(capsys, "grade", tmp_path, "--limit", "3")
    assert (status, said) == (1, "error: unknown option '--limit'\n")
    (tmp_path / "file").touch()
    status, said = call(capsys, "compare", "a=x", "--output", tmp_path / "file")
    assert status == 1 and "file is a file; tables want a folder" in said.replace("\n", "")
    status, said = call(capsys, "ask")
    assert (
        status == 1
        and "unknown command 'ask'; known: run, grade, show, compare, tasks, schema" in said
    )


def test_all_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = call(capsys, "tasks")
    assert status == 0 and all(name in said for name in TASKS)
    status, said = call(capsys)
    assert status == 0 and "python tools/evaluate.py grade OUT" in said


def test_grades_that_are_not_there_are_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = call(capsys, "show", tmp_path)
    told = f"error: {tmp_path}: nothing was graded yet; finish the run first\n"
    assert (status, said) == (1, told)
    for kind in ("samples", "grades"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "gsm8k.jsonl").write_text("{}\n" * len(kind))
    status, said = call(capsys, "show", tmp_path)
    told = f"error: {tmp_path}: gsm8k has 7 samples and 6 grades; grade it again\n"
    assert (status, said) == (1, told)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_load(path: Path) -> None:
    whose = [] if path.stem == "training" else ["generator.model=m"]
    recipe = configuration.load(EvaluationConfig, [str(path)], whose)
    assert set(recipe.tasks) <= set(TASKS)
    asked = recipe.sampler if path.stem == "training" else recipe.generator
    assert asked is not None
    sampling = asked.temperature, asked.top_p
    assert sampling == (0.6, 0.95)  # the report's
    if path.stem == "benchmarks":
        assert recipe.tasks["aime24"].samples == 64


def test_the_schema_is_that_of_the_keys() -> None:
    assert (CONFIGS / "schema.json").read_text() == configuration.json_schema(EvaluationConfig)


def sampled(folder: Path, words: Path, **more: object) -> Path:
    """A recipe that asks a tiny model three sums, twice each."""
    given = tree(folder, "", [(1, 2), (2, 3), (3, 4)])
    model = str(GOLDEN / "ling_lite_tiny")
    given["sampler"] = {"model": model, "tokenizer": str(words), "max_tokens": 3} | more
    del given["generator"]
    (folder / "recipe.yaml").write_text(json.dumps(given))
    return folder / "recipe.yaml"


def test_a_checkpoint_is_asked(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--dry-run does not even look for it."""
    recipe = sampled(tmp_path, packed / "tokenizer")
    status, said = call(capsys, "run", recipe, "--dry-run", "sampler.model=nowhere")
    assert status == 0 and "GSM8K: 3 items, 6 answers; the first item:" in said
    status, said = call(capsys, "run", recipe, "sampler.model=nowhere")
    assert status == 1 and said.startswith("error: nowhere is neither a Megatron checkpoint")
    status, said = call(capsys, "run", recipe)
    assert status == 0 and "GSM8K: 6 of 6" in said and "6 answers were drawn by this run" in said
    status, said = call(capsys, "run", recipe)
    assert "GSM8K: 6 answers, sampled before" in said and "0 answers were drawn" in said
    status, said = call(capsys, "show", tmp_path / "out", "-n", "1")
    assert status == 0 and "1 of 6 answers" in said


def speak(recipe: Path, log: Path, *more: str) -> int:
    """Run it as a rank whose output goes to a file of its own."""
    with (log.parent / f"{log.name}-{os.environ['RANK']}").open("w") as sys.stdout:
        return evaluate.main(["run", str(recipe), *more])


def test_on_two_ranks_the_first_speaks(packed: Path, tmp_path: Path) -> None:
    recipe = sampled(tmp_path, packed / "tokenizer")
    more = ("sampler.parallel.ep=2",)
    told = ranks.run(2, speak, recipe, tmp_path / "log", *more, folder=tmp_path / "ranks")
    assert told == [0, 0]
    assert "6 answers were drawn" in (tmp_path / "log-0").read_text()
    assert (tmp_path / "log-1").read_text() == ""
    more = ("tasks.gsm8k.file=no.jsonl",)
    told = ranks.run(2, speak, recipe, tmp_path / "bad", *more, folder=tmp_path / "ranks")
    assert told == [1, 0] and "no.jsonl" in (tmp_path / "bad-0").read_text()
