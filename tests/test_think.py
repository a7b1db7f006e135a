"""Thoughts, replies and tags: strings labelled by hand, and a slower reading of the rules."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_ring import think
from megatron_ring.curation import corrupt_tags
from megatron_ring.think import ERRORS, TRUNCATED, Parts, is_plain, join, split, tag_errors

# Each with its errors, and its reply without white space around it. Labels came before the counter.
STRINGS = Path(__file__).with_name("think_strings.jsonl").read_text(encoding="utf-8")
LABELLED = [json.loads(line) for line in STRINGS.split("\n") if line]
SWITCHES = ("primed", "truncated", "calls")
PIECES = [
    *[
        "<think>",
        "</think>",
        "<think>",
        "</think>",
        "so",
        "it is",
        " ",
        "\n",
        "\n\n",
        "七加三",
        "。",
    ],
    *["<Think>", "</thinking>", "x < 3", "\t", "\u3000", "think>", "</"],
]
CODE = [
    *["`<think>`", "`</think>`", "``</think> ` ``", "`<think>a</think>`", "`x`"],
    *[
        f"\n{fence}\n{inside}\n{fence}\n"
        for fence, inside in (
            ("```", "<think>\na\n</think>\nb"),
            ("~~~", "s.split('</think>')"),
            ("````", "```\n<think>\n```"),
        )
    ],
]


def texts(pieces: list[str], number: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(pieces, k=rng.randint(0, 9))) for _ in range(number)]


def switched(one: dict[str, Any]) -> dict[str, bool]:
    return {name: one.get(name, False) for name in SWITCHES}


def test_labelled_strings() -> None:
    wrong = []
    for number, one in enumerate(LABELLED, 1):
        found = tag_errors(one["text"], **switched(one))
        reply = split(one["text"], one.get("primed", False)).answer.strip()
        if (found, reply) != (one["errors"], one["reply"]):
            wrong.append((number, one, found, reply))
    assert not wrong


def test_the_labelled_strings_are_many_and_of_all_kinds() -> None:
    assert len({(one["text"], *switched(one).values()) for one in LABELLED}) == len(LABELLED) >= 200
    groups = Counter(one["group"] for one in LABELLED)
    errors = Counter(error for one in LABELLED for error in one["errors"])
    assert set(errors) == {*ERRORS, TRUNCATED}
    assert min(errors.values()) >= 15 and min(groups.values()) >= 8
    assert sum(not one["errors"] for one in LABELLED) >= 60
    assert sum(one.get("primed", False) for one in LABELLED) >= 60


def slow_errors(text: str) -> list[str]:
    """The rules, read for texts without code: tag by tag, on the letters o and c and x for text."""
    shape = re.sub(r"[^oc]+", "x", re.sub(r"\s+", "", text.replace("o", ".").replace("c", ".")
        .replace("<think>", "o").replace("</think>", "c")))  # fmt: skip
    first = shape.partition("o")
    wrong = {
        "missing_open": "o" not in shape,
        "missing_close": "c" not in shape,
        "redundant": shape.count("o") > 1 or shape.count("c") > 1,
        "misplaced": "o" in shape and first[0] != "",
        "empty": ("c" in first[2] and "x" not in first[2].partition("c")[0])
        or ("c" in shape and "x" not in shape.partition("c")[2]),
    }
    return [name for name in ERRORS if wrong[name]]


def test_errors_against_the_slow_reading() -> None:
    seen: Counter[str] = Counter()
    for text in texts(PIECES, 6000, 1):
        assert tag_errors(text) == slow_errors(text), text
        seen.update(tag_errors(text) or ["none"])
    assert set(seen) == {*ERRORS, "none"} and min(seen.values()) > 20


def test_a_primed_answer_is_one_with_the_tag_before_it() -> None:
    for text in texts([*PIECES, *CODE], 4000, 2):
        whole = think.OPEN + text
        assert split(text, primed=True) == split(whole), text
        for truncated in (False, True):
            assert tag_errors(text, True, truncated) == tag_errors(whole, False, truncated), text


def test_text_and_parts_belong_together() -> None:
    """Nothing between the first tag and the end is lost, and the parts are what they are called."""
    for text in texts([*PIECES, *CODE], 4000, 3):
        parts, tags = split(text), think.tags(text)
        if not tags:
            assert parts == Parts(None, text, True)
            continue
        assert [text[tag.start : tag.stop] for tag in tags] == [
            think.OPEN if tag.opens else think.CLOSE for tag in tags
        ]
        start = tags[0].stop if tags[0].opens else 0
        whole = (parts.thought or "") + think.CLOSE * parts.closed + parts.answer
        assert text[start:] == whole
        assert parts.closed or parts.answer == ""
        assert parts.closed == (not tags[-1].opens)


def test_a_cut_takes_nothing_but_what_may_have_been_cut_off() -> None:
    """However the answer goes on, the errors seen at the cut stay, but for the last tag's."""
    for text in texts(PIECES, 3000, 4):
        at = random.Random(text).randint(0, len(text))
        now = tag_errors(text[:at], truncated=True)
        assert now[-1] == TRUNCATED and "missing_close" not in now
        later = tag_errors(text)
        if "missing_open" in now and "missing_open" not in later:
            assert "misplaced" in later, (text, at)
        assert set(now) - {TRUNCATED, "missing_open"} <= set(later), (text, at)


def test_what_is_quoted_changes_nothing() -> None:
    """Code put in a thought and in a reply: the same errors as of words that stand there."""
    for seed, code in enumerate(CODE * 20):
        rng = random.Random(seed)
        for kind in (None, "missing_open", "missing_close", "redundant", "misplaced", "empty"):
            answer = "<think>\nPAINT it so\n</think>\n\nBRUSH and go"
            if kind is not None:
                answer = corrupt_tags.corrupt(answer, kind, rng)
            quoted = answer.replace("PAINT", code + "\nPAINT").replace("BRUSH", "BRUSH " + code)
            assert tag_errors(quoted) == tag_errors(answer), quoted


@pytest.mark.parametrize("kind", corrupt_tags.KINDS)
def test_damages_of_primed_answers(kind: str) -> None:
    """The prompt's tag cannot be lost or come late; the answer's own is then one too many."""
    answer = "<think>\nSo it is\n七\n</think>\n\n3"
    for seed in range(60):
        damaged = corrupt_tags.corrupt(answer, kind, random.Random(seed))
        if kind == "missing_open":
            assert tag_errors(damaged, primed=True) == []
        elif damaged.startswith(think.OPEN):
            wanted = [corrupt_tags.COUNTED_AS[kind]]
            assert tag_errors(damaged.removeprefix(think.OPEN), primed=True) == wanted
            assert "redundant" in tag_errors(damaged, primed=True)
        else:
            assert (
                kind == "misplaced"
                and "redundant" in tag_errors(damaged, primed=True)
                or (damaged.startswith(think.CLOSE))
            )


@pytest.mark.parametrize(
    ("text", "primed", "parts"),
    [
        ("<think>\na\n</think>\n\n  b\n", False, Parts("\na\n", "\n\n  b\n", True)),
        ("a</think>b", False, Parts("a", "b", True)),
        ("a</think>b", True, Parts("a", "b", True)),
        ("a", False, Parts(None, "a", True)),
        ("a", True, Parts("a", "", False)),
        ("", True, Parts("", "", False)),
        ("<think> \n", False, Parts(" \n", "", False)),
        ("Well, <think>a<think>b</think>c</think>d", False, Parts("a<think>b</think>c", "d", True)),
        ("<think>a</think>b<think>c", False, Parts("a</think>b<think>c", "", False)),
        ("`<think>`a", False, Parts(None, "`<think>`a", True)),
    ],
)
def test_parts_by_hand(text: str, primed: bool, parts: Parts) -> None:
    assert split(text, primed) == parts
    assert think.answer_of(text, primed) == parts.answer


def test_join_and_split_are_inverse() -> None:
    assert join("a\nb ", "c") == "<think>\na\nb\n</think>\n\nc"
    assert [join(thought, " c\n") for thought in (None, "", " \n")] == [" c\n"] * 3
    for thought in texts(PIECES[4:] + CODE, 500, 5):
        parts = split(join(thought, "d ``e``"))
        assert (parts.thought or "").strip() == thought.strip()
        assert parts.answer.strip() == "d ``e``"


def test_data_hold_no_other_tag() -> None:
    assert is_plain(" <think>a</think>b\n")
    for text in ("b", "<think>a</think>", "<think>`</think>`</think>b", "a<think></think>b"):
        assert not is_plain(text)


def test_long_texts_take_no_time() -> None:
    """A line of 400,000 characters with marks that never pair, and as many blocks: seconds in all,
    where a scan that starts anew at each mark would take hours."""
    marks = "".join("`" * (1 + n % 7) + "ab'' " for n in range(60_000))
    blocks = "```py\nx = 1\n~~~\n" * 25_000
    for text in (marks, blocks, "<think>" + blocks):
        assert len(think.tags(text + "</think>")) <= 2


@pytest.mark.parametrize(
    ("answer", "errors"),
    [
        ("<think>a\nb</think>c", []),
        ("\n<think>\na\n</think>\n\nc\n", []),
        ("a\n</think>\nc", ["missing_open"]),
        ("<think>\na\nc", ["missing_close"]),
        ("a\nc", ["missing_open", "missing_close"]),
        ("", ["missing_open", "missing_close"]),
        ("<think>\n<think>\na\n</think>\nc", ["redundant"]),
        ("<think>\na\n</think>\n</think>\nc", ["redundant"]),
        ("<think>\na\n</think>\nc\n</think>", ["redundant"]),
        ("<think>\na\n</think>\n<think>\nb\n</think>\nc", ["redundant"]),
        ("well,\n<think>\na\n</think>\nc", ["misplaced"]),
        ("</think>\na\n<think>\nc", ["misplaced"]),
        ("</think><think>a</think>c", ["redundant", "misplaced"]),
        ("<think>\n</think>\nc", ["empty"]),
        ("<think>\na\n</think>\n", ["empty"]),
        ("a\n</think>", ["missing_open", "empty"]),
        ("<think></think>", ["empty"]),
        ("<think> </think></think> a", ["redundant", "empty"]),
        ("<thinking>a</thinking>c", ["missing_open", "missing_close"]),
    ],
)
def test_by_hand(answer: str, errors: list[str]) -> None:
    assert tag_errors(answer) == errors
