"""Which characters and tokens are structure, by hand."""

import numpy as np
import pytest

from megatron_ring.data.format_spans import mark, think_spans

END = "$"  # stands for the end token, which follows the text


def shown(text, spans):
    """The text of each span."""
    return [(text + END)[start:stop] for start, stop in spans]


CASES = {
    "no tags in either": ("so it is", "so it was", [], []),
    "equal structure": (
        "<think>a b</think>c d",
        "<think>a e</think>f g",
        ["<think>a", "</think>c"],
        ["<think>a", "</think>f"],
    ),
    "missing open": (
        "<think>\na b\n</think>\n\nc d",
        "a b\n</think>\n\nc d",
        ["<think>\na", "\n</think>\n\nc"],
        ["a", "\n</think>\n\nc"],
    ),
    "missing close": (
        "<think>so</think>4",
        "<think>so 4",
        ["<think>so", "</think>4"],
        ["<think>so", " 4"],
    ),
    "missing close, words grown together": (
        "<think>so</think>4",
        "<think>so4",
        ["<think>so", "</think>4"],
        ["<think>so4", "4"],
    ),
    "duplicated": (
        "<think>a b</think>c",
        "<think><think>a b</think>\n</think>c",
        ["<think>a", "</think>c"],
        ["<think><think>a", "</think>\n</think>c"],
    ),
    "one more inside": (
        "<think>a b</think>c",
        "<think>a <think>b</think>c",
        ["<think>a", " b", "</think>c"],
        ["<think>a", " <think>b", "</think>c"],
    ),
    "close after the answer": (
        "<think>a b</think>c d",
        "<think>a b c d</think>",
        ["<think>a", "</think>c", END],
        ["<think>a", " c", "</think>" + END],
    ),
    "empty thought": (
        "<think>a b</think>c",
        "<think></think>a b\nc",
        ["<think>a", "</think>c"],
        ["<think></think>a", "\nc"],
    ),
    "nothing but tags": (
        "<think></think>",
        "4",
        ["<think></think>" + END],
        ["4"],
    ),
    # The thoughts part at the second character: the place of </think> is each text's own.
    "other thoughts": (
        "<think>ab cd</think>e f",
        "<think>ax</think>yy z",
        ["<think>ab", "</think>e"],
        ["<think>ax", "</think>yy"],
    ),
    "tags in one of two unlike answers": (
        "<think>ab</think>c",
        "quite another thing",
        ["<think>ab", "</think>c"],
        ["quite"],
    ),
    "a character is a word where there are no spaces": (
        "<think>一加二</think>答案是三。",
        "一加二</think>答案是三。",
        ["<think>一", "</think>答"],
        ["一", "</think>答"],
    ),
    "emoji and accents": (
        "<think>🙂🙂 é</think>é🙂 x",
        "<think>🙂🙂 é é🙂 x",
        ["<think>🙂🙂", "</think>é🙂"],
        ["<think>🙂🙂", " é🙂"],
    ),
}


@pytest.mark.parametrize(("one", "other", "ones", "others"), CASES.values(), ids=CASES)
def test_think_spans_by_hand(one, other, ones, others):
    first, second = think_spans(one, other)
    assert (shown(one, first), shown(other, second)) == (ones, others)
    assert think_spans(other, one) == (second, first)


def test_places_behind_the_first_difference_are_not_shared():
    """Two equal characters, then others: place 2 is shared, place 3 is not."""
    assert think_spans("ab</think>c", "abd") == ([(2, 11)], [(2, 3)])
    assert think_spans("abc</think>", "abd") == ([(3, 12)], [])


def test_tokens_that_overlap_are_marked():
    offsets = [(0, 2), (2, 5), (5, 5), (5, 6), (6, 6), (6, 9)]
    wanted = {
        ((2, 5),): [0, 1, 0, 0, 0, 0],
        ((1, 3),): [1, 1, 0, 0, 0, 0],
        ((5, 6),): [0, 0, 1, 1, 0, 0],
        ((0, 1), (8, 20)): [1, 0, 0, 0, 0, 1],
        ((3, 3),): [0, 0, 0, 0, 0, 0],
        ((-4, 0),): [0, 0, 0, 0, 0, 0],
        ((-4, 1),): [1, 0, 0, 0, 0, 0],
        (): [0, 0, 0, 0, 0, 0],
    }
    for spans, expected in wanted.items():
        assert mark(offsets, spans).tolist() == np.array(expected, bool).tolist(), spans
