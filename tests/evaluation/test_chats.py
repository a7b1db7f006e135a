"""Chat samples as a benchmark: what is asked, what is right, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import GradingConfig, TaskConfig
from megatron_ring.evaluation.chats import ChatSamples
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Grade
from megatron_ring.evaluation.tasks import make

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "unit": {"enum": ["m", "km"]}},
            "required": ["a"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 3, "unit": "m"}}}


def ask(content: str = "", **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": content, **more}]


def benchmark(folder: Path, *samples: dict[str, Any]) -> ChatSamples:
    file = folder / "held_out.jsonl"
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return ChatSamples("mine", TaskConfig(kind="chats", file=file))


def graded(folder: Path, sample: dict[str, Any], text: str) -> Grade:
    task = benchmark(folder, sample)
    return task.grade(task.items()[0], text)


def test_what_is_asked_and_by_what_scores_are_grouped(tmp_path: Path) -> None:
    sample = {"id": "x", "messages": ask("<think>\nhm\n</think>\n\n7"), "topic": "sums", "level": 2}
    first, second = benchmark(tmp_path, sample, {"messages": ask("8"), "tools": [TOOL]}).items()
    assert (first.id, second.id) == ("x", "2")
    assert first.messages == [{"role": "user", "content": "?"}]
    assert first.gold == {"answer": "7", "calls": [], "instructions": []}
    assert first.facts == {"topic": "sums", "level": "2"} and second.tools == [TOOL]


@pytest.mark.parametrize(
    ("gold", "said", "verdict"),
    [
        ("7", "<think>\n3 + 4\n</think>\n\n7", "right"),
        ("7", "7.0", "right"),
        ("Buenos Aires", "buenos aires.", "right"),
        ("7", "<think>\n7\n</think>\n\n8", "wrong"),
        ("No", "Yes", "wrong"),
        ("7", "<think>\n7", "no_answer"),
        ("7", "It is 7", "wrong"),
    ],
)
def test_answers(tmp_path: Path, gold: str, said: str, verdict: str) -> None:
    found = graded(tmp_path, {"messages": ask(gold)}, said)
    assert (found.verdict, found.score) == (verdict, float(verdict == "right"))


def called(*calls: Any) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(one)}\n</tool_call>" for one in calls)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (called({"name": "add", "arguments": {"unit": "m", "a": 3}}), "right"),
        ("<think>\nadd\n</think>\n\n" + called(CALL["function"]), "right"),
        (called({"name": "add", "arguments": {"a": 4, "unit": "m"}}), "wrong"),
        (called(CALL["function"], CALL["function"]), "wrong"),  # once too often
        (called({"name": "add", "arguments": {"a": "3", "unit": "m"}}), "argument_type"),
        (called({"name": "add", "arguments": {"a": 3, "unit": "mile"}}), "argument_enum"),
        (called({"name": "add", "arguments": {"unit": "m"}}), "argument_missing"),
        (called({"name": "sub", "arguments": {"a": 3}}), "unknown_tool"),
        (called({"name": "add", "arguments": [3]}), "arguments_not_an_object"),
        (called({"name": "add"}), "unreadable"),
        ("<tool_call>\n{\n</tool_call>", "unreadable"),
        ("I would add 3 m.", "no_call"),
    ],
)
def test_calls(tmp_path: Path, said: str, verdict: str) -> None:
    sample = {"messages": ask(tool_calls=[CALL]), "tools": [TOOL]}
    found = graded(tmp_path, sample, said)
    assert (found.verdict, found.score) == (verdict, float(verdict == "right"))


def test_arguments_of_the_right_call_may_be_text(tmp_path: Path) -> None:
    text = {"name": "add", "arguments": json.dumps({"a": 3, "unit": "m"})}
    sample = {"messages": ask(tool_calls=[{"function": text}]), "tools": [TOOL]}
    assert graded(tmp_path, sample, called(CALL["function"])).verdict == "right"


def test_instructions(tmp_path: Path) -> None:
    rules = [
        {"id": "punctuation:no_comma"},
        {"id": "detectable_format:number_bullet_lists", "kwargs": {"num_bullets": 2}},
    ]
    sample = {"messages": ask("* a\n* b"), "instructions": rules}
    assert graded(tmp_path, sample, "<think>\na, b\n</think>\n\n* a\n* b").verdict == "right"
    found = graded(tmp_path, sample, "* a, b")
    assert found.verdict == "wrong"
    assert found.detail == "not followed: " + ", ".join(one["id"] for one in rules)


WORDS = "length_constraints:number_words"
FEW = {"relation": "about", "num_words": 5}


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ({"prompt": "?"}, "sample 1 has no messages; its keys are prompt"),
        (
            {"messages": ask("7")[:1]},
            "sample 1: its last turn is of role 'user'; it must be the assistant's, the right "
            "answer, with a prompt before it",
        ),
        (
            {"messages": ask("7")[1:]},
            "sample 1: its only turn is the answer; a prompt stands before that",
        ),
        (
            {"messages": [{"role": "usr", "content": "?"}, *ask("7")[1:]]},
            "sample 1: turn 1: unknown role 'usr'; it is one of system, user, assistant, tool",
        ),
        (
            {"messages": [{"role": "user", "content": 5}, *ask("7")[1:]]},
            "sample 1: turn 1 (user): content is int, not text",
        ),
        (
            {"messages": [{"role": "user"}, *ask("7")[1:]]},
            "sample 1: turn 1 (user): content is NoneType, not text",
        ),
        (
            {"messages": ask("<think>\n7\n</think>\n\n")},
            "sample 1: its last turn holds neither an answer nor tool_calls",
        ),
        (
            {"messages": ask(tool_calls=[{"function": {"name": "add", "arguments": "{"}}])},
            "sample 1: arguments of its tool_calls are no JSON: ",
        ),
        (
            {"messages": ask("7"), "instructions": [{"id": "rhymes"}]},
            "sample 1: no rule for instruction 'rhymes'; known: change_case:capital_word_frequency",
        ),
        (
            {"messages": ask("7"), "instructions": [{"id": WORDS, "kwargs": {"num_words": 5}}]},
            f"sample 1: instruction {WORDS} lacks kwargs relation",
        ),
        (
            {"messages": ask("7"), "instructions": [{"id": WORDS, "kwargs": FEW}]},
            f"sample 1: instruction {WORDS} with kwargs {FEW}: relation 'about' is neither 'at "
            "least' nor 'less than'",
        ),
    ],
)
def test_samples_that_cannot_be_asked(tmp_path: Path, sample: dict[str, Any], told: str) -> None:
    task = benchmark(tmp_path, sample)
    with pytest.raises(ConfigError) as caught:
        task.items()
    assert str(caught.value).startswith(f"tasks.mine.file={task.options.file}: {told}")


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"messages": ask("7")}) + "\n\n{'messages': 1}\n")
    with pytest.raises(ConfigError) as caught:
        ChatSamples("mine", TaskConfig(kind="chats", file=file)).items()
    assert str(caught.value) == (
        f"tasks.mine.file={file}: cannot read mine.jsonl: line 3, column 2: Expecting property "
        "name enclosed in double quotes"
    )


def test_it_has_any_name_and_needs_a_file() -> None:
    with Means(GradingConfig()) as means:
        task = make("mine", TaskConfig(kind="chats", title="My own"), means)
        assert (task.name, task.title) == ("mine", "My own")
        with pytest.raises(ConfigError, match=r"missing config key tasks\.mine\.file: a file of"):
            task.items()
        with pytest.raises(ConfigError, match=r"tasks\.mine: there is no such benchmark; .*kind=c"):
            make("mine", TaskConfig(), means)
