"""T-Eval: what its rules say of answers, by hand, and its score as its authors add it up."""

import itertools
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import GradingConfig, TaskConfig
from megatron_ring.evaluation.accuracies import named, score
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Grade, Item
from megatron_ring.evaluation.teval import TEval, task
from megatron_ring.evaluation.teval.grading import Grader
from megatron_ring.evaluation.teval.planning import Match, Step, compare, steps_in_text
from megatron_ring.evaluation.teval.reading import bare, outcome, value
from megatron_ring.evaluation.teval.similarity import Embedder
from tests.evaluation import teval_rows as rows
from tests.evaluation.teval_rows import CALL, GOLDEN, PLAN


def teval(folder: Path | None, embeddings: bool = True) -> TEval:
    """With a model of embeddings that counts words."""
    made = TEval(TaskConfig(file=folder), Means(GradingConfig(embeddings="")))
    if embeddings:
        made = TEval(TaskConfig(file=folder), Means(GradingConfig()))
        assert made.embedder is not None
        made.embedder.load = lambda: None  # type: ignore[method-assign]
        made.grader = Grader(rows.cosines)
    return made


@pytest.fixture
def whole(tmp_path: Path) -> TEval:
    rows.whole(tmp_path / "data")
    return teval(tmp_path)


def of(made: TEval, kind: str) -> Item:
    return next(item for item in made.items() if item.facts["kind"] == kind)


def graded(made: TEval, kind: str, answer: str) -> Grade:
    return made.grade(of(made, kind), f"<think>\nB: Flats.price\n</think>\n\n{answer}")


def test_every_row_is_an_item(tmp_path: Path) -> None:
    numbers = rows.whole(tmp_path / "data")
    items = teval(tmp_path).items()
    kinds = [item.facts["kind"] for item in items]
    assert len(items) == sum(numbers.values()) and set(kinds) == set(task.SHARES)
    assert [item.id for item in items][:3] == ["instruct/json0", "instruct/json1"] + [
        "instruct/string0"
    ]
    assert kinds[:3] == ["instruct_json", "instruct_json", "instruct_str"]
    assert all(item.messages == rows.ASKED for item in items)
    json.dumps([item.gold for item in items])


def test_a_zip_with_more_in_it_is_read_too(tmp_path: Path) -> None:
    rows.whole(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "teval.zip", "w") as archive:
        for path in (tmp_path / "data").iterdir():
            archive.write(path, f"data/{path.name}")
            archive.writestr(f"data/{path.stem}_zh.json", "not read")
            archive.writestr(f"__MACOSX/data/._{path.name}", "not read")
    assert teval(tmp_path / "teval.zip").items() == teval(tmp_path / "data").items()


def test_roles_that_models_do_not_know_are_the_users() -> None:
    given = [("system", "s"), ("user", "u"), ("assistant", "a"), ("function", "f"), ("user", "v")]
    prompt = [{"role": role, "content": text} for role, text in given]
    wanted = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "f\nv")]
    assert task.turns(prompt) == [{"role": role, "content": text} for role, text in wanted]
    assert task.turns(json.dumps(prompt)) == task.turns(prompt)


@pytest.mark.parametrize(
    ("answer", "form", "same", "verdict"),
    [
        ({"goal": "g", "name": "Flats.find", "args": CALL["args"]}, 1, 1, "right"),
        ({"goal": "g", "name": "Flats.find", "args": {"place": "Ulm"}}, 1, 2 / 3, "partly"),
        ({"goal": "g", "name": "Flats.get", "args": {"rooms": "2"}}, 1, 0, "partly"),
        ({"goal": "g", "name": "Flats.find", "args": "place"}, 1, 1 / 3, "partly"),
        ({"name": "Flats.find", "args": CALL["args"]}, 0, 0, "unreadable"),
        ([1], 0, 0, "unreadable"),
    ],
)
def test_calls_in_json(answer: Any, form: int, same: float, verdict: str, whole: TEval) -> None:
    for text in (json.dumps(answer), str(answer), f"```json\n{json.dumps(answer)}\n```"):
        found = graded(whole, "instruct_json", text)
        assert found.parts == {
            "instruct": pytest.approx((form + same) / 2),
            "instruct_format": form,
            "instruct_args": pytest.approx(same),
            "readable": form,
        }
        assert (found.score, found.verdict) == (found.parts["instruct"], verdict)
    assert graded(whole, "instruct_json", f"Sure: {json.dumps(answer)}").verdict == "unreadable"


@pytest.mark.parametrize(
    ("answer", "worth", "verdict"),
    [
        ("goal: flats\nname: Flats.find\nargs: {'place': 'Ulm', 'rooms': 2}", 1, "right"),
        ("goal: two\nlines\nname: Flats.find \nargs: {'rooms': 2}", (1 + 2 / 3) / 2, "partly"),
        ("goal: flats\nname: Flats.find\nargs: {'rooms': two", (1 + 1 / 3) / 2, "partly"),
        ("goal: flats\nname: Flats.find", 0, "unreadable"),
        ("", 0, "no_answer"),
    ],
)
def test_calls_between_marks(answer: str, worth: float, verdict: str, whole: TEval) -> None:
    found = graded(whole, "instruct_str", answer)
    assert (found.score, found.verdict) == (pytest.approx(worth), verdict)


def test_marks_are_no_regular_expressions() -> None:
    template = rows.MARKS | {"thought_start": "[goal](", "action_start": "*name*"}
    gold = {"template": template, "call": {"action": "f", "args": {}}}
    found = Grader(None).graded("instruct_str", gold, "[goal](x\n*name*f\nargs:{}")
    assert found.score == 1


@pytest.mark.parametrize(
    ("answer", "reason", "retrieve", "understand"),
    [
        (CALL, 1, 1, 1),
        (CALL | {"args": {"place": "Ulm", "rooms": "2", "more": 1}}, 1, 1, 1),
        (CALL | {"args": {"place": "Bonn", "rooms": 2}}, 1, 1, 0.5),
        (CALL | {"args": [1]}, 1, 1, 0),
        (CALL | {"name": "Flats.get", "thought": "I look"}, 2**-0.5, 0, 1),
        ({"name": "Flats.find"}, 0, 1, 0),
        ({}, 0, 0, 0),
    ],
)
def test_three_abilities_in_one_object(
    answer: dict[str, Any], reason: float, retrieve: float, understand: float, whole: TEval
) -> None:
    for text in (json.dumps(answer), f"Here: {answer} So."):
        found = graded(whole, task.BOTH, text)
        parts = {"reason": reason, "retrieve": retrieve, "understand": understand}
        assert found.parts == pytest.approx(parts | {"readable": float(answer != {})})
        assert found.score == pytest.approx(sum(parts.values()) / 3)
    assert graded(whole, task.BOTH, "none").verdict == "unreadable"


def test_arguments_that_nobody_wants(tmp_path: Path) -> None:
    gold = {"call": CALL | {"args": {}}}
    for given, worth in (({}, 1), ({"a": 1}, 0)):
        answer = json.dumps(CALL | {"args": given})
        found = Grader(rows.cosines).graded(task.BOTH, gold, answer)
        assert found.parts["understand"] == worth


@pytest.mark.parametrize(
    ("kind", "answer", "worth"),
    [
        ("reason_str", "I look for flats", 1),
        ("reason_str", "flats I want", 2 / 12**0.5),
        ("reason_str", "", 0),
        ("retrieve_str", "Flats.find", 1),
        ("retrieve_str", "I call `Flats.find`, as told", 1),
        ("retrieve_str", "Flats.find or Flats.get", 0),
        ("retrieve_str", "Flats.find, then FinishAction", 0),
        ("retrieve_str", "Flats.finder", 0),
        ("retrieve_str", "find", 0),
        ("understand_str", "Ulm", 1),
        ("understand_str", "'Ulm'", 1),
        ("understand_str", '"Ulm"', 1),
        ("understand_str", "The place is Ulm", 0),
        ("review_str", "Answer: B", 1),
        ("review_str", "Answer:\nB: it broke", 1),
        ("review_str", "B", 1),
        ("review_str", "Answer: A", 0),
        ("review_str", "It is B", 0),
    ],
)
def test_answers_in_words(kind: str, answer: str, worth: float, whole: TEval) -> None:
    found = graded(whole, kind, answer)
    assert found.score == pytest.approx(worth)
    assert found.parts[kind.partition("_")[0]] == pytest.approx(worth)
    assert found.extracted == answer


def test_what_a_review_chose() -> None:
    said = ["Answer: E", "F", "", "x: ", "Answer: A: B", "D."]
    assert [outcome(one) for one in said] == ["E", None, None, None, "A", "D"]


def test_values_are_read_in_three_ways() -> None:
    for text in ("{'a': None, 'b': (1,)}", '{"a": null, "b": [1]}'):
        assert value(text)["a"] is None
    assert value("{'a': true}") == {"a": True}
    assert value('so:\n```json\n{"a": 1}\n```') == {"a": 1}
    assert value("a [1, 2] b", "[", "]") == [1, 2]
    assert value([3], "{", "}") == [3]
    for text in ("", "no", "]1[", "[" * 5000, "[f(1)]", "[{[]: 1}]"):
        for marks in (("[", "]"), ("", "")):
            with pytest.raises(ValueError, match="^neither JSON nor a literal of Python$"):
                value(text, *marks)
    assert bare(" ```json\n[1]\n``` ") == "[1]" and bare("```\n[1]```") == "[1]"


def plan_of(*steps: tuple[str, dict[str, Any]], **more: bool) -> str:
    return json.dumps(rows.plan(*steps, **more))


SWAPPED = (PLAN[1], PLAN[0], PLAN[2])


@pytest.mark.parametrize(
    ("answer", "precision", "recall"),
    [
        (plan_of(*PLAN), 1, 1),
        (plan_of(*PLAN, finish=False), 1, 1),
        (f"My plan: {plan_of(*PLAN)}", 1, 1),
        (plan_of(*PLAN[:2]), 1, 2 / 3),
        (plan_of(*SWAPPED), 2 / 3, 2 / 3),
        (plan_of(*PLAN, ("Flats.find", {"x": 7})), 3 / 4, 1),
        (plan_of(("Other.thing", {})), 1, 1 / 3),  # nothing is similar: one counts all the same
        (plan_of(), 0, 0),
        ("[]", 0, 0),
        ('[{"id": 0, "name": "Flats.find"}]', 0, 0),
        ('[{"id": 1e999, "name": "Flats.find", "args": {}}]', 0, 0),
        ('{"id": 0}', 0, 0),
        ("no plan", 0, 0),
    ],
)
def test_plans_in_json(answer: str, precision: float, recall: float, whole: TEval) -> None:
    found = graded(whole, "plan_json", answer)
    f1 = 2 / (1 / precision + 1 / recall) if precision else 0
    assert found.parts["plan_precision"] == pytest.approx(precision)
    assert found.parts["plan_recall"] == pytest.approx(recall)
    assert (found.score, found.parts["plan"]) == (pytest.approx(f1), pytest.approx(f1))


def test_plans_go_by_their_numbers(whole: TEval) -> None:
    given = rows.plan(*PLAN)[::-1]
    assert graded(whole, "plan_json", json.dumps(given)).score == 1


def test_plans_in_words(whole: TEval) -> None:
    """A step for each line that names a function; its words are its arguments."""
    said = "Use Flats.find place Ulm\nUse Mail.send to me. Then Flats.price id 1, not Flats.find"
    functions = ["Flats.find", "Flats.price", "Mail.send"]
    assert steps_in_text(said, functions) == [
        Step(0, "Flats.find", "Use Flats.find place Ulm"),
        Step(1, "Mail.send", "Use Mail.send to me"),
        Step(2, "Flats.price", "Then Flats.price id 1, not Flats.find"),
    ]
    assert steps_in_text("Flats.find", ["Flats", "Flats.find"])[0].name == "Flats"
    found = graded(whole, "plan_str", said)
    assert (found.parts["plan_precision"], found.parts["plan_recall"]) == (2 / 3, 2 / 3)
    assert graded(whole, "plan_str", "I have no plan.").verdict == "unreadable"


def slow(similarity: np.ndarray) -> int:
    """Of all pairings the one whose sum is highest, and of its pairs the longest rise."""
    ours, theirs = similarity.shape
    best, chosen = -1.0, []
    for number in range(min(ours, theirs) + 1):
        for left in itertools.combinations(range(ours), number):
            for right in itertools.permutations(range(theirs), number):
                pairs = list(zip(left, right, strict=True))
                total = sum(similarity[pair] for pair in pairs)
                if total > best and all(similarity[pair] > 0.8 for pair in pairs):
                    best, chosen = total, pairs
    for number in range(len(chosen), 0, -1):
        for some in itertools.combinations(chosen, number):
            if all(a[1] < b[1] for a, b in itertools.pairwise(some)):
                return number
    return 1


def test_plans_are_paired_as_all_pairings_say() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        ours, theirs = rng.integers(1, 5, size=2)
        names, arguments = rng.uniform(0.6, 1, size=(2, ours, theirs))
        tables = iter((names, arguments))
        plans = [[Step(n, "f", "") for n in range(size)] for size in (ours, theirs)]
        found = compare(plans[0], plans[1], lambda a, b, tables=tables: next(tables))
        right = slow(0.75 * names + 0.25 * arguments)
        assert found == Match(precision=right / ours, recall=right / theirs)


def test_published_rows_are_read(tmp_path: Path) -> None:
    """Answers that are the ground truth are right; one step of two swapped is half right."""
    rows.whole(tmp_path / "data")
    for path in GOLDEN.glob("*.json"):
        (tmp_path / "data" / path.name.replace("_v1", "_v2")).write_bytes(path.read_bytes())
    made = teval(tmp_path)
    (planned,) = [item for item in made.items() if item.facts["kind"] == "plan_json"]
    assert planned.id == "plan_json/query_100_1"
    assert [turn["role"] for turn in planned.messages] == ["system", "user"]
    steps = [
        {"id": step["number"], "name": step["name"], "args": step["arguments"]}
        for step in planned.gold["steps"]
    ]
    assert [step["name"] for step in steps] == [
        "ArxivSearch.get_arxiv_article_information",
        "TimeTool.get_weekday",
        "FinishAction",
    ]
    assert made.grade(planned, json.dumps(steps)).score == 1
    steps[0]["id"], steps[1]["id"] = 1, 0
    assert made.grade(planned, json.dumps(steps)).score == 0.5
    said = "1. Use ArxivSearch.get_arxiv_article_information.\n2. Use TimeTool.get_weekday."
    found = made.grade(of(made, "plan_str"), said)
    assert found.parts["readable"] == 1 and found.score in (0.5, 1)
    reviews = [item for item in made.items() if item.facts["kind"] == "review_str"]
    assert [item.gold["outcome"] for item in reviews] == ["B", "A", "E"]
    assert [made.grade(item, "Answer: A").score for item in reviews] == [0, 1, 0]


ANSWERS = {
    "instruct_json": '{"goal": "g", "name": "Flats.find", "args": {}}',  # form 1, same 1/3
    "instruct_str": "no",
    "plan_json": plan_of(*PLAN[:2]),  # F1 0.8
    "plan_str": "Flats.find place Ulm",  # F1 0.5
    task.BOTH: json.dumps(CALL | {"args": {"place": "Ulm"}}),  # 1, 1, 0.5
    "reason_str": "I look",  # 2^-0.5
    "retrieve_str": "Flats.get",
    "review_str": "Answer: B",
    "understand_str": "Ulm",
}


def answered(made: TEval, items: list[Item]) -> list[dict[str, Any]]:
    return [{"id": one.id, **asdict(made.grade(one, ANSWERS[one.facts["kind"]]))} for one in items]


def test_the_score_is_added_up_as_its_authors_do(whole: TEval) -> None:
    """Means of the halves of each ability, then of abilities, whatever the number of rows."""
    items = {item.id: item for item in whole.items()}
    lines = answered(whole, list(items.values()))
    abilities = {
        "instruct": ((1 + 1 / 3) / 2 + 0) / 2,
        "plan": (0.8 + 0.5) / 2,
        "reason": (2**-0.5 + 1) / 2,
        "retrieve": (0 + 1) / 2,
        "understand": (1 + 0.5) / 2,
        "review": 1.0,
    }
    found = {name: one["value"] for name, one in named(items, lines, whole.averages).items()}
    assert {name: found[name] for name in abilities} == pytest.approx(abilities)
    assert found["reason_json"] == 1 and found["understand_json"] == 0.5
    assert found["kind/reason_str"] == pytest.approx(2**-0.5)
    scores = {line["id"]: [line["score"]] for line in lines}
    total, weights = score(items, scores, whole.averages)
    assert total.value == pytest.approx(sum(abilities.values()) / 6)
    assert sum(weights.values()) == pytest.approx(1)


def test_without_embeddings_four_abilities_are_left(tmp_path: Path) -> None:
    rows.whole(tmp_path / "data")
    made = teval(tmp_path, embeddings=False)
    assert made.title == "T-Eval without plan and reason"
    assert teval(tmp_path).title == "T-Eval"
    items = {item.id: item for item in made.items()}
    assert len(items) == len(teval(tmp_path).items())  # all are asked, to be graded later
    lines = answered(made, list(items.values()))
    verdicts = {items[line["id"]].facts["kind"]: line["verdict"] for line in lines}
    assert [kind for kind, said in verdicts.items() if said == "not_graded"] == [*task.LEFT_OUT]
    found = named(items, lines, made.averages)
    assert not {"plan", "reason", "reason_json"} & set(found)
    assert found["understand"]["value"] == 0.75
    total, weights = score(items, {line["id"]: [line["score"]] for line in lines}, made.averages)
    assert total.value == pytest.approx((1 / 3 + 0.5 + 0.75 + 1) / 4)
    assert not any(name.startswith(("plan", "reason_str")) for name in weights)


def test_a_ground_truth_that_cannot_be_read_is_worth_nothing() -> None:
    for name, kind in ((task.BOTH, task.BOTH), ("retrieve_str", "retrieve_str")):
        item = task.item_of(name, "k", {"ground_truth": "no", "origin_prompt": rows.ASKED})
        found = Grader(rows.cosines).graded(kind, item.gold, "Flats.find")
        assert (found.score, found.detail) == (0, "its ground truth cannot be read")
        assert set(found.parts.values()) == {0}


def test_without_the_package_nothing_is_asked(tmp_path: Path, monkeypatch: Any) -> None:
    rows.whole(tmp_path)
    monkeypatch.setattr("megatron_ring.evaluation.teval.similarity.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        TEval(TaskConfig(file=tmp_path), Means(GradingConfig())).items()
    assert str(error.value) == (
        "tasks.teval compares plans and thoughts by sentence-transformers, which is not "
        "installed: pip install 'megatron-ring[embeddings]', or set grading.embeddings='' to "
        "leave plan and reason out of T-Eval's score"
    )


def test_wrong_files_are_named(tmp_path: Path) -> None:
    def complaint(folder: Path | None = tmp_path) -> str:
        with pytest.raises(ConfigError) as error:
            teval(folder).items()
        return str(error.value).replace(f"tasks.teval.file={folder}: ", "")

    wanted = "wanted is the folder or .zip of T-Eval's data (data of lovesnowbest/T-Eval on the hub"
    assert complaint(None).startswith("missing config key tasks.teval.file: the folder or .zip")
    assert wanted in complaint()
    rows.whole(tmp_path)
    path = tmp_path / "plan_str_v2.json"
    kept = path.read_text()
    path.rename(tmp_path / "plan_str_v2_zh.json")
    assert complaint().startswith(f"no file of plan_str; {wanted}")
    assert complaint(tmp_path / "plan_str_v2_zh.json").startswith("plan_str_v2_zh.json is one file")
    path.write_text(kept)
    (tmp_path / "plan_str_v2_subset.json").write_text(kept)
    assert complaint() == "plan_str_v2.json and plan_str_v2_subset.json are both plan_str; " + (
        "leave one"
    )
    (tmp_path / "plan_str_v2_subset.json").unlink()
    for text, told in (
        ("{", "plan_str_v2.json cannot be read: Expecting property name"),
        ("[]", "plan_str_v2.json: an object of rows is wanted; is it T-Eval's?"),
        ('{"k": {}}', "plan_str_v2.json: k: no 'ground_truth'; is it T-Eval's?"),
        ('{"k": []}', "plan_str_v2.json: k: list indices must be integers or slices, not str; is"),
    ):
        path.write_text(text)
        assert complaint().startswith(told)
    template = {"thought_start": "goal:"}
    broken = {name: row | {"template": template} for name, row in rows.instruct("string").items()}
    (tmp_path / "instruct_v2.json").write_text(json.dumps(broken))
    assert "string0: no 'thought_end'; is it T-Eval's?" in complaint()


class Counting:
    """A model that embeds a text as its length and number of spaces, and counts texts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: list[str], show_progress_bar: bool) -> np.ndarray:
        assert not show_progress_bar
        self.asked += texts
        return np.array([[len(text), -float(text.count(" "))] for text in texts], np.float32)


def test_cosines_by_hand_each_text_embedded_once() -> None:
    """(3, -1) with (1, 0): 3 / sqrt(10); nothing below 0, nothing of an empty text."""
    embedder = Embedder("any")
    vars(embedder)["model"] = model = Counting()
    found = embedder.cosines(["a b", "x", "x"], ["x", "", "  "])
    root = 10**-0.5
    apart = (6 + 2) * root / 8**0.5
    assert found == pytest.approx(
        np.array([[3 * root, 0, apart], [1, 0, 0.5**0.5], [1, 0, 0.5**0.5]])
    )
    assert model.asked == ["a b", "x", "", "  "]
    assert (embedder.cosines(["x"], ["a b"]) == found[:1, :1]).all() and len(model.asked) == 4
