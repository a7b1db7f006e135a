"""tools/measure_verification.py: changes by hand, and a run on rows made by hand."""

import json
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import typer

from tools import measure_verification as tool

WORDS = [r"\text{east}", r"\text{west}"]


@pytest.mark.parametrize(
    ("answer", "value", "changes"),
    [
        (
            "1,072",
            Fraction(1072),
            {
                "plus one": "1073",
                "minus one": "1071",
                "ten times": "10720",
                "sign": "-1072",
                "last digits swapped": "1027",
            },
        ),
        ("0", Fraction(0), {"plus one": "1", "minus one": "-1", "ten times": None, "sign": None}),
        (
            "11",
            Fraction(11),
            {
                "plus one": "12",
                "minus one": "10",
                "ten times": "110",
                "sign": "-11",
                "last digits swapped": None,
            },
        ),
        (
            r"-\frac23",
            Fraction(-2, 3),
            {
                "plus one": r"\frac{1}{3}",
                "minus one": r"-\frac{5}{3}",
                "ten times": r"-\frac{20}{3}",
                "sign": r"\frac{2}{3}",
                "fraction turned over": r"-\frac{3}{2}",
            },
        ),
    ],
)
def test_numbers_are_changed_by_arithmetic(
    answer: str, value: Fraction, changes: dict[str, str | None]
) -> None:
    assert dict(tool.changed_number(answer, value)) == changes


@pytest.mark.parametrize(
    ("answer", "changes"),
    [
        (r"\text{east}", {"other word": r"\text{west}"}),
        ("52_8", {"an integer plus one": "53_{8}", "other base": "52_{9}"}),
        ("(3,x]", {"an integer plus one": "(4,x]", "bracket": "(3,x)"}),
        (r"(-\infty,x)", {"bracket": r"(-\infty,x]", "order swapped": r"(x,-\infty)"}),
        (r"(y,\infty)", {"bracket": r"[y,\infty)", "order swapped": r"(\infty,y)"}),
        (r"\left(y,y\right)", {"bracket": "(y,y]"}),
        (r"\frac{y}{3}", {"an integer plus one": r"\frac{y}{4}", "sign": r"-\frac{y}{3}"}
         | {"fraction turned over": r"\frac{3}{y}"}),
        (r"-y\sqrt{3}", {"an integer plus one": r"-y\sqrt{4}", "root left out": "-y(3)"}
         | {"sign": r"y\sqrt{3}"}),
        ("y - z", {"sign": "-y - z", "last term left out": "y ", "last sign": "y + z"}),
        ("y = x + z", {}),  # a relation has other rules of sameness
        (r"\pm y", {}),
        ("1^{x}", {"sign": "-1^{x}"}),  # not 1^{y} either way
        (r"y \text{ cm}^2", {}),
    ],
)  # fmt: skip
def test_formulas_are_changed_by_their_form(answer: str, changes: dict[str, str]) -> None:
    assert dict(tool.changed_formula(answer, WORDS, random.Random(0))) == changes


def test_what_is_left_out_is_counted() -> None:
    left_out: Counter[str] = Counter()
    assert tool.changes("y", [], "0", left_out) == [("sign", "-y")]
    assert tool.changes(r"\pm y", [], "0", left_out) == []
    assert [kind for kind, _ in tool.changes("0", [], "0", left_out)] == ["plus one", "minus one"]
    assert left_out == {
        "no change is surely another answer": 1,
        "ten times: the same number": 1,
        "sign: the same number": 1,
    }
    other = tool.changes(r"\text{(C)}", [], "0", left_out)
    assert [kind for kind, _ in other] == ["other letter"]
    assert other[0][1] in {rf"\text{{({letter})}}" for letter in "ABDE"}


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
