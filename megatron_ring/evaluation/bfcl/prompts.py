"""How functions are offered: as OpenAI's tools, or as text for models that know no tools."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# BFCL's names of types, in small letters, as JSON schema has them. The others are strings.
JSON_TYPES = {
    "dict": "object",
    "integer": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "boolean": "boolean",
    "array": "array",
    "arraylist": "array",
    "tuple": "array",
}
LANGUAGES = {"python": "Python", "java": "Java", "javascript": "JavaScript"}
TEXT = """You can call the functions below. Answer a request with nothing but the calls it needs, \
as a list:
[first.function(parameter=value, other="text"), second_function(parameter=value)]
Name every parameter, and write values as {language} has them. If no function helps, or a required \
value is not known, call nothing, and say in a sentence why.

Functions, as JSON:
{functions}"""


def tools_of(functions: Sequence[Mapping[str, Any]], language: str) -> list[dict[str, Any]]:
    """OpenAI-style definitions. Dots in names become underscores: endpoints forbid them."""
    tools = []
    for function in functions:
        body = {
            "name": function["name"].replace(".", "_"),
            "description": function["description"],
            "parameters": _json_schema(function["parameters"], language),
        }
        tools.append({"type": "function", "function": body})
    return tools


def with_text(
    messages: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]], language: str
) -> list[dict[str, Any]]:
    """The messages with the functions in the system's turn, before what it says already."""
    listed = json.dumps(list(functions), ensure_ascii=False)
    text = TEXT.format(language=LANGUAGES[language], functions=listed)
    rest = [dict(turn) for turn in messages]
    if rest and rest[0]["role"] == "system":
        text = f"{text}\n\n{rest.pop(0)['content']}"
    return [{"role": "system", "content": text}, *rest]


def _json_schema(schema: Mapping[str, Any], language: str) -> dict[str, Any]:
    """A schema with JSON's names of types, at any depth."""
    given = str(schema.get("type", "any")).lower()
    kept = {key: value for key, value in schema.items() if key not in ("optional", "properties")}
    if given not in JSON_TYPES and given != "string" and language != "python":
        note = f"{schema.get('description', '')} ({LANGUAGES[language]} {schema.get('type')}"
        kept["description"] = f"{note}, written as source text)"
    if given == "any" and language == "python":
        kept.pop("type", None)  # nothing is said of it: all types are allowed
    else:
        kept["type"] = JSON_TYPES.get(given, "string")
    if isinstance(schema.get("properties"), Mapping):
        inner = schema["properties"].items()
        kept["properties"] = {key: _json_schema(value, language) for key, value in inner}
    if isinstance(schema.get("items"), Mapping):
        kept["items"] = _json_schema(schema["items"], language)
    return kept
