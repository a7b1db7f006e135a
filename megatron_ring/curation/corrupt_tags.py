"""Answers with damaged think tags, as distilled data has them, and where two structures part.

Nothing but tags (and white space beside them) ever changes: a pair of an answer and its damaged
copy differs in structure alone. Ring-Lite-Distill had people write 3K such pairs for its DPO stage.
"""

import random
import re
from itertools import zip_longest
from typing import NamedTuple

from megatron_ring import think

KINDS = ("missing_open", "missing_close", "redundant", "misplaced", "empty", "answer_inside")
# Tag counters see nothing behind </think>, and cannot tell an answer inside from none at all.
TRIES = 100  # draws of a place that is in no code
COUNTED_AS = {kind: kind for kind in KINDS} | {"answer_inside": "empty"}
RIGHT = re.compile(r"\s*(<think>\s*)(\S.*?)(\s*)(</think>\s*)(\S.*)", re.DOTALL)

Span = tuple[int, int]  # characters [start, stop)


class Parts(NamedTuple):
    """An answer whose tags are right; together the parts are its text."""

    open: str  # <think> and the white space behind it
    thought: str
    gap: str  # white space before the closing tag
    close: str  # </think> and the white space behind it
    said: str


def split(answer: str) -> Parts | None:
    """The parts of `<think>thought</think>answer`; None where tags are not just so."""
    found = RIGHT.fullmatch(answer)
    return Parts(*found.groups()) if found and think.is_plain(answer) else None


def corrupt(answer: str, kind: str, rng: random.Random) -> str:
    """`answer` with the damage `kind` (one of KINDS); ValueError when its tags are not right.

    missing_open, missing_close: without that tag. redundant: a tag is doubled, or one stands inside
    the thought once more. misplaced: the opening tag comes after some words of the thought, or both
    tags change places. empty: the thought stands behind empty tags. answer_inside: the closing tag
    comes behind the answer. COUNTED_AS says what `think.tag_errors` counts each as; a tag that
    would stand in code, and so be text, is put elsewhere if there is any other place.
    """
    parts = split(answer)
    if parts is None:
        raise ValueError(
            f"not an answer of the shape <think>thought</think>answer: {answer[:60]!r}"
        )
    if kind not in KINDS:
        raise ValueError(f"unknown damage {kind!r}; known: {', '.join(KINDS)}")
    for _ in range(TRIES):
        damaged = _damage(parts, kind, rng)
        if think.tag_errors(damaged) == [COUNTED_AS[kind]]:
            break
    return damaged


def _damage(parts: Parts, kind: str, rng: random.Random) -> str:
    open_, thought, gap, close, said = parts
    # Where the closing tag goes, words must not grow together.
    apart = gap or close.removeprefix("</think>") or "\n"
    between = [space.end() for space in re.finditer(r"\s+", thought)]
    if kind == "missing_open":
        return thought + gap + close + said
    if kind == "missing_close":
        return open_ + thought + apart + said
    if kind == "redundant":
        how = rng.choice(["open", "close", "inside"] if between else ["open", "close"])
        if how == "inside":
            at = rng.choice(between)
            thought = thought[:at] + rng.choice([open_, close]) + thought[at:]
        return open_ * (1 + (how == "open")) + thought + gap + close * (1 + (how == "close")) + said
    if kind == "misplaced":
        at = rng.choice([*between, None])
        if at is None:
            return close + thought + gap + open_ + said
        return thought[:at] + open_ + thought[at:] + gap + close + said
    if kind == "empty":
        return open_ + close + thought + apart + said
    assert kind == "answer_inside", kind
    return open_ + thought + apart + said.rstrip() + gap + "</think>"


def differences(one: str, other: str) -> tuple[list[Span], list[Span]]:
    """Where the tags of two texts that are equal without them part: characters of each.

    At each such place one text has a tag that the other has not. There the tag is marked in the
    one, and in the other what it has instead: another tag, or the first character of what follows
    (nothing at the end of the text). ValueError when the texts differ elsewhere.
    """
    (tags, characters), (other_tags, other_characters) = _structure(one), _structure(other)
    if [one[at] for at, _ in characters] != [other[at] for at, _ in other_characters]:
        raise ValueError("the two texts differ in more than their think tags")
    spans: tuple[list[Span], list[Span]] = [], []
    for place in sorted({*tags, *other_tags}):
        here = tags.get(place, []) + characters[place : place + 1]
        there = other_tags.get(place, []) + other_characters[place : place + 1]
        for a, b in zip_longest(here, there):
            if a is None or b is None or one[slice(*a)] != other[slice(*b)]:
                spans[0].extend([a] * (a is not None))
                spans[1].extend([b] * (b is not None))
                break
    return spans


def _structure(text: str) -> tuple[dict[int, list[Span]], list[Span]]:
    """Tags by the number of characters before them (white space and tags do not count), and where
    those characters stand."""
    tags: dict[int, list[Span]] = {}
    characters: list[Span] = []
    for piece in re.finditer(r"</?think>|\S", text):
        if think.TAG.fullmatch(piece.group()):
            tags.setdefault(len(characters), []).append(piece.span())
        else:
            characters.append(piece.span())
    return tags, characters
