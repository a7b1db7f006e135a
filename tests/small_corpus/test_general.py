"""General samples: their answers are right by the rules of the benchmarks that judge them."""

import json
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from reasoning_gym.arithmetic.leg_counting import ANIMALS

from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.data.chat import check_turns, written_out
from megatron_ring.evaluation.chats import ChatSamples
from megatron_ring.small_corpus import general
from megatron_ring.think import tag_errors

KINDS = {"facts": general.facts, "instructions": general.instructions, "calls": general.calls}


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answers_are_right(kind: str, tmp_path: Path) -> None:
    samples = list(islice(KINDS[kind](random.Random(5)), 400))
    file = tmp_path / "all.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in samples))
    task = ChatSamples(kind, TaskConfig(kind="chats", file=file))
    for item, sample in zip(task.items(), samples, strict=True):
        said = written_out(check_turns(sample["messages"]), sample.get("tools"))[-1]["content"]
        assert task.grade(item, said).verdict == "right", (sample, said)
        assert tag_errors(said) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_to_another_prompt_is_wrong(kind: str, tmp_path: Path) -> None:
    samples = list(islice(KINDS[kind](random.Random(6)), 200))
    file = tmp_path / "all.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in samples))
    task = ChatSamples(kind, TaskConfig(kind="chats", file=file))
    texts = [written_out(check_turns(one["messages"]), None)[-1]["content"] for one in samples]
    items = task.items()
    right = sum(
        task.grade(item, texts[i - 1]).score
        for i, item in enumerate(items)
        if item.gold != items[i - 1].gold
    )
    # Rules do not look at what is said, and a looser prompt's hold for a stricter one's answer.
    assert right <= (60 if kind == "instructions" else 0)


def test_halves_of_the_facts_share_no_subject_and_are_all() -> None:
    tested, taught = (set(general.questions(part)) for part in (0, 1))
    assert tested.isdisjoint(taught)
    assert tested | taught == set(general.questions())
    # 60 capitals, 40 symbols, 30 opposites, 20 animals, 37 with legs, each asked in three ways
    assert len(general.questions()) == 3 * (60 + 40 + 30 + 20 + 37)
    assert len(tested) == 3 * (30 + 20 + 15 + 10 + 19)
    answers = Counter(relation for _, _, relation in tested)
    assert answers == {"capital": 90, "symbol": 60, "opposite": 45, "animal": 30, "legs": 57}
    drawn = {
        one["messages"][0]["content"] for one in islice(general.facts(random.Random(0), 1), 99)
    }
    assert drawn <= {question for question, _, _ in taught}


def test_sums_are_right_and_legs_are_the_problems_own() -> None:
    seen = set()
    for sample in islice(general.arithmetic(random.Random(4)), 500):
        asked, answer = (turn["content"] for turn in sample["messages"])
        expression = asked.removesuffix(" =").replace("mod", "%")
        assert eval(expression) == int(answer), asked
        seen |= {sign for sign in "+-*/%" if f" {sign} " in expression}
    assert seen == set("+-*/%")
    legs = dict(general.table("facts"))["legs"]["known"]
    assert legs == ANIMALS


def test_repeats_are_the_words_of_the_prompt() -> None:
    samples = list(islice(general.repeats(random.Random(7)), 300))
    lengths = set()
    for sample in samples:
        asked, answer = (turn["content"] for turn in sample["messages"])
        assert asked.endswith(answer) and asked != answer
        lengths.add(len(re.split(r" \+ |; |, | ", answer)))
    assert {2, 3, 4, 5, 6} <= lengths


def test_all_shapes_manners_and_tools_come(tmp_path: Path) -> None:
    rules = Counter(
        rule["id"]
        for sample in islice(general.instructions(random.Random(2)), 500)
        for rule in sample["instructions"]
    )
    assert len(rules) == 9 and min(rules.values()) >= 10
    called = Counter(
        sample["messages"][-1]["tool_calls"][0]["function"]["name"]
        for sample in islice(general.calls(random.Random(2)), 300)
    )
    assert set(called) == {tool["name"] for tool in dict(general.table("tools"))["tools"]}
    assert min(called.values()) >= 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_samples(kind: str) -> None:
    one, same, other = (list(islice(KINDS[kind](random.Random(s)), 30)) for s in (1, 1, 2))
    assert one == same != other
