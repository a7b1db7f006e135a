"""Stage check_tools: tool definitions are OpenAI-style schemas, and calls keep to them.

Each way to be wrong is a reason of its own, listed in REASONS. Arguments given as JSON text come
out as objects.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError

from megatron_ring.config.curation.collect import CheckToolsConfig
from megatron_ring.curation.record import Record, Rejection

REASONS = {
    "tool_not_an_object": "a definition is no object with a function",
    "tool_without_name": "a definition has no name",
    "tool_bad_name": "a name has other characters than letters, digits, _ . -, or more than 64",
    "tool_twice": "two definitions share a name",
    "schema_invalid": "parameters are no JSON schema",
    "schema_not_an_object": "parameters describe something other than an object",
    "required_not_defined": "a required argument has no definition",
    "no_tools": "a call, and no definitions",
    "no_call": "definitions, and no call",
    "call_without_name": "a call names no function",
    "unknown_tool": "a call of a tool that is not defined",
    "arguments_not_json": "arguments are text that is no JSON",
    "arguments_not_an_object": "arguments are JSON, and no object",
    "argument_missing": "a required argument is absent",
    "argument_unknown": "an argument is not defined",
    "argument_type": "an argument is of another type",
    "argument_enum": "an argument is none of the values allowed",
    "argument_value": "an argument breaks another rule of its schema",
    "call_without_result": "another turn follows a call before its result",
    "result_without_call": "a result, and no call before it",
    "more_results_than_calls": "more results than calls before them",
}
# OpenAI's rule, and the dots that name spaces of functions are written with.
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
BY_KEYWORD = {
    "required": "argument_missing",
    "additionalProperties": "argument_unknown",
    "type": "argument_type",
    "enum": "argument_enum",
    "const": "argument_enum",
}


class _Wrong(ValueError):
    """What is wrong: a reason and its evidence."""

    def __init__(self, reason: str, evidence: str) -> None:
        assert reason in REASONS, reason
        super().__init__(evidence)
        self.reason = reason


class CheckTools:
    """Rejects records whose tools are no schemas or whose calls do not keep to them."""

    def __init__(self, options: CheckToolsConfig) -> None:
        self.options = options
        self._validators: dict[str, Draft202012Validator] = {}

    def apply(self, record: Record) -> Record | Rejection:
        """The record with arguments as objects, or the first thing that is wrong with it."""
        tools, messages = record.get("tools", []), record["messages"]
        called = any(turn.get("tool_calls") for turn in messages)
        try:
            validators = self._check_definitions(tools)
            if called and not tools:
                raise _Wrong("no_tools", "calls, and no tool definitions")
            if tools and not called and self.options.calls == "require":
                raise _Wrong("no_call", f"{len(tools)} tools, and no call of any")
            turns = [
                self._check_turn(number, turn, validators)
                for number, turn in enumerate(messages, 1)
            ]
            self._check_results(messages)
        except _Wrong as wrong:
            return Rejection(wrong.reason, str(wrong))
        return {**record, "messages": turns} if called else record

    def fault_of(
        self, name: Any, arguments: Any, tools: Sequence[Mapping[str, Any]]
    ) -> tuple[str, str] | None:
        """Reason and evidence of a call that does not keep to the tools; None where it does."""
        call = {"function": {"name": name, "arguments": arguments}}
        try:
            self._check_turn(1, {"tool_calls": [call]}, self._check_definitions(list(tools)))
        except _Wrong as wrong:
            return wrong.reason, str(wrong)
        return None

    def _check_definitions(self, tools: list[Any]) -> dict[str, Draft202012Validator]:
        """Name -> validator of its arguments."""
        validators: dict[str, Draft202012Validator] = {}
        for number, tool in enumerate(tools, 1):
            function = tool.get("function") if isinstance(tool, dict) else None
            if not isinstance(function, dict):
                raise _Wrong("tool_not_an_object", f"tool {number} has no function")
            name = function.get("name")
            if not isinstance(name, str) or not name:
                raise _Wrong("tool_without_name", f"tool {number}: name is {name!r}")
            if not NAME.fullmatch(name):
                raise _Wrong("tool_bad_name", f"tool {number}: {name[:80]!r}")
            if name in validators:
                raise _Wrong("tool_twice", f"{name} is defined twice")
            schema = function.get("parameters") or {"type": "object", "properties": {}}
            validators[name] = self._validator(name, schema)
        return validators

    def _validator(self, name: str, schema: Any) -> Draft202012Validator:
        strict = self.options.unknown_arguments == "reject"
        key = json.dumps(schema, sort_keys=True)
        if key in self._validators:
            return self._validators[key]
        if not isinstance(schema, dict) or schema.get("type", "object") != "object":
            kind = schema.get("type") if isinstance(schema, dict) else type(schema).__name__
            raise _Wrong("schema_not_an_object", f"{name}: parameters are of type {kind!r}")
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            where = ".".join(map(str, error.absolute_path))
            raise _Wrong("schema_invalid", f"{name}: {where}: {error.message[:200]}") from None
        properties = schema.get("properties", {})
        missing = [one for one in schema.get("required", []) if one not in properties]
        if missing and strict:
            raise _Wrong("required_not_defined", f"{name}: {missing[0]!r} is required")
        closed = {"additionalProperties": False} if strict else {}
        found = Draft202012Validator({"type": "object", **closed, **schema})
        # Catalogues repeat: a record's tools are most often another record's too.
        if len(self._validators) < 10_000:
            self._validators[key] = found
        return found

    def _check_turn(
        self, number: int, turn: dict[str, Any], validators: dict[str, Draft202012Validator]
    ) -> dict[str, Any]:
        if not turn.get("tool_calls"):
            return turn
        calls = []
        for count, call in enumerate(turn["tool_calls"], 1):
            which = f"turn {number}, call {count}"
            function = call.get("function") if isinstance(call, dict) else None
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str) or not name:
                raise _Wrong("call_without_name", f"{which}: name is {name!r}")
            if name not in validators:
                known = ", ".join(validators)
                raise _Wrong("unknown_tool", f"{which}: {name}, not one of {known}")
            arguments = _arguments(f"{which} of {name}", function.get("arguments"))
            _check_arguments(f"{which} of {name}", arguments, validators[name])
            calls.append({**call, "function": {**function, "arguments": arguments}})
        return {**turn, "tool_calls": calls}

    def _check_results(self, messages: list[dict[str, Any]]) -> None:
        """A result has its call, and a call its result unless the conversation ends there."""
        if self.options.results == "ignore":
            return
        open_calls, results = 0, 0
        for number, turn in enumerate(messages, 1):
            if turn["role"] == "tool":
                if not open_calls:
                    raise _Wrong("result_without_call", f"turn {number} follows no call")
                results += 1
                if results > open_calls:
                    seen = f"turn {number}: {results} results of {open_calls} calls"
                    raise _Wrong("more_results_than_calls", seen)
                continue
            # One turn may hold the results of several calls, as many sets write them.
            if open_calls and not results:
                raise _Wrong(
                    "call_without_result", f"turn {number} ({turn['role']}) follows a call"
                )
            open_calls, results = len(turn.get("tool_calls") or []), 0


def _arguments(which: str, arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise _Wrong("arguments_not_json", f"{which}: {error}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise _Wrong("arguments_not_an_object", f"{which}: {type(arguments).__name__}")
    return arguments


def _check_arguments(
    which: str, arguments: dict[str, Any], validator: Draft202012Validator
) -> None:
    """Raises the first fault in the order of paths, so that the reason never depends on luck."""
    faults = sorted(validator.iter_errors(arguments), key=_order)
    if faults:
        fault = faults[0]
        at = ".".join(map(str, fault.absolute_path))
        reason = BY_KEYWORD.get(str(fault.validator), "argument_value")
        raise _Wrong(reason, f"{which}: {at + ': ' if at else ''}{fault.message[:200]}")


def _order(fault: ValidationError) -> tuple[list[str], str]:
    return [str(step) for step in fault.absolute_path], str(fault.validator)
