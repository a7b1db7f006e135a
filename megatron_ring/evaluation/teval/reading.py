"""What an answer of T-Eval holds: a value as JSON or Python writes it, a call, a letter.

Rules of open-compass/T-Eval, commit 58f2240: test.py and teval/utils/format_load.py for values,
teval/evaluators/instruct_evaluator.py for calls, review_evaluator.py for letters.
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FENCE = "```json"
OUTCOMES = "ABCDE"  # of a review


@dataclass(frozen=True)
class Called:
    """A call as an answer names it."""

    name: Any  # a text, unless JSON has something else there
    arguments: dict[Any, Any]  # empty where they cannot be read


def bare(text: str) -> str:
    """An answer without the fence around it."""
    return text.strip().removeprefix(FENCE).strip("`").strip()


def value(text: Any, opening: str = "", closing: str = "") -> Any:
    """The value that a text is, or its part from the first `opening` to the last `closing`.

    Tried as Python's literal, as JSON, as JSON with quotes in place of apostrophes. What is no
    text is taken as it is. ValueError where nothing of that can be read.
    """
    if not isinstance(text, str):
        return text
    if FENCE in text:
        text = text.partition(FENCE)[2].strip("`")
    if opening:
        text = text[text.find(opening) :] if opening in text else ""
    if closing:
        text = text[: text.rfind(closing) + 1]
    for read in (ast.literal_eval, json.loads, lambda x: json.loads(x.replace("'", '"'))):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise ValueError("neither JSON nor a literal of Python")


def call_in_json(text: str, template: Mapping[str, str]) -> Called | None:
    """The call in an object, whose keys `template` names; None where it is no such object."""
    try:
        found = value(text)
        _, name, arguments = (found[template[key]] for key in ("thought", "action", "args"))
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return Called(name, arguments if isinstance(arguments, dict) else {})


def call_in_text(text: str, template: Mapping[str, str]) -> Called | None:
    """The call between the marks that `template` names; None where they are not all there.

    Marks are looked for as they are, where T-Eval takes them for regular expressions.
    """
    marks = {key: re.escape(mark) for key, mark in template.items()}
    pattern = "(.*)".join(
        (
            marks["thought_start"],
            marks["thought_end"] + marks["action_start"],
            marks["action_end"] + marks["args_start"],
            marks["args_end"],
        )
    )
    found = re.search(pattern, text, re.DOTALL)
    if found is None:
        return None
    try:
        arguments = ast.literal_eval(found[3].strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        arguments = {}
    return Called(found[2].strip(), arguments if isinstance(arguments, dict) else {})


def outcome(text: str) -> str | None:
    """The letter that a review chose, behind the first colon if there is one."""
    chosen = text[text.find(":") + 1 :].strip()[:1]
    return chosen if chosen and chosen in OUTCOMES else None
