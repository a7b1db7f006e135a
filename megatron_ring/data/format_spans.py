"""Which characters of two answers are structure: the think tags and what surrounds them.

A pair may differ in structure alone, and then its whole weight belongs there. The texts are
searched, not the tokens: `<think>` is no token of its own in Ling's vocabulary.
"""

import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_ring import think
from megatron_ring.data.tokenizer import Span

# Without spaces between words, as in Chinese and Japanese, a character is a word.
IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{IDEOGRAPHS}]|[^\s{IDEOGRAPHS}]+")


def think_spans(one: str, other: str) -> tuple[list[Span], list[Span]]:
    """Spans of both answers in which the model decides where its thought begins and ends.

    The *place* of a tag is the number of characters before it that are neither white space nor in a
    tag. A place counts in both answers if their texts, so stripped, agree up to it: a missing tag
    is scored where it should have been. At each place a span covers the white space and the tags,
    and the word behind them, which stands there instead of another tag. With `<think>so</think>4`
    against `<think>so 4`, the places are 0 (before "so") and 2 (before "4"), the spans

        <think>so|</think>4       and       <think>so| 4

    each cut in two at "|". Nothing behind a place means the end token, whose position is len(text):
    a span up to len(text) + 1 holds it.
    """
    scans = [_Scan.of(one), _Scan.of(other)]
    common = len(os.path.commonprefix([scan.text for scan in scans]))
    shared = {place for scan in scans for place in scan.places if place <= common}
    first, second = (
        [_around(text, scan, place) for place in sorted(scan.places | shared)]
        for text, scan in zip((one, other), scans, strict=True)
    )
    return first, second


def mark(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """bool [tokens]; True where a token's characters overlap a span.

    A token made of nothing (an empty range) is marked where it stands inside a span.
    """
    marked = np.zeros(len(offsets), bool)
    for start, stop in spans:
        for i, (first, last) in enumerate(offsets):
            marked[i] |= first < stop and max(last, first + 1) > start < stop
    return marked


@dataclass(frozen=True)
class _Scan:
    text: str  # without white space and tags
    positions: list[int]  # where its characters stand in the answer
    places: set[int]  # of the tags

    @classmethod
    def of(cls, answer: str) -> "_Scan":
        positions: list[int] = []
        places: set[int] = set()
        for found in re.finditer(rf"{think.TAG.pattern}|\S", answer):
            if think.TAG.fullmatch(found.group()):
                places.add(len(positions))
            else:
                positions.append(found.start())
        return cls("".join(answer[p] for p in positions), positions, places)


def _around(answer: str, scan: _Scan, place: int) -> Span:
    """White space, tags and the word behind them, at one place."""
    start = scan.positions[place - 1] + 1 if place else 0
    if place == len(scan.positions):
        return start, len(answer) + 1
    behind = scan.positions[place]
    word = WORD.match(answer, behind)
    assert word is not None, f"white space at {behind}"
    tag = think.TAG.search(answer, behind)
    return start, min(word.end(), tag.start() if tag else len(answer))
