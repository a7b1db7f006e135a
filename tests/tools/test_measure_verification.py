"""tools/measure_verification.py: a run on rows made by hand."""

import json
from pathlib import Path

import pytest
import typer

from tools import measure_verification as tool


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("gsm8k", "math500", "math_train_answers"):
        (tmp_path / name).mkdir()
    for split in ("train", "test"):
        row = {"answer": "2 and 2 is 4\n#### 1,004"}
        (tmp_path / f"gsm8k/{split}.jsonl").write_text(json.dumps(row) + "\n")
    row = {"answer": "x+1", "solution": r"So it is $\boxed{1+x}.$"}
    (tmp_path / "math500/math500.jsonl").write_text(json.dumps(row) + "\n")
    rows = [{"answer": "52_8"}, {"answer": None}]
    (tmp_path / "math_train_answers/math_train_7474.json").write_text(json.dumps(rows))
    return tmp_path


def test_verdicts_are_counted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("math_verify")
    tool.main(data, workers=1, seconds=120.0, seed="0", only="")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "MATH train: 1 of 2 rows have no answer",
        "GSM8K: 2 answers, 0 without one in a worked solution, 14 pairs, 6 of them distinct; "
        "left out {}",
    ]
    assert [line.strip() for line in lines].count("itself: {'right': 2}") == 2
    assert [line.strip() for line in lines].count("its solution: {'right': 1}") == 2
    # math-verify does not read the base of a number.
    assert [line.strip() for line in lines if "!" in line] == [
        "! other base: '52_{9}' for '52_8': right"
    ]


def test_a_gold_answer_that_differs_from_its_solution_is_an_error(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("math_verify")
    row = {"answer": "x+1", "solution": r"So it is $\boxed{2+x}.$"}
    (data / "math500/math500.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(typer.Exit) as end:
        tool.main(data, workers=1, seconds=120.0, seed="0", only="MATH-500")
    assert end.value.exit_code == 1
    assert "! its solution: '2+x' for 'x+1': wrong" in capsys.readouterr().out
