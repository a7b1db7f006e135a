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
from megatron_ring.curation.decontaminate.ngrams import Index, expanded, groups
from megatron_ring.curation.decontaminate.words import NUMBER, Salt, Words

ANCHORS = 6  # of an item, its rarest content words
SHARED = 0.5  # of an item's anchors, in a text, for it to be compared
MIN_WORDS = 5  # content words of an item; fewer say too little
TOP = 5  # neighbours of a text
_MARKS = 256  # bits that tell roughly which words there are


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
        self._index = Index(self._anchors)
        # Sets of Python: of some twenty numbers they are faster than arrays.
        self._words = [set(item.words.tolist()) for item in items]
        self._stops = Index(np.unique(stop_stems(salt)))
        self._sizes = np.array([len(item.words) for item in items])
        rows = np.repeat(np.arange(len(items)), self._sizes)
        every = np.concatenate([item.words for item in items] + [np.zeros(0, np.uint64)])
        self._marks = _marks(rows, every, len(items))
        # Words of an item that share a mark with another one of it.
        self._hidden = self._sizes - _count(self._marks)

    def search(self, batch: Words) -> list[Neighbour]:
        """Neighbours of each text of a batch, at most TOP, nearest first; ordered by text."""
        stems_W = batch.stems(self._salt)
        hits, anchors = self._index.find(stems_W)
        both, _, _ = groups(np.sort(batch.text_of(hits) * max(len(self._anchors), 1) + anchors))
        texts, anchors = np.divmod(both, max(len(self._anchors), 1))
        rows, places = expanded(self._first, anchors)
        keys = (texts * len(self._words))[rows] + self._owners[places]
        keys, _, shared = groups(np.sort(keys))
        keys = keys[shared >= self._enough[keys % len(self._words)]]
        if not len(keys):
            return []
        content_W = batch.classes_W != NUMBER
        content_W[self._stops.find(stems_W)[0]] = False
        found: dict[int, list[Neighbour]] = {}
        own: dict[int, set[int]] = {}
        for key in self._likely(keys, batch, stems_W, content_W).tolist():
            text, item = divmod(key, len(self._words))
            if text not in own:
                part = slice(batch.first_T[text], batch.first_T[text + 1])
                own[text] = set(stems_W[part][content_W[part]].tolist())
            mine, theirs = own[text], self._words[item]
            overlap = 2 * len(mine & theirs) / (len(mine) + len(theirs))
            if overlap >= self._lowest:
                found.setdefault(text, []).append(Neighbour(text, item, overlap))
        nearest = [sorted(near, key=lambda n: (-n.overlap, n.item)) for near in found.values()]
        return [one for near in nearest for one in near[:TOP]]

    def _likely(
        self, keys: np.ndarray, batch: Words, stems_W: np.ndarray, content_W: np.ndarray
    ) -> np.ndarray:
        """Those pairs of text and item whose overlap may be enough, by bits instead of words: no
        more words are shared than marks and hidden words, and a text has no fewer than marks."""
        texts, items = np.divmod(keys, len(self._words))
        which, _, times = groups(texts)
        rows, places = expanded(batch.first_T, which)
        rows, places = rows[content_W[places]], places[content_W[places]]
        marks = _marks(rows, stems_W[places], len(which))
        rows = np.repeat(np.arange(len(which)), times)
        shared = _count(marks[rows] & self._marks[items]) + self._hidden[items]
        least = _count(marks)[rows]
        return keys[2 * shared / (least + self._sizes[items]) >= self._lowest]


def _marks(rows: np.ndarray, stems: np.ndarray, num_rows: int) -> np.ndarray:
    """uint64 [num_rows, _MARKS / 64]: a bit for each stem of a row."""
    flags = np.zeros((num_rows, _MARKS), bool)
    flags[rows, (stems >> np.uint64(56)).view(np.int64)] = True
    return np.packbits(flags, axis=1).view(np.uint64)


def _count(marks: np.ndarray) -> np.ndarray:
    """int64: bits of each row."""
    return np.bitwise_count(marks).sum(axis=1, dtype=np.int64)
