"""What every part of the configuration is made of, and how its errors read."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The configuration as typed cannot run; the message names the key, the values, the remedy."""


class Part(BaseModel):
    """One part of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def explain(cls: type[Part], error: dict[str, Any]) -> str:
    """One pydantic error in the words of this project: the key as typed, the value, the remedy."""
    *parents, last = error["loc"] or ("",)
    at = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        known = _fields_at(cls, parents)
        near = difflib.get_close_matches(str(last), known, n=1)
        prefix = "".join(f"{part}." for part in parents)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown config key {at}; {hint}"
    if error["type"] == "missing":
        return f"missing config key {at}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{at}: {message}" if at else message
    return f"{at}={error['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(cls: type[Part], path: list[str | int]) -> list[str]:
    """Names of the keys of the model found by walking `path` down from `cls`."""
    for name in path:
        # An index of a list and a name in a table (loss.sources) stay at the model of its values.
        if isinstance(name, str) and name in cls.model_fields:
            cls = _part_in(cls.model_fields[name].annotation)
    return list(cls.model_fields)


def _part_in(hint: Any) -> Any:
    """The Part that an annotation such as `list[Part]`, `dict[str, Part]` or `Part` speaks of."""
    inner = [found for argument in get_args(hint) if (found := _part_in(argument)) is not None]
    if inner:
        return inner[0]
    return hint if isinstance(hint, type) and issubclass(hint, Part) else None
