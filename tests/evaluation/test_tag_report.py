"""Rates of wrong think tags: counts by hand, intervals against a search for their ends."""

import math
from typing import Any

import pytest

from megatron_ring.evaluation.tag_report import COLUMNS, Share, by_group, count, markdown

SAMPLES: list[dict[str, Any]] = [
    {"task": "a", "text": "<think>x</think>y", "finish_reason": "stop"},
    {"task": "a", "text": "<think>x y", "finish_reason": "stop"},
    {"task": "a", "text": "<think>x y", "finish_reason": "length"},
    {"task": "a", "text": "<think>x</think>y <think>", "finish_reason": "length"},
    {"task": "a", "text": "x</think>y", "finish_reason": "stop", "primed": True},
    {"task": "b", "text": "x</think>y", "finish_reason": "stop"},
    {"task": "b", "text": "y", "finish_reason": "stop"},
    {"task": "b", "text": "<think>x</think>", "finish_reason": "tool_calls", "calls": True},
    {"task": "b", "text": "<think>x</think>y", "finish_reason": "length"},
    {"task": "b", "text": "x y", "finish_reason": "length"},
    {"task": "b", "text": "x</think>", "finish_reason": "stop", "primed": True},
    {"task": "b", "text": "x <think>x</think></think>y", "finish_reason": "stop"},
]


def test_counts_by_hand() -> None:
    groups = by_group(SAMPLES, ["task"])
    assert list(groups) == [("a",), ("b",)]
    a, b = groups.values()
    assert (a.answers, a.finished, a.wrong, dict(a.errors)) == (5, 3, 1, {"missing_close": 1})
    assert (a.truncated, a.truncated_thinking) == (2, 2)
    assert (b.answers, b.finished, b.wrong, b.truncated, b.truncated_thinking) == (7, 5, 4, 2, 1)
    assert dict(b.errors) == {
        "missing_open": 2,
        "missing_close": 1,
        "empty": 1,
        "redundant": 1,
        "misplaced": 1,
    }
    both = count(SAMPLES)
    assert both.errors == a.errors + b.errors and both.answers == 12
    assert by_group(SAMPLES, []) == {(): both} and count([]).answers == 0


def test_shares_by_hand() -> None:
    shares = by_group(SAMPLES, ["task"])[("b",)].shares()
    found = {name: (share.part, share.whole) for name, share in shares.items()}
    assert found == {
        "finished": (5, 7),
        "any error": (4, 5),
        "missing open": (2, 5),
        "missing close": (1, 5),
        "redundant": (1, 5),
        "misplaced": (1, 5),
        "empty": (1, 5),
        "truncated": (2, 7),
        "of these in the thought": (1, 2),
    }


@pytest.mark.parametrize(
    ("part", "whole"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50), (7, 1000)]
)
def test_interval_is_where_the_score_test_says_no(part: int, whole: int) -> None:
    """Wilson's ends are the p at which |part/whole - p| is 1.96 standard errors of that p."""
    low, high = Share(part, whole).interval
    assert 0 <= low <= part / whole <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            apart = abs(part / whole - p) / math.sqrt(p * (1 - p) / whole)
            assert apart == pytest.approx(1.959964, abs=1e-5)
    assert (low < 1e-12) == (part == 0) and (high > 1 - 1e-12) == (part == whole)


def test_nothing_is_known_of_no_answers() -> None:
    assert Share(0, 0).interval == (0.0, 1.0) and math.isnan(Share(0, 0).value)
    assert str(Share(0, 0)) == "0 of 0"
    assert str(Share(3, 50)) == "3 of 50, 6.0% (2.1 to 16.2)"


def test_markdown() -> None:
    lines = markdown({"a": count(SAMPLES[:5])}).splitlines()
    assert lines[0] == f"|  | {' | '.join(COLUMNS)} |"
    assert lines[1] == "|" + " --- |" * 10
    assert lines[2].startswith("| a | 3 of 5, 60.0% (23.1 to 88.2) | 1 of 3, 33.3% (6.1 to 79.2) |")
    assert lines[2].count("|") == 11 and len(lines) == 3


def test_samples_that_lack_a_key() -> None:
    told = r"sample 2 has no finish_reason, task \(its keys: text\); sample again, or give what it"
    with pytest.raises(ValueError, match=told):
        by_group([SAMPLES[0], {"text": "x"}], ["task"])
    with pytest.raises(ValueError, match=r"sample 1 has no text, finish_reason \(its keys: none\)"):
        count([{}])
