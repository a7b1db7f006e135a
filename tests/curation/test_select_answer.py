"""Which of several answers is kept: rules by hand, and answers compared with gold ones."""

from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import SelectAnswerConfig, SourceConfig
from megatron_ring.curation.collect import equality
from megatron_ring.curation.collect.answers import (
    as_number,
    behind_hashes,
    boxed,
    compare,
    final_answer,
    normal,
)
from megatron_ring.curation.collect.rules import chinese_share
from megatron_ring.curation.collect.select import SelectAnswer
from megatron_ring.curation.record import Record, Rejection
from tests.curation.runs import read_source

SETS = Path(__file__).parent / "sets"


def thought(answer: str, of: str = "So it is.") -> str:
    return f"<think>\n{of}\n</think>\n\n{answer}"


def record(*candidates: dict[str, Any], prompt: str = "2+2?", **keys: Any) -> Record:
    numbered = [{"number": n, **one} for n, one in enumerate(candidates)]
    messages = [{"role": "user", "content": prompt}]
    return {"id": "a/1", "messages": messages, "extra": {"candidates": numbered}, **keys}


def select(given: Record, **options: Any) -> Record | Rejection:
    return SelectAnswer(SelectAnswerConfig(**options)).apply(given)


def fate(given: Record, **options: Any) -> str:
    """What became of the first candidate."""
    found = select(given, **options)
    assert not isinstance(found, Rejection)
    return found["extra"]["selection"][0]


def answered(given: Record | Rejection) -> str | None:
    assert not isinstance(given, Rejection)
    last = given["messages"][-1]
    return last["content"] if last["role"] == "assistant" else None


def test_the_shortest_right_answer_is_kept() -> None:
    given = record(
        {"text": thought("5"), "correct": False, "finish": "stop"},
        {"text": thought("4, I am quite sure"), "correct": True, "finish": "stop"},
        {"text": thought("four"), "correct": True, "finish": "stop", "model": "R1"},
        {"text": thought("4")},
    )
    found = select(given)
    assert found["messages"][-1] == {
        "role": "assistant",
        "content": "four",
        "reasoning_content": "So it is.",
    }
    assert found["card"] == {"model": "R1", "finish_reason": "stop"}
    assert found["extra"]["selection"] == [
        "0: wrong_answer its verifiers say so",
        "1: right",
        "2: right",
        "3: unknown",
    ]
    assert "candidates" not in found["extra"] and "candidates" in given["extra"]
    assert answered(select(given, choose="longest")) == "4, I am quite sure"
    assert answered(select(given, choose="first")) == "4, I am quite sure"
    assert answered(select(given, correct="ignore", choose="first")) == "4, I am quite sure"


def test_an_answer_comes_with_its_own_card_and_the_prompt_keeps_its_own() -> None:
    """What synthesis keeps: a prompt by one model, answers by another, each with its request."""
    theirs = {"model": "solver", "temperature": 0.6, "request": "b", "finish_reason": "stop"}
    one = {"text": thought("4"), "correct": True, "model": "solver", "finish": "stop"}
    given = record({**one, "card": theirs})
    writers = {"model": "writer", "temperature": 1.0, "request": "a", "date": "2026-01-01"}
    found = select({**given, "card": writers})
    assert found["card"] == theirs and found["extra"]["prompt_card"] == writers
    assert "prompt_card" not in select(given)["extra"]


@pytest.mark.parametrize(
    ("one", "options", "expected"),
    [
        ({"model": "a/o1-mini"}, {"models": ["DeepSeek-R1"]}, "other_model a/o1-mini"),
        ({}, {"models": ["DeepSeek-R1"]}, "other_model unknown"),
        ({"model": "DeepSeek/DeepSeek-R1"}, {"models": ["deepseek-r1"]}, "unknown"),
        ({"finish": "length"}, {}, "not_finished finish=length"),
        ({"finish": "stop"}, {}, "unknown"),
        ({"complete": False}, {}, "not_finished the source says that the thought is open"),
        ({}, {"min_chars": 100}, "length 32 of 100 to 69000 characters"),
        ({}, {"max_chars": 31}, "length 32 of 1 to 31 characters"),
        ({}, {"max_chars": 32, "min_chars": 32}, "unknown"),
        ({"text": "4"}, {}, "think_structure no tags"),
        ({"text": "4"}, {"think": "allow"}, "unknown"),
        ({"text": "<think>a</think>"}, {"think": "allow"}, "think_structure <think> </think>"),
        ({"text": "<think> </think>4"}, {}, "think_structure <think> </think>"),
        ({"text": "a</think>4"}, {}, "think_structure </think>"),
        ({"text": "so <think>a</think>4"}, {}, "think_structure <think> </think>"),
        (
            {"text": "<think>a</think>4<think>"},
            {},
            "think_structure <think> </think> <think>",
        ),
        ({"text": "a</think>4"}, {"think": "ignore"}, "unknown"),
        (
            {"text": "<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>4"},
            {},
            "unknown",
        ),
        ({"score": 0.99}, {}, "wrong_answer score 0.99 below 1.0"),
        ({"score": 0.99}, {"min_score": 0.9}, "right"),
        ({"correct": False}, {}, "wrong_answer its verifiers say so"),
        ({"correct": False}, {"correct": "ignore"}, "wrong"),
        ({}, {"correct": "require"}, "unverified unknown"),
        ({"correct": True}, {"correct": "require"}, "right"),
    ],
)
def test_each_rule(one: dict, options: dict, expected: str) -> None:
    given = record({"text": thought("four"), **one})
    assert fate(given, **options) == f"0: {expected}"


def test_an_answer_is_compared_with_the_gold_one() -> None:
    given = record({"text": thought("It is \\boxed{3}.")}, answer="4")
    assert fate(given) == "0: wrong_answer '3', not '4'"
    assert answered(select(given)) is None
    given = record({"text": thought("It is \\boxed{4.0}.")}, answer="4")
    assert fate(given, correct="require") == "0: right"
    # What a verifier of the set says goes before.
    given = record({"text": thought("\\boxed{3}"), "correct": True}, answer="4")
    assert fate(given) == "0: right"


def test_an_english_prompt_wants_no_chinese_answer() -> None:
    mixed = {"text": thought("四四四四")}  # 4 of 20 letters
    given = record(mixed, prompt="What is two plus two?")
    seen = "language 20.0% Chinese letters, more than 5.0%; none in the prompt"
    assert fate(given) == f"0: {seen}"
    assert fate(given, language=False) == "0: unknown"
    assert fate(given, max_foreign=0.2) == "0: unknown"
    # A formula has no language, and what stands in one does not count.
    assert fate(record(mixed, prompt="$\\frac{abcdefghijkl}{2}$ = (  )")) == "0: unknown"
    assert chinese_share("$abcd$ 四 \\frac") == 1.0


def test_records_of_other_kinds_pass_as_they_are() -> None:
    given = record({"text": "4"}, tools=[{"type": "function"}])
    assert select(given, kinds=["reasoning"]) is given
    assert fate(given, kinds=["tools"]) == "0: think_structure no tags"
    given["extra"]["kind"] = "reasoning"  # tools say more than the source
    assert select(given, kinds=["reasoning"]) is given


def test_a_chinese_prompt_wants_a_chinese_answer() -> None:
    prompt = "二加二等于多少？"
    given = record({"text": thought("The sum is four.")}, prompt=prompt)
    assert fate(given) == "0: language 0.0% Chinese letters; 100.0% in the prompt"
    given = record({"text": thought("答案是四。", "二加二是四。")}, prompt=prompt)
    assert fate(given) == "0: unknown"
    # Words of both in the prompt: either will do.
    given = record({"text": thought("Four.")}, prompt="Translate into English: 四")
    assert fate(given) == "0: unknown"
    assert chinese_share("ab 四五") == 0.5 and chinese_share("12 + 3") == 0.0


def test_none_passes() -> None:
    cut = {"text": thought("4"), "finish": "length"}
    found = select(record(cut, cut))
    assert found["messages"] == [{"role": "user", "content": "2+2?"}]  # for score_prompt
    found = select(record(cut, cut), when_none="reject")
    assert found == Rejection(
        "not_finished", "0: not_finished finish=length; 1: not_finished finish=length"
    )
    found = select(record(cut, {"text": "4"}), when_none="reject")
    assert found.reason == "no_answer_passes"


def test_an_answer_that_is_there_is_judged_too() -> None:
    said = {"role": "assistant", "content": "It is \\boxed{4}.", "reasoning_content": "Well."}
    given: Record = {"id": "a/1", "messages": [{"role": "user", "content": "2+2?"}, said]}
    found = select({**given, "answer": "4"}, correct="require")
    assert found["messages"] == [*given["messages"][:1], said]
    assert answered(select({**given, "answer": "5"})) is None
    # Several turns, and calls, are not this stage's.
    for turns in ([*given["messages"], *given["messages"]], [{**said, "tool_calls": [1]}], []):
        several: Record = {"id": "a/1", "messages": [{"role": "user", "content": "x"}, *turns]}
        assert select(several) is several


def test_on_rows_of_the_sets() -> None:
    def of(name: str, **options: Any) -> list[str | None]:
        source = SourceConfig(set=name, path=str(SETS / f"{name}.jsonl"))
        stage = SelectAnswer(SelectAnswerConfig(models=["DeepSeek-R1"], **options))
        return [answered(stage.apply(given)) for given in read_source(source)]

    assert of("openr1_math") == ["$\\boxed{11}$", "$\\boxed{29}$", None]
    assert of("synthetic_1") == ["\\boxed{56}", None, "Ice is less dense than water."]
    assert of("synthetic_1", correct="require") == ["\\boxed{56}", None, None]
    assert of("scp_116k") == [None, None]  # none of them is R1's
    assert of("general_thought") == ["Saturn has the most.", None]
    assert of("bespoke_stratos")[0] == "The answer is $\\boxed{-3}$."
    assert of("codeforces_cots") == ["```cpp\nint main(){}\n```", None]
    assert of("numina_cot") == [None, None]


@pytest.mark.parametrize(
    ("given", "gold", "verdict"),
    [
        ("42", "42", "right"),
        ("$42$", "42.", "right"),
        ("42", "41", "wrong"),
        ("0.5", "\\frac{1}{2}", "right"),
        ("1/2", "\\dfrac12", "right"),
        ("-\\frac{3}{4}", "-0.75", "right"),
        ("\\frac{1}{3}", "0.333", "wrong"),
        ("1,234", "1234", "right"),
        ("10\\%", "10", "right"),
        ("50\\%", "0.5", "right"),
        ("\\frac12", "50%", "right"),
        ("50%", "0.4", "wrong"),
        ("50", "0.5", "wrong"),
        ("50%", "0.5%", "wrong"),
        ("12_3", "12_{3}", "right"),
        ("101_2", "5_{10}", "right"),
        ("52_8", "52_{9}", "wrong"),
        ("52_5", "52_{5}", "right"),
        ("52_5", "42_5", "wrong"),
        ("1_1", "1_{1}", "right"),
        ("52_8", "42", "unknown"),
        ("x=7", "7", "right"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})", "right"),
        ("\\text{Monday}", "monday", "right"),
        ("\\boxed{9}", "9", "right"),
        ("x+1", "1+x", "unknown"),
        ("seven", "7", "unknown"),
        ("1/0", "3", "unknown"),
        ("(B)", "B", "right"),
        ("b. four", "B", "right"),
        ("C", "B", "wrong"),
        ("both", "B", "unknown"),
        ("A、B", "A", "unknown"),
        ("A. B, C", "A", "unknown"),
        ("A、4", "A", "right"),
        ("A. Bonn", "A", "right"),
    ],
)
def test_plain_comparison(given: str, gold: str, verdict: str) -> None:
    assert compare(given, gold) == verdict


def test_parts_of_the_comparison() -> None:
    assert boxed("a \\boxed{1} b \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert boxed("\\boxed{1") is None and boxed("none") is None
    assert behind_hashes("x\n#### 18\n") == "18" and behind_hashes("18") is None
    assert final_answer("<think>\\boxed{1}</think>It is \\boxed{2}") == "2"
    assert final_answer("<think>1</think>Two or three.") is None
    assert final_answer("<think>1</think>It is so:\n\n-2 \n") == "-2"
    assert final_answer("<think>1</think>```\nx\n```") is None
    assert final_answer("So the answer is 12. Good.") == "12"
    assert final_answer("The final answer: **B**") == "B"
    assert final_answer("所以答案是 3。") == "3"
    assert as_number("") is None and as_number("a") is None and as_number("1/2/3") is None
    assert normal(" $ 5 $ ") == "5"


def test_a_timeout_is_never_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = SelectAnswer(SelectAnswerConfig())
    monkeypatch.setattr(stage._rules, "_compare", lambda given, gold: "timeout")
    given = record({"text": thought("\\boxed{x+1}")}, answer="1+x")
    assert stage.apply(given)["extra"]["selection"] == ["0: timeout"]
    assert answered(stage.apply(given)) == "\\boxed{x+1}"


def test_math_verify_knows_forms_that_plain_text_does_not() -> None:
    pytest.importorskip("math_verify")
    given = record({"text": thought("\\boxed{x+1}")}, answer="1+x")
    assert fate(given, equality="math_verify", timeout=60, correct="require") == "0: right"


def test_math_verify_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equality, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install math-verify==0.9.0, or set equ"):
        SelectAnswer(SelectAnswerConfig(equality="math_verify"))
    SelectAnswer(SelectAnswerConfig())
