"""Pairs by rule: the same words in other tags, another sample's answer, and what does not serve."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.curation.corrupt_tags import KINDS
from megatron_ring.evaluation.think_tags import tag_errors
from tools import make_pairs


def sample(question: str, answer: str, **more: Any) -> dict:
    turns = [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


def write(file: Path, samples: list[dict]) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in samples))
    return file


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    thinking = [
        sample(f"{i} + 1", f"<think>\n{i} and one\n</think>\n{i + 1}", id=f"s{i}", task="sum")
        for i in range(20)
    ]
    apart = sample("apart", "42")
    apart["messages"][-1]["reasoning_content"] = " six times seven "
    plain = [sample("Hello!", "Hi!"), sample("Bye!", "See you.")]
    damaged = sample("damaged", "no start\n</think>\n3", task="sum")
    return write(tmp_path / "chats.jsonl", [*thinking, apart, *plain, damaged])


def test_structural_pairs_differ_in_tags_alone(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pairs.tags(chats, tmp_path / "out" / "pairs.jsonl")
    pairs = lines(tmp_path / "out" / "pairs.jsonl")
    assert "21 pairs; 3 samples left out: no thought between right tags" in capsys.readouterr().out
    right = {line["messages"][0]["content"]: line for line in lines(chats)}
    for pair in pairs:
        [turn] = pair["messages"]
        assert turn["role"] == "user"
        if turn["content"] != "apart":
            assert pair["chosen"] == right[turn["content"]]["messages"][1]["content"]
            assert pair["id"] == right[turn["content"]]["id"]
        assert tag_errors(pair["chosen"]) == []
        assert tag_errors(pair["rejected"]) == [pair["damage"]]
        words = [re.sub("</?think>", " ", pair[key]).split() for key in ("chosen", "rejected")]
        assert words[0] == words[1]
    [apart] = [pair for pair in pairs if pair["messages"][0]["content"] == "apart"]
    assert apart["chosen"] == "<think>\nsix times seven\n</think>\n\n42"
    kinds = [pair["damage"] for pair in pairs]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 4) | {KINDS[0]: 5}


def test_spans_mark_where_structures_part(chats: Path, tmp_path: Path) -> None:
    make_pairs.tags(chats, tmp_path / "pairs.jsonl", number=5)
    pairs = {pair["damage"]: pair for pair in lines(tmp_path / "pairs.jsonl")}
    assert set(pairs) == set(KINDS)

    def marked(kind: str, key: str) -> list[str]:
        pair = pairs[kind]
        return [pair[key][slice(*span)] for span in pair["format_spans"][key]]

    number = pairs["missing_open"]["chosen"].split()[1]
    assert marked("missing_open", "chosen") == ["<think>"]
    assert marked("missing_open", "rejected") == [number[0]]
    assert marked("missing_close", "chosen") == ["</think>"]
    assert marked("missing_close", "rejected") == [pairs["missing_close"]["chosen"].split()[-1][0]]


def test_general_pairs_have_the_answer_of_another_sample_of_the_task(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pairs.answers(chats, tmp_path / "pairs.jsonl")
    assert "1 samples left out: damaged think tags" in capsys.readouterr().out
    sums = {str(i + 1) for i in range(20)}
    pairs = lines(tmp_path / "pairs.jsonl")
    for pair in pairs:
        before, said = make_pairs.final(pair["chosen"])
        assert pair["rejected"].startswith(before)
        other = pair["rejected"].removeprefix(before)
        pool = sums if pair.get("task") else {"42", "Hi!", "See you."}
        assert other in pool - {said}
    assert len({pair["messages"][0]["content"] for pair in pairs}) == len(pairs) > 15


def test_the_final_answer_is_what_follows_the_last_tag() -> None:
    assert make_pairs.final("<think>a</think>\n\n 6\n") == ("<think>a</think>\n\n ", "6")
    assert make_pairs.final(" Hi! ") == (" ", "Hi!")


def test_number_and_seed(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def made(name: str, **options: int) -> str:
        make_pairs.tags(chats, tmp_path / name, **options)
        return (tmp_path / name).read_text()

    assert len(made("few", number=7).splitlines()) == 7
    assert made("a") == made("b") != made("c", seed=2)
    made("many", number=100)
    assert "21 pairs of 100 asked for; 3 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"chats\.jsonl:1: JSONDecodeError"),
        ('{"text": 1}', r"jsonl:1: KeyError 'messages'"),
        (json.dumps({"messages": []}), r"jsonl:1: the last turn is no answer with text"),
        (json.dumps({"messages": [{"role": "assistant", "content": "x"}]}), "no answer with text"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}] * 2}), "no answer with text"),
    ],
)
def test_what_is_no_sample_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(SystemExit, match=message):
        make_pairs.tags(file, tmp_path / "pairs.jsonl")


def test_no_pair_at_all(tmp_path: Path) -> None:
    chats = write(tmp_path / "chats.jsonl", [sample("Hello!", "Hi!")])
    with pytest.raises(SystemExit, match=r"no pair could be made: \{'no thought between right"):
        make_pairs.tags(chats, tmp_path / "pairs.jsonl")
    with pytest.raises(SystemExit, match=r"there is no .*none\.jsonl"):
        make_pairs.tags(tmp_path / "none.jsonl", tmp_path / "pairs.jsonl")
