"""Texts as bags of hashed n-grams: of words, of the letters in them, of Chinese characters.

No vocabulary is kept, so that no text of a training set can be read out of a model file.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import xxhash

BUCKETS = 1 << 15  # 1 << 14 and 1 << 16 label within 0.5 points of it; the model file grows with it
MAX_CHARACTERS = 1200  # a question says what it is about in its first lines
PIECE = re.compile(
    r"(?P<command>\\[a-zA-Z]+)|(?P<word>[a-zA-Z]+)|(?P<number>\d+(?:\.\d+)?)|(?P<han>[\u4e00-\u9fff]+)"
    r"|(?P<sign>[^\s\w])"
)


def ngrams(text: str) -> Iterator[str]:
    """Its features, repeated as often as they come; each kind has a mark of its own in front."""
    before = ""
    for found in PIECE.finditer(text[:MAX_CHARACTERS]):
        kind, piece = found.lastgroup, found.group()
        if kind == "han":
            for size in (1, 2, 3):
                yield from (f"h{piece[i : i + size]}" for i in range(len(piece) - size + 1))
            before = ""
            continue
        if kind == "number":
            # Which number hardly matters; how long it is does: 3 apples, the year 1848, 0.082.
            piece = "0.0" if "." in piece else "0" * min(len(piece), 4)
        elif kind == "word":
            piece = piece.lower()
            marked = f"<{piece}>"
            yield from (f"l{marked[i : i + 4]}" for i in range(len(marked) - 3) if len(piece) > 3)
        yield f"w{piece}"
        if before:
            yield f"p{before} {piece}"
        before = piece


def features(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Buckets int32, sorted, and their weights 1 + ln(count) float32: what tf-idf starts from."""
    counts = Counter(xxhash.xxh32_intdigest(gram.encode()) % BUCKETS for gram in ngrams(text))
    buckets = sorted(counts)
    weights = [1 + math.log(counts[bucket]) for bucket in buckets]
    return np.asarray(buckets, np.int32), np.asarray(weights, np.float32)


def weighted(text: str, idf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Buckets int32 and tf-idf weights float32 of Euclidean length 1; empty for an empty text."""
    buckets, weights = features(text)
    weights = weights * idf[buckets]
    return buckets, weights / max(float(np.linalg.norm(weights)), 1e-12)
