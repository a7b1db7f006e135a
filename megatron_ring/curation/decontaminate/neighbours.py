"""Items that say the same as a text in partly other words: neighbours by content words.

Words are compared by their stems (first six letters), without numbers and stop words. An item's
rarest words are its anchors: only texts with some of them are compared word by word. What this
cannot see: a text whose words are nearly all others, a translation, formulas alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from megatron_ring.curation.decontaminate.build import stop_stems
from megatron_ring.curation.decontaminate.fingerprints import Item
from megatron_ring.curation.decontaminate.ngrams import Filter
from megatron_ring.curation.decontaminate.words import NUMBER, Salt, Words, sorted_index

ANCHORS = 6  # of an item, its rarest content words
SHARED = 0.5  # of an item's anchors, in a text, for it to be compared
MIN_WORDS = 5  # content words of an item; fewer say too little
TOP = 5  # neighbours of a text


class Neighbour(NamedTuple):
    """An item near a text."""

    text: int
    item: int
    overlap: float  # shared content words, 2 |a ∩ b| / (|a| + |b|)


class NeighbourSearch:
    """The content words of items, ready to be compared."""

    def __init__(self, items: Sequence[Item], lowest: float, salt: Salt) -> None:
        """Neighbours have an overlap of at least `lowest`."""
        self._salt, self._lowest = salt, lowest
        said = [k for k, item in enumerate(items) if len(item.words) >= MIN_WORDS]
        anchors = [items[k].words[:ANCHORS] for k in said]
        owners = np.repeat(np.array(said, np.int64), [len(own) for own in anchors])
        self._anchors, place = np.unique(
            np.concatenate([*anchors, np.zeros(0, np.uint64)]), return_inverse=True
        )
        # Whether enough anchors are there is asked of every pair of text and item, so as an array.
        self._enough = np.full(len(items), np.iinfo(np.int64).max)
        self._enough[said] = np.ceil([SHARED * len(own) for own in anchors])
        order = np.argsort(place, kind="stable")
        self._owners = owners[order]
        self._first = np.searchsorted(place[order], np.arange(len(self._anchors) + 1))
        self._filter = Filter.of(self._anchors)
        # Sets of Python: of some twenty numbers they are faster than arrays.
        self._words = [set(item.words.tolist()) for item in items]
        self._stops = set(stop_stems(salt).tolist())

    def search(self, batch: Words) -> list[Neighbour]:
        """Neighbours of each text of a batch, at most TOP, nearest first; ordered by text."""
        stems_W = batch.stems(self._salt)
        hits = self._filter.passing(stems_W)
        there, anchors = sorted_index(self._anchors, stems_W[hits])
        texts = batch.text_of(hits[there])
        both = np.unique(texts * max(len(self._anchors), 1) + anchors)
        texts, anchors = np.divmod(both, max(len(self._anchors), 1))
        times = self._first[anchors + 1] - self._first[anchors]
        rows = np.repeat(np.arange(len(anchors)), times)
        behind = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
        owners = self._owners[self._first[anchors[rows]] + behind]
        keys, shared = np.unique(texts[rows] * len(self._words) + owners, return_counts=True)
        found: dict[int, list[Neighbour]] = {}
        own: dict[int, set[int]] = {}
        for key in keys[shared >= self._enough[keys % len(self._words)]].tolist():
            text, item = divmod(key, len(self._words))
            if text not in own:
                part = slice(batch.first_T[text], batch.first_T[text + 1])
                said = stems_W[part][batch.classes_W[part] != NUMBER]
                own[text] = set(said.tolist()) - self._stops
            mine, theirs = own[text], self._words[item]
            overlap = 2 * len(mine & theirs) / (len(mine) + len(theirs))
            if overlap >= self._lowest:
                found.setdefault(text, []).append(Neighbour(text, item, overlap))
        nearest = [sorted(near, key=lambda n: (-n.overlap, n.item)) for near in found.values()]
        return [one for near in nearest for one in near[:TOP]]
