"""Tables of runs whose every answer is known (comparing.DOES): all numbers by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_ring import config
from megatron_ring.config import ConfigError
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.evaluation import run as evaluation
from megatron_ring.evaluation.compare import items, reading, scores, tables, topics
from megatron_ring.evaluation.compare.cells import Frame
from megatron_ring.evaluation.maths import CHOOSE, SOLVE
from megatron_ring.evaluation.run import Teller
from megatron_ring.evaluation.statistics import avg_at_k

T7 = 2.364624  # Student's two-sided 95 % quantile with 7 degrees of freedom


def frame_of(folders: dict[str, list[Path]], baseline: str = "previous") -> Frame:
    return Frame(reading.read(folders), reading.baselines(list(folders), baseline))


def build(folders: dict[str, list[Path]], baseline: str = "previous", **more: Any) -> Any:
    """Tables, after a round trip through JSON."""
    told = tables.build(frame_of(folders, baseline), Teller(), **more)
    return json.loads(json.dumps(told, allow_nan=False))


def by_name(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {row["name"]: row["cells"] for row in rows}


def near(cell: dict[str, Any]) -> Any:
    """Its three numbers, to be compared with others."""
    return pytest.approx((cell["value"], cell["low"], cell["high"]), abs=2e-4)


@pytest.fixture(scope="module")
def told(runs: Path) -> Any:
    return build({name: [runs / name] for name in ("base", "sft", "dpo")})


@pytest.fixture(scope="module")
def seeds(runs: Path) -> Any:
    return build(
        {"base": [runs / "base", runs / "base2"], "sft": [runs / "sft", runs / "sft2"]},
    )


def test_scores_by_hand(told: Any) -> None:
    assert told["unit"] == "items" and told["against"] == [None, "base", "sft"]
    assert "paired by item" in told["table2"]["caption"]
    found = by_name(told["table2"]["rows"])
    values = {name: [cell["value"] for cell in cells] for name, cells in found.items()}
    assert values == {
        "math500": [1 / 4, 3 / 4, 3 / 4],
        "gsm8k": [3 / 8, 6 / 8, 6 / 8],
        "mmlu": [3 / 4, 1 / 4, 3 / 4],
        "mean_reasoning": pytest.approx([5 / 16, 6 / 8, 6 / 8]),
        "mean_general": [3 / 4, 1 / 4, 3 / 4],
        "mean": pytest.approx([11 / 24, 14 / 24, 18 / 24]),
    }
    titles = [(row["title"], row["of"], row["kind"]) for row in told["table2"]["rows"]]
    assert titles[1] == ("GSM8K", "8 items", "benchmark")
    assert titles[3] == ("Mean, reasoning", "2 benchmarks", "mean")
    assert titles[4] == ("Mean, general", "1 benchmark", "mean")
    # Wilson's for 3 of 8, as any table has it.
    assert near(found["gsm8k"][0]) == (0.375, 0.1368, 0.6943)
    # base: right, right, wrong, wrong: 5 words, "It is \boxed{11}": 3, open: 4, cut: 5, wrong: 5.
    assert found["gsm8k"][0]["tokens"] == pytest.approx((5 * 6 + 3 + 4) / 8)
    assert found["gsm8k"][0]["seeds"] == [] and found["gsm8k"][0]["delta"] is None


def test_differences_are_paired_by_item(told: Any) -> None:
    """gsm8k, base to sft: 0 -1 1 1 0 1 1 0, mean 3/8, variance (5 - 9/8) / 7."""
    found = by_name(told["table2"]["rows"])
    reach = T7 * math.sqrt((5 - 9 / 8) / 7 / 8)
    assert near(found["gsm8k"][1]["delta"]) == (0.375, 0.375 - reach, 0.375 + reach)
    assert not found["gsm8k"][1]["delta"]["sure"]
    # sft to dpo: one won, one lost: mean 0, variance 2/7.
    reach = T7 * math.sqrt(2 / 7 / 8)
    assert near(found["gsm8k"][2]["delta"]) == (0, -reach, reach)


def test_the_mean_of_differences_by_its_parts(told: Any) -> None:
    found = by_name(told["table2"]["rows"])
    parts = [found[name][1]["delta"] for name in ("math500", "gsm8k", "mmlu")]
    mean = sum(part["value"] for part in parts) / 3
    below = math.sqrt(sum((part["value"] - part["low"]) ** 2 for part in parts)) / 3
    above = math.sqrt(sum((part["high"] - part["value"]) ** 2 for part in parts)) / 3
    assert near(found["mean"][1]["delta"]) == (mean, mean - below, mean + above)
    assert mean == pytest.approx(14 / 24 - 11 / 24)


def test_the_baseline_is_as_wanted(runs: Path, told: Any) -> None:
    folders = {name: [runs / name] for name in ("base", "sft", "dpo")}
    first = build(folders, "first")
    assert first["against"] == [None, "base", "base"]
    assert by_name(first["table2"]["rows"])["gsm8k"][2]["delta"]["value"] == 0.375
    named = build(folders, "dpo")
    assert named["against"] == ["dpo", "dpo", None]
    cells = by_name(named["table2"]["rows"])["mmlu"]
    assert [cell["delta"] and cell["delta"]["value"] for cell in cells] == [0, -0.5, None]
    assert [pair["one"] for pair in named["items"]["pairs"]] == ["dpo", "dpo"]


def test_tag_errors_by_hand(told: Any) -> None:
    """All three benchmarks: base is cut once, dpo once; what is wrong is of gsm8k but for one."""
    found = by_name(told["table3"]["rows"])
    counts = {
        name: [cell and (cell["part"], cell["whole"]) for cell in cells]
        for name, cells in found.items()
    }
    assert counts == {
        "any_error": [(2, 15), (1, 16), (1, 15)],
        "missing_open": [(1, 15), (0, 16), (0, 15)],
        "missing_close": [(2, 15), (0, 16), (0, 15)],
        "redundant": [(0, 15), (1, 16), (0, 15)],
        "misplaced": [(0, 15), (0, 16), (1, 15)],
        "empty": [(0, 15), (0, 16), (0, 15)],
        "truncated": [(1, 16), (0, 16), (1, 16)],
        "of_these_in_the_thought": [(1, 1), None, (1, 1)],
    }
    # Wilson's for 2 of 15 and 1 of 16, and Newcombe's of the two.
    one, other = found["any_error"][:2]
    assert near(one) == (0.1333, 0.0374, 0.3788) and near(other) == (0.0625, 0.0111, 0.2833)
    low = -0.0708 - math.hypot(0.0625 - 0.0111, 0.3788 - 0.1333)
    high = -0.0708 + math.hypot(0.2833 - 0.0625, 0.1333 - 0.0374)
    assert near(other["delta"]) == (-0.0708, low, high)
    assert found["of_these_in_the_thought"][2]["delta"] is None
    by_task = {one["task"]: by_name(one["rows"]) for one in told["table3"]["by_task"]}
    errors = {task: rows["any_error"] for task, rows in by_task.items()}
    shares = {task: [(c["part"], c["whole"]) for c in cells] for task, cells in errors.items()}
    assert shares == {
        "math500": [(0, 4)] * 3,
        "gsm8k": [(2, 7), (1, 8), (0, 7)],
        "mmlu": [(0, 4), (0, 4), (1, 4)],
    }


def test_seeds_are_the_unit_where_there_are_several(seeds: Any) -> None:
    """gsm8k: 3/8 and 2/8, then 6/8 and 4/8; differences 3/8 and 2/8, s / sqrt(2) = 1/16."""
    assert seeds["unit"] == "seeds" and "Student's t over seeds" in seeds["table2"]["caption"]
    base, sft = by_name(seeds["table2"]["rows"])["gsm8k"]
    assert (base["seeds"], sft["seeds"]) == ([3 / 8, 2 / 8], [6 / 8, 4 / 8])
    assert near(base) == (0.3125, 0, 1)  # 0.3125 ± 12.706 / 16, kept in bounds
    assert near(sft["delta"]) == (0.3125, 0.3125 - 12.7062 / 16, 1)
    # Of means over benchmarks: the others are alike in both seeds.
    means = by_name(seeds["table2"]["rows"])["mean"]
    assert means[0]["seeds"] == pytest.approx([11 / 24, 10 / 24])
    assert means[1]["seeds"] == pytest.approx([14 / 24, 12 / 24])
    reach = 12.7062 / 48
    assert near(means[1]["delta"]) == (5 / 48, 5 / 48 - reach, 5 / 48 + reach)


def test_seeds_that_agree_leave_it_to_the_items(seeds: Any) -> None:
    """math500: 1/4 in both seeds of base, 3/4 in both of sft; items moved by 1, 0, 0, 1."""
    base, sft = by_name(seeds["table2"]["rows"])["math500"]
    assert base["seeds"] == [1 / 4, 1 / 4] and near(base) == (0.25, 0.0456, 0.6994)  # Wilson's
    reach = 3.1824 * math.sqrt(1 / 3 / 4)  # t(3)
    assert (sft["delta"]["value"], sft["delta"]["low"]) == pytest.approx(
        (0.5, 0.5 - reach), abs=1e-2
    )
    by_task = {one["task"]: by_name(one["rows"]) for one in seeds["table3"]["by_task"]}
    delta = by_task["math500"]["any_error"][1]["delta"]
    high = 3.8415 / (8 + 3.8415)  # Wilson's of 0 of 8
    assert near(delta) == (0, -high, high)


def test_the_order_of_items_is_nothing(runs: Path, tmp_path: Path, told: Any) -> None:
    other = shutil.copytree(runs / "sft", tmp_path / "sft")
    for path in [*other.glob("samples/*.jsonl"), *other.glob("grades/*.jsonl")]:
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(reversed(lines)))
    found = build({"base": [runs / "base"], "sft": [other], "dpo": [runs / "dpo"]})
    for kind in ("table2", "table3", "topics", "items"):
        assert found[kind] == told[kind]


def test_items_count_by_their_weights(runs: Path, tmp_path: Path) -> None:
    """As T-Eval's, where the score is a mean of means: here one item of mmlu is worth three."""
    folders: dict[str, list[Path]] = {}
    scores = {}
    for name in ("base", "sft"):
        folder = shutil.copytree(runs / name, tmp_path / name)
        file = folder / "grades/mmlu.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        weights = [3 / 6, 1 / 6, 1 / 6, 1 / 6]
        weighted = [one | {"weight": w} for one, w in zip(lines, weights, strict=True)]
        file.write_text("".join(json.dumps(one) + "\n" for one in weighted))
        scores[name] = [one["score"] for one in lines]
        folders[name] = [folder]
    assert scores["base"] != scores["sft"] and len(set(scores["base"])) == 2
    expected = {
        name: sum(s * w for s, w in zip(of, weights, strict=True)) for name, of in scores.items()
    }
    found = build(folders)
    base, sft = by_name(found["table2"]["rows"])["mmlu"]
    assert base["value"] == pytest.approx(expected["base"]) != sum(scores["base"]) / 4
    assert sft["value"] == pytest.approx(expected["sft"])
    assert sft["delta"]["value"] == pytest.approx(expected["sft"] - expected["base"])


def test_answers_that_are_not_to_think_have_no_tag_errors(runs: Path, tmp_path: Path) -> None:
    """gsm8k had all errors but mmlu's; its scores stay in Table 2, in a group of its own."""
    folders = {}
    for name in ("base", "sft", "dpo"):
        folder = shutil.copytree(runs / name, tmp_path / name)
        recipe = config.load(EvaluationConfig, [str(folder / "recipe.yaml")], [f"output={folder}"])
        options = {"group": "sums", "tags": False}
        gsm8k = recipe.tasks["gsm8k"].model_copy(update=options)
        tasks = recipe.tasks | {"gsm8k": gsm8k}
        config.save(recipe.model_copy(update={"tasks": tasks}), folder / "recipe.yaml")
        evaluation.grade(folder)
        folders[name] = [folder]
    found = build(folders)
    cells = by_name(found["table3"]["rows"])["any_error"]
    assert [(cell["part"], cell["whole"]) for cell in cells] == [(0, 8), (0, 8), (1, 8)]
    assert [one["task"] for one in found["table3"]["by_task"]] == ["math500", "mmlu"]
    groups = {row["name"]: row["group"] for row in found["table2"]["rows"]}
    assert groups["gsm8k"] == "sums"


def test_tag_errors_of_seeds_are_pooled(seeds: Any) -> None:
    """base: 2 of 15 and 0 of 16; sft: 1 of 16 twice."""
    base, sft = by_name(seeds["table3"]["rows"])["any_error"]
    assert (base["part"], base["whole"], base["seeds"]) == (2, 31, [2 / 15, 0])
    assert (sft["part"], sft["whole"], sft["seeds"]) == (2, 32, [1 / 16, 1 / 16])
    one, other = 1 / 16 - 2 / 15, 1 / 16
    reach = 12.7062 * abs(one - other) / 2  # s / sqrt(2) of two is half their distance
    mean = (one + other) / 2
    assert near(sft["delta"]) == (mean, mean - reach, mean + reach)
    assert "pooled over all their answers" in seeds["table3"]["caption"]
    thought = by_name(seeds["table3"]["rows"])["of_these_in_the_thought"]
    assert thought[0]["seeds"] == [] and thought[1] is None  # one seed has none, all of sft


def test_one_run_stands_against_each_seed(runs: Path) -> None:
    found = build({"base": [runs / "base"], "sft": [runs / "sft", runs / "sft2"]})
    base, sft = by_name(found["table2"]["rows"])["gsm8k"]
    assert near(base) == (0.375, 0.1368, 0.6943)  # Wilson's
    assert near(sft["delta"]) == (0.25, max(-1, 0.25 - 12.7062 / 8), min(1, 0.25 + 12.7062 / 8))
    folders = {
        "a": [runs / "base", runs / "base2"],
        "b": [runs / n for n in ("sft", "sft2", "dpo")],
    }
    with pytest.raises(ConfigError) as error:
        build(folders)
    assert str(error.value) == (
        "a and b: 2 seeds against 3: they are compared one by one, in the order they are given; "
        "give as many of both, or a single one"
    )


def test_what_only_some_columns_have(runs: Path, tmp_path: Path) -> None:
    """A dash; means and Table 3 are of the rest."""
    short = shutil.copytree(runs / "dpo", tmp_path / "short")
    results = json.loads((short / "results.json").read_text())
    del results["tasks"]["mmlu"]
    (short / "results.json").write_text(json.dumps(results))
    found = build({"base": [runs / "base"], "short": [short], "sft": [runs / "sft"]})
    rows = by_name(found["table2"]["rows"])
    assert [cell and cell["value"] for cell in rows["mmlu"]] == [3 / 4, None, 1 / 4]
    assert rows["mmlu"][2]["delta"] is None  # its baseline has none
    assert [cell["value"] for cell in rows["mean"]] == pytest.approx([5 / 16, 6 / 8, 6 / 8])
    assert "mean_general" not in rows and "mean_reasoning" not in rows
    assert by_name(found["table3"]["rows"])["any_error"][0]["whole"] == 11
    assert found["notes"] == [
        "short has no MMLU: a dash in its column; means and Table 3 are of the benchmarks that all "
        "columns have."
    ]
    assert [one["task"] for one in found["items"]["pairs"][1]["tasks"]] == ["math500", "gsm8k"]


def test_a_column_alone(runs: Path) -> None:
    found = build({"base": [runs / "base"]})
    assert found["items"]["pairs"] == []
    assert by_name(found["table2"]["rows"])["gsm8k"][0]["value"] == 3 / 8


def test_other_sampling_is_told(runs: Path, tmp_path: Path) -> None:
    other = shutil.copytree(runs / "sft", tmp_path / "other")
    results = json.loads((other / "results.json").read_text())
    results["tasks"]["gsm8k"]["asked"] |= {"temperature": 0.0, "seed": 5, "step": 9}
    (other / "results.json").write_text(json.dumps(results))
    found = build({"base": [runs / "base"], "sft": [runs / "sft", other]})
    assert found["notes"] == ["GSM8K: temperature is 0.6 in base, 0.6, 0.0 in sft."]


def test_won_and_lost_by_hand(runs: Path, told: Any) -> None:
    first, second = told["items"]["pairs"]
    assert (first["one"], first["other"], second["one"]) == ("base", "sft", "sft")
    gsm8k = first["tasks"][1]
    assert (gsm8k["won"], gsm8k["lost"]) == (["2", "3", "5", "6"], ["1"])
    assert (gsm8k["both"], gsm8k["neither"], gsm8k["p"]) == (2, 1, 0.375)
    assert second["tasks"][1]["won"] == ["1"] and second["tasks"][1]["lost"] == ["5"]
    frame = frame_of({name: [runs / name] for name in ("base", "sft", "dpo")})
    pair = items.pairs(frame)[0]
    lines = [line for line in items.changed(frame, pair) if line["task"] == "gsm8k"]
    assert [(line["id"], line["outcome"]) for line in lines] == [
        *(("2", "won"), ("3", "won"), ("5", "won"), ("6", "won"), ("1", "lost")),
    ]
    line = lines[2]
    assert line["columns"] == ["base", "sft"] and line["prompt"].startswith("user: 5 + 8? (base=op")
    assert line["one"]["text"] == "<think>\nIt is \\boxed{13}"
    assert (line["one"]["verdict"], line["other"]["verdict"]) == ("no_answer", "right")
    assert line["other"]["extracted"] == "13" and line["other"]["run"] == str(runs / "sft")


def test_of_several_answers_one_is_shown_that_fits(runs: Path) -> None:
    """Item 4 is right in one of two seeds of base (no more than a half), and so it is of sft."""
    folders = {"a": [runs / "base2", runs / "base"], "b": [runs / "dpo"]}
    frame = frame_of(folders)
    pair = items.pairs(frame)[0]
    lines = {line["id"]: line for line in items.changed(frame, pair) if line["task"] == "gsm8k"}
    assert set(lines) == {"2", "3", "4", "6"}
    assert lines["4"]["one"]["run"] == str(runs / "base2") and lines["4"]["one"]["score"] == 0
    frame = frame_of({"a": [runs / "base", runs / "base2"], "b": [runs / "dpo"]})
    lines = {line["id"]: line for line in items.changed(frame, items.pairs(frame)[0])}
    assert lines["4"]["one"]["run"] == str(runs / "base2")  # the first is right, and not shown


def test_topics_of_the_items_own_facts(told: Any) -> None:
    found = {table["title"]: table for table in told["topics"]["tables"]}
    # One subject of MATH-500 is no topic.
    assert list(found) == ["MATH-500, by level", "MMLU, by subject", "MMLU, by category"]
    levels = by_name(found["MATH-500, by level"]["scores"])
    values = {name: [cell["value"] for cell in cells] for name, cells in levels.items()}
    assert values == {"1": [0.5, 1, 1], "2": [0, 0.5, 0.5]}
    assert levels["2"][1]["delta"]["value"] == 0.5
    errors = by_name(found["MMLU, by subject"]["errors"])
    assert [(c["part"], c["whole"]) for c in errors["college_law"]] == [(0, 2), (0, 2), (1, 2)]
    assert [row["of"] for row in found["MMLU, by subject"]["errors"]] == ["2 items"] * 2


class Counting(Teller):
    """Counts what is told."""

    def __init__(self) -> None:
        self.total, self.steps, self.ended = 0, 0, 0

    def begin(self, name: str, total: int) -> None:
        self.total = total

    def step(self) -> None:
        self.steps += 1

    def end(self) -> None:
        self.ended += 1


def test_topics_of_the_taxonomy(runs: Path, tmp_path: Path) -> None:
    """Prompts of which nobody doubts what they are about: physics in gsm8k, ..."""
    texts = {
        "gsm8k": "Newton's second law: a force acts on a mass; find its momentum.",
        "math500": "Find the derivative of the function and the tangent line at the point.",
        "mmlu": "Which amendment of the Constitution lets a court hear a contract dispute?",
    }
    folders = {}
    for name in ("base", "sft"):
        folder = shutil.copytree(runs / name, tmp_path / name)
        for task, text in texts.items():
            path = folder / f"samples/{task}.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            tail = CHOOSE if task == "mmlu" else SOLVE
            for line in lines:
                advice = tail.format(question=text, options="")
                line["messages"] = [{"role": "user", "content": advice}]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders[name] = [folder]
    counting = Counting()
    found = tables.build(frame_of(folders), counting, with_taxonomy=True)
    assert (counting.total, counting.steps, counting.ended) == (16, 16, 1)
    domains, paths = found["topics"]["tables"][-2:]
    assert domains["title"] == "All benchmarks, by domain of the taxonomy"
    assert paths["title"] == "All benchmarks, by topic of the taxonomy"
    rows = by_name(domains["scores"])
    assert list(rows) == ["Politics and law", "Mathematics", "Physics"]
    assert [cell["value"] for cell in rows["Physics"]] == [3 / 8, 6 / 8]
    assert near(rows["Physics"][0]) == (0.375, 0.1368, 0.6943)
    assert [cell["value"] for cell in rows["Politics and law"]] == [3 / 4, 1 / 4]
    assert [row["of"] for row in domains["scores"]] == ["4 items", "4 items", "8 items"]
    assert all(row["title"].split(" / ")[0] in rows for row in paths["scores"])
    assert "which errs" in found["topics"]["caption"]


def test_items_of_several_benchmarks_weigh_the_same(runs: Path) -> None:
    frame = frame_of({name: [runs / name] for name in ("base", "sft")})
    chosen = {"gsm8k": ["1", "2"], "mmlu": ["college_law/0"]}
    base, sft = scores.pooled(frame, chosen)
    assert (base.value, sft.value) == pytest.approx((2 / 3, 1 / 3))
    expected = avg_at_k([[1], [0], [1]])
    assert (base.low, base.high) == (expected.low, expected.high)


def test_advice_is_no_part_of_a_question() -> None:
    assert topics.bare(SOLVE.format(question="1 + 2?")) == "1 + 2?"
    assert topics.bare(CHOOSE.format(question="1?", options="A. 2")) == "1?\n\nA. 2"


def test_further_scores_of_benchmarks(runs: Path, tmp_path: Path) -> None:
    folders: dict[str, list[Path]] = {"base": [runs / "base"]}
    for number, value in enumerate((0.5, 0.7)):
        folder = shutil.copytree(runs / ("sft", "sft2")[number], tmp_path / str(number))
        results = json.loads((folder / "results.json").read_text())
        strict = {"value": value, "low": 0.1, "high": 0.9, "of": 8}
        results["tasks"]["gsm8k"]["accuracies"] = {"strict": strict}
        (folder / "results.json").write_text(json.dumps(results))
        folders.setdefault("sft", []).append(folder)
    rows = {row["name"]: row for row in build(folders)["accuracies"]["rows"]}
    row = rows["gsm8k/strict"]
    assert (row["name"], row["title"], row["of"]) == ("gsm8k/strict", "GSM8K: strict", "8")
    assert row["cells"][0] is None
    assert near(row["cells"][1]) == (0.6, 0, 1)  # ± 12.706 * 0.1
    for folder in folders["sft"]:  # seeds that agree say nothing of others: items do
        path = folder / "results.json"
        path.write_text(path.read_text().replace('"value": 0.7', '"value": 0.5'))
    rows = {row["name"]: row for row in build(folders)["accuracies"]["rows"]}
    assert near(rows["gsm8k/strict"]["cells"][1]) == (0.5, 0.1, 0.9)
    rows = {one["name"]: one for one in build({"sft": folders["sft"][:1]})["accuracies"]["rows"]}
    row = rows["gsm8k/strict"]
    assert near(row["cells"][0]) == (0.5, 0.1, 0.9)
