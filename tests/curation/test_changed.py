"""Changed answers, by hand."""

import random
from collections import Counter
from fractions import Fraction

import pytest

from megatron_ring.curation.collect import changed

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
    assert dict(changed.changed_number(answer, value)) == changes


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
        ("20 $cm^{2}$", {"an integer plus one": "21 $cm^{2}$", "sign": "-20 $cm^{2}$"}),
    ],
)  # fmt: skip
def test_formulas_are_changed_by_their_form(answer: str, changes: dict[str, str]) -> None:
    assert dict(changed.changed_formula(answer, WORDS, random.Random(0))) == changes


def test_what_is_left_out_is_counted() -> None:
    left_out: Counter[str] = Counter()
    assert changed.changes("y", [], "0", left_out) == [("sign", "-y")]
    assert changed.changes(r"\pm y", [], "0", left_out) == []
    assert [kind for kind, _ in changed.changes("0", [], "0", left_out)] == [
        "plus one",
        "minus one",
    ]
    assert left_out == {
        "no change is surely another answer": 1,
        "ten times: the same number": 1,
        "sign: the same number": 1,
    }
    other = changed.changes(r"\text{(C)}", [], "0", left_out)
    assert [kind for kind, _ in other] == ["other letter"]
    assert other[0][1] in {rf"\text{{({letter})}}" for letter in "ABDE"}
