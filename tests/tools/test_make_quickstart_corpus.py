"""The quickstart's problems and chats, and the samples that its recipe makes of them."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from megatron_ring import config
from megatron_ring.config.curation import CurateConfig
from megatron_ring.curation import run
from megatron_ring.curation.record import response_of
from megatron_ring.think import tag_errors
from tools import make_quickstart_corpus as corpus
from tools import teach

RECIPE = Path(__file__).parents[2] / "configs/quickstart/curate.yaml"
SIZES = {"stage1": 200, "stage2": 100, "valid": 40}
KEPT = {"stage1": 200, "stage2": 100, "valid": 32, "valid_chats": 8}  # a fifth of valid are chats


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    corpus.main(folder, **SIZES, seed=3)
    return folder


def test_as_many_different_prompts_as_are_wanted_and_some_more(raw: Path) -> None:
    problems, chats = lines(raw / "problems.jsonl"), lines(raw / "chats.jsonl")
    different = {(one["kind"], one["task"], one["prompt"]) for one in problems}
    # stage1: 200 / 6 = 33 or 34, and 4 % more; stage2: 60 / 6 = 10; valid: 32 / 6 = 5 or 6.
    counts = Counter((kind, task) for kind, task, _ in different)
    first, *_ = corpus.TASKS
    assert counts["stage1", first] == 36 and counts["stage1", "count_bits"] == 35
    assert {counts["stage2", task] for task in corpus.TASKS} == {11}
    assert sum(n for (kind, _), n in counts.items() if kind == "valid") == 2 * 7 + 4 * 6
    # A prompt is of one kind, however often it comes.
    assert len({prompt for *_, prompt in different}) == len(different) < len(problems)
    assert len({one["id"] for one in problems + chats}) == len(problems) + len(chats)
    assert Counter(one["kind"] for one in chats) == {"stage2_chat": 42, "valid_chat": 9}
    assert len({json.dumps(one["messages"][:-1]) for one in chats}) == len(chats)


def test_answers_are_the_data_sets() -> None:
    for task, settings in corpus.TASKS.items():
        dataset = reasoning_gym.create_dataset(task, seed=7, size=20, **settings)
        for entry, row in zip(dataset, corpus.problems(task, 7), strict=False):
            assert row["prompt"] == entry["question"].strip()
            assert dataset.score_answer(row["answer"], entry) == 1.0


def test_the_same_seed_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    corpus.main(tmp_path / "again", **SIZES, seed=3)
    corpus.main(tmp_path / "other", **SIZES, seed=4)
    for name in ("problems.jsonl", "chats.jsonl"):
        first, again, other = (
            (folder / name).read_bytes() for folder in (raw, tmp_path / "again", tmp_path / "other")
        )
        assert first == again != other


def test_running_out_of_prompts_names_the_task_and_both_numbers() -> None:
    endless = itertools.repeat({"prompt": "x", "answer": "1"})
    with pytest.raises(ValueError, match="gcd has only 1 different prompts, 2 are wanted"):
        corpus.take("gcd", endless, {"stage1": 2})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = teach.Server(0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.endpoint
    server.shutdown()
    server.server_close()


def curate(raw: Path, output: Path, endpoint: str) -> run.Result:
    replies = [f"stages.{n}.generator.replies={output}/../replies-{output.name}" for n in (1, 2, 3)]
    takes = [f"stages.5.quotas.{kind}.take={size}" for kind, size in KEPT.items()]
    given = [f"data={raw}", f"output={output}", f"endpoint={endpoint}", "workers=1"]
    return run.run(config.load(CurateConfig, [str(RECIPE)], [*given, *replies, *takes]))


Made = tuple[Path, dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def made(raw: Path, endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    output = tmp_path_factory.mktemp("made") / "curated"
    result = curate(raw, output, endpoint)
    assert result.counts["purify"].rejected == {}  # it would take what is to be learnt from
    assert set(result.counts["distil"].rejected) <= {"unverified"}
    return output, {kind: lines(output / f"mix/{kind}.jsonl") for kind in KEPT}


def test_sizes_tasks_and_disjoint_prompts(made: Made) -> None:
    _, parts = made
    assert {kind: len(of) for kind, of in parts.items()} == KEPT
    for kind, share in {"stage1": 0, "stage2": 0.4, "valid": 0}.items():
        tasks = Counter(one["topic"] for one in parts[kind])
        assert abs(tasks["chat"] - share * SIZES[kind]) <= 3 * bool(share)
        assert set(tasks) - {"chat"} == set(corpus.TASKS)
    prompts = [json.dumps(one["messages"][:-1]) for of in parts.values() for one in of]
    assert len(set(prompts)) == sum(KEPT.values())


def test_every_answer_is_right(made: Made) -> None:
    _, parts = made
    retried = 0
    for one in (one for of in parts.values() for one in of if one["topic"] != "chat"):
        assert one["messages"][-1]["content"].split()[-1] == one["answer"]
        assert one["card"]["model"] == "teacher" and one["extra"]["selection"][-1].endswith("right")
        retried += len(one["extra"]["selection"]) > 1
    assert retried > 3  # 5 % of about 290 first answers are wrong


def test_a_share_of_the_thoughts_is_damaged_in_what_is_learnt_from(made: Made) -> None:
    _, parts = made
    for kind, share in {"stage1": 0.2, "stage2": 0.15, "valid": 0.0}.items():
        said = [response_of(one) or "" for one in parts[kind] if one["topic"] != "chat"]
        damaged = [text for text in said if tag_errors(text)]
        deviation = (len(said) * share * (1 - share)) ** 0.5
        assert abs(len(damaged) - share * len(said)) <= 4 * deviation
    chats = [one for of in parts.values() for one in of if one["topic"] == "chat"]
    assert all("think>" not in (response_of(one) or "") for one in chats)


def test_the_recipe_gives_the_same_samples_again(
    raw: Path, made: Made, endpoint: str, tmp_path: Path
) -> None:
    """All but the dates and the addresses of cards."""
    output, _ = made
    curate(raw, tmp_path / "again", endpoint)
    for kind in KEPT:
        first, again = (
            lines(folder / f"mix/{kind}.jsonl") for folder in (output, tmp_path / "again")
        )
        for one in first + again:
            one.get("card", {}).pop("date", None)
        assert first == again
