"""Chat turns and tool definitions of any shape as OpenAI's, which a record holds.

Calls are only brought into shape here; whether they fit their tools is check_tools' to say.
"""

import json
import re
from typing import Any

from megatron_ring import think

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
# The thought, then the answer, with the tags of Sky-T1 and Bespoke-Stratos.
STRATOS = re.compile(
    r"\s*<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>"
    r"\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?\s*",
    re.DOTALL,
)
# JSON schema's names for Python's; Seal-Tools, BFCL and RapidAPI dumps use the latter.
TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "dict": "object",
}


class RowError(ValueError):
    """A row that makes no record; the reason is a name to be counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def to_turns(found: Any, place: str) -> list[dict[str, Any]]:
    """Turns in OpenAI's shape; RowError names the turn that is none."""
    if isinstance(found, str):
        found = _json(found, "no_turns", f"{place!r} holds text that is no JSON")
    if not isinstance(found, list) or not found:
        shown = "an empty list" if found == [] else type(found).__name__
        raise RowError("no_turns", f"{place!r} holds {shown}, not a list of turns")
    return [_to_turn(f"turn {number}", turn) for number, turn in enumerate(found, 1)]


def _to_turn(which: str, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise RowError("bad_turn", f"{which} is {type(turn).__name__}, not an object")
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(str(name).lower())
    if role is None:
        raise RowError("bad_turn", f"{which}: unknown role {name!r}; known: {', '.join(ROLES)}")
    content = turn.get("content", turn.get("value"))
    kept = {
        key: turn[key]
        for key in ("tool_calls", "reasoning_content", "tool_call_id", "name", "train")
        if turn.get(key) is not None
    }
    if str(name).lower() == "function_call":
        calls = _json(content or "", "call_not_json", f"{which}: the call is no JSON")
        calls = calls if isinstance(calls, list) else [calls]
        return {"role": role, "content": "", "tool_calls": [as_call(call) for call in calls]}
    if isinstance(content, list):
        content, told = _join_parts(which, content)
        kept |= told
    if content is not None and not isinstance(content, str):
        raise RowError("bad_turn", f"{which} ({role}): content is {type(content).__name__}")
    if "tool_calls" in kept:
        calls = kept["tool_calls"]
        if not isinstance(calls, list):
            raise RowError("bad_turn", f"{which}: tool_calls is {type(calls).__name__}, no list")
        kept["tool_calls"] = [as_call(call) for call in calls]
    if role == "assistant" and "reasoning_content" not in kept and content:
        return {**answer_turn(content, None), **kept}
    return {"role": role, "content": content or "", **kept}


def _join_parts(which: str, parts: list[Any]) -> tuple[str, dict[str, Any]]:
    """Content given as parts: text, reasoning, tool_call."""
    texts: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        value = part.get("value", part.get("text")) if isinstance(part, dict) else None
        if kind not in texts or not isinstance(value, str):
            raise RowError("not_text", f"{which} has a part of type {kind!r}, which is no text")
        texts[kind].append(value)
    told: dict[str, Any] = {}
    if texts["reasoning"]:
        told["reasoning_content"] = "\n".join(texts["reasoning"])
    if texts["tool_call"]:
        told["tool_calls"] = [
            as_call(_json(call, "call_not_json", f"{which}: the call is no JSON"))
            for call in texts["tool_call"]
        ]
    return "\n".join(texts["text"]), told


def to_calls(found: Any, place: str) -> list[dict[str, Any]]:
    """Calls of a column of their own; RowError when there are none."""
    if isinstance(found, str):
        found = _json(found, "call_not_json", f"{place!r} holds text that is no JSON")
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not found:
        raise RowError("no_call", f"{place!r} holds no calls")
    return [as_call(call) for call in found]


def as_call(call: Any) -> dict[str, Any]:
    """A call as {"type": "function", "function": {"name", "arguments"}}, as far as it is one."""
    if not isinstance(call, dict):
        return {"type": "function", "function": {"name": None, "arguments": call}}
    function = call.get("function", call)
    if not isinstance(function, dict):
        function = {"name": None, "arguments": function}
    arguments = function.get("arguments", function.get("parameters"))
    own = {"id": call["id"]} if call.get("id") else {}
    name = function.get("name")
    return {**own, "type": "function", "function": {"name": name, "arguments": arguments}}


def answer_turn(said: str, thought: str | None) -> dict[str, Any]:
    """An assistant's turn; a thought that stands right before the answer is taken apart.

    Tags that are not just so stay in the content, for select_answer to see.
    """
    if thought:
        return {"role": "assistant", "content": said, "reasoning_content": thought.strip()}
    found = STRATOS.fullmatch(said)
    plain = think.join(found[1], found[2]) if found else said
    if think.is_plain(plain):
        parts = think.split(plain)
        inside, after = (parts.thought or "").strip(), parts.answer.strip()
        clean = not re.search(r"<\|(begin|end)_of", inside + after)
        if clean:
            return {"role": "assistant", "content": after, "reasoning_content": inside}
    return {"role": "assistant", "content": said}


def to_tools(found: Any) -> list[dict[str, Any]]:
    """Tool definitions as {"type": "function", "function": {...}}; RowError when not a list."""
    if isinstance(found, str):
        if not found.strip():
            return []
        found = _json(found, "tools_not_json", "the tool definitions are no JSON")
    if found is None:
        return []
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise RowError("tools_not_a_list", "the tool definitions are no list of objects")
    return [_to_tool(tool) for tool in found]


def _to_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    if isinstance(function, dict) and isinstance(function.get("parameters"), dict):
        function = {**function, "parameters": to_schema(_as_object(function["parameters"]))}
    return {"type": "function", "function": function}


def _as_object(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters by name alone, as xLAM's set has them, as the schema of an object.

    Those with a default, or a type that ends in ", optional", are not required.
    """
    named = [key for key, value in parameters.items() if isinstance(value, dict)]
    if "properties" in parameters or len(named) < max(1, len(parameters)):
        return parameters
    required = [
        name
        for name, one in parameters.items()
        if "default" not in one and not str(one.get("type", "")).endswith(", optional")
    ]
    return {"type": "object", "properties": parameters, "required": required}


def to_schema(schema: Any) -> Any:
    """A schema with JSON schema's names of types, at every depth."""
    if isinstance(schema, list):
        return [to_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            name = value.removesuffix(", optional")  # as RapidAPI's dumps have it
            value = TYPES.get(name, name)
        elif key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            value = {name: to_schema(one) for name, one in value.items()}
        elif key in ("items", "anyOf", "oneOf", "allOf", "additionalProperties", "not"):
            value = to_schema(value)
        made[key] = value
    return made


def _json(found: str, reason: str, what: str) -> Any:
    try:
        return json.loads(found)
    except (ValueError, RecursionError) as error:
        raise RowError(reason, f"{what}: {error}") from None
