"""Is a call one of the possible answers? Types, values, optional arguments, order.

The rules are BFCL's (its leaderboard's AST evaluation), written anew:

- text is compared without case, spaces and the signs , . / - _ * ^; ' is ";
- an int does for a float, a bool never for a number; lists in their order; a tuple only where the
  parameter is a tuple, or else an answer;
- an argument may be left out only where "" is among its possible answers;
- in an answer that is an object each key has a list of possible values of its own.

Wider than there: an int does for a float inside lists, objects may lie in objects, and `[]` for
possible answers means the empty list. Java and JavaScript values: see literals.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.evaluation.bfcl.calls import Call, Source
from megatron_ring.evaluation.bfcl.literals import read

IGNORED = re.compile(r"[ ,./\-_*^]")
ONE_FOR_TWO = "one call would have to do for two answers"
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "char": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (float, int),
    "double": (float, int),
    "boolean": (bool,),
    "array": (list,),
    "arraylist": (list,),
    "tuple": (list,),
    "dict": (dict,),
    "hashmap": (dict,),
    "any": (),
}


def same_name(name: str, wanted: str) -> bool:
    """Endpoints forbid dots in names of tools, and get an underscore for them."""
    return wanted in (name, name.replace(".", "_")) or name == wanted.replace(".", "_")


def matching_fault(
    calls: Sequence[Call],
    answers: Sequence[Mapping[str, Mapping[str, list[Any]]]],
    functions: Sequence[Mapping[str, Any]],
    language: str,
) -> str:
    """ "" when each call can be given to an answer of its own, in any order, and none is left."""
    if len(calls) != len(answers):
        return f"{len(calls)} calls, {len(answers)} wanted"
    schemas = {function["name"]: function["parameters"] for function in functions}
    faults = [
        [call_fault(call, name, of, schemas[name], language) for call in calls]
        for name, of in (next(iter(answer.items())) for answer in answers)
    ]
    taken: dict[int, int] = {}  # call: answer
    for number in range(len(answers)):
        if not _give(number, faults, taken, set()):
            real = [fault for fault in faults[number] if fault]
            return min(real, key=lambda fault: fault.startswith("calls "), default=ONE_FOR_TWO)
    return ""


def _give(
    number: int, faults: Sequence[Sequence[str]], taken: dict[int, int], tried: set[int]
) -> bool:
    """Finds a call for an answer, moving other answers to other calls where that helps."""
    for call, fault in enumerate(faults[number]):
        if fault or call in tried:
            continue
        tried.add(call)
        if call not in taken or _give(taken[call], faults, taken, tried):
            taken[call] = number
            return True
    return False


def call_fault(
    call: Call,
    name: str,
    answer: Mapping[str, list[Any]],
    schema: Mapping[str, Any],
    language: str,
) -> str:
    """ "" when the call is the answer, or what differs first."""
    if not same_name(call.name, name):
        return f"calls {call.name}, {name} wanted"
    for key in schema.get("required", []):
        if key not in call.arguments:
            return f"{name}: required {key} is missing"
    for key, value in call.arguments.items():
        if key not in schema["properties"] or key not in answer:
            return f"{name}: {key} is not expected"
        if not _possible(value, answer[key] or [[]], schema["properties"][key], language):
            shown = value.text if isinstance(value, Source) else value
            return f"{name}: {key} is {str(shown)[:80]!r}, {str(answer[key])[:80]} wanted"
    for key, possible in answer.items():
        if key not in call.arguments and "" not in possible:
            return f"{name}: {key} is missing"
    return ""


def _possible(value: Any, possible: list[Any], schema: Mapping[str, Any], language: str) -> bool:
    declared = schema["type"].lower()
    readings = [value]
    if isinstance(value, Source):
        readings = [value.text, read(value.text, language)]
    elif language != "python" and isinstance(value, str):
        readings = [value, read(value, language)]
    if declared == "tuple":
        readings = [list(each) if isinstance(each, tuple) else each for each in readings]
    return any(
        _typed(each, declared, possible) and any(same(each, one) for one in possible)
        for each in readings
    )


def _typed(value: Any, declared: str, possible: list[Any]) -> bool:
    """Of the declared type, or of an answer's: answers may be names of variables."""
    kinds = TYPES.get(declared, ())
    return type(value) in kinds or type(value) in {type(one) for one in possible if one != ""}


def same(value: Any, answer: Any) -> bool:
    """Equal by BFCL's rules; in an object `answer`, lists are the possible values of their key."""
    if isinstance(value, str) and isinstance(answer, str):
        return plain(value) == plain(answer)
    if isinstance(value, list) and isinstance(answer, list):
        pairs = zip(value, answer, strict=False)
        return len(value) == len(answer) and all(same(*pair) for pair in pairs)
    if isinstance(value, dict) and isinstance(answer, dict):
        listed = {key: one if isinstance(one, list) else [one] for key, one in answer.items()}
        if any(key not in listed for key in value):
            return False
        missing = [key for key, one in listed.items() if key not in value and "" not in one]
        return not missing and all(
            any(same(each, one) for one in listed[key]) or same(each, answer[key])
            for key, each in value.items()
        )
    numbers = all(type(each) in (int, float) for each in (value, answer))
    return value == answer if numbers else type(value) is type(answer) and value == answer


def plain(text: str) -> str:
    """What is compared of a text."""
    return IGNORED.sub("", text).lower().replace("'", '"')
