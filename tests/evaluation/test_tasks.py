"""Benchmarks: rows as their authors publish them become items, and answers get their grades."""

import base64
import csv
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import GradingConfig, TaskConfig
from megatron_ring.evaluation.coding import tests_of as parsed_tests
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Grade, Item, Task
from megatron_ring.evaluation.tasks import TASKS, items_of, make
from tests.curation.sandboxed import isolated


@pytest.fixture(scope="module")
def means() -> Iterator[Means]:
    with Means(GradingConfig(workers=1, equality_seconds=120)) as made:
        yield made


def task_of(name: str, means: Means, file: Path, *rows: dict[str, Any], **more: Any) -> Task:
    """A benchmark with these rows in its file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make(name, TaskConfig(file=file, **more), means)


def thought(answer: str, of: str = r"Is it \boxed{7}?") -> str:
    return f"<think>\n{of}\n</think>\n\n{answer}"


def prompt(item: Item) -> str:
    (turn,) = item.messages
    assert turn["role"] == "user"
    return turn["content"]


def gsm8k(means: Means, folder: Path, number: int = 1, **more: Any) -> Task:
    rows = [{"question": f"{n} + 0?", "answer": f"So.\n#### {n:,}"} for n in range(number)]
    return task_of("gsm8k", means, folder / "test.jsonl", *rows, **more)


SHORT_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {  # row, right answer, wrong one
    "gsm8k": ({"question": "?", "answer": "So\n#### 1,004"}, "1004", "104"),
    "math500": ({"problem": "?", "answer": r"\frac{x+1}{2}"}, r"\dfrac{1+x}2", r"\frac{x}{2}"),
    "aime24": ({"problem": "?", "answer": "033", "id": 5}, "33", "34"),
    "gaokao2023en": ({"question": "?", "answer": "$-1-\\sqrt{3}$"}, r"-\sqrt3-1", r"\sqrt3-1"),
    "olympiadbench": ({"question": "?", "final_answer": ["$2,3$"], "id": 3}, "2, 3", "2, 4"),
}


@pytest.mark.parametrize("name", SHORT_ROWS)
def test_short_answers_are_compared(name: str, means: Means, tmp_path: Path) -> None:
    row, right, wrong = SHORT_ROWS[name]
    task = task_of(name, means, tmp_path / "a.jsonl", row)
    (item,) = task.items()
    assert prompt(item) == ("?\n\nReason step by step, and put your final answer within \\boxed{}.")
    found = task.grade(item, thought(rf"So $\boxed{{{right}}}$."))
    assert (found.score, found.verdict, found.extracted) == (1, "right", right)
    found = task.grade(item, thought(rf"So $\boxed{{{wrong}}}$."))
    assert (found.score, found.verdict, found.extracted) == (0, "wrong", wrong)
    assert found.detail.startswith("compared with ")


def test_what_stands_in_the_thought_is_no_answer(means: Means, tmp_path: Path) -> None:
    task = gsm8k(means, tmp_path)
    (item,) = task.items()
    for text in (r"<think>It is \boxed{0}.", thought("", r"\boxed{0}"), thought("I do not know.")):
        found = task.grade(item, text)
        assert found == Grade(
            score=0.0, verdict="no_answer", detail="no final answer behind the thought"
        )
    assert task.grade(item, r"It is \boxed{0}.").verdict == "right"  # a model that does not think


def test_a_comparison_that_hangs_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    """math-verify's worker needs longer than this to say anything."""
    row = {"problem": "?", "answer": r"\sqrt{x+1}"}
    with Means(GradingConfig(workers=1, equality_seconds=1e-9)) as impatient:
        task = task_of("math500", impatient, tmp_path / "a.jsonl", row)
        found = task.grade(task.items()[0], r"\boxed{\sqrt{1+x}}")
    assert (found.score, found.verdict) == (0, "timeout")


def test_answers_at_the_end_of_a_question_are_not_asked(means: Means, tmp_path: Path) -> None:
    rows = [
        {"question": "Compute it.answers: $\\frac{3}{10}$", "answer": "", "source": "s"},
        {"question": "Which?(A) 1(B) 2Answer: A", "answer": "", "source": "s"},
    ]
    items = task_of("gaokao2023en", means, tmp_path / "a.jsonl", *rows).items()
    assert [item.gold["answer"] for item in items] == ["$\\frac{3}{10}$", "A"]
    assert prompt(items[0]).startswith("Compute it.\n\n")
    assert prompt(items[1]).startswith("Which?(A) 1(B) 2\n\n")
    assert [item.id for item in items] == ["0/s", "1/s"]


def test_a_benchmark_may_allow_some_distance(means: Means, tmp_path: Path) -> None:
    row = {"id": 1, "question": "g?", "context": "On Earth.", "final_answer": ["9.81"]}
    row |= {"error": "1e-2", "unit": "m/s^2", "subject": "Physics"}
    task = task_of("olympiadbench", means, tmp_path / "a.jsonl", row)
    (item,) = task.items()
    assert prompt(item).startswith("On Earth.\n\ng? The unit of the answer is m/s^2; leave it out.")
    assert item.facts == {"subject": "Physics"}
    verdicts = [task.grade(item, rf"\boxed{{{said}}}").verdict for said in ("9.82", "9.8", "9.83")]
    assert verdicts == ["right", "right", "wrong"]
    assert task.grade(item, r"\boxed{9.83}").detail == "0.02 from 9.81, 0.01 allowed"


@pytest.fixture
def mmlu(means: Means, tmp_path: Path) -> Task:
    """The authors' archive: a file a subject without a line of names, dev beside test."""
    with zipfile.ZipFile(tmp_path / "mmlu.zip", "w") as archive:
        archive.writestr("data/dev/anatomy_dev.csv", "no,1,2,3,4,A\n")
        archive.writestr("data/test/anatomy_test.csv", '"Where, then?",here,there,"a, b",x=1,C\n')
        archive.writestr("data/test/logic_test.csv", "Why?,p,q,r,s,A\nHow?,p,q,r,s,B\n")
    return make("mmlu", TaskConfig(file=tmp_path / "mmlu.zip"), means)


def test_mmlu_is_read_from_the_authors_archive(mmlu: Task) -> None:
    items = mmlu.items()
    assert [item.id for item in items] == ["anatomy/0", "logic/1", "logic/2"]
    assert [item.facts["subject"] for item in items] == ["anatomy", "logic", "logic"]
    assert prompt(items[0]) == (
        "Where, then?\n\nA. here\nB. there\nC. a, b\nD. x=1\n\nOne of the options is right. Reason "
        "step by step, and put its letter within \\boxed{}."
    )


def test_rows_of_the_hub_are_read_too(means: Means, tmp_path: Path) -> None:
    row = {"question": "Why?", "subject": "logic", "choices": ["p", "q", "r", "s"], "answer": 1}
    (item,) = task_of("mmlu", means, tmp_path / "test.jsonl", row).items()
    assert (item.id, item.gold["answer"], item.facts["subject"]) == ("logic/0", "B", "logic")


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (r"\boxed{C}", "right"),
        (r"\boxed{\text{(C)}}", "right"),
        (r"\boxed{\text{C}}", "right"),
        (r"\boxed{c}", "right"),
        (r"\boxed{C. a, b}", "right"),
        (r"\boxed{a, b}", "right"),
        ("The answer is (C).", "right"),
        ("C", "right"),
        (r"\boxed{A}", "wrong"),
        (r"\boxed{here}", "wrong"),
        (r"\boxed{E}", "no_answer"),
        (r"\boxed{Can't tell}", "no_answer"),
        ("I do not know.", "no_answer"),
    ],
)
def test_an_option_is_chosen_by_letter_or_words(mmlu: Task, said: str, verdict: str) -> None:
    found = mmlu.grade(mmlu.items()[0], thought(said))
    assert (found.verdict, found.score) == (verdict, float(verdict == "right"))


def test_what_chooses_nothing_says_so(mmlu: Task) -> None:
    found = mmlu.grade(mmlu.items()[0], r"\boxed{E}")
    assert (found.extracted, found.detail) == ("E", "no letter up to D and none of the options")


def gpqa_rows(number: int) -> list[dict[str, str]]:
    columns = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    return [
        {"Question": f"Q{n}?", "Record ID": f"rec{n}", "High-level domain": "Physics"}
        | {column: f"{n}{letter}\n" for column, letter in zip(columns, "abcd", strict=True)}
        for n in range(number)
    ]


def test_gpqas_options_are_shuffled_once_for_all(means: Means, tmp_path: Path) -> None:
    rows, file = gpqa_rows(200), tmp_path / "gpqa_diamond.csv"
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    items = task_of("gpqa_diamond", means, file).items()
    for n, item in enumerate(items):
        gold, options = item.gold["answer"], item.gold["options"]
        assert options["ABCD".index(gold)] == f"{n}a" and sorted(options) == [
            f"{n}{x}" for x in "abcd"
        ]
        assert f"{gold}. {n}a\n" in prompt(item)
        assert (item.id, item.facts) == (f"rec{n}", {"domain": "Physics"})
    counts = [sum(item.gold["answer"] == letter for item in items) for letter in "ABCD"]
    assert min(counts) > 30  # 50 each, give or take
    again = task_of("gpqa_diamond", means, tmp_path / "a.jsonl", *rows[::-1]).items()
    assert [one.gold for one in again[::-1]] == [one.gold for one in items]


def test_mathbench_is_a_folder_of_clozes_and_choices(means: Means, tmp_path: Path) -> None:
    for stage in ("college", "primary"):
        (tmp_path / stage).mkdir()
        cloze = {"question": "1+1?", "answer": "2"}
        choice = {"question": "2?", "options": ["1", "2", "3", "4"], "answer": "B", "topic": "sums"}
        for language in ("en", "cn"):
            (tmp_path / stage / f"cloze_{language}.jsonl").write_text(json.dumps(cloze))
            (tmp_path / stage / f"single_choice_{language}.jsonl").write_text(json.dumps(choice))
    task = make("mathbench", TaskConfig(file=tmp_path), means)
    items = task.items()
    assert [item.id for item in items] == [
        "college/cloze_en/0",
        "college/single_choice_en/1",
        "primary/cloze_en/2",
        "primary/single_choice_en/3",
    ]
    assert items[1].facts == {"topic": "sums", "stage": "college"}
    verdicts = [task.grade(item, thought(r"\boxed{2}")).verdict for item in items]
    assert verdicts == ["right"] * 4  # 2 is the option B in words


def lcb_row(private: Any, name: str = "", **more: Any) -> dict[str, Any]:
    return {
        "question_id": "q1",
        "question_content": "Add.",
        "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
        "private_test_cases": private,
        "metadata": json.dumps({"func_name": name} if name else {}),
        "starter_code": "",
        "contest_date": "2024-08-03T00:00:00",
        "difficulty": "easy",
    } | more


def packed(text: str) -> str:
    """As the private tests are: a pickled text (protocol 4 by hand), compressed."""
    data = text.encode()
    frame = b"\x80\x04X" + len(data).to_bytes(4, "little") + data + b"\x94."
    return base64.b64encode(zlib.compress(frame)).decode()


def test_private_tests_are_read_without_unpickling() -> None:
    tests = [{"input": "2 2", "output": "4"}]
    assert parsed_tests(packed(json.dumps(tests))) == tests
    harmful = b"cos\nsystem\n(S'exit 1'\ntR."
    with pytest.raises(ValueError) as error:
        parsed_tests(base64.b64encode(zlib.compress(harmful)).decode())
    assert str(error.value) == (
        "private_test_cases hold more than one text: GLOBAL, MARK, STRING, TUPLE, REDUCE; nothing "
        "was run"
    )


SUM = "print(sum(map(int, input().split())))"


@isolated
@pytest.mark.parametrize(
    ("program", "verdict", "detail"),
    [
        (SUM, "right", "passed"),
        (f"{SUM} if 1 < 0 else print(3)", "wrong", "failed: pair 2: it wrote"),
        ("while True: pass", "timeout", "timeout: pair 1"),
        ("raise ValueError('no')", "wrong", "failed: pair 1: ValueError: no"),
        (f"from __future__ import annotations\n{SUM}", "right", "passed"),
    ],
)
def test_programs_meet_public_and_private_tests(
    program: str, verdict: str, detail: str, tmp_path: Path
) -> None:
    private = packed(json.dumps([{"input": "2 2", "output": "4", "testtype": "stdin"}]))
    options = GradingConfig(program={"cpu_seconds": 1, "seconds": 60})
    with Means(options) as means:
        task = task_of("livecodebench", means, tmp_path / "a.jsonl", lcb_row(private))
        (item,) = task.items()
        assert prompt(item).startswith("Add.\n\nWrite a Python program that reads")
        assert item.facts == {"difficulty": "easy", "month": "2024-08"}
        found = task.grade(item, thought(f"```python\n{program}\n```"))
    assert (found.verdict, found.extracted) == (verdict, program)
    assert found.detail.startswith(detail)


@isolated
def test_methods_are_called_with_arguments_in_json(means: Means, tmp_path: Path) -> None:
    public = [{"input": '[1, 2]\n"a"', "output": "[2, 1]", "testtype": "functional"}]
    row = lcb_row("[]", "turn", public_test_cases=public, starter_code="class Solution:\n    ...")
    task = task_of("livecodebench", means, tmp_path / "a.jsonl", row)
    (item,) = task.items()
    assert "Complete this Python class:\n```python\nclass Solution:\n    ...\n```" in prompt(item)
    head = "class Solution:\n    def turn(self, x: List[int], y: str) -> List[int]:\n        "
    right, wrong = f"{head}return x[::-1]", f"{head}return x"
    assert task.grade(item, f"```python\n{right}\n```").verdict == "right"
    found = task.grade(item, f"```python\n{wrong}\n```")
    assert (found.verdict, found.detail) == ("wrong", "failed: AssertionError: [1, 2] for [2, 1]")
    assert task.grade(item, "<think>```python\nx = 1\n```").verdict == "no_answer"


def test_prompts_without_tests_are_refused(means: Means, tmp_path: Path) -> None:
    row = lcb_row("[]")
    del row["private_test_cases"]
    with pytest.raises(ConfigError) as error:
        task_of("livecodebench", means, tmp_path / "a.jsonl", row).items()
    assert str(error.value) == (
        "tasks.livecodebench: row 1 of a.jsonl has no private_test_cases; wanted is a release file "
        "of livecodebench/code_generation_lite, test.jsonl to test6.jsonl, which hold the tests"
    )


def test_a_limit_draws_the_same_items_always(means: Means, tmp_path: Path) -> None:
    task = gsm8k(means, tmp_path, 50)
    every = items_of(task, TaskConfig())
    drawn = {n: [one.id for one in items_of(task, TaskConfig(limit=n))] for n in (5, 10, 50, 99)}
    assert set(drawn[5]) < set(drawn[10]) and len(drawn[10]) == 10
    assert drawn[10] != [one.id for one in every[:10]]  # not the first: data are in some order
    assert drawn[10] == sorted(drawn[10], key=int)
    assert drawn[50] == drawn[99] == [one.id for one in every]


def test_ids_are_unique(means: Means, tmp_path: Path) -> None:
    row = {"problem": "?", "answer": "1", "id": 5}
    task = task_of("aime24", means, tmp_path / "a.jsonl", row, row)
    with pytest.raises(ConfigError) as error:
        items_of(task, TaskConfig())
    assert str(error.value) == "tasks.aime24: two items have the id '5'"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", "{]\n", "cannot read a.jsonl: line 1, column 2: Expecting property name"),
        ("a.json", "[1]", "cannot read a.json: a list of objects is wanted, or an object a line"),
        ("a.json", "1", "cannot read a.json: a list of objects is wanted, or an object a line"),
        ("a.parquet", "no", "cannot read a.parquet: Could not open Parquet input source"),
        ("a.zip", "", "no file that ends in .jsonl, .json, .csv, .parquet"),
        ("a.jsonl", "\n", "no row in its files"),
    ],
)
def test_data_that_cannot_be_read(
    name: str, content: str, told: str, means: Means, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(content)
    if name == "a.zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme.txt", "nothing")
    with pytest.raises(ConfigError) as error:
        make("gsm8k", TaskConfig(file=file), means).items()
    assert str(error.value).startswith(f"tasks.gsm8k.file={file}: {told}")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"problem": "?"}, "no column 'answer'; its columns are problem"),
        ({"question": "?", "answer": "4"}, "nothing behind #### in its answer; its columns are"),
    ],
)
def test_data_of_another_benchmark(
    row: dict[str, str], told: str, means: Means, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        task_of("gsm8k", means, tmp_path / "a.jsonl", row).items()
    assert str(error.value).startswith(f"tasks.gsm8k: row 1 of a.jsonl: {told}")
    assert str(error.value).endswith("Is this the data of GSM8K?")


def test_data_that_are_not_there(means: Means, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        make("gsm8k", TaskConfig(file=tmp_path / "no"), means).items()
    assert str(error.value) == f"tasks.gsm8k.file: there is no file {tmp_path}/no"
    with pytest.raises(ConfigError) as error:
        make("gpqa_diamond", TaskConfig(), means).items()
    assert str(error.value).startswith(
        "missing config key tasks.gpqa_diamond.file: the path of gpqa_diamond.csv. Its authors ask"
    )
    with pytest.raises(ConfigError) as error:
        make("gsm9k", TaskConfig(), means)
    assert str(error.value).startswith("tasks.gsm9k: there is no such benchmark; known: aime24, ")


def test_every_benchmark_has_what_tables_need(means: Means) -> None:
    tasks = [make(name, TaskConfig(), means) for name in TASKS]
    assert [task.name for task in tasks] == list(TASKS)
    assert len({task.title for task in tasks}) == len(tasks)
    assert {task.name: task.samples for task in tasks if task.samples > 1} == {"aime24": 64}


def test_the_hubs_door_reads_a_data_set(means: Means, tmp_path: Path) -> None:
    """A folder stands in for the hub: `datasets` loads both in the same way."""
    row = {"problem": "1+1?", "answer": "2", "unique_id": "a/1", "subject": "sums", "level": 1}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = make("math500", TaskConfig(hub=str(tmp_path)), means).items()
    assert (item.id, item.facts, item.gold["answer"]) == (
        "a/1",
        {"subject": "sums", "level": "1"},
        "2",
    )
    missing = str(tmp_path / "none")
    with pytest.raises(ConfigError) as error:
        make("math500", TaskConfig(hub=missing), means).items()
    told = str(error.value)
    assert told.startswith(f"tasks.math500: {missing} of the Hugging Face hub cannot be loaded: ")
    assert told.endswith("; set tasks.math500.file")
