"""Named numbers: means of groups by hand, weights that sum to one, and how they are told."""

from typing import Any

import pytest

from megatron_ring.evaluation.accuracies import FEW, SHOWN, count, named, score, told
from megatron_ring.evaluation.statistics import avg_at_k
from megatron_ring.evaluation.task import Average, Item


def items(*facts: dict[str, Any]) -> dict[str, Item]:
    return {str(n): Item(id=str(n), messages=[], facts=one) for n, one in enumerate(facts)}


def lines(*scores: float) -> list[dict[str, Any]]:
    return [{"id": str(n), "score": value} for n, value in enumerate(scores)]


def values(found: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: one["value"] for name, one in found.items()}


def test_facts_that_differ_have_a_number_each() -> None:
    some = items({"level": 1, "one": "x"}, {"level": 2, "one": "x"}, {"level": 2, "one": "x"}, {})
    found = named(some, lines(1, 0, 1, 1), {})
    assert values(found) == {"level/1": 1, "level/2": 0.5}
    assert [one["of"] for one in found.values()] == [1, 2]
    alone = avg_at_k([[0], [1]])
    assert (found["level/2"]["low"], found["level/2"]["high"]) == (alone.low, alone.high)


def test_facts_of_many_values_are_left_out() -> None:
    for number, there in ((FEW, FEW), (FEW + 1, 0)):
        some = items(*({"month": n} for n in range(number)))
        assert len(named(some, lines(*[1.0] * number), {})) == there


def test_a_part_is_of_the_items_that_have_it() -> None:
    some = items({}, {}, {})
    graded = lines(0, 0, 1)
    graded[0]["parts"], graded[1]["parts"] = {"a": 1.0, "b": 0.0}, {"a": 0.5}
    found = named(some, graded, {})
    assert values(found) == {"a": 0.75, "b": 0}
    assert [one["of"] for one in found.values()] == [2, 1]


def test_answers_to_an_item_are_one_value() -> None:
    graded = [*lines(1, 0), {"id": "0", "score": 0.0}]
    found = named(items({"f": "p"}, {"f": "q"}), graded, {})
    assert values(found) == {"f/p": 0.5, "f/q": 0}


def test_items_count_by_a_fact() -> None:
    """(3 * 1/3 + 1 * 1) / 4, as 2 of 4 instructions."""
    graded = lines(0, 1)
    graded[0]["parts"], graded[1]["parts"] = {"p": 1 / 3}, {"p": 1.0}
    some = items({"times": 3}, {"times": 1})
    found = named(some, graded, {"p": Average(part="p", weight="times")})
    assert found["p"]["value"] == pytest.approx(0.5)


GROUPED = Average(fact="f", groups=[(["a", "b"], 0.5), (["c"], 0.25), (["none"], 0.25)])


def test_groups_have_shares_however_many_items_they_have() -> None:
    """a and b one group of mean 2/3, c alone 0; d counts nothing; none's share goes to both."""
    some = items({"f": "a"}, {"f": "a"}, {"f": "b"}, {"f": "c"}, {"f": "d"}, {})
    counted = count(GROUPED, list(some.values()))
    assert counted.names == ["0", "1", "2", "3"]
    assert counted.weights == pytest.approx([2 / 9] * 3 + [1 / 3])
    found = named(some, lines(1, 0, 1, 0, 1, 1), {"x": GROUPED})
    assert found["x"]["value"] == pytest.approx(2 / 3 * 2 / 3)
    alike = named(some, lines(1, 0, 1, 0, 1, 1), {"x": Average(fact="f")})
    assert alike["x"]["value"] == pytest.approx((0.5 + 1 + 0 + 1 + 1) / 5)


def test_a_score_may_be_of_groups() -> None:
    some = items({"f": "a"}, {"f": "b"}, {"f": "c"}, {"f": "d"})
    scores = {"0": [1.0, 0.0], "1": [1.0], "2": [0.0], "3": [1.0]}
    found, weights = score(some, scores, {"score": GROUPED})
    assert found.value == pytest.approx(2 / 3 * 0.75)
    assert weights == pytest.approx({"0": 1 / 3, "1": 1 / 3, "2": 1 / 3})
    plain, weights = score(some, scores, {})
    assert plain == avg_at_k(list(scores.values()))
    assert set(weights.values()) == {0.25}
    with pytest.raises(ValueError) as error:
        score(some, {"3": [1.0]}, {"score": GROUPED})
    assert str(error.value) == (
        "none of the items that were asked counts in the score; ask more of them"
    )


def test_numbers_of_nothing_are_left_out() -> None:
    nothing = {"x": Average(fact="f", groups=[(["none"], 1.0)]), "y": Average(part="y")}
    assert named(items({"f": "a"}), lines(1), nothing) == {}


def test_families_are_told_in_a_line() -> None:
    found = {name: {"value": value} for name, value in [("p", 0.5), ("f/a b", 1), ("f/c", 0.25)]}
    assert told("T", found, every=False) == ["T: p 50.0", "T by f: a b 100.0, c 25.0"]
    long = {f"f/{n:03}": {"value": n / 100} for n in range(SHOWN + 1)}
    assert told("T", long, every=False) == [f"T by f: {SHOWN + 1} from 000 0.0 to 012 12.0"]
    assert told("T", long, every=True)[0].count(",") == SHOWN
