"""The quickstart's corpus: arithmetic of the worked solutions, verification, disjoint prompts."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import reasoning_gym

from megatron_ring.evaluation.think_tags import tag_errors
from tools import make_quickstart_corpus as corpus

EQUATION = re.compile(r"[\d+*/ -]+(?: = [\d+*/ -]+)+")


@pytest.mark.parametrize("task", corpus.SOLVE)
def test_every_worked_line_is_true_and_the_answer_is_the_data_sets(task: str) -> None:
    solve, settings = corpus.SOLVE[task]
    dataset = reasoning_gym.create_dataset(task, seed=99, size=300, **settings)
    num_solved = 0
    for entry in dataset:
        worked = solve(entry["question"])
        if worked is None:
            continue
        thought, answer = worked
        assert answer == entry["answer"], entry["question"]
        for line in thought.splitlines():
            check_equation(line.split(",")[0])
        num_solved += 1
    # Only equations have shapes without a worked solution, such as two unknown terms.
    assert num_solved == 300 or (task == "simple_equations" and num_solved > 150)


def check_equation(line: str) -> None:
    """All sides of a line of plain arithmetic have the same value; other lines pass."""
    if EQUATION.fullmatch(line):
        values = {eval(side) for side in line.split(" = ")}
        assert len(values) == 1, line


def test_the_check_of_equations_can_fail() -> None:
    check_equation("7 + 2 * 3 = 13")
    with pytest.raises(AssertionError):
        check_equation("7 + 2 * 3 = 27")


def test_worked_solutions_by_hand() -> None:
    assert corpus.chain_sum("State the final answer: 6 + 10 - 21 =") == (
        "6 + 10 = 16\n16 - 21 = -5",
        "-5",
    )
    assert corpus.gcd("of these numbers: 12, 18.") == (
        "18 = 1 * 12 + 6\n12 = 2 * 6 + 0\nThe last divisor is 6.",
        "6",
    )
    assert corpus.simple_equations("Solve for k: 14 - 2*k = -6") == (
        "2*k = 14 + 6 = 20\nk = 20 / 2 = 10",
        "10",
    )
    assert corpus.simple_equations("Solve for k: 2*k + 3*k = 5") is None
    assert corpus.simple_equations("Solve for k: 2*k = 5") is None
    assert corpus.calendar_arithmetic("Is 1900 a leap year?")[1] == "No"
    assert corpus.calendar_arithmetic("Is 2000 a leap year?")[1] == "Yes"


def test_a_wrong_solution_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_when_odd(question: str) -> corpus.Worked:
        thought, answer = corpus.gcd(question)
        return thought, "0" if int(answer) % 2 else answer

    monkeypatch.setitem(corpus.SOLVE, "gcd", (wrong_when_odd, {}))
    counts = corpus.Counts()
    kept = list(itertools.islice(corpus.problems("gcd", 5, counts), 50))
    assert all(int(sample["answer"]) % 2 == 0 for sample in kept)
    assert counts.dropped["not verified"] == counts.made - 50 > 0


Made = tuple[Path, dict[str, list[dict]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("corpus")
    corpus.main(folder, stage1=200, stage2=100, valid=40, seed=3)
    files = {name: folder / f"{name}.jsonl" for name in ("stage1", "stage2", "valid")}
    return folder, {
        name: [json.loads(line) for line in file.read_text().splitlines()]
        for name, file in files.items()
    }


def test_sizes_tasks_and_disjoint_prompts(made: Made) -> None:
    _, parts = made
    num_chat = {part: sum(s["task"] == "chat" for s in of) for part, of in parts.items()}
    assert {part: len(of) for part, of in parts.items()} == {
        "stage1": 200,
        "stage2": 100,
        "valid": 40,
    }
    assert num_chat == {"stage1": 0, "stage2": 40, "valid": 8}
    for samples in parts.values():
        assert {s["task"] for s in samples} - {"chat"} == set(corpus.SOLVE)
    every = [sample for samples in parts.values() for sample in samples]
    assert len({json.dumps(s["messages"][:-1]) for s in every}) == len(every) == 340
    assert len({s["id"] for s in every}) == 340


def test_messages_end_with_the_answer(made: Made) -> None:
    _, parts = made
    for sample in (s for samples in parts.values() for s in samples):
        assert sample["messages"][-1]["role"] == "assistant"
        if sample["task"] != "chat" and "damage" not in sample:
            content = sample["messages"][-1]["content"]
            assert re.fullmatch(r"<think>\n.+\n</think>\n.+", content, re.DOTALL)
            assert content.endswith(f"</think>\n{sample['answer']}")


def test_a_share_of_the_thoughts_is_damaged_in_each_way(made: Made) -> None:
    _, parts = made
    for part, number in {"stage1": 40, "stage2": 9, "valid": 0}.items():  # 20 % of 200, 15 % of 60
        damaged = [sample for sample in parts[part] if "damage" in sample]
        assert len(damaged) == number
        for sample in damaged:
            assert tag_errors(sample["messages"][-1]["content"]) == [sample["damage"]]
        kinds = Counter(sample["damage"] for sample in damaged)
        assert not damaged or (len(kinds) == 5 and max(kinds.values()) - min(kinds.values()) <= 1)


def test_the_same_seed_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    folder, _ = made
    corpus.main(tmp_path / "again", stage1=200, stage2=100, valid=40, seed=3)
    corpus.main(tmp_path / "other", stage1=200, stage2=100, valid=40, seed=4)
    first, again, other = (
        (path / "stage1.jsonl").read_bytes()
        for path in (folder, tmp_path / "again", tmp_path / "other")
    )
    assert first == again != other


def test_running_out_of_prompts_names_the_task_and_both_numbers() -> None:
    endless = itertools.repeat({"task": "gcd", "messages": [{"role": "user", "content": "x"}, {}]})
    with pytest.raises(ValueError, match="gcd has only 1 different prompts, 2 are wanted"):
        corpus.take(endless, 2, corpus.Counts(), set())
