"""tools/measure_graders.py on rows made by hand."""

import json
from pathlib import Path

import pytest
import typer

from tools import measure_graders as tool


def write(folder: Path, *answers: str) -> None:
    (folder / "gsm8k").mkdir()
    rows = [{"question": "?", "answer": f"So\n#### {answer}"} for answer in answers]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "gsm8k/test.jsonl").write_text(lines)


def test_gold_answers_are_right_and_changed_ones_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "1,004", "7")
    tool.main(tmp_path, workers=1, seconds=120.0, only="")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("GSM8K: 2 items")
    # 1004: plus, minus one, ten times, sign, last digits swapped; 7 has no digits to swap.
    assert lines[1:] == [
        "gold: 2 answers, 100.00 % right, {'right': 2}",
        "changed: 9 answers, 0.00 % right, {'wrong': 9}",
    ]


def test_exceptions_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the answer that counts is the wrong one, and each exception is printed."""
    write(tmp_path, "7")

    def turned(answer: str, thought: str) -> str:
        return f"<think>\\boxed{{{answer}}}</think>\\boxed{{{thought}}}"

    monkeypatch.setattr(tool, "worked", turned)
    with pytest.raises(typer.Exit) as end:
        tool.main(tmp_path, workers=1, seconds=120.0, only="")
    assert end.value.exit_code == 1
    said = capsys.readouterr().out
    assert "gold: 1 answers, 0.00 % right" in said
    assert "! 0, itself: '-12345' for '7': wrong" in said
    assert "! 0, plus one: '7' for '7': right" in said


def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter) as error:
        tool.main(tmp_path, workers=1, seconds=1.0, only="")
    assert str(error.value).startswith(f"{tmp_path} holds none of gsm8k/test.jsonl, ")
