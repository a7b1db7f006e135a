"""How many answers agree: counts by hand, and the order of the answers that changes nothing."""

import random
from collections.abc import Callable

import pytest

from megatron_ring.curation.collect.answers import Verdict
from megatron_ring.curation.collect.equality import MathVerifyPool
from megatron_ring.curation.synthesis.agreement import Agreement, Class, agree


def said(table: dict[str, Verdict], asked: list[str] | None = None) -> Callable[..., Verdict]:
    """Verdicts from a table of "a b", either way round; unknown where it has none."""

    def same(one: str, other: str) -> Verdict:
        if asked is not None:
            asked.append(f"{one} {other}")
        return table.get(f"{one} {other}", table.get(f"{other} {one}", "unknown"))

    return same


def votes(found: Agreement) -> dict[str, int]:
    return {one.answer: one.votes for one in found.classes}


def test_counts_by_hand() -> None:
    answers = ["7", "7.0", None, "$7$", "8", "7", "", "14/2", "\\frac{16}{2}", "$ $"]
    found = agree(answers)
    assert found == Agreement(
        classes=(Class("7", 5, (0, 1, 3, 5, 7)), Class("8", 2, (4, 8))), without=3, timeouts=0
    )
    assert found.agreed(5) == "7" and found.agreed(6) is None
    assert agree([]) == Agreement((), 0, 0) and agree([]).agreed(1) is None
    assert agree([None, None]) == Agreement((), 2, 0)


def test_six_of_ten_is_more_than_five() -> None:
    five, six = ["1"] * 5 + ["2"] * 5, ["1"] * 6 + ["2"] * 4
    assert agree(six).agreed(min_votes=6) == "1"
    assert agree(five).agreed(min_votes=6) is None
    assert agree(five).agreed(min_votes=5) is None  # a tie has no winner
    assert agree(five[:9]).agreed(min_votes=5) == "1"
    assert votes(agree(five)) == {"1": 5, "2": 5}


def test_the_most_frequent_then_shortest_then_first_spelling_speaks() -> None:
    assert agree(["0.50", "1/2", "1/2", ".5"]).agreed(4) == "1/2"
    assert agree(["0.50", "1/2", "0.5", ".5"]).agreed(4) == ".5"
    assert agree(["1/2", "0.5", "2/4"]).agreed(3) == "0.5"  # "0.5" < "1/2" < "2/4"
    # The leading form is the most frequent one, though none of its spellings is.
    forms = ["x+1", "x + 1", "$x+1$", "1+x", "1+x"]
    assert agree(forms, said({"1+x x+1": "right"})).agreed(5) == "x+1"


def test_letters_of_choices_in_all_spellings_are_one() -> None:
    found = agree(["B", "(B)", "b. four", "\\text{B}", "C", "B)"])
    assert votes(found) == {"B": 5, "C": 1}


def test_a_percentage_votes_with_what_it_equals() -> None:
    assert votes(agree(["50\\%", "50", "50"])) == {"50": 3}
    assert votes(agree(["50\\%", "0.5", "0.5"])) == {"0.5": 3}
    # 50 = 50% = 0.5, and still 50 is not 0.5: who equals the leading form votes for it.
    assert votes(agree(["50\\%", "50", "50", "0.5"])) == {"50": 3, "0.5": 1}


def test_only_distinct_forms_that_plain_text_leaves_open_are_compared() -> None:
    asked: list[str] = []
    answers = ["x+1", "x + 1", "1+x", "1+x", "x+1", "3", "4", "3.0", "y"]
    found = agree(answers, said({"1+x x+1": "right"}, asked))
    # Order: x+1 (3), 3 (2: 3, 3.0), 1+x (2), 4, y. Numbers with each other need no question.
    assert asked == ["3 x+1", "1+x x+1", "4 x+1", "y x+1", "y 3", "y 4"]
    assert votes(found) == {"x+1": 5, "3": 2, "4": 1, "y": 1}


def test_what_differs_from_the_leading_form_has_no_vote_in_its_class() -> None:
    table: dict[str, Verdict] = {"ax bx": "right", "bx cx": "right", "ax cx": "wrong"}
    assert votes(agree(["ax", "bx", "bx", "cx"], said(table))) == {"bx": 4}
    assert votes(agree(["ax", "ax", "bx", "cx"], said(table))) == {"ax": 3, "cx": 1}
    # All alike: ax leads, by its letters.
    assert votes(agree(["cx", "bx", "ax"], said(table))) == {"ax": 2, "cx": 1}


def test_a_timeout_joins_nothing_and_is_counted() -> None:
    table: dict[str, Verdict] = {"ax bx": "timeout", "bx cx": "right", "ax cx": "timeout"}
    found = agree(["ax", "ax", "bx", "cx", None], said(table))
    assert found == Agreement(
        (Class("ax", 2, (0, 1)), Class("bx", 2, (2, 3))), without=1, timeouts=2
    )
    assert found.agreed(2) is None
    # A class may grow past the form that led at first.
    found = agree(["ax", "ax", "bx", "cx", "cx", "cx"][:4] + ["bx"], said(table))
    assert votes(found) == {"bx": 3, "ax": 2} and found.agreed(3) == "bx"


def test_the_order_of_the_answers_changes_nothing() -> None:
    rng = random.Random(0)
    pool = ["ax", "bx", "cx", "a x", "$bx$", "0.5", "1/2", "50\\%", "50", "B", "(B)", "", None]
    kinds: list[Verdict] = ["right", "wrong", "unknown", "timeout"]
    for _ in range(300):
        table = {
            f"{a} {b}": rng.choice(kinds) for a in ("ax", "bx", "cx") for b in ("bx", "cx", "50")
        }
        answers = [rng.choice(pool) for _ in range(10)]
        found = agree(answers, said(table))
        places = list(range(10))
        rng.shuffle(places)
        other = agree([answers[place] for place in places], said(table))
        assert (found.without, found.timeouts) == (other.without, other.timeouts)
        moved = [
            Class(one.answer, one.votes, tuple(sorted(places[at] for at in one.members)))
            for one in other.classes
        ]
        assert list(found.classes) == moved
        # Each answer votes once.
        members = [at for one in found.classes for at in one.members]
        assert len(members) == len(set(members)) == 10 - found.without
        assert [len(one.members) for one in found.classes] == [one.votes for one in found.classes]


def test_answers_in_several_forms_agree_by_math_verify() -> None:
    pytest.importorskip("math_verify")
    answers = [r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", "x = 5", "5", None]
    answers += [r"\dfrac{\sqrt3}{3}", r"\frac{\sqrt{3}}{3}", "5", "y = 5"]
    with MathVerifyPool(1, timeout=120) as pool:
        found = agree(answers, pool.compare)
    assert votes(found) == {r"\frac{\sqrt{3}}{3}": 4, "5": 4}
    assert found.agreed(4) is None and found.classes[0].answer == "5"  # a tie
    assert found.without == 1 and found.timeouts == 0
