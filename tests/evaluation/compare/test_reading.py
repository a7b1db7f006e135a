"""Run folders as columns: what is counted of them, and which do not go together."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config import ConfigError
from megatron_ring.evaluation.compare import reading
from megatron_ring.evaluation.compare.tags import merged


def changed(
    runs: Path,
    folder: Path,
    kind: str,
    change: Callable[[dict[str, Any]], Any],
    task: str = "gsm8k",
) -> Path:
    """A copy of the run `sft` whose lines of a file are others; None drops a line."""
    if not folder.exists():
        shutil.copytree(runs / "sft", folder)
    path = folder / kind / f"{task}.jsonl"
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))
    return folder


def refusal(**folders: Path) -> str:
    with pytest.raises(ConfigError) as error:
        reading.read({name: [path] for name, path in folders.items()})
    return str(error.value)


def test_columns_are_parsed() -> None:
    found = reading.parse(["base=a", "stage 1=b/c,d=e"])
    assert found == {"base": [Path("a")], "stage 1": [Path("b/c"), Path("d=e")]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no column is given; one is base=runs/base, another sft=runs/a,runs/b"),
        (
            ["runs/base"],
            "'runs/base' is no column; one is NAME=OUT, with seeds NAME=OUT,OUT, where OUT is a "
            "folder that evaluate.py run wrote",
        ),
        (
            ["base="],
            "'base=' is no column; one is NAME=OUT, with seeds NAME=OUT,OUT, where OUT is a folder "
            "that evaluate.py run wrote",
        ),
        (["a=x", "a=y"], "column a is given twice; its runs are a=OUT,OUT"),
        (["first=x"], "a column cannot be called first: --baseline first means another"),
        (["a=x,y,x"], "a=x,y,x: the same folder twice; seeds are runs of their own"),
        (
            ["a=x", "--outptu"],
            "unknown option '--outptu'; known: --output, --baseline, --taxonomy, --wandb, -n",
        ),
    ],
)
def test_what_is_no_column_is_said(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        reading.parse(arguments)
    assert str(error.value) == said


def test_baselines() -> None:
    names = ["a", "b", "c"]
    assert reading.baselines(names, "previous") == [None, "a", "b"]
    assert reading.baselines(names, "first") == [None, "a", "a"]
    assert reading.baselines(names, "b") == ["b", None, "b"]
    with pytest.raises(ConfigError) as error:
        reading.baselines(names, "d")
    assert str(error.value) == "--baseline d: no such column; there are: previous, first, a, b, c"


def test_what_is_read_of_a_run(runs: Path) -> None:
    (column,) = reading.read({"base": [runs / "base"]})
    assert reading.tasks_of([column]) == ["math500", "gsm8k", "mmlu"]  # the report's order
    (bench,) = column.of("gsm8k")
    assert [row[0] for row in bench.scores()] == [1, 1, 0, 0, 1, 0, 0, 0]
    assert (bench.title, bench.group, bench.versions) == ("GSM8K", "reasoning", ("1",))
    assert column.of("mmlu")[0].group == "general"
    counts = merged(answer.tags for answer in bench.all_answers())
    assert (counts.answers, counts.truncated, counts.truncated_thinking, counts.wrong) == (
        8,
        1,
        1,
        2,
    )
    assert counts.errors == {"missing_open": 1, "missing_close": 2}
    assert column.of("math500")[0].items["0"].facts == {"subject": "Algebra", "level": "1"}
    assert bench.items["2"].text.startswith("2 + 5? (base=wrong")
    assert next(bench.all_answers()).tokens == 5  # <think> I add. </think> \boxed{3}


def test_a_primed_answer_needs_no_opening_tag(runs: Path, tmp_path: Path) -> None:
    def cut_open(line: dict[str, Any]) -> dict[str, Any]:
        return line | {"text": line["text"].removeprefix("<think>\n")}

    def prime(line: dict[str, Any]) -> dict[str, Any]:
        return cut_open(line) | {"card": line["card"] | {"primed": True}}

    found = {}
    for name, change in (("bare", cut_open), ("primed", prime)):
        folder = changed(runs, tmp_path / name, "samples", change)
        (column,) = reading.read({name: [folder]})
        found[name] = merged(answer.tags for answer in column.of("gsm8k")[0].all_answers())
    assert found["bare"].errors == {"missing_open": 8, "redundant": 1}
    assert found["primed"].errors == {"redundant": 1}


def test_a_refused_answer_has_no_tags(runs: Path, tmp_path: Path) -> None:
    def refuse(line: dict[str, Any]) -> dict[str, Any]:
        return line | ({"finish": "refused", "text": "", "card": {}} if line["id"] == "3" else {})

    folder = changed(runs, tmp_path / "refused", "samples", refuse)
    (column,) = reading.read({"a": [folder]})
    answers = column.of("gsm8k")[0].answers
    assert answers["3"][0].tags.answers == 0 and answers["3"][0].tokens is None
    assert merged(one.tags for row in answers.values() for one in row).answers == 7


def test_a_group_of_the_results_counts(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs / "sft", tmp_path / "grouped")
    results = json.loads((folder / "results.json").read_text())
    results["tasks"]["gsm8k"]["group"] = "sums"
    (folder / "results.json").write_text(json.dumps(results))
    (column,) = reading.read({"a": [folder]})
    assert column.of("gsm8k")[0].group == "sums"


def test_folders_that_are_no_finished_runs(runs: Path, tmp_path: Path) -> None:
    assert refusal(a=tmp_path / "no") == f"a={tmp_path / 'no'}: there is no such folder"
    assert refusal(a=tmp_path) == f"{tmp_path} has no results.json; finish the run first"
    folder = changed(runs, tmp_path / "less", "grades", lambda g: g if g["id"] != "7" else None)
    assert refusal(a=folder) == (
        f"{folder}: 8 answers in samples/gsm8k.jsonl, 7 in grades/gsm8k.jsonl; python "
        f"tools/evaluate.py grade {folder}"
    )
    folder = changed(runs, tmp_path / "odd", "grades", lambda g: g | {"id": f"0{g['id']}"})
    assert refusal(a=folder) == (
        f"{folder}: line 1 of samples/gsm8k.jsonl is of item 0, of grades/gsm8k.jsonl of 00; "
        f"python tools/evaluate.py grade {folder}"
    )
    (folder / "grades/gsm8k.jsonl").unlink()
    assert refusal(a=folder) == (
        f"{folder / 'grades/gsm8k.jsonl'} is missing; python tools/evaluate.py run writes it"
    )


def test_other_versions_are_not_compared(runs: Path, tmp_path: Path) -> None:
    folder = changed(runs, tmp_path / "new", "grades", lambda line: line | {"version": "2"})
    assert refusal(base=runs / "base", sft=folder) == (
        "GSM8K: versions 1 and 1+2 of its prompts and rules in base and sft, which are not to be "
        f"compared; run {folder} again (python tools/evaluate.py grade is enough where only the "
        "rules changed)"
    )


def test_other_items_are_not_compared(runs: Path, tmp_path: Path) -> None:
    def few(line: dict[str, Any]) -> Any:
        return line if line["id"] not in ("2", "5") else None

    for kind in ("items", "samples", "grades"):
        folder = changed(runs, tmp_path / "few", kind, few)
    assert refusal(base=runs / "base", sft=folder) == (
        "GSM8K: 8 items in base, 6 in sft, and 2 of them only in one, 2 among them; use the same "
        "tasks.gsm8k.file and tasks.gsm8k.limit for both"
    )


def test_other_prompts_are_not_compared(runs: Path, tmp_path: Path) -> None:
    def brief(line: dict[str, Any]) -> Any:
        return line | {"messages": [{"role": "system", "content": "Be brief."}, *line["messages"]]}

    folder = changed(runs, tmp_path / "brief", "samples", brief)
    assert refusal(base=runs / "base", sft=folder) == (
        "GSM8K: 8 of 8 items have another prompt in sft than in base, 0 among them; give both runs "
        "the same `system` and data"
    )


def test_other_right_answers_are_not_compared(runs: Path, tmp_path: Path) -> None:
    def corrected(line: dict[str, Any]) -> Any:
        return line | {"gold": line["gold"] | {"answer": "0"}} if line["id"] == "3" else line

    folder = changed(runs, tmp_path / "corrected", "items", corrected)
    assert refusal(base=runs / "base", sft=folder) == (
        "GSM8K: 1 of 8 items have another right answer in sft than in base, 3 among them; give "
        "both runs the same tasks.gsm8k.file"
    )


def test_results_that_are_torn_are_named(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs / "sft", tmp_path / "torn")
    (folder / "results.json").write_text("{")
    assert refusal(sft=folder).startswith(f"{folder / 'results.json'} cannot be read: Expecting")
    assert refusal(sft=folder).endswith(
        f"; python tools/evaluate.py grade {folder} writes it again"
    )


def test_runs_of_a_column_have_the_same_benchmarks(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs / "sft2", tmp_path / "short")
    results = json.loads((folder / "results.json").read_text())
    del results["tasks"]["mmlu"]
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError) as error:
        reading.read({"sft": [runs / "sft", folder]})
    assert str(error.value) == (
        f"column sft: {folder} has no mmlu, other runs of it have; run it there, or leave that run "
        "out"
    )
