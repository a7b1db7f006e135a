import numpy as np
import pytest

from megatron_ring.data.packing import best_fit, draw, make_plan


def textbook(lengths, capacity):
    """Quadratic best-fit decreasing: look at every row; of equals, the one filled last."""
    rows, rooms, touched = [], [], []
    for clock, index in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fitting = [r for r in range(len(rows)) if rooms[r] >= lengths[index]]
        if fitting:
            best = min(fitting, key=lambda r: (rooms[r], -touched[r]))
        else:
            best = len(rows)
            rows.append([])
            rooms.append(capacity)
            touched.append(0)
        rows[best].append(index)
        rooms[best] -= lengths[index]
        touched[best] = clock
    return rows


@pytest.mark.parametrize("seed", range(30))
def test_best_fit_is_the_textbook_loop(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 60))
    lengths = rng.integers(1, capacity + 1, size=rng.integers(0, 200)).tolist()
    assert best_fit(lengths, capacity) == textbook(lengths, capacity)


def test_best_fit_by_hand():
    """Room 3 is tighter than room 5, so the 3 joins the 7; the first 5 of two equals goes first."""
    assert best_fit([3, 5, 7, 5, 1], 10) == [[2, 0], [1, 3], [4]]


def test_best_fit_loses_and_splits_nothing():
    lengths = np.random.default_rng(0).lognormal(6, 1, 20_000).clip(1, 4096).astype(int)
    rows = best_fit(lengths, 4096)
    assert sorted(index for row in rows for index in row) == list(range(20_000))
    assert max(lengths[row].sum() for row in rows) <= 4096
    assert lengths.sum() / (4096 * len(rows)) > 0.999


def test_nothing_to_pack():
    assert best_fit([], 10) == []


@pytest.mark.parametrize("length", [0, 11])
def test_best_fit_refuses_a_length_outside_the_row(length):
    with pytest.raises(ValueError) as error:
        best_fit([4, length], 10)
    assert str(error.value) == f"document 1 has {length} tokens; a row holds 1 to 10"


def counts_of(num_documents, weight, epochs):
    drawn = [draw(num_documents, weight, epoch, seed=3, source=1) for epoch in range(epochs)]
    return [np.bincount(part, minlength=num_documents) for part in drawn]


def test_half_weight_over_two_epochs_shows_every_document_once():
    first, second = counts_of(10, 0.5, 2)
    assert (first.sum(), second.sum()) == (5, 5)
    assert (first + second == 1).all()


def test_weight_two_shows_every_document_twice_an_epoch():
    assert all((epoch == 2).all() for epoch in counts_of(7, 2.0, 3))


def test_fractional_weight_carries_on_through_the_next_epoch():
    """1.3 × 7 = 9.1 documents an epoch, 91 in ten; no document is ever two ahead of another."""
    epochs = counts_of(7, 1.3, 10)
    assert sum(epoch.sum() for epoch in epochs) == 91
    for shown in np.cumsum(epochs, axis=0):
        assert shown.max() - shown.min() <= 1


def test_draws_differ_between_seeds_and_sources():
    base = draw(50, 1.0, 0, seed=1, source=0).tolist()
    assert base == draw(50, 1.0, 0, seed=1, source=0).tolist()
    others = [draw(50, 1.0, *rest).tolist() for rest in [(1, 1, 0), (0, 2, 0), (0, 1, 1)]]
    assert base not in others


def test_plan_holds_each_source_as_often_as_its_weight_says():
    """Sources of 40 and 30 documents, weights 1 and 0.5, two epochs: 40 + 15 placements each."""
    lengths = np.random.default_rng(0).integers(1, 100, 70)
    plan = make_plan(lengths, [40, 30], [1.0, 0.5], row_tokens=128, epochs=2, seed=7)
    rows = np.split(plan.documents, plan.row_starts[1:-1])
    assert sum(plan.rows_in_epoch) == len(rows)
    assert max(lengths[row].sum() for row in rows) <= 128
    first = np.concatenate(rows[: plan.rows_in_epoch[0]])
    assert sorted(first[first < 40]) == list(range(40))
    assert (first >= 40).sum() == 15
    assert np.bincount(plan.documents).tolist() == [2] * 40 + [1] * 30


def test_plan_depends_on_the_seed_only():
    lengths = np.full(60, 10)  # all equal: only the seed decides who shares a row
    plans = [make_plan(lengths, [60], [1.0], 20, epochs=1, seed=seed) for seed in (1, 1, 2)]
    assert plans[0].documents.tolist() == plans[1].documents.tolist()
    assert plans[0].documents.tolist() != plans[2].documents.tolist()
    neighbours = [set(map(frozenset, plan.documents.reshape(-1, 2).tolist())) for plan in plans]
    assert neighbours[0] != neighbours[2]


def test_rows_mix_the_sources():
    """Best fit keeps the order of equals, so without a shuffle only like would sit with like."""
    plan = make_plan(np.full(80, 10), [40, 40], [1.0, 1.0], 20, epochs=1, seed=1)
    mixed = [(row < 40).sum() == 1 for row in plan.documents.reshape(-1, 2)]
    assert 8 < sum(mixed) < 32
