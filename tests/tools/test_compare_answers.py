"""Answers beside the right ones: who is right, and files that do not belong together."""

import json
from pathlib import Path

import pytest

from tools import compare_answers

WHY = ("stop", "length")


def write(file: Path, lines: list[dict]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    turns = [("1 + 1", "<think>\nquick\n</think>\n2"), ("Hello!", "Hello! How are you?")]
    return write(
        tmp_path / "valid.jsonl",
        [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in turns
        ],
    )


def test_the_final_answer_counts_not_the_thought(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [{"prompt": "1 + 1", "answer": "2 2"}, {"prompt": "Hello!", "answer": "you"}]
    after = [
        {"prompt": "1 + 1", "answer": "<think>\nslow\n</think>\n2<|endoftext|>"},
        {"prompt": "Hello!", "answer": "Hello! How are we?"},
    ]
    files = [write(tmp_path / "before.jsonl", before), write(tmp_path / "after.jsonl", after)]
    compare_answers.main(corpus, files)
    said = capsys.readouterr().out
    rows = {line.split()[1]: line for line in said.splitlines() if line.startswith("│ ")}
    assert "0 of 2, 0.0%" in rows["before"] and "1 of 2, 50.0%" in rows["after"]
    assert "slow" in said and "quick" in said
    compare_answers.main(corpus, files, show=0)
    said = capsys.readouterr().out
    assert "slow" not in said and "1 of 2, 50.0%" in said


def test_think_tags_are_counted_where_they_belong() -> None:
    score = compare_answers.Score()
    for said, expected in [
        ("<think>\na\n</think>\n6", "<think>\nb\n</think>\n6"),
        ("<think>\na\n</think>\n6<|endoftext|>", "<think>\nb\n</think>\n7"),
        ("a\n</think>\n6", "<think>\nb\n</think>\n6"),
        ("6", "<think>\nb\n</think>\n6"),
        ("Hello!", "Hello!"),
        ("<think>\na\n</think>\nHello!", "Hello!"),
    ]:
        score.add(said, expected)
    right, tags, no_open, no_close, redundant, misplaced, empty, cut, stray = score.cells()
    assert (right, tags, stray) == ("5 of 6, 83.3%", "2 of 4, 50.0%", "1 of 2, 50.0%")
    assert (no_open, no_close, redundant, misplaced, empty, cut) == ("2", "1", "0", "0", "0", "0")
    assert compare_answers.Score().cells()[:2] == ["0 of 0", "0 of 0"]


def test_files_that_do_not_belong_together(corpus: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", [{"prompt": "1 + 1", "answer": "2"}])
    other = write(tmp_path / "b.jsonl", [{"prompt": "Hello!", "answer": "2"}])
    unknown = write(tmp_path / "c.jsonl", [{"prompt": "3 + 1", "answer": "4"}])
    with pytest.raises(SystemExit, match=r"b\.jsonl answers other prompts than .*a\.jsonl; sample"):
        compare_answers.main(corpus, [one, other])
    with pytest.raises(SystemExit, match=r"valid\.jsonl has no question '3 \+ 1'"):
        compare_answers.main(corpus, [unknown])


def test_a_thought_that_stands_apart_counts_as_one(tmp_path: Path) -> None:
    apart = {"role": "assistant", "content": "2", "reasoning_content": "quick"}
    turns = [{"role": "user", "content": "1 + 1"}, apart]
    corpus = write(tmp_path / "valid.jsonl", [{"messages": turns}])
    said = write(tmp_path / "said.jsonl", [{"prompt": "1 + 1", "answer": "quick</think>2"}])
    _, scores = compare_answers.compare(corpus, [said], 0)
    score = scores["said"]
    assert (score.right, score.tags.finished, score.tags.wrong) == (1, 1, 1)


def test_an_answer_that_was_cut_is_no_wrong_one(corpus: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "1 + 1", "answer": "<think>\nwell", "finish_reason": why} for why in WHY]
    said = [write(tmp_path / f"{line['finish_reason']}.jsonl", [line]) for line in lines]
    _, scores = compare_answers.compare(corpus, said, 0)
    assert scores["stop"].cells()[1:-1] == ["1 of 1, 100.0%", "0", "1", "0", "0", "0", "0"]
    assert scores["length"].cells()[1:-1] == ["0 of 0", "0", "0", "0", "0", "0", "1"]


def test_quoted_tags_are_no_stray_ones() -> None:
    score = compare_answers.Score()
    score.add("It is `<think>`.", "It is `<think>`.")
    score.add("It is <think>.", "It is so.")
    assert (score.right, score.stray_tags, score.tags.answers) == (1, 1, 0)


def test_a_primed_answer_opens_in_its_prompt(corpus: Path, tmp_path: Path) -> None:
    line = {"prompt": "1 + 1", "answer": "well\n</think>\n2", "primed": True}
    said = write(tmp_path / "said.jsonl", [line])
    _, scores = compare_answers.compare(corpus, [said], 0)
    assert (scores["said"].right, scores["said"].tags.wrong) == (1, 0)
