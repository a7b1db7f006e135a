"""Prompts worth distilling: rules and features by hand."""

from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import ScorePromptConfig
from megatron_ring.curation.collect.prompts import ScorePrompt
from megatron_ring.curation.record import Record, Rejection


def prompt(text: str, **keys: Any) -> Record:
    return {"id": "a/1", "messages": [{"role": "user", "content": text}], **keys}


def score(text: str, keys: dict | None = None, **options: Any) -> Record | Rejection:
    return ScorePrompt(ScorePromptConfig(**options)).apply(prompt(text, **(keys or {})))


GOOD = "A farmer has 12 hens and sells 3 of them. Each of the others lays 5 eggs. How many eggs?"


@pytest.mark.parametrize(
    ("text", "reason", "evidence"),
    [
        ("Hello?", "too_short", "6 characters, fewer than 12"),
        ("Why? " * 1700, "too_long", "8499 characters, more than 8000"),
        ("Find the value of $x+1 where x is 2", "incomplete", "a formula is open: 1 dollar"),
        (
            "Find the smallest number that is greater than",
            "incomplete",
            "it ends in …'that is greater than'",
        ),
        ("Compute the sum of 3, 4,", "incomplete", "it ends in …'"),
        ("Find \\frac{1{2} of twelve.", "incomplete", "2 { and 1 }"),
        ("What does this print?\n```python\nx = 1", "incomplete", "a block of code is open"),
        ("The weather was fine all day.", "no_question", "nothing is asked: …'The weather"),
    ],
)
def test_each_rule(text: str, reason: str, evidence: str) -> None:
    found = score(text)
    assert isinstance(found, Rejection) and found.reason == reason
    assert evidence in found.evidence


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Tickets cost $5. How much are 7 of them?",  # money, not a formula
        "Evaluate $|1-4i|$.",
        "已知集合 A 满足条件，求 A 的元素个数。",
        "函数 f(x) 的最小值是（ ）",
        "Write a function `add()`",
        "Fill in: 3 + 4 = ____",
        "Die Zahl der Ecken\n(A) 3\n(B) 4",
        "Solve for the set $\\left\\{ x \\mid x > 2 \\right.$",
        "集合的个数为（$\\qquad$）",
    ],
)
def test_complete_prompts_pass(text: str) -> None:
    found = score(text, min_score=0)
    assert not isinstance(found, Rejection), found


def test_the_score_by_hand() -> None:
    found = score("Is 91 a prime number?")  # 21 characters, one number, a question mark
    expected = {"length": 0.35, "question": 1.0, "constraints": 0.333}
    told = found["extra"]["prompt_score"]
    # (0.35 x 1 + 1 x 2 + 1/3 x 1) / 4
    assert told == {"score": 0.671, **expected}
    found = score("Is 91 a prime number?", min_score=0.68)
    assert found == Rejection(
        "low_score", "0.671, less than 0.68: length 0.35, question 1.0, constraints 0.333"
    )
    weights = {"length": 1.0, "question": 0.0}
    assert score(GOOD, weights=weights)["extra"]["prompt_score"]["score"] == 1.0


def test_labels_and_needs_count_where_they_are_known() -> None:
    keys = {
        "extra": {"difficulty": "Level 4"},
        "domain": "math",
        "level": "university",
        "topic": "topology",
    }
    options: dict[str, Any] = {"difficulty": "extra.difficulty", "easiest": 1, "hardest": 5}
    told = score(GOOD, keys, **options)["extra"]["prompt_score"]
    assert told["difficulty"] == 0.75 and "wanted" not in told
    assert (
        score(GOOD, {"extra": {"difficulty": 9}}, **options)["extra"]["prompt_score"]["difficulty"]
        == 1.0
    )
    wanted = {"math": 0.1, "math/university": 0.9, "math/high_school/topology": 1.0}
    assert score(GOOD, keys, wanted=wanted)["extra"]["prompt_score"]["wanted"] == 0.9
    assert (
        "difficulty"
        not in score(GOOD, {"extra": {"difficulty": "hard"}}, **options)["extra"]["prompt_score"]
    )


def test_records_with_an_answer_pass_as_they_are() -> None:
    other = prompt("x", extra={"kind": "instruction"})
    assert ScorePrompt(ScorePromptConfig(kinds=["reasoning"])).apply(other) is other
    given = prompt("x")
    given["messages"].append({"role": "assistant", "content": "y"})
    assert ScorePrompt(ScorePromptConfig()).apply(given) is given


def test_unknown_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights: unknown feature 'lenght'; known: length, ques"):
        ScorePrompt(ScorePromptConfig(weights={"lenght": 1.0}))
