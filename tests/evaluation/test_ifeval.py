"""IFEval's rules: by hand, by answers made to follow or break, and the four accuracies."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.evaluation.accuracies import named
from megatron_ring.evaluation.ifeval import IFEval
from megatron_ring.evaluation.ifeval.counting import (
    count_capital_words,
    count_sentences,
    count_words,
)
from megatron_ring.evaluation.ifeval.language import detect, may_be_english
from megatron_ring.evaluation.ifeval.rules import RULES, compares, follows, follows_loosely
from megatron_ring.evaluation.task import Item
from tests.evaluation.ifeval_answers import PROSE, pair

GOLDEN = Path(__file__).parent / "golden" / "ifeval.jsonl"
NUMBERS = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
ITEMS = IFEval(TaskConfig(file=GOLDEN)).items()
ASKED = [
    (name, of)
    for item in ITEMS
    for name, of in zip(item.gold["instructions"], item.gold["arguments"], strict=True)
]


def test_golden_prompts_ask_for_all_instructions() -> None:
    assert {name for name, _ in ASKED} == set(RULES)
    assert len(RULES) == 25


@pytest.mark.parametrize(("name", "of"), ASKED, ids=[name for name, _ in ASKED])
def test_made_answers_follow_and_break(name: str, of: dict[str, Any]) -> None:
    good, bad = pair(name, of)
    assert follows(good, name, of)
    assert follows_loosely(good, name, of)
    assert not follows(bad, name, of)
    assert not follows(" \n", name, of)
    assert not follows_loosely("", name, of)


# An instruction, its arguments, texts that follow and texts that do not: the rules' edges.
EDGES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["cat"]}, ["a CATalogue"], ["c at"]),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, ["rocks"], ["Rock!", "a rock"]),
    (
        "keywords:frequency",
        {"keyword": "war", "relation": "less than", "frequency": 2},
        ["warm"],
        ["warm WAR"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a *** b", "***\na\n***\nb\n***"],
        ["a\n\nb", "a *** *** b", "a"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        ["a\n\nSo, b", "a\n\n\"so' b"],
        ["a\n\nsofa b", "so\n\na", "a\nso", "a\n\n\n\nso"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["a\np.p.s. b", "a P. P. S"],
        ["a P.S. b"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["P. S. b"], ["P.S b"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n  - b", "* a\n**b**\n- c", "*\n* a\n* b"],
        ["a * b\n* c", "* a", "1. a\n2. b"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and **b**"],
        ["*a\nb* **", "**a**", "* *  ** **"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        ["Day 1\nDay2"],
        ["day 1 day 2", "Day one Day 2"],
    ),
    ("detectable_format:json_format", {}, ["[]", "```\n1\n```"], ["a [] b", "```js\n{}\n```", "{"]),
    ("detectable_format:json_format", {}, ['"a"'], ["[" * 100000]),
    ("detectable_format:title", {}, ["x <<a>>"], ["<a>", "<<\n>>", "<<>>"]),
    (
        "combination:two_responses",
        {},
        ["******a******b", "a\n******\nb\n******\n"],
        ["a", "a ****** b ****** c", "a ****** ****** b", "a***b"],
    ),
    ("startend:end_checker", {"end_phrase": "Bye."}, ['"So bye."'], ["Bye", "Bye.)"]),
    ("startend:quotation", {}, ['"a"'], ['"', "'a'", '"a".']),
    ("change_case:english_capital", {}, ["THE 2 CATS!"], ["42", "ЭТО ОН", "THE CATs"]),
    ("change_case:english_lowercase", {}, ["rain falls"], ["das ist nicht der hund", "это он"]),
    ("detectable_format:constrained_response", {}, ["So: My answer is no."], ["my answer is no."]),
]


@pytest.mark.parametrize(("name", "of", "good", "bad"), EDGES, ids=[e[0] for e in EDGES])
def test_edges(name: str, of: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not follows(text, name, of)] == []
    assert [text for text in bad if follows(text, name, of)] == []


def test_words_and_capital_words_by_hand() -> None:
    assert count_words("Don't stop: 3.5 snake_case") == 6
    assert count_capital_words("I am LOUD, U.S. and ALL-OUT 42 (NASA) iOS") == 5
    assert count_capital_words("IT'S CAN'T CANNOT") == 6
    assert count_capital_words("A/B C,D 'QUOTED' X...Y") == 6


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, " \n"),
        (1, "no mark"),
        (2, "One. two"),
        (2, "One?! Two…"),
        (3, '"Yes!" he said. "No."'),
        (1, "- a\n- b\n- c"),
        (2, "Dr. A. Smith sees Mrs. Jones. She waits"),
        (2, "It is e.g. here at 5 p.m. and so on etc. It ends."),
        (1, "Well... it is 3.5 and example.com."),
        (2, "Well... It is."),
        (4, "1. First. 2. Second."),
        (2, "So am I. You too."),
    ],
)
def test_sentences_by_hand(number: int, text: str) -> None:
    assert count_sentences(text) == number


@pytest.mark.parametrize("language", PROSE)
def test_language_is_detected_whatever_the_case(language: str) -> None:
    text = PROSE[language]
    assert detect(text) == detect(text.upper()) == language
    assert may_be_english(text) == (language == "en")


def test_language_without_words_that_tell() -> None:
    assert detect("") is detect("1234 !?") is detect("xyzzy") is None
    assert detect("これは日本語です。") == "ja"
    assert detect("这是中文") == "zh"
    assert may_be_english("xyzzy")
    assert detect("Հայերեն") is None


def test_relation_must_be_known() -> None:
    with pytest.raises(ValueError, match="relation 'at most' is neither 'at least' nor 'less"):
        compares(1, "at most", 2)


def test_loose_forgives_intro_outro_and_bold_but_nothing_else() -> None:
    name: str = "detectable_format:json_format"
    for text in ("Sure!\n[1]", "[1]\nDone.", "Sure!\n[1]\nDone.", "**[1]**", "Sure!\n**[1]**\nBye"):
        assert not follows(text, name, {})
        assert follows_loosely(text, name, {})
    assert not follows_loosely("Sure!\nHere:\n[1]", name, {})


def item(*pairs: tuple[str, dict[str, Any]]) -> Item:
    gold = {"instructions": [name for name, _ in pairs], "arguments": [of for _, of in pairs]}
    return Item(id="1", messages=[], gold=gold)


def test_grade_and_accuracies_by_hand() -> None:
    task = IFEval(TaskConfig(file=GOLDEN))
    asked = item(("punctuation:no_comma", {}), ("startend:quotation", {}))
    both = task.grade(asked, '<think>\nA, b.\n</think>\n\n"Yes."')
    one = task.grade(asked, 'Sure:\n"Yes."')
    none = task.grade(asked, "<think>\nstill at it, and")
    assert [g.verdict for g in (both, one, none)] == ["right", "wrong", "no_answer"]
    assert [g.score for g in (both, one, none)] == [1.0, 0.0, 0.0]
    assert [g.extracted for g in (both, one, none)] == ['"Yes."', 'Sure:\n"Yes."', ""]
    assert json.loads(one.detail) == {"strict": [True, False], "loose": [True, True]}
    assert [g.parts for g in (both, one, none)] == [
        dict.fromkeys(NUMBERS, 1.0),
        dict(zip(NUMBERS, (0.0, 1.0, 0.5, 1.0), strict=True)),
        dict.fromkeys(NUMBERS, 0.0),
    ]


def test_the_four_official_numbers_by_hand() -> None:
    """Of 3 instructions 1 is followed strictly, 2 loosely; of 2 prompts 0 and 1."""
    task = IFEval(TaskConfig(file=GOLDEN))
    two = item(("punctuation:no_comma", {}), ("startend:quotation", {}))
    single = replace(item(("punctuation:no_comma", {})), id="2", facts={"instructions": 1})
    two = replace(two, facts={"instructions": 2})
    texts = [(two, 'Sure:\n"Yes."'), (single, "No, no.")]
    lines = [{"id": one.id, **asdict(task.grade(one, text))} for one, text in texts]
    found = named({one.id: one for one in (two, single)}, lines, task.averages)
    values = [found[name]["value"] for name in NUMBERS]
    assert values == pytest.approx([0, 1 / 2, 1 / 3, 2 / 3])


def test_items_carry_the_prompt_and_no_null_arguments(tmp_path: Path) -> None:
    row = {"key": 7, "prompt": "Hi", "instruction_id_list": ["detectable_format:title"]}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**row, "kwargs": [{"num_words": None}]}) + "\n\n")
    (only,) = IFEval(TaskConfig(file=path)).items()
    assert only.id == "7"
    assert only.messages == [{"role": "user", "content": "Hi"}]
    assert only.gold == {"instructions": ["detectable_format:title"], "arguments": [{}]}
    assert only.facts == {"instructions": 1}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "a.jsonl: cannot read a.jsonl: line 1, column 2: Expecting property name"),
        ("[]", "cannot read a.jsonl: a list of objects is wanted, or an object a line"),
        ('{"key": 1, "prompt": "", "kwargs": []}', "row 1 of a.jsonl has no instruction_id_list"),
        (
            '{"key": 1, "prompt": "", "instruction_id_list": ["a"], "kwargs": []}',
            "tasks.ifeval: key 1: 1 instructions, 0 kwargs",
        ),
        (
            '{"key": 1, "prompt": "", "instruction_id_list": ["a"], "kwargs": [{}]}',
            "tasks.ifeval: key 1: no rule for instruction a; known: ['change_case",
        ),
        (
            '{"key": 1, "prompt": "", "instruction_id_list": ["keywords:frequency"], '
            '"kwargs": [{"keyword": "a", "frequency": null}]}',
            "key 1: keywords:frequency has no relation, frequency",
        ),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError) as error:
        IFEval(TaskConfig(file=path)).items()
    assert complaint in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^tasks.ifeval.file: there is no file .*/b.jsonl$"):
        IFEval(TaskConfig(file=tmp_path / "b.jsonl")).items()


def test_the_hubs_rows_are_read_too(tmp_path: Path) -> None:
    """A folder stands in for the hub: `datasets` loads both in the same way."""
    (tmp_path / "train.jsonl").write_bytes(GOLDEN.read_bytes())
    assert IFEval(TaskConfig(hub=str(tmp_path))).items() == ITEMS
