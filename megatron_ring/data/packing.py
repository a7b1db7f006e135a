"""Which documents share a row: best fit, and the plan of rows over epochs and weighted sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# First words of the random seeds, so that the three draws never share a stream.
DECK, ORDER, ROWS = 0, 1, 2


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Best-fit decreasing: for each row, the indices of the documents in it.

    Longest first, each into the row with the least room that still holds it. Documents of one
    length keep their order; of rows with equal room the one filled last wins. Free rooms are the
    bits of one integer, so the smallest that fits is a shift and a lowest bit away, and documents
    of one length fill a row together: what is left of the tightest row stays the tightest.
    ValueError for a length outside 1..capacity.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    outside = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(outside):
        at = outside[0]
        raise ValueError(f"document {at} has {lengths[at]} tokens; a row holds 1 to {capacity}")
    order = np.argsort(-lengths, kind="stable")
    starts = np.flatnonzero(np.diff(lengths[order], prepend=0)).tolist()
    rows: list[list[int]] = []
    rows_with_room: list[list[int]] = [[] for _ in range(capacity)]  # free tokens -> row numbers
    rooms = 0  # bit r is set while rows_with_room[r] is not empty
    for start, stop in pairwise([*starts, len(order)]):
        length = int(lengths[order[start]])
        members = order[start:stop].tolist()
        placed = 0
        while placed < len(members):
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                row = rows_with_room[room].pop()
                if not rows_with_room[room]:
                    rooms ^= 1 << room
            else:
                room, row = capacity, len(rows)
                rows.append([])
            chosen = members[placed : placed + room // length]
            rows[row] += chosen
            placed += len(chosen)
            room -= len(chosen) * length
            if room:
                rows_with_room[room].append(row)
                rooms |= 1 << room
    return rows


@dataclass(frozen=True)
class Plan:
    """Row r holds documents[row_starts[r] : row_starts[r + 1]]; rows are in training order."""

    documents: np.ndarray  # int64 [placements]
    row_starts: np.ndarray  # int64 [rows + 1]
    rows_in_epoch: list[int]


def draw(num_documents: int, weight: float, epoch: int, seed: int, source: int) -> np.ndarray:
    """Documents of one source in one epoch: int64 indices into the source, in drawn order.

    The source is a deck, shuffled anew each time it runs out; an epoch deals weight × its size
    cards and the next carries on. No document is seen twice before every other is seen once.
    """
    first, last = (round(e * weight * num_documents) for e in (epoch, epoch + 1))
    if first == last:
        return np.zeros(0, np.int64)
    decks = range(first // num_documents, (last - 1) // num_documents + 1)
    dealt = np.concatenate(
        [
            np.random.default_rng([DECK, seed, source, deck]).permutation(num_documents)
            for deck in decks
        ]
    )
    offset = decks[0] * num_documents
    return dealt[first - offset : last - offset]


def make_plan(
    lengths: np.ndarray,
    source_sizes: Sequence[int],
    weights: Sequence[float],
    row_tokens: int,
    epochs: int,
    seed: int,
) -> Plan:
    """Draw, shuffle and pack each epoch by itself, and shuffle its rows.

    Args:
        lengths: tokens of every document, int64; the documents of a source are contiguous.
        source_sizes: documents of each source; sums to len(lengths).
        weights: times each document of the source is seen in an epoch.
    """
    firsts = np.cumsum([0, *source_sizes])
    assert firsts[-1] == len(lengths), f"{firsts[-1]} documents in sources, {len(lengths)} lengths"
    documents, row_lengths, rows_in_epoch = [], [], []
    for epoch in range(epochs):
        chosen = np.concatenate(
            [
                first + draw(size, weight, epoch, seed, source)
                for source, (first, size, weight) in enumerate(
                    zip(firsts[:-1], source_sizes, weights, strict=True)
                )
            ]
        )
        # Best fit breaks ties by order, so this shuffle decides which equals become neighbours.
        chosen = np.random.default_rng([ORDER, seed, epoch]).permutation(chosen)
        rows = best_fit(lengths[chosen], row_tokens)
        for row in np.random.default_rng([ROWS, seed, epoch]).permutation(len(rows)):
            documents.append(chosen[rows[row]])
            row_lengths.append(len(rows[row]))
        rows_in_epoch.append(len(rows))
    return Plan(
        documents=np.concatenate([np.zeros(0, np.int64), *documents]),
        row_starts=np.cumsum([0, *row_lengths]),
        rows_in_epoch=rows_in_epoch,
    )
