"""Damaged think tags: the checker names the damage, words stay, and differences are marked."""

import random
import re

import pytest

from megatron_ring.config.curation.preference import StructureConfig
from megatron_ring.curation import corrupt_tags
from megatron_ring.curation.corrupt_tags import COUNTED_AS
from megatron_ring.think import ERRORS, tag_errors

ANSWERS = [
    "<think>\n3 + 4 = 7\n7 - 1 = 6\n</think>\n6",
    "<think>\nWell.\n</think>\n\nYes, it is.\nQuite.",
    "<think>so it is</think>true",
    "  <think>\n\na b\n c\n\n</think>  d",
]
RIGHT = ANSWERS[0]


@pytest.mark.parametrize("kind", corrupt_tags.KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_checker_names_the_damage(answer: str, kind: str) -> None:
    assert tag_errors(answer) == []
    for seed in range(40):
        damaged = corrupt_tags.corrupt(answer, kind, random.Random(seed))
        assert tag_errors(damaged) == [COUNTED_AS[kind]], damaged
        assert words(damaged) == words(answer)
        assert damaged == corrupt_tags.corrupt(answer, kind, random.Random(seed))


PIECES = [
    *[
        "so",
        "it is",
        "因为七加三等于十，",
        "所以答案是十。",
        "$\\frac{1}{2}$",
        "x < 3",
        "a > b",
        "é 🙂",
    ],
    *["```python\nif a < b:\n    print('think')\n```", "<b>bold</b>", "</thinking>", "<thinking>"],
    *["< think>", "think>", "<|think|>", "<Think>", "\\<think\\>", "</ think>", "1.", "-"],
]
SPACES = ["", " ", "\n", "\n\n", "\t", "\u3000", "\xa0", "\r\n", " \n "]


def random_text(rng: random.Random, more: tuple[str, ...] = ()) -> str:
    """Words, code, Chinese and what only looks like a tag; not blank at its ends."""
    parts = [rng.choice([*PIECES, *more]) for _ in range(rng.randint(1, 8))]
    return "".join(part + rng.choice(SPACES) for part in parts).strip()


def random_answer(rng: random.Random, more: tuple[str, ...] = ()) -> str:
    space = [rng.choice(SPACES) for _ in range(5)]
    thought, said = random_text(rng, more), random_text(rng, more)
    return f"{space[0]}<think>{space[1]}{thought}{space[2]}</think>{space[3]}{said}{space[4]}"


@pytest.mark.parametrize("kind", corrupt_tags.KINDS)
def test_every_damage_is_counted_whatever_the_text(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(400):
        answer = random_answer(rng)
        assert tag_errors(answer) == []
        damaged = corrupt_tags.corrupt(answer, kind, rng)
        assert tag_errors(damaged) == [COUNTED_AS[kind]], (answer, damaged)
        assert words(damaged) == words(answer)
        check_spans(answer, damaged, corrupt_tags.differences(answer, damaged))


def check_spans(one: str, other: str, spans: tuple[list, list]) -> None:
    """Marked are tags and single characters; the tags outside are as many in both texts."""
    left = []
    for text, own in zip((one, other), spans, strict=True):
        pieces = [text[slice(*span)] for span in own]
        assert all(re.fullmatch(r"</?think>|\S", piece) for piece in pieces), pieces
        starts = [start for start, _ in own]
        assert starts == sorted(set(starts))
        tags = re.findall("</?think>", text)
        for piece in pieces:
            if piece in tags:
                tags.remove(piece)
        left.append(tags)
    assert left[0] == left[1] and any(spans)


def test_what_may_be_damaged_is_what_the_checker_finds_right() -> None:
    """Answers that quote a tag as code are right, and left alone as well."""
    rng, right = random.Random(5), 0
    for _ in range(3000):
        answer = random_answer(rng, ("<think>", "</think>", "```\n<think>\n```"))
        answer = answer.replace(rng.choice(["<think>", "</think>", "\0"]), "", 1)
        fits = corrupt_tags.split(answer) is not None
        plain = len(re.findall("</?think>", answer)) == 2
        assert fits == (plain and tag_errors(answer) == []), answer
        right += fits
    assert 300 < right < 2700


def test_the_names_of_damages_are_the_same_everywhere() -> None:
    assert tuple(StructureConfig.model_fields["shares"].default) == corrupt_tags.KINDS
    assert set(COUNTED_AS) == set(corrupt_tags.KINDS) and set(COUNTED_AS.values()) == set(ERRORS)


def words(text: str) -> list[str]:
    return re.sub("</?think>", " ", text).split()


def test_damage_by_hand() -> None:
    def damaged(kind: str) -> set[str]:
        return {corrupt_tags.corrupt(ANSWERS[1], kind, random.Random(s)) for s in range(20)}

    assert damaged("missing_open") == {"Well.\n</think>\n\nYes, it is.\nQuite."}
    assert damaged("missing_close") == {"<think>\nWell.\nYes, it is.\nQuite."}
    assert damaged("redundant") == {
        "<think>\n<think>\nWell.\n</think>\n\nYes, it is.\nQuite.",
        "<think>\nWell.\n</think>\n\n</think>\n\nYes, it is.\nQuite.",
    }
    assert damaged("misplaced") == {"</think>\n\nWell.\n<think>\nYes, it is.\nQuite."}
    assert damaged("answer_inside") == {"<think>\nWell.\nYes, it is.\nQuite.\n</think>"}
    assert damaged("empty") == {"<think>\n</think>\n\nWell.\nYes, it is.\nQuite."}


@pytest.mark.parametrize(
    "answer", ["no tags", "<think>a</think>", "x <think>a</think>b", RIGHT * 2]
)
def test_only_right_answers_are_damaged(answer: str) -> None:
    assert corrupt_tags.split(answer) is None
    with pytest.raises(ValueError, match="not an answer of the shape <think>thought</think>answer"):
        corrupt_tags.corrupt(answer, "empty", random.Random(0))


BLOCK = "```python\nx = 1\ny = 2\n```"


@pytest.mark.parametrize("kind", ["redundant", "misplaced"])
def test_no_tag_is_put_where_it_would_be_code(kind: str) -> None:
    """Of nine places in this thought, one is outside the block."""
    answer = f"<think>\n{BLOCK} so\n{BLOCK}\n</think>\n3"
    for seed in range(200):
        damaged = corrupt_tags.corrupt(answer, kind, random.Random(seed))
        assert tag_errors(damaged) == [kind], damaged
        assert "<think>" not in damaged.split("```")[1]


def test_a_thought_that_is_all_code_is_damaged_as_well() -> None:
    """Nowhere is the opening tag both misplaced and seen: it comes behind an open block."""
    damaged = corrupt_tags.corrupt("<think>```py</think>3", "misplaced", random.Random(0))
    assert damaged == "</think>```py<think>3"


def test_unknown_damage_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown damage 'lost'; known: missing_open, missing_cl"):
        corrupt_tags.corrupt(RIGHT, "lost", random.Random(0))


def marked(one: str, other: str) -> tuple[list[str], list[str]]:
    spans = corrupt_tags.differences(one, other)
    return tuple(
        [text[slice(*s)] for s in of] for text, of in zip((one, other), spans, strict=True)
    )


@pytest.mark.parametrize(
    ("other", "in_right", "in_other"),
    [
        (RIGHT, [], []),
        ("3 + 4 = 7\n7 - 1 = 6\n</think>\n6", ["<think>"], ["3"]),
        ("<think>\n3 + 4 = 7\n7 - 1 = 6\n6", ["</think>"], ["6"]),
        ("<think><think>3 + 4 = 7\n7 - 1 = 6\n</think>\n6", ["3"], ["<think>"]),
        ("<think>\n3 + 4 = 7\n</think>7 - 1 = 6\n</think>\n6", ["7"], ["</think>"]),
        ("3 + 4 = 7\n<think>\n7 - 1 = 6\n</think>\n6", ["<think>", "7"], ["3", "<think>"]),
        (
            "</think>\n3 + 4 = 7\n7 - 1 = 6\n<think>\n6",
            ["<think>", "</think>"],
            ["</think>", "<think>"],
        ),
        ("<think>\n</think>3 + 4 = 7\n7 - 1 = 6\n6", ["3", "</think>"], ["</think>", "6"]),
        ("<think>\n3 + 4 = 7\n7 - 1 = 6\n</think>\n6</think>", [], ["</think>"]),
        ("<think>\n3 + 4 = 7\n7 - 1 = 6\n6\n</think>", ["</think>"], ["6", "</think>"]),
    ],
)
def test_differences_by_hand(other: str, in_right: list[str], in_other: list[str]) -> None:
    assert marked(RIGHT, other) == (in_right, in_other)
    assert marked(other, RIGHT) == (in_other, in_right)


def test_the_marked_character_stands_at_the_parting_place() -> None:
    """The second 7 of the thought, not the first."""
    spans, _ = corrupt_tags.differences(RIGHT, RIGHT.replace("7 - 1", "</think>7 - 1"))
    assert spans == [(RIGHT.index("7 - 1"), RIGHT.index("7 - 1") + 1)]


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="the two texts differ in more than their think tags"):
        corrupt_tags.differences(RIGHT, RIGHT.replace("6", "5"))
