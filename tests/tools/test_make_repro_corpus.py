"""The corpora of the small reproduction: sizes, and what is held out."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools import make_repro_corpus as corpus

SIZES = {"pretrain": 60, "stage1": 120, "stage2": 60, "general": 90, "test": 60}
WHICH = ("yes", "no")
TESTS = ("reasoning", "facts", "instructions", "calls")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def prompts(samples: list[dict[str, Any]]) -> set[str]:
    return {one["prompt"] if "prompt" in one else corpus.prompt_of(one) for one in samples}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("raw")
    corpus.main(folder, **SIZES, seed=3)
    names = ["pretrain", "problems", "general", *(f"test/{name}" for name in TESTS)]
    return {name: lines(folder / f"{name}.jsonl") for name in names}


def test_sizes(made: dict[str, list[dict[str, Any]]]) -> None:
    for name in TESTS:
        assert len(prompts(made[f"test/{name}"])) == len(made[f"test/{name}"]) == 60
    kinds = {kind: [one for one in made["problems"] if one["kind"] == kind] for kind in SIZES}
    assert len(prompts(kinds["stage1"])) == 120 and len(prompts(kinds["stage2"])) == 60
    topics = [one["topic"] for one in made["general"]]
    assert [topics.count(topic) for topic in TESTS[1:]] == [30, 30, 30]
    topics = [one["topic"] for one in made["pretrain"]]
    assert [topics.count(topic) for topic in TESTS[1:]] == [180, 120, 240]
    assert topics.count("arithmetic") == 180 and topics.count("repeats") == 300
    problems = [one for one in made["pretrain"] if one["topic"] == "reasoning"]
    assert len(prompts(problems)) == 60


def test_nothing_that_is_tested_is_learnt_but_facts_in_pretraining(
    made: dict[str, list[dict[str, Any]]],
) -> None:
    learnt = prompts(made["pretrain"]) | prompts(made["problems"]) | prompts(made["general"])
    for name in ("reasoning", "instructions", "calls"):
        assert learnt.isdisjoint(prompts(made[f"test/{name}"]))
    asked = {
        kind: [row for row in made["test/facts"] if row["rehearsed"] == kind] for kind in WHICH
    }
    assert all(len(rows) > 15 for rows in asked.values())
    assert prompts(asked["no"]).isdisjoint(prompts(made["general"]))
    assert prompts(asked["yes"]) & prompts(made["general"])
    assert all(prompts(rows) & prompts(made["pretrain"]) for rows in asked.values())


def test_thoughts_are_in_the_stages_alone(made: dict[str, list[dict[str, Any]]]) -> None:
    def thinks(samples: list[dict[str, Any]]) -> set[bool]:
        return {"reasoning_content" in one["messages"][-1] for one in samples}

    assert thinks(made["pretrain"]) == {False} and thinks(made["general"]) == {True}
    assert "<think>" not in json.dumps(made)


def test_ids_are_unique_and_the_seed_decides(
    made: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    for name, samples in made.items():
        assert len({one["id"] for one in samples}) == len(samples), name
    for seed, same in ((3, True), (4, False)):
        corpus.main(tmp_path / str(seed), **SIZES, seed=seed)
        again = {name: lines(tmp_path / str(seed) / f"{name}.jsonl") for name in made}
        assert (again == made) is same
        assert all(again[f"test/{name}"] == made[f"test/{name}"] for name in TESTS)


def test_more_problems_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "FAMILIES", {"chain_sum": {"max_terms": 2, "max_digits": 1}})
    with pytest.raises(SystemExit, match="chain_sum has only .* different prompts, .* are wanted"):
        corpus.main(tmp_path, **{**SIZES, "stage1": 6000}, seed=3)
    assert not any(tmp_path.iterdir())
