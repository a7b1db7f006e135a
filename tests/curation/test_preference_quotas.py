"""Quotas filled as far as they can be, against trying everything; and none twice."""

import itertools
import random

import pytest

from megatron_ring.curation.preference.quotas import Assignment, divide

Fits = dict[int, tuple[str, ...]]


def most(fits: Fits, room: dict[str, int]) -> int:
    """The largest number of prompts that have a place, by trying all ways."""
    best = 0
    for way in itertools.product(*[[None, *cells] for cells in fits.values()]):
        taken = [cell for cell in way if cell is not None]
        if all(taken.count(cell) <= size for cell, size in room.items()):
            best = max(best, len(taken))
    return best


def check(assignment: Assignment, fits: Fits, room: dict[str, int]) -> None:
    taken = list(assignment.cell_of.values())
    assert all(taken.count(cell) <= size for cell, size in room.items())
    assert all(cell in fits[prompt] for prompt, cell in assignment.cell_of.items())


def test_as_many_as_can_be_and_those_that_are_in_stay() -> None:
    rng = random.Random(0)
    moved = 0
    for _ in range(300):
        cells = ["a", "b", "c", "d"][: rng.randint(1, 4)]
        room = {cell: rng.randint(0, 3) for cell in cells}
        fits = {n: tuple(rng.sample(cells, rng.randint(1, len(cells)))) for n in range(7)}
        assignment = Assignment()
        assignment.open_cells(room)
        for stop in (4, 7):
            inside, before = set(assignment.cell_of), dict(assignment.cell_of)
            left = [n for n in range(stop) if n not in inside]
            assignment.place(left, fits)
            check(assignment, fits, room)
            assert inside <= set(assignment.cell_of)
            moved += any(assignment.cell_of[n] != before[n] for n in before)
            seen = {n: fits[n] for n in range(stop)}
            assert len(assignment.cell_of) == most(seen, room), (fits, room)
    assert moved > 20


def test_the_first_ones_go_first() -> None:
    assignment = Assignment()
    assignment.open_cells({"a": 2})
    assignment.place([5, 3, 9], dict.fromkeys([3, 5, 9], ("a",)))
    assert set(assignment.cell_of) == {5, 3}


def test_what_is_scarce_is_spread_by_quota() -> None:
    assignment = Assignment()
    assignment.open_cells({"a": 60, "b": 20, "c": 20})
    assignment.place(range(10), dict.fromkeys(range(10), ("a", "b", "c")))
    taken = list(assignment.cell_of.values())
    assert [taken.count(cell) for cell in "abc"] == [6, 2, 2]


def test_cells_are_closed_and_opened() -> None:
    fits = {0: ("a", "x"), 1: ("b", "x"), 2: ("a", "x")}
    assignment = Assignment()
    assignment.open_cells({"a": 1, "b": 3})
    assignment.place([0, 1, 2], fits)
    assert assignment.cell_of == {0: "a", 1: "b"}
    assert (assignment.close("a"), assignment.close("b")) == (0, 2)
    assignment.open_cells({"x": 2})
    assignment.place([2], fits)
    assert assignment.cell_of == {0: "a", 1: "b", 2: "x"}
    # Of a closed cell nothing is left, though prompts are in it: 1 can only go on to x.
    assignment.place([3], {3: ("b",)})
    assert assignment.cell_of == {0: "a", 1: "x", 2: "x", 3: "b"}


def test_restricted_prompts_stay() -> None:
    fits = {0: ("a", "b"), 1: ("a",)}
    assignment = Assignment()
    assignment.open_cells({"a": 1, "b": 1})
    assignment.place([0], {0: ("a", "b")})
    assignment.restrict(0, [assignment.cell_of[0]])
    held = assignment.cell_of[0]
    assignment.place([1], {1: (held,)})
    assert assignment.cell_of == {0: held}
    free = Assignment()
    free.open_cells({"a": 1, "b": 1})
    free.place([0, 1], fits)
    assert free.cell_of == {0: "b", 1: "a"}


@pytest.mark.parametrize(
    ("total", "shares", "expected"),
    [
        (4000, {"a": 2, "b": 1, "c": 1}, {"a": 2000, "b": 1000, "c": 1000}),
        (
            800,
            dict.fromkeys("abcdef", 1.0),
            {**dict.fromkeys("ab", 134), **dict.fromkeys("cdef", 133)},
        ),
        (1, {"a": 1, "b": 3}, {"a": 0, "b": 1}),
        (0, {"a": 1}, {"a": 0}),
    ],
)
def test_totals_are_divided_without_a_rest(total: int, shares: dict, expected: dict) -> None:
    assert divide(total, shares) == expected
