"""What every part of the configuration is made of, and how its errors read."""

import difflib
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The configuration as typed cannot run; the message names the key, the values, the remedy."""


class Incidental:
    """Marks a key that changes how fast, where or at what cost work is done, never what it makes.

    `endpoint: Annotated[str, Incidental()]`; `content_of` leaves it out.
    """


class Part(BaseModel):
    """One part of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def content_of(part: Part) -> dict[str, Any]:
    """A part as plain JSON, without the keys that are incidental, at any depth."""
    return _pruned(part, part.model_dump(mode="json"))


def _pruned(value: Any, plain: Any) -> Any:
    if isinstance(value, Part):
        return {
            name: _pruned(getattr(value, name), plain[name])
            for name, field in type(value).model_fields.items()
            if not any(isinstance(mark, Incidental) for mark in field.metadata)
        }
    if isinstance(value, list | tuple):
        return [_pruned(*both) for both in zip(value, plain, strict=True)]
    if isinstance(value, dict):
        return {key: _pruned(value[key], plain[str(key)]) for key in value}
    return plain


def explain(cls: type[Part], error: dict[str, Any]) -> str:
    """One pydantic error in the words of this project: the key as typed, the value, the remedy."""
    typed, known = _walk(cls, error["loc"])
    at = ".".join(map(str, typed))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(typed[-1]), known, n=1)
        prefix = "".join(f"{part}." for part in typed[:-1])
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown config key {at}; {hint}"
    if error["type"] == "missing":
        return f"missing config key {at}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_tag(at, error["ctx"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{at}: {message}" if at else message
    return f"{at}={error['input']!r}: {message[0].lower()}{message[1:]}"


def _explain_tag(at: str, told: dict[str, str]) -> str:
    """Of parts told apart by a key: it is missing, or names none of them."""
    key = f"{at}.{told['discriminator'].strip(chr(39))}"
    if "tag" not in told:
        return f"missing config key {key}"
    known = [name.strip("'") for name in told["expected_tags"].split(", ")]
    near = difflib.get_close_matches(told["tag"], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"{key}={told['tag']!r} is unknown; {hint}"


def _walk(cls: type[Part], path: tuple[str | int, ...]) -> tuple[list[str | int], list[str]]:
    """A key as typed, and the names of all keys beside it.

    Where parts are told apart by a key's value, pydantic's path names that value as well, which is
    not typed there.
    """
    typed: list[str | int] = []
    beside, parts = list(cls.model_fields), [cls]
    for name in path:
        tagged = [part for part in parts if len(parts) > 1 and name in _tags(part)]
        if tagged:
            parts = tagged
            continue
        typed.append(name)
        beside = list(parts[0].model_fields)
        # An index of a list and a name in a table (loss.sources) stay at the model of its values.
        if isinstance(name, str) and name in parts[0].model_fields:
            parts = _parts_in(parts[0].model_fields[name].annotation) or parts
    return typed, beside


def _tags(part: type[Part]) -> set[str]:
    """Values of the keys of a part that have but one."""
    hints = [field.annotation for field in part.model_fields.values()]
    return {get_args(hint)[0] for hint in hints if get_origin(hint) is Literal}


def _parts_in(hint: Any) -> list[type[Part]]:
    """The Parts that an annotation such as `list[Part]`, `dict[str, Part]` or `A | B` speaks of."""
    if isinstance(hint, type) and issubclass(hint, Part):
        return [hint]
    return [part for argument in get_args(hint) for part in _parts_in(argument)]
