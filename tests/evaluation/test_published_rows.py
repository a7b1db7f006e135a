"""Rows with the columns that benchmarks are published with, and what is made of them."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import GradingConfig, TaskConfig
from megatron_ring.evaluation.accuracies import named
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Item
from megatron_ring.evaluation.tasks import APPLIED, MMLU_CATEGORIES, THEORY, make, mmlu_category

OLYMPIAD = {
    "id": 1606,
    "subfield": "Combinatorics",
    "context": None,
    "question": "Which?",
    "solution": ["So."],
    "final_answer": ["$221,$8$"],  # as one row has it, a dollar too few
    "is_multiple_answer": True,
    "unit": None,
    "answer_type": "Numerical",
    "error": None,
}
ON_THE_HUB = {"question_type": "Open-ended", "subject": "Math", "language": "English"}
AIME = {
    "id": 60,
    "problem": "How long?",
    "solution": "So.",
    "answer": "073",
    "url": "https://example.org",
    "year": "2024",
}
GPQA = {
    "Pre-Revision Question": "?",
    "Record ID": "rec1",
    "Question": "Why?",
    "Correct Answer": "a",
    "Incorrect Answer 1": "b",
    "Incorrect Answer 2": "c",
    "Incorrect Answer 3": "d",
    "High-level domain": "Physics",
    "Subdomain": "Optics",
}


@pytest.fixture(scope="module")
def means() -> Iterator[Means]:
    with Means(GradingConfig(workers=1, equality_seconds=120)) as made:
        yield made


def one(name: str, row: dict[str, Any], folder: Path, means: Means) -> Item:
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = make(name, TaskConfig(file=folder / "a.jsonl"), means).items()
    return item


def test_olympiadbench_of_its_release_and_of_the_hub(tmp_path: Path, means: Means) -> None:
    """Several answers count in any order."""
    item = one("olympiadbench", OLYMPIAD, tmp_path, means)
    assert (item.id, item.facts) == ("1606", {"subfield": "Combinatorics"})
    task = make("olympiadbench", TaskConfig(), means)
    said = [r"\boxed{221, 8}", r"\boxed{8, 221}", r"\boxed{8, 22}", r"\boxed{8}"]
    verdicts = [task.grade(item, text).verdict for text in said]
    assert verdicts == ["right", "right", "wrong", "wrong"]
    item = one("olympiadbench", OLYMPIAD | ON_THE_HUB, tmp_path, means)
    assert item.facts == {"subject": "Math", "subfield": "Combinatorics"}


def test_aime24_of_the_hub(tmp_path: Path, means: Means) -> None:
    item = one("aime24", AIME, tmp_path, means)
    assert (item.id, item.gold["answer"], item.facts) == ("60", "73", {})


def test_gpqa_of_the_hub_where_one_asks_for_it(tmp_path: Path, means: Means) -> None:
    """A folder stands in for the hub; its card names a part for each of the files."""
    card = "---\nconfigs:\n- config_name: gpqa_diamond\n  data_files: d.jsonl\n---\n"
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "d.jsonl").write_text(json.dumps(GPQA) + "\n")
    (item,) = make("gpqa_diamond", TaskConfig(hub=str(tmp_path)), means).items()
    assert (item.id, item.facts, sorted(item.gold["options"])) == (
        "rec1",
        {"domain": "Physics", "subdomain": "Optics"},
        ["a", "b", "c", "d"],
    )
    with pytest.raises(ConfigError, match="^missing config key tasks.gpqa_diamond.file: the path"):
        make("gpqa_diamond", TaskConfig(), means).items()


def test_mathbenchs_numbers_are_of_stages(tmp_path: Path, means: Means) -> None:
    """Application: five stages alike, one of them right; theory: four, one of them half right."""
    row = json.dumps({"question": "1?", "answer": "1"}) + "\n"
    choice = json.dumps({"question": "1?", "answer": "A", "options": ["1", "2", "3", "4"]}) + "\n"
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for stage in (*APPLIED, *THEORY):
            kind = "cloze" if stage in ("primary", "arithmetic") else "single_choice"
            text = (row if kind == "cloze" else choice) * 2
            archive.writestr(f"mathbench_v1/{stage}/{kind}_en.jsonl", text)
            archive.writestr(f"mathbench_v1/{stage}/{kind}_cn.jsonl", "not read")
            archive.writestr(f"__MACOSX/mathbench_v1/{stage}/._{kind}_en.jsonl", "not read")
    task = make("mathbench", TaskConfig(file=tmp_path / "m.zip"), means)
    items = {item.id: item for item in task.items()}
    assert len(items) == 18
    right = {"arithmetic": 2, "high_knowledge": 1}  # of two rows
    lines = []
    for name, item in items.items():
        stage = item.facts["stage"]
        score = float(right.get(stage, 0) > 0)
        right[stage] = right.get(stage, 0) - 1
        lines.append({"id": name, "score": score})
    found = {name: one["value"] for name, one in named(items, lines, task.averages).items()}
    assert found["application"] == pytest.approx(1 / 5)
    assert found["theory"] == pytest.approx(0.5 / 4)
    assert found["overall"] == pytest.approx((1 / 5 + 0.5 / 4) / 2)
    assert found["stage/high_knowledge"] == 0.5


def test_mmlus_subjects_are_of_four_categories() -> None:
    """18 of STEM, 13 of the humanities, 12 of the social sciences; 14 others make 57."""
    numbers = {name: len(set(some.split())) for name, some in MMLU_CATEGORIES.items()}
    assert numbers == {"STEM": 18, "humanities": 13, "social sciences": 12}
    subjects = ("college_physics", "prehistory", "sociology", "high school us history", "virology")
    assert [mmlu_category(subject) for subject in subjects] == [
        "STEM",
        "humanities",
        "social sciences",
        "humanities",
        "other",
    ]
