"""Data sets of tool use whose calls are written in a way of their own."""

import ast
import json
import re
from functools import cache
from hashlib import blake2b
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import SourceConfig
from megatron_ring.curation.collect.cells import text
from megatron_ring.curation.collect.turns import RowError, as_call, to_schema

# Glaive: one text, turns told apart by these words at the start of a line.
SPEAKER = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
RESULT = re.compile(r"API_call_(\d+)")
CALL = re.compile(r"\b(\w+)\(")


def glaive(source: SourceConfig, data: dict[str, Any]) -> dict[str, Any]:
    """A row of glaive-function-calling-v2: `system` lists tools, `chat` is one text.

    Arguments stand in single quotes there, with JSON inside; calls have <functioncall> before them.
    """
    system, chat = text(data, "system") or "", text(data, "chat") or ""
    parts = SPEAKER.split(chat)
    if len(parts) < 3:
        raise RowError("no_turns", "its chat names neither USER: nor ASSISTANT:")
    messages = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        said = said.replace("<|endoftext|>", "").strip()
        if speaker == "USER":
            messages.append({"role": "user", "content": said})
        elif speaker == "FUNCTION RESPONSE":
            messages.append({"role": "tool", "content": said})
        else:
            before, called, call = said.partition("<functioncall>")
            turn: dict[str, Any] = {"role": "assistant", "content": before.strip()}
            if called:
                turn["tool_calls"] = [as_call(_glaive_call(call.strip()))]
            messages.append(turn)
    return {"messages": messages, "tools": _glaive_tools(system)}


def _glaive_call(call: str) -> dict[str, Any]:
    quoted = re.fullmatch(r"(\{.*\"arguments\":\s*)'(.*)'\s*\}", call, re.DOTALL)
    try:
        if quoted is None:
            return json.loads(call)
        name = json.loads(quoted[1] + "null}")["name"]
        return {"name": name, "arguments": json.loads(quoted[2].replace("\\'", "'"))}
    except (ValueError, KeyError, TypeError) as error:
        raise RowError("call_not_json", f"no JSON of a call: {call[:80]!r}: {error}") from None


def _glaive_tools(system: str) -> list[dict[str, Any]]:
    """The JSON objects that the system text ends with, one after the other."""
    decoder, tools = json.JSONDecoder(), []
    at = system.find("{")
    while at >= 0:
        try:
            tool, end = decoder.raw_decode(system, at)
        except ValueError as error:
            raise RowError("tools_not_json", f"the tools in its system text: {error}") from None
        tools.append({"type": "function", "function": tool})
        at = system.find("{", end)
    return tools


def toolformer(source: SourceConfig, data: dict[str, Any]) -> dict[str, Any]:
    """A row of GPTeacher's toolformer: tools at the head of the instruction, calls in the answer.

    The answer has holes where results belong, so that only its calls are kept as the turn, and
    what stood around them in extra. RowError when it makes no call that can be read.
    """
    lines = (text(data, "instruction") or "").split("\n")
    if len(lines) < 2 or not lines[1].startswith("toolformer access:"):
        raise RowError("no_tools", "its instruction does not begin with the tools it may use")
    names = [name.strip() for name in lines[1].split(":", 1)[1].split(",")]
    tools, rest = [], lines[2:]
    for _ in names:
        signature = re.fullmatch(r"(\w+)\((\w+)\)", rest[1].strip()) if len(rest) > 1 else None
        if signature is None:
            raise RowError("no_tools", f"no signature of {len(names)} tools in its instruction")
        tools.append(_tool(signature[1], rest[0].strip(), {signature[2]: {"type": "string"}}))
        rest = rest[2:]
    said = text(data, "response") or ""
    keys = {
        tool["function"]["name"]: next(iter(tool["function"]["parameters"]["properties"]))
        for tool in tools
    }
    calls = _calls_in(said, keys)
    if not calls:
        raise RowError("no_call", f"no call of {', '.join(keys)} in its response {said[:60]!r}")
    prompt = "\n".join([*rest, text(data, "input") or ""]).strip()
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    return {"messages": messages, "tools": tools, "extra": {"response": said}}


def _calls_in(said: str, keys: dict[str, str]) -> list[dict[str, Any]]:
    """Calls such as wikipedia('French Revolution') of the tools named; each takes one text."""
    calls = []
    for found in CALL.finditer(said):
        if found[1] not in keys:
            continue
        for end in (m.end() for m in re.finditer(r"\)", said[found.end() :])):
            try:
                call = ast.parse(said[found.start() : found.end() + end], mode="eval").body
            except (SyntaxError, ValueError):  # this bracket stands inside the text
                continue
            values = [*call.args, *(k.value for k in call.keywords)] if _is_call(call) else []
            if len(values) == 1 and isinstance(values[0], ast.Constant):
                arguments = {keys[found[1]]: str(values[0].value)}
                calls.append(as_call({"name": found[1], "arguments": arguments}))
            break
    return calls


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call)


def seal_tools(source: SourceConfig, data: dict[str, Any]) -> dict[str, Any]:
    """A row of Seal-Tools: a query and gold calls, some with results of others as arguments.

    Calls that need no other's result come in one turn; those that do come in the turn after the
    results. A result's name, such as API_call_0, stands for its value, as the set has no values.
    """
    if source.tools_path is None:
        raise ConfigError(f"source {source.name}: form=seal_tools needs tools_path=FILE")
    query, calling = text(data, "query"), data.get("calling")
    if query is None or not isinstance(calling, list) or not calling:
        raise RowError("no_call", "no query, or no calling")
    known = _seal_catalogue(source.tools_path)
    used = [call.get("api") for call in calling]
    tools = [known[name] for name in dict.fromkeys(used) if name in known]
    tools += _distractors(list(known.values()), tools, query, source.tools_shown)
    tools.sort(key=lambda tool: _mixed(query, tool))  # or the first ones would be the right ones
    messages: list[dict[str, Any]] = [{"role": "user", "content": query}]
    messages += _rounds(calling)
    return {"messages": messages, "tools": tools}


def _rounds(calling: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of calls and of their results; RowError when calls wait for each other."""
    turns: list[dict[str, Any]] = []
    owner = {name: i for i, call in enumerate(calling) for name in call.get("responses", [])}
    needs = [
        {
            owner[m[0]]
            for value in (call.get("parameters") or {}).values()
            for m in RESULT.finditer(str(value))
            if m[0] in owner
        }
        for call in calling
    ]
    results: list[dict[str, Any]] = []
    waiting, done = list(range(len(calling))), set()
    while waiting:
        ready = [i for i in waiting if needs[i] <= done]
        if not ready:
            raise RowError("circular_calls", f"calls {waiting} need each other's results")
        turns += results  # of the round before; the last round has none
        calls = [
            as_call({"name": calling[i].get("api"), "arguments": calling[i].get("parameters")})
            for i in ready
        ]
        for i, call in zip(ready, calls, strict=True):
            call["id"] = f"call_{i}"
        turns.append({"role": "assistant", "content": "", "tool_calls": calls})
        results = [
            {
                "role": "tool",
                "tool_call_id": f"call_{i}",
                "content": json.dumps({"results": calling[i].get("responses", [])}),
            }
            for i in ready
        ]
        done |= set(ready)
        waiting = [i for i in waiting if i not in done]
    return turns


def _mixed(query: str, tool: dict[str, Any]) -> bytes:
    """An order of tools that says nothing, and is another for each query."""
    return blake2b(f"{query}/{tool['function']['name']}".encode(), digest_size=8).digest()


def _distractors(
    known: list[dict[str, Any]], used: list[dict[str, Any]], query: str, shown: int
) -> list[dict[str, Any]]:
    """Other tools to choose from: a stretch of the catalogue that depends on the query alone."""
    names = {tool["function"]["name"] for tool in used}
    start = sum(query.encode("utf-8")) * 7919 % len(known)  # a prime spreads neighbouring sums
    others = (known[(start + i) % len(known)] for i in range(len(known)))
    found = []
    for tool in others:
        if len(used) + len(found) >= shown:
            break
        if tool["function"]["name"] not in names:
            found.append(tool)
    return found


@cache
def _seal_catalogue(path: str) -> dict[str, dict[str, Any]]:
    """The tools of Seal-Tools by name, their parameters as JSON schemas."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"tools_path={path} cannot be read: {error}") from None
    tools = {}
    for row in rows:
        properties = {
            name: {key: value for key, value in one.items() if key in ("type", "description")}
            for name, one in (row["parameters"] or {}).items()
        }
        tools[row["api_name"]] = _tool(
            row["api_name"], row["api_description"], properties, row.get("required")
        )
    return tools


def _tool(
    name: str, about: str, properties: dict[str, Any], required: list[str] | None = None
) -> dict[str, Any]:
    required = list(properties) if required is None else required
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": about, "parameters": to_schema(parameters)}
    return {"type": "function", "function": function}
