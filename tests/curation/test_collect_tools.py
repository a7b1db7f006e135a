"""Conversations and calls of every shape become OpenAI's, and only calls that keep to their tools
stay."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import CheckToolsConfig, SourceConfig
from megatron_ring.curation.collect.tools import REASONS, CheckTools
from megatron_ring.curation.collect.turns import answer_turn, to_schema
from megatron_ring.curation.record import Record, Rejection
from tests.curation.runs import read_source


def read_row(row: dict[str, Any], tmp_path: Path, **keys: Any) -> Record | Rejection:
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (record,) = read_source(SourceConfig.model_validate({"path": str(file), **keys}))
    return record


def call(name: str, arguments: Any, **own: Any) -> dict[str, Any]:
    return {**own, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_sharegpt_calls_and_observations(tmp_path: Path) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Rain in Oslo and in Bergen?"},
            {
                "from": "function_call",
                "value": '[{"name": "rain", "arguments": {"city": "Oslo"}}, '
                '{"name": "rain", "arguments": {"city": "Bergen"}}]',
            },
            {"from": "observation", "value": '{"mm": 3}'},
            {"from": "gpt", "value": "Three millimetres."},
        ],
        "tools": '[{"name": "rain", "parameters": {"type": "dict", "properties": '
        '{"city": {"type": "str"}}, "required": ["city"]}}]',
    }
    record = read_row(row, tmp_path, columns={"messages": "conversations", "tools": "tools"})
    assert record["messages"] == [
        {"role": "user", "content": "Rain in Oslo and in Bergen?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call("rain", {"city": "Oslo"}), call("rain", {"city": "Bergen"})],
        },
        {"role": "tool", "content": '{"mm": 3}'},
        {"role": "assistant", "content": "Three millimetres."},
    ]
    assert record["tools"][0]["function"]["parameters"]["type"] == "object"
    assert CheckTools(CheckToolsConfig()).apply(record) == record


def test_parts_hold_thoughts_and_calls(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "Area of radius 2?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "A tool knows."},
                    {"type": "tool_call", "value": '{"name": "area", "arguments": {"r": 2}}'},
                ],
            },
        ]
    }
    record = read_row(row, tmp_path, columns={"messages": "messages"})
    assert record["messages"][1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "A tool knows.",
        "tool_calls": [call("area", {"r": 2})],
    }


@pytest.mark.parametrize(
    ("turns", "reason", "evidence"),
    [
        ([], "no_turns", "'m' holds an empty list, not a list of turns"),
        ("text", "no_turns", "'m' holds text that is no JSON: Expecting value"),
        (["x"], "bad_turn", "turn 1 is str, not an object"),
        ([{"role": "critic"}], "bad_turn", "turn 1: unknown role 'critic'; known: system, "),
        ([{"role": "user", "content": 3}], "bad_turn", "turn 1 (user): content is int"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "not_text",
            "turn 1 has a part of type 'image_url', which is no text",
        ),
        (
            [{"from": "function_call", "value": "{oops"}],
            "call_not_json",
            "turn 1: the call is no JSON: Expecting property name",
        ),
        (
            [{"role": "assistant", "tool_calls": {}}],
            "bad_turn",
            "turn 1: tool_calls is dict, no list",
        ),
    ],
)
def test_turns_that_are_none(turns: Any, reason: str, evidence: str, tmp_path: Path) -> None:
    found = read_row({"m": turns}, tmp_path, columns={"messages": "m"})
    assert isinstance(found, Rejection) and found.reason == reason
    assert f"set.jsonl:1: {evidence}" in found.evidence


@pytest.mark.parametrize(
    ("tools", "reason", "evidence"),
    [
        ("[{", "tools_not_json", "the tool definitions are no JSON: Expecting"),
        ([1], "tools_not_a_list", "the tool definitions are no list of objects"),
    ],
)
def test_tools_that_are_none(tools: Any, reason: str, evidence: str, tmp_path: Path) -> None:
    row = {"q": "Hi?", "t": tools}
    found = read_row(row, tmp_path, columns={"prompt": "q", "tools": "t"})
    assert isinstance(found, Rejection) and found.reason == reason
    assert evidence in found.evidence


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><think>b</think>c",
        "<think>a</think>",
        "a</think>b",
        "<think></think>b",
        "before <think>a</think>b",
    ],
)
def test_tags_that_are_not_just_so_stay_in_the_content(text: str) -> None:
    assert answer_turn(text, None) == {"role": "assistant", "content": text}


def test_a_thought_is_taken_apart() -> None:
    expected = {"role": "assistant", "content": "b", "reasoning_content": "a"}
    assert answer_turn("<think>\na\n</think>\n\nb", None) == expected
    assert answer_turn("b", "a\n") == expected


def test_types_of_python_at_every_depth() -> None:
    schema = {
        "type": "dict",
        "properties": {
            "type": {"type": "str, optional"},
            "many": {"type": "list", "items": {"type": "tuple", "items": {"type": "float"}}},
            "either": {"anyOf": [{"type": "int"}, {"type": "bool"}]},
        },
    }
    assert to_schema(schema) == {
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "many": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            "either": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
        },
    }


def test_calls_of_a_column_and_parameters_by_name(tmp_path: Path) -> None:
    parameters = {
        "city": {"type": "str"},
        "days": {"type": "int, optional"},
        "unit": {"default": 1},
    }
    row = {
        "query": "Rain in Oslo?",
        "answers": '[{"name": "rain", "arguments": {"city": "Oslo"}}]',
        "tools": json.dumps([{"name": "rain", "parameters": parameters}]),
    }
    columns = {"prompt": "query", "calls": "answers", "tools": "tools"}
    record = read_row(row, tmp_path, columns=columns)
    assert record["messages"][1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [call("rain", {"city": "Oslo"})],
    }
    assert record["tools"][0]["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"default": 1},
        },
        "required": ["city"],
    }
    assert CheckTools(CheckToolsConfig()).apply(record) == record
    bad = read_row({**row, "answers": "[]"}, tmp_path, columns=columns)
    assert bad.reason == "no_call" and "'answers' holds no calls" in bad.evidence
    bad = read_row({**row, "answers": "[oops"}, tmp_path, columns=columns)
    assert bad.reason == "call_not_json" and "'answers' holds text that is no JSON" in bad.evidence


def test_glaive_text(tmp_path: Path) -> None:
    tool = {"name": "tip", "description": "a tip", "parameters": {"type": "object"}}
    row = {
        "system": "SYSTEM: You may use -\n" + json.dumps(tool) + "\n" + json.dumps(tool),
        "chat": "USER: Tip on 20?\n\n\nASSISTANT: <functioncall> "
        '{"name": "tip", "arguments": \'{"bill": 20, "who": "Ann"}\'} <|endoftext|>\n\n\n'
        'FUNCTION RESPONSE: {"tip": 3}\n\n\nASSISTANT: Give 3. <|endoftext|>\n\n\n',
    }
    record = read_row(row, tmp_path, form="glaive")
    assert record["messages"] == [
        {"role": "user", "content": "Tip on 20?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call("tip", {"bill": 20, "who": "Ann"})],
        },
        {"role": "tool", "content": '{"tip": 3}'},
        {"role": "assistant", "content": "Give 3."},
    ]
    assert record["tools"] == [{"type": "function", "function": tool}] * 2
    bad = read_row(
        {**row, "chat": "USER: a\nASSISTANT: <functioncall> {no"}, tmp_path, form="glaive"
    )
    assert bad.reason == "call_not_json" and "no JSON of a call: '{no'" in bad.evidence
    bad = read_row({**row, "system": "SYSTEM: {no"}, tmp_path, form="glaive")
    assert bad.reason == "tools_not_json" and "the tools in its system text: " in bad.evidence
    bad = read_row({**row, "chat": "hello"}, tmp_path, form="glaive")
    assert bad.reason == "no_turns" and "names neither USER: nor ASSISTANT:" in bad.evidence


def test_toolformer(tmp_path: Path) -> None:
    row = {
        "instruction": "toolformer: enabled\ntoolformer access: wiki, news\nAn encyclopedia.\n"
        "wiki(query)\nHeadlines.\nnews(about)\nTell me of the topic.",
        "input": "Ada (1815)",
        "response": "She was wiki('Ada Lovelace (1815)'), and "
        "news: news(about='Ada') by str('hand').",
    }
    record = read_row(row, tmp_path, form="toolformer")
    assert record["messages"] == [
        {"role": "user", "content": "Tell me of the topic.\nAda (1815)"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                call("wiki", {"query": "Ada Lovelace (1815)"}),
                call("news", {"about": "Ada"}),
            ],
        },
    ]
    assert record["extra"]["response"] == row["response"]
    assert [tool["function"]["description"] for tool in record["tools"]] == [
        "An encyclopedia.",
        "Headlines.",
    ]
    assert CheckTools(CheckToolsConfig(calls="require")).apply(record) == record
    bad = read_row({**row, "response": "I know."}, tmp_path, form="toolformer")
    assert bad.reason == "no_call" and "no call of wiki, news in its response" in bad.evidence
    bad = read_row({**row, "instruction": "Tell me."}, tmp_path, form="toolformer")
    assert "does not begin with the tools it may use" in bad.evidence
    cut = row["instruction"].replace("news(about)", "")
    bad = read_row({**row, "instruction": cut}, tmp_path, form="toolformer")
    assert bad.reason == "no_tools" and "no signature of 2 tools" in bad.evidence


def seal(tmp_path: Path, calling: Any, **keys: Any) -> Record | Rejection:
    names = ["find", "weigh", "paint", "sell", "post", "burn"]
    parameters = {"x": {"type": "str", "description": "d", "example": "e"}}
    tools = tmp_path / f"tools_{len(list(tmp_path.iterdir()))}.jsonl"
    tools.write_text(
        "".join(
            json.dumps(
                {
                    "api_name": name,
                    "api_description": name,
                    "field": "f",
                    "parameters": parameters if name != "burn" else {},
                    "required": ["x"] if name != "burn" else [],
                    "responses": {},
                }
            )
            + "\n"
            for name in names
        )
    )
    row = {"id": "dev-1", "query": "Do it.", "calling": calling}
    keys = {"form": "seal_tools", "tools_path": str(tools), "columns": {"id": "id"}, **keys}
    return read_row(row, tmp_path, **keys)


def test_seal_tools_calls_wait_for_the_results_they_need(tmp_path: Path) -> None:
    calling = [
        {"api": "weigh", "parameters": {"x": "API_call_1"}, "responses": ["API_call_0"]},
        {"api": "find", "parameters": {"x": "fox"}, "responses": ["API_call_1", "API_call_2"]},
        {"api": "burn", "parameters": {}, "responses": ["API_call_3"]},
    ]
    record = seal(tmp_path, calling)
    assert record["id"] == "set/dev-1"
    first = [call("find", {"x": "fox"}, id="call_1"), call("burn", {}, id="call_2")]
    assert record["messages"] == [
        {"role": "user", "content": "Do it."},
        {"role": "assistant", "content": "", "tool_calls": first},
        {
            "role": "tool",
            "tool_call_id": "call_1",
            "content": '{"results": ["API_call_1", "API_call_2"]}',
        },
        {"role": "tool", "tool_call_id": "call_2", "content": '{"results": ["API_call_3"]}'},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call("weigh", {"x": "API_call_1"}, id="call_0")],
        },
    ]
    names = [tool["function"]["name"] for tool in record["tools"]]
    assert {"weigh", "find", "burn"} < set(names) and len(names) == len(set(names)) == 5
    assert names != sorted(names, key=["weigh", "find", "burn"].__contains__, reverse=True)
    (weigh,) = [tool for tool in record["tools"] if tool["function"]["name"] == "weigh"]
    assert weigh["function"]["parameters"] == {
        "type": "object",
        "properties": {"x": {"type": "string", "description": "d"}},
        "required": ["x"],
    }
    assert CheckTools(CheckToolsConfig()).apply(record) == record


def test_seal_tools_that_cannot_be(tmp_path: Path) -> None:
    circle = [
        {"api": "find", "parameters": {"x": "API_call_1"}, "responses": ["API_call_0"]},
        {"api": "weigh", "parameters": {"x": "API_call_0"}, "responses": ["API_call_1"]},
    ]
    found = seal(tmp_path, circle)
    assert found.reason == "circular_calls" and "calls [0, 1] need each other's" in found.evidence
    assert seal(tmp_path, []).reason == "no_call"
    with pytest.raises(ConfigError, match="source set: form=seal_tools needs tools_path=FILE"):
        seal(tmp_path, circle, tools_path=None)
    with pytest.raises(ConfigError, match="tools_path=nowhere cannot be read: "):
        seal(tmp_path, circle, tools_path="nowhere")
    # A call of a tool outside the catalogue is for check_tools to reject.
    found = CheckTools(CheckToolsConfig()).apply(
        seal(tmp_path, [{"api": "fly", "parameters": {}, "responses": []}])
    )
    assert found.reason == "unknown_tool"


TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Oslo", "Bergen"]},
                "nights": {"type": "integer", "minimum": 1},
                "guest": {"type": "object", "properties": {"age": {"type": "integer"}}},
            },
            "required": ["city"],
        },
    },
}
USER = {"role": "user", "content": "Book."}
SAID = {"role": "assistant", "content": "Done."}
RESULT = {"role": "tool", "content": "ok"}


def calling(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {**TOOL["function"], **function}}


def judged(messages: list[Any], tools: list[Any], **options: Any) -> Record | Rejection:
    record: Record = {"id": "a/1", "messages": messages, "tools": tools}
    return CheckTools(CheckToolsConfig(**options)).apply(record)


WRONG = [
    ("tool_not_an_object", [USER, SAID], [{"name": "f"}], "tool 1 has no function"),
    ("tool_without_name", [USER, SAID], [tool(name=None)], "tool 1: name is None"),
    ("tool_bad_name", [USER, SAID], [tool(name="a b")], "tool 1: 'a b'"),
    ("tool_bad_name", [USER, SAID], [tool(name="a" * 65)], "tool 1: 'aaa"),
    ("tool_twice", [USER, SAID], [TOOL, TOOL], "book is defined twice"),
    (
        "schema_invalid",
        [USER, SAID],
        [tool(parameters={"type": "object", "properties": {"a": {"type": "text"}}})],
        "book: properties.a.type: 'text' is not valid",
    ),
    (
        "schema_not_an_object",
        [USER, SAID],
        [tool(parameters={"type": "string"})],
        "book: parameters are of type 'string'",
    ),
    ("schema_not_an_object", [USER, SAID], [tool(parameters=["a"])], "are of type 'list'"),
    (
        "required_not_defined",
        [USER, SAID],
        [tool(parameters={"type": "object", "properties": {}, "required": ["a"]})],
        "book: 'a' is required",
    ),
    ("no_tools", [USER, calling(call("book", {}))], [], "calls, and no tool definitions"),
    ("no_call", [USER, SAID], [TOOL], "1 tools, and no call of any"),
    ("call_without_name", [USER, calling(call(None, {}))], [TOOL], "turn 2, call 1: name is None"),
    ("call_without_name", [USER, calling("book")], [TOOL], "turn 2, call 1: name is None"),
    (
        "unknown_tool",
        [USER, calling(call("book", {"city": "Oslo"}), call("fly", {}))],
        [TOOL],
        "turn 2, call 2: fly, not one of book",
    ),
    (
        "arguments_not_json",
        [USER, calling(call("book", "{'city': 'Oslo'}"))],
        [TOOL],
        "turn 2, call 1 of book: Expecting property name",
    ),
    ("arguments_not_an_object", [USER, calling(call("book", "[1]"))], [TOOL], "book: list"),
    (
        "argument_missing",
        [USER, calling(call("book", {"nights": 2}))],
        [TOOL],
        "of book: 'city' is a required property",
    ),
    ("argument_missing", [USER, calling(call("book", None))], [TOOL], "'city' is a required"),
    (
        "argument_unknown",
        [USER, calling(call("book", {"city": "Oslo", "stars": 5}))],
        [TOOL],
        "('stars' was unexpected)",
    ),
    (
        "argument_type",
        [USER, calling(call("book", {"city": "Oslo", "nights": "2"}))],
        [TOOL],
        "nights: '2' is not of type 'integer'",
    ),
    (
        "argument_type",
        [USER, calling(call("book", {"city": "Oslo", "guest": {"age": "x"}}))],
        [TOOL],
        "guest.age: 'x' is not of type 'integer'",
    ),
    (
        "argument_enum",
        [USER, calling(call("book", {"city": "Rome"}))],
        [TOOL],
        "city: 'Rome' is not one of ['Oslo', 'Bergen']",
    ),
    (
        "argument_value",
        [USER, calling(call("book", {"city": "Oslo", "nights": 0}))],
        [TOOL],
        "nights: 0 is less than the minimum of 1",
    ),
    (
        "call_without_result",
        [USER, calling(call("book", {"city": "Oslo"})), SAID],
        [TOOL],
        "turn 3 (assistant) follows a call",
    ),
    ("result_without_call", [USER, RESULT, SAID], [TOOL], "turn 2 follows no call"),
    (
        "more_results_than_calls",
        [USER, calling(call("book", {"city": "Oslo"})), RESULT, RESULT, SAID],
        [TOOL],
        "turn 4: 2 results of 1 calls",
    ),
]


@pytest.mark.parametrize(("reason", "messages", "tools", "evidence"), WRONG)
def test_each_way_to_be_wrong(reason: str, messages: Any, tools: Any, evidence: str) -> None:
    found = judged(messages, tools, calls="require" if reason == "no_call" else "any")
    assert isinstance(found, Rejection), found
    assert found.reason == reason and evidence in found.evidence


def test_every_reason_is_met() -> None:
    assert {reason for reason, *_ in WRONG} == set(REASONS)


def test_right_calls_pass_and_arguments_become_objects() -> None:
    good = call("book", '{"city": "Oslo", "nights": 2}', id="c1")
    messages = [USER, calling(good, good), RESULT, RESULT, SAID, USER, calling(good)]
    found = judged(messages, [TOOL])
    assert found["messages"][1]["tool_calls"][0] == call(
        "book", {"city": "Oslo", "nights": 2}, id="c1"
    )
    assert messages[1]["tool_calls"][0] is good  # the record given is not changed
    # One turn may hold the results of two calls.
    assert not isinstance(judged([USER, calling(good, good), RESULT, SAID], [TOOL]), Rejection)
    assert judged([USER, SAID], []) == {"id": "a/1", "messages": [USER, SAID], "tools": []}


def test_options_loosen_the_rules() -> None:
    more = [USER, calling(call("book", {"city": "Oslo", "stars": 5}))]
    assert not isinstance(judged(more, [TOOL], unknown_arguments="allow"), Rejection)
    bare = [USER, calling(call("book", {"city": "Oslo"})), SAID]
    assert not isinstance(judged(bare, [TOOL], results="ignore"), Rejection)
    open_schema = tool(parameters={"type": "object", "additionalProperties": {"type": "string"}})
    assert not isinstance(
        judged([USER, calling(call("book", {"a": "b"}))], [open_schema]), Rejection
    )
    found = judged([USER, calling(call("book", {"a": 1}))], [open_schema])
    assert found.reason == "argument_type"
