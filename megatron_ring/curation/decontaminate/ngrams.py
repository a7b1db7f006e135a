"""Which items of benchmarks lie in texts: the share of an item's n-grams that a text has.

One pass over all words of a batch: a hash for every n-gram, one look into a table of bits that
nearly all of them fail, and the few that pass are searched for among the sorted hashes.

Letters: W = words of a batch, T = texts of a batch, G = distinct n-grams of the benchmarks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megatron_ring.curation.decontaminate import words
from megatron_ring.curation.decontaminate.fingerprints import Item
from megatron_ring.curation.decontaminate.words import Salt, Words

EXTRA = (
    4  # a short item is looked for in texts with at most so many other words for each of its own
)
_BITS = np.uint8(1) << np.arange(8, dtype=np.uint8)
_SLOT_SPREAD = np.uint64(0xA0761D6478BD642F)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)


class Found(NamedTuple):
    """An item in a text."""

    text: int
    item: int  # index into the items searched for
    coverage: float  # share of the item's n-grams, 0 to 1
    start: int  # words start to stop of the batch: the longest run of n-grams of the item
    stop: int


@dataclass(frozen=True)
class Filter:
    """A table of bits that says of most hashes that they are not in a set, in one look.

    Bits, not bytes: the table of 50,000 hashes then fits the second cache of a core.
    """

    bits: np.ndarray  # uint8 [2^k / 8]
    shift: np.uint64

    @classmethod
    def of(cls, hashes: np.ndarray) -> "Filter":
        """At least 32 bits a hash, so that at most one in 32 others passes."""
        size = max(12, int(32 * len(hashes)).bit_length())
        shift = np.uint64(64 - size)
        flags = np.zeros(1 << size, bool)
        flags[((hashes * _SPREAD) >> shift).view(np.int64)] = True
        return cls(np.packbits(flags, bitorder="little"), shift)

    def passing(self, hashes: np.ndarray) -> np.ndarray:
        """int64: indices of those that may be in the set."""
        places = hashes * _SPREAD
        places >>= self.shift
        places = places.view(np.int64)
        bit = _BITS.take(places & 7)
        places >>= 3
        bit &= self.bits.take(places)
        return np.flatnonzero(bit != 0)


class Index:
    """The places of hashes in a sorted array. A hash is looked for in one slot of a wide table,
    which most others leave empty; only where two of the array share a slot is it searched for."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = hashes  # uint64, ascending, distinct
        size = max(12, int(8 * len(hashes)).bit_length())
        self._shift = np.uint64(64 - size)
        self._slots = np.full(1 << size, -1, np.int32)
        self._slots[self._places(hashes)] = np.arange(len(hashes))
        self._filter = Filter.of(hashes)

    def find(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64, int64: which of `values` are in the array, and at which place of it."""
        there = self._filter.passing(values)
        values = values[there]
        at = self._slots.take(self._places(values)).astype(np.int64)
        taken = np.flatnonzero(at >= 0)
        there, at, values = there[taken], at[taken], values[taken]
        others = np.flatnonzero(self._hashes.take(at) != values)
        at[others] = np.searchsorted(self._hashes, values[others])
        same = np.flatnonzero(self._hashes.take(at, mode="clip") == values)
        return there[same], at[same]

    def _places(self, hashes: np.ndarray) -> np.ndarray:
        # Another multiplier than the filter's, or what passes there would find no empty slot.
        return ((hashes * _SLOT_SPREAD) >> self._shift).view(np.int64)


class NgramSearch:
    """The n-grams of items, ready to be looked for."""

    def __init__(self, items: Sequence[Item], n: int, threshold: float, salt: Salt) -> None:
        """An item is found where `threshold` (0 to 1) of its n-grams are, or all if it is whole."""
        self.n, self.salt = n, salt
        long = [k for k, item in enumerate(items) if item.size == n]
        grams = np.concatenate([items[k].grams for k in long] + [np.zeros(0, np.uint64)])
        owners = np.repeat(np.array(long, np.int64), [len(items[k].grams) for k in long])
        self._grams_G, place = np.unique(grams, return_inverse=True)
        order = np.argsort(place, kind="stable")
        # The items of n-gram g are _owners[_first_G[g] : _first_G[g + 1]].
        self._owners = owners[order]
        self._first_G = np.searchsorted(place[order], np.arange(len(self._grams_G) + 1))
        self._index = Index(self._grams_G)
        self._counts = np.array([len(item.grams) for item in items])
        self._needed = np.array([1.0 if item.whole else threshold for item in items])
        short = [k for k, item in enumerate(items) if item.size < n]
        hashes = np.array([items[k].grams[0] for k in short], np.uint64)
        self._short_hashes, place = np.unique(hashes, return_inverse=True)
        order = np.argsort(place, kind="stable")
        self._short = np.array(short, np.int64)[order]
        self._first_short = np.searchsorted(place[order], np.arange(len(self._short_hashes) + 1))
        self._sizes = np.array([item.size for item in items])
        self._short_index = Index(self._short_hashes)
        self._longest = int(self._sizes[short].max(initial=0))

    def search(self, batch: Words) -> list[Found]:
        """Items found in the texts of a batch, by text and item."""
        long, short = self._long_items(batch), self._short_items(batch)
        return sorted(long + short) if short else long

    def _long_items(self, batch: Words) -> list[Found]:
        made_W = words.grams(batch.hashes_W, self.n, self.salt)
        hits, grams = self._index.find(made_W)
        if not len(hits):
            return []
        texts = batch.text_of(hits)
        inside = hits + self.n <= batch.first_T[texts + 1]
        hits, grams, texts = hits[inside], grams[inside], texts[inside]
        if not len(hits):
            return []
        # One row for each hit and each item that has the n-gram.
        rows, places = expanded(self._first_G, grams)
        owners = self._owners[places]
        keys = texts[rows] * len(self._counts) + owners
        order = np.argsort(keys, kind="stable")
        return self._covered(keys[order], grams[rows[order]], hits[rows[order]])

    def _covered(self, keys: np.ndarray, grams: np.ndarray, hits: np.ndarray) -> list[Found]:
        """The pairs of text and item (keys, ascending) with enough n-grams. For each pair `hits`,
        the places of its n-grams, ascend; all pairs are looked at together."""
        # First without the pairs that had too few even if all their hits were of other n-grams.
        pairs, _, counts = groups(keys)
        rows = np.flatnonzero(np.repeat(self._enough(pairs, counts), counts))
        if not len(rows):
            return []
        keys, grams, hits = keys[rows], grams[rows], hits[rows]
        # An n-gram that a text has twice counts once.
        distinct, _, _ = groups(np.sort(keys * len(self._grams_G) + grams))
        pairs, _, counts = groups(distinct // len(self._grams_G))
        enough = self._enough(pairs, counts)
        starts, stops = _longest_runs(keys, hits)
        texts, items = np.divmod(pairs[enough], len(self._counts))
        columns = (
            texts,
            items,
            counts[enough] / self._counts[items],
            starts[enough],
            stops[enough] + self.n,
        )
        return list(map(Found._make, zip(*(c.tolist() for c in columns), strict=True)))

    def _enough(self, pairs: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """bool: whether so many of the n-grams of a pair's item are what is needed of them."""
        items = pairs % len(self._counts)
        return counts / self._counts[items] >= self._needed[items]

    def _short_items(self, batch: Words) -> list[Found]:
        """Items of fewer than n words: texts that begin or end with them, with few words more."""
        if not self._longest:
            return []
        sizes_T = np.diff(batch.first_T)
        few = np.flatnonzero((sizes_T > 0) & (sizes_T <= (EXTRA + 1) * self._longest))
        if not len(few):
            return []
        sizes, edges = sizes_T[few], self._edges(batch, few)
        at, places = self._short_index.find(edges.reshape(-1))
        rows, places = expanded(self._first_short, places)
        found: dict[tuple[int, int], Found] = {}
        for k, item in zip(at[rows].tolist(), self._short[places].tolist(), strict=True):
            number, which = divmod(k, len(few))
            size, at_end = number // 2 + 1, number % 2
            words_there = int(sizes[which])
            fits = size <= words_there <= (EXTRA + 1) * size
            if fits and size == int(self._sizes[item]):
                text = int(few[which])
                start = int(batch.first_T[text]) + at_end * (words_there - size)
                found.setdefault((text, item), Found(text, item, 1.0, start, start + size))
        return list(found.values())

    def _edges(self, batch: Words, few: np.ndarray) -> np.ndarray:
        """uint64 [sizes, 2, texts]: hashes of the first and of the last 1, 2, ... words of each of
        `few` texts, each from those of one word fewer. Those of more words than a text has lie."""
        multiplier, power = self.salt.gram, 1
        number = np.arange(self._longest)[:, None]
        head = batch.hashes_W.take(batch.first_T[few] + number, mode="clip")
        tail = batch.hashes_W.take(batch.first_T[few + 1] - 1 - number, mode="clip")
        edges = np.stack([head, tail], axis=1)
        for k in range(1, self._longest):
            power = power * multiplier % (1 << 64)
            edges[k, 0] += edges[k - 1, 0] * np.uint64(multiplier)
            edges[k, 1] *= np.uint64(power)
            edges[k, 1] += edges[k - 1, 1]
        return edges


def expanded(first: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64, int64: for each k of `which` the places first[k] to first[k + 1], with its index."""
    begin = first[which]
    times = first[which + 1] - begin
    rows = np.repeat(np.arange(len(which)), times)
    begin += times - np.cumsum(times)
    return rows, begin[rows] + np.arange(len(rows))


def groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of sorted values: the distinct ones, where each is first (int64), and how often it is."""
    first = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    return values[first], first, np.diff(first, append=len(values))


def _longest_runs(keys: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of the sorted keys the first and the last of the longest stretch of consecutive
    hits, which ascend; the first of equally long."""
    breaks = np.flatnonzero((np.diff(hits) != 1) | (keys[1:] != keys[:-1]))
    starts, stops = np.append(0, breaks + 1), np.append(breaks, len(hits) - 1)
    _, first, counts = groups(keys[starts])
    longest = np.maximum.reduceat(stops - starts, first)
    candidates = np.flatnonzero(stops - starts == np.repeat(longest, counts))
    best = candidates[np.searchsorted(candidates, first)]
    return hits[starts[best]], hits[stops[best]]
