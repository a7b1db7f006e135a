"""BFCL: possible answers are right, spoilt ones wrong, and noise is no refusal."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.evaluation.accuracies import named
from megatron_ring.evaluation.bfcl import BFCL
from megatron_ring.evaluation.bfcl.calls import Call, Source, as_text, read_calls
from megatron_ring.evaluation.bfcl.compare import call_fault, matching_fault, same
from megatron_ring.evaluation.bfcl.literals import cut, read
from megatron_ring.evaluation.bfcl.task import CATEGORIES
from megatron_ring.evaluation.task import Item
from tests.evaluation.bfcl_answers import as_source, as_tool_calls, choose, spoilt

GOLDEN = Path(__file__).parent / "golden" / "bfcl"
TASK = BFCL(TaskConfig(file=GOLDEN))
ITEMS = TASK.items()
CALLING = [item for item in ITEMS if item.gold["wants"] == "calls"]
REFUSAL = "I cannot help with that, since none of the functions does it."
NOISE = [
    "qwe rty uiop asdf ghjk lzxc vbnm",
    "the the the the the the the the the the the the",
    "}{][)(:;=,, 0 0 1 a b",
    "<tool_call>\n{'name': oops",
    '{"thought": "none"}',
    "42",
    "def f(x):\n    return x",
    "啊啊啊啊啊啊啊啊啊啊啊啊啊啊啊啊",
]


@pytest.mark.parametrize("item", CALLING, ids=lambda item: item.id)
@pytest.mark.parametrize("sparing", [True, False])
@pytest.mark.parametrize("which", [0, 1])
def test_possible_answers_are_right(item: Item, sparing: bool, which: int) -> None:
    calls = choose(item, which, sparing)
    source = as_source(calls, item.gold["language"])
    for text in (source, as_tool_calls(calls), as_tool_calls(calls[::-1]), f"```\n{source}\n```"):
        grade = TASK.grade(item, f"<think>\nHm.\n</think>\n\n{text}")
        assert (grade.verdict, grade.score) == ("right", 1.0), grade


@pytest.mark.parametrize("item", CALLING, ids=lambda item: item.id)
def test_spoilt_answers_are_wrong(item: Item) -> None:
    ways = dict(spoilt(item))
    assert {"function", "unexpected", "extra", "fewer"} <= set(ways)
    for way, calls in ways.items():
        for text in (as_source(calls, item.gold["language"]), as_tool_calls(calls)):
            grade = TASK.grade(item, text)
            assert grade.score == 0.0
            wanted = {"wrong"} if calls else {"not_called", "no_answer"}
            assert grade.verdict in wanted, (way, text, grade)
    assert TASK.grade(item, REFUSAL).verdict == "not_called"
    assert [TASK.grade(item, text).verdict for text in NOISE] == ["unreadable"] * len(NOISE)


def one(category: str) -> Item:
    return next(item for item in ITEMS if item.facts["category"] == category)


@pytest.mark.parametrize("category", ["irrelevance", "live_irrelevance"])
def test_noise_does_not_pass_for_a_refusal(category: str) -> None:
    item = one(category)
    name = item.gold["functions"][0]["name"]
    assert TASK.grade(item, REFUSAL).verdict == "right"
    assert TASK.grade(item, "[]").verdict == "right"
    assert TASK.grade(item, "很抱歉，所提供的函数都不能用于回答这个问题。").verdict == "right"
    told = f"No, since {name}(x) is not what you can do this with."
    assert TASK.grade(item, told).verdict == "right"
    assert TASK.grade(item, f"[{name}(a=1)]").verdict == "called"
    assert TASK.grade(item, f"I would like to call {name}(a=1, for that").verdict == "unreadable"
    assert TASK.grade(item, "").verdict == "no_answer"
    assert TASK.grade(item, "<think>\nNone of the functions does").verdict == "no_answer"
    assert [TASK.grade(item, text).verdict for text in NOISE] == ["unreadable"] * len(NOISE)


def test_relevance_wants_a_call_of_what_was_offered() -> None:
    item = one("live_relevance")
    name = item.gold["functions"][0]["name"]
    assert TASK.grade(item, f"[{name}(a=1)]").verdict == "right"
    assert TASK.grade(item, f"[{name}(a=1), other(a=1)]").detail == "other is not offered"
    assert TASK.grade(item, REFUSAL).verdict == "not_called"
    assert TASK.grade(item, "asdf qwer").verdict == "unreadable"


F = [Call("f", {"a": 1}), Call("g.h", {"b": "x y"})]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('[f(a=1), g.h(b="x y")]', F),
        ("f(a=1)\ng.h(b='x y')", F),
        ('```python\n[f(a=1), g.h(b="x y")]\n```', F),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', F[:1]),
        ('[{"name": "f", "arguments": "{\\"a\\": 1}"}]', F[:1]),
        ('{"tool_calls": [{"function": {"name": "f", "parameters": {"a": 1}}}]}', F[:1]),
        ('[{"f": {"a": 1}}, {"g.h": {"b": "x y"}}]', F),
        ("f(a=2-1)", F[:1]),
        ("f(a=-1, b=(1, 2), c={'k': [None, True]})", None),
        ("f(a=x.y, b=2**2, c=1/0, d=4/2)", None),
        ("f(1, a=2)", None),
    ],
)
def test_forms_of_calls(text: str, calls: list[Call] | None) -> None:
    by_hand = {
        "f(a=-1": {"a": -1, "b": (1, 2), "c": {"k": [None, True]}},
        "f(a=x.": {"a": "x.y", "b": "2 ** 2", "c": "1 / 0", "d": 2.0},
        "f(1, a": {"0": 1, "a": 2},
    }
    calls = calls or [Call("f", by_hand[text[:6]])]
    assert read_calls(text, "python", ["f"]).made == calls


def test_tool_calls_as_text_are_read_back() -> None:
    given = [{"function": {"name": "f", "arguments": '{"a": 1}'}}]
    given.append({"function": {"name": "g.h", "arguments": {"b": "x y"}}})
    assert read_calls(as_text(given), "python", []).made == F
    cut_off = as_text([{"function": {"name": "f", "arguments": '{"a": '}}])
    assert read_calls(cut_off, "python", []).kind == "unreadable"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 30000, "30000 characters; at most 20000 are read as calls"),
        ("[" * 15000, "nested too deeply"),
        ("[null]", "no call: null"),
        ('{"name": "f", "arguments": 5}', "f: arguments is no object"),
        ("x = 1", "no call: x = 1"),
        ("f(**a)", "no call: f(**a)"),
        ("[f(a=1]", "no Python: "),
        ("f(a=1), 5", "no call: 5"),
    ],
)
def test_what_is_no_call_says_so(text: str, fault: str) -> None:
    read = read_calls(text, "python", ["f"])
    assert read.kind == "unreadable"
    assert fault in read.fault


@pytest.mark.parametrize("language", ["java", "javascript"])
def test_foreign_calls(language: str) -> None:
    text = 'f(a=1, b="x, y", c=new HashMap<String, Object>() {{ put("k", 1); }});'
    (call,) = read_calls(text, language, ["f"]).made
    assert call.arguments["b"] == Source('"x, y"')
    assert call.arguments["c"] == Source('new HashMap<String, Object>() {{ put("k", 1); }}')
    assert read_calls("f(1, b=2)", language, []).made[0].arguments["0"] == Source("1")
    assert (
        read_calls("f(a=(1)", language, ["f"]).fault
        == "( is missing".replace("(", ")") + " in 'f(a=(1)'"
    )
    assert read_calls("f(a=1))", language, ["f"]).fault.startswith(") closes nothing in")
    assert "no call: f" in read_calls("f", language, ["f"]).fault


@pytest.mark.parametrize(
    ("language", "text", "value"),
    [
        ("java", "true", True),
        ("java", "null", None),
        ("java", "5L", 5),
        ("java", "5", 5),
        ("java", "0.5f", 0.5),
        ("java", "5d", 5.0),
        ("java", '"a\\"b\\n"', 'a"b\n'),
        ("java", "new int[]{1, 2}", [1, 2]),
        ("java", 'Arrays.asList("a,b", x)', ["a,b", "x"]),
        ("java", "new ArrayList<String>(List.of(1L))", [1]),
        ("java", "new ArrayList<>()", []),
        (
            "java",
            'new HashMap<String, Object>() {{ put("k", 1); put("l", true); }}',
            {"k": 1, "l": 1},
        ),
        ("java", "new HashMap<>()", {}),
        ("java", 'Map.of("k", 1)', {"k": 1}),
        ("java", "ByteBuffer.allocate(1024)", "ByteBuffer.allocate(1024)"),
        ("java", "new HashMap<>() {{ remove(1); }}", "new HashMap<>() {{ remove(1); }}"),
        ("javascript", "[1, 'a', [2.5]]", [1, "a", [2.5]]),
        ("javascript", "{a: 1, 'b': {c: [undefined]}}", {"a": 1, "b": {"c": [None]}}),
        ("javascript", "(x) => x + 1", "(x) => x + 1"),
        ("javascript", "[1, 2", "[1, 2"),
        ("javascript", "{a}", "{a}"),
    ],
)
def test_literals(language: str, text: str, value: Any) -> None:
    assert read(text, language) == value


def test_cut_keeps_quotes_and_brackets_whole() -> None:
    assert cut('a, "b,\\"c", [d, (e, f)]', ",") == ["a", '"b,\\"c"', "[d, (e, f)]"]
    assert cut(" ", ",") == []


SCHEMA = {
    "required": ["s"],
    "properties": {
        "s": {"type": "string"},
        "i": {"type": "integer"},
        "x": {"type": "float"},
        "b": {"type": "boolean"},
        "l": {"type": "array", "items": {"type": "integer"}},
        "t": {"type": "tuple"},
        "d": {"type": "dict"},
        "v": {"type": "array"},
    },
}
ANSWER = {
    "s": ["New York, NY"],
    "i": [5, ""],
    "x": [2.0, ""],
    "b": [True, ""],
    "l": [[1, 2], ""],
    "t": [[1, 2], ""],
    "d": [{"k": ["a b"], "o": ["", 1]}, ""],
    "v": ["variable", ""],
}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"s": "new york ny", "i": 5, "x": 2, "b": True, "l": [1, 2], "t": (1, 2)}, ""),
        ({"s": "New York/NY", "d": {"k": "AB"}, "v": "variable"}, ""),
        ({"s": "New York, NY", "d": {"k": "a b", "o": 1}, "t": [1, 2]}, ""),
        ({}, "f: required s is missing"),
        ({"s": "York"}, "f: s is 'York', ['New York, NY'] wanted"),
        ({"s": ["New York, NY"]}, "f: s is"),
        ({"s": "New York, NY", "z": 1}, "f: z is not expected"),
        ({"s": "New York, NY", "i": 5.0}, "f: i is '5.0', [5, ''] wanted"),
        ({"s": "New York, NY", "i": "5"}, "f: i is"),
        ({"s": "New York, NY", "i": ""}, "f: i is"),
        ({"s": "New York, NY", "x": "2.0"}, "f: x is"),
        ({"s": "New York, NY", "b": 1}, "f: b is"),
        ({"s": "New York, NY", "i": True}, "f: i is"),
        ({"s": "New York, NY", "l": [2, 1]}, "f: l is"),
        ({"s": "New York, NY", "l": (1, 2)}, "f: l is"),
        ({"s": "New York, NY", "l": [1, 2, 3]}, "f: l is"),
        ({"s": "New York, NY", "d": {"o": 1}}, "f: d is"),
        ({"s": "New York, NY", "d": {"k": "a b", "z": 1}}, "f: d is"),
        ({"s": "New York, NY", "d": {"k": "c"}}, "f: d is"),
    ],
)
def test_call_against_answer(arguments: dict[str, Any], fault: str) -> None:
    found = call_fault(Call("f", arguments), "f", ANSWER, SCHEMA, "python")
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


def test_an_answer_that_is_not_optional_is_missed() -> None:
    answer = {"s": ["a"], "i": [5]}
    assert call_fault(Call("f", {"s": "a"}), "f", answer, SCHEMA, "python") == "f: i is missing"
    assert call_fault(Call("f_", {}), "f", answer, SCHEMA, "python") == "calls f_, f wanted"
    assert call_fault(Call("f_g", {"s": "A"}), "f.g", {"s": ["a"]}, SCHEMA, "python") == ""
    assert (
        call_fault(Call("f", {"s": "a", "l": []}), "f", {"s": ["a"], "l": []}, SCHEMA, "python")
        == ""
    )


def test_parallel_calls_are_matched_not_taken_greedily() -> None:
    """Answer 1 takes either call, answer 2 only the first: there is one way, in any order."""
    functions = [{"name": "f", "parameters": SCHEMA}]
    answers = [{"f": {"s": ["a", "b"]}}, {"f": {"s": ["a"]}}]
    a, b = Call("f", {"s": "a"}), Call("f", {"s": "b"})
    for calls in ([a, b], [b, a]):
        assert matching_fault(calls, answers, functions, "python") == ""
        assert matching_fault(calls, answers[::-1], functions, "python") == ""
    assert matching_fault([b, b], answers, functions, "python").startswith("f: s is 'b'")
    only_a = [{"f": {"s": ["a"]}}, {"f": {"s": ["a", "A"]}}]
    assert matching_fault([a, Call("g", {})], only_a, functions, "python") == "calls g, f wanted"
    assert matching_fault([a], answers, functions, "python") == "1 calls, 2 wanted"


def test_java_values_are_read_by_the_type_they_have_to_have() -> None:
    schema = {"properties": {"i": {"type": "integer"}, "a": {"type": "any"}}}
    answer = {"i": [42], "a": ["42"]}
    for value, right in ((Source("42"), True), (Source("42L"), True), (Source('"x"'), False)):
        call = Call("f", {"i": value, "a": Source("42")})
        assert (call_fault(call, "f", answer, schema, "java") == "") is right
    assert call_fault(Call("f", {"i": "42", "a": "42"}), "f", answer, schema, "java") == ""
    assert call_fault(Call("f", {"i": "42", "a": "42"}), "f", answer, schema, "python") != ""


def test_objects_in_objects() -> None:
    answer = {"p": [{"x": [1], "y": [2.0]}], "q": "plain"}
    assert same({"p": {"x": 1, "y": 2}, "q": "Plain"}, answer)
    assert not same({"p": {"x": 1}, "q": "plain"}, answer)
    assert not same({"p": {"x": True, "y": 2}, "q": "plain"}, answer)
    assert same([{"x": 1, "y": 2}], answer["p"])


def test_functions_are_offered_as_tools_or_as_text() -> None:
    item = one("simple_java")
    (tool,) = item.tools
    assert tool["type"] == "function"
    assert tool["function"]["name"] == item.gold["functions"][0]["name"].replace(".", "_")
    inside = tool["function"]["parameters"]["properties"]
    assert inside["useShortName"]["type"] == "boolean"
    assert inside["params"]["type"] == "string"
    assert inside["params"]["description"].endswith("(Java HashMap, written as source text)")
    types = set()
    for each in ITEMS:
        assert "." not in "".join(t["function"]["name"] for t in each.tools)
        types |= _types([t["function"]["parameters"] for t in each.tools])
    assert types <= {"object", "string", "integer", "number", "boolean", "array"}
    text = BFCL(TaskConfig(file=GOLDEN), as_tools=False)
    assert (TASK.version, text.version) == ("1-tools", "1-text")
    for each in text.items():
        assert each.tools == ()
        first = each.messages[0]
        assert first["role"] == "system"
        assert all(function["name"] in first["content"] for function in each.gold["functions"])
        assert [turn["role"] for turn in each.messages].count("system") == 1


def _types(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_types, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["type"]} if isinstance(schema.get("type"), str) else set()
    return own.union(*map(_types, schema.values()))


def test_the_systems_own_words_are_kept(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    row = {"id": "a", "question": [turns], "function": []}
    (tmp_path / "irrelevance.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = BFCL(TaskConfig(file=tmp_path), as_tools=False, categories=["irrelevance"]).items()
    assert [turn["role"] for turn in item.messages] == ["system", "user"]
    assert item.messages[0]["content"].endswith("\n\nBe brief.")
    assert "JavaScript" not in item.messages[0]["content"]


def test_the_leaderboards_numbers_by_hand() -> None:
    """As the leaderboard of v2 adds them up, without the executed categories."""
    right = {"simple_python": [1, 0], "simple_java": [1], "simple_javascript": [0]}
    right |= {"multiple": [1, 0, 0, 0], "parallel": [1], "parallel_multiple": [0]}
    right |= {"irrelevance": [1, 0], "live_simple": [1, 0, 0], "live_multiple": [1]}
    right |= {"live_parallel": [0], "live_parallel_multiple": [1, 1], "live_relevance": [0]}
    right |= {"live_irrelevance": [1, 1]}
    assert set(right) == set(CATEGORIES)
    items, lines = {}, []
    for category, scores in right.items():
        for number, score in enumerate(scores):
            name = f"{category}_{number}"
            items[name] = Item(id=name, messages=[], facts={"category": category})
            lines.append({"id": name, "score": score})
    found = {name: one["value"] for name, one in named(items, lines, TASK.averages).items()}
    simple = (0.5 + 1 + 0) / 3
    assert found["non_live_ast"] == pytest.approx((simple + 0.25 + 1 + 0) / 4)
    assert found["live_ast"] == pytest.approx(4 / 7)
    assert found["live"] == pytest.approx(6 / 10)
    kinds = [(simple + 1 / 3) / 2, (0.25 + 1) / 2, (1 + 0) / 2, (0 + 1) / 2, (0.5 + 1) / 2, 0]
    assert found["overall"] == pytest.approx(sum(kinds) / 6)
    assert found["category/multiple"] == 0.25


def test_the_authors_folder_is_read_as_it_is(tmp_path: Path) -> None:
    """BFCL_v4_CATEGORY.json with a line an item, answers in a folder of their own, other files."""
    for path in GOLDEN.glob("*.jsonl"):
        stem = path.stem.removeprefix("possible_answer_")
        folder = tmp_path / ("data" if stem == path.stem else "data/possible_answer")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"BFCL_v4_{stem}.json").write_bytes(path.read_bytes())
    (tmp_path / "data/BFCL_v4_multi_turn_base.json").write_text("not read")
    (tmp_path / "data/BFCL_v4_exec_multiple.json").write_text("not read")
    assert BFCL(TaskConfig(file=tmp_path)).items() == ITEMS


def test_packed_files_are_read_too(tmp_path: Path) -> None:
    for path in GOLDEN.glob("*.jsonl"):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert BFCL(TaskConfig(file=tmp_path)).items() == ITEMS


def test_wrong_files_and_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bfcl categories rest: not known; known: simple_python,"):
        BFCL(TaskConfig(file=GOLDEN), categories=["rest"])
    task = BFCL(TaskConfig(file=tmp_path), categories=["multiple"])
    items, answers = tmp_path / "multiple.jsonl", tmp_path / "possible_answer_multiple.jsonl"

    def complaint(of_items: dict[str, Any] | None, of_answers: dict[str, Any] | None) -> str:
        for path, row in ((items, of_items), (answers, of_answers)):
            if row is not None:
                path.write_text(json.dumps(row))
        with pytest.raises(ConfigError) as error:
            task.items()
        return str(error.value).replace(f"tasks.bfcl.file={tmp_path}: ", "")

    assert complaint(None, None).startswith("no file with '(?:^|/)(possible_answer[/_])?")
    answer = {"id": "a", "ground_truth": [{"g": {}}]}
    wanted = "; wanted is the folder or .zip of BFCL's data: BFCL_v4_CATEGORY.json and possible"
    assert complaint(None, answer).startswith(f"no items of multiple{wanted}")
    answers.unlink()
    function = {"name": "f", "description": "", "parameters": SCHEMA}
    row = {"id": "a", "question": [[]], "function": [function]}
    assert complaint(row, None).startswith(f"no possible answers of multiple{wanted}")
    assert complaint({"id": "a", "question": [[]]}, answer) == "a has no function"
    assert complaint(row, {"id": "a"}) == "a has no ground_truth"
    assert complaint(row, answer | {"id": "b"}) == "multiple: no possible answer for a"
    told = "tasks.bfcl: the possible answer of a calls g, not offered"
    assert complaint(row, answer) == told
    assert complaint({"question": [[]]}, None).startswith(
        "tasks.bfcl: row 1 of multiple.jsonl has no id; wanted is the folder"
    )


def test_golden_files_hold_all_categories_in_order() -> None:
    seen = list(dict.fromkeys(item.facts["category"] for item in ITEMS))
    assert seen == list(CATEGORIES)
    assert len({item.id for item in ITEMS}) == len(ITEMS)


def test_data_that_a_recipe_leaves_out_are_named() -> None:
    told = "^missing config key tasks.bfcl.file: the folder or .zip of BFCL's data: BFCL_v4_"
    with pytest.raises(ConfigError, match=told):
        BFCL(TaskConfig()).items()
