"""Possible answers of BFCL written as a model would write them, and spoilt in known ways.

Run by itself on the published files it prints how the grader judges all of them:
python -m tests.evaluation.bfcl_answers FOLDER
"""

import copy
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.evaluation.bfcl import BFCL
from megatron_ring.evaluation.bfcl.calls import as_text
from megatron_ring.evaluation.task import Item

Written = list[tuple[str, dict[str, Any]]]


def choose(item: Item, which: int, sparing: bool) -> Written:
    """Calls made of the possible values number `which` (the last where there are fewer).

    `sparing` leaves out what may be left out.
    """
    calls = []
    for answer in item.gold["answers"]:
        ((name, possible),) = answer.items()
        required = _schema(item, name).get("required", [])
        calls.append((name, _picked(possible, which, sparing, required)))
    return calls


def _picked(
    possible: dict[str, Any], which: int, sparing: bool, required: Sequence[str] = ()
) -> dict[str, Any]:
    picked = {}
    for key, values in possible.items():
        values = values if isinstance(values, list) else [values]
        real = [value for value in values if value != ""]
        if "" in values and key in required:
            real = real or [""]
        elif "" in values and (sparing or not real):
            continue
        picked[key] = _value(real[min(which, len(real) - 1)], which, sparing) if real else []
    return picked


def _value(value: Any, which: int, sparing: bool) -> Any:
    if isinstance(value, dict):
        return _picked(value, which, sparing)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_picked(each, which, sparing) for each in value]
    return value


def as_python(calls: Written) -> str:
    texts = [
        f"{name}({', '.join(f'{k}={v!r}' for k, v in given.items())})" for name, given in calls
    ]
    return f"[{', '.join(texts)}]"


def as_foreign(calls: Written, language: str) -> str:
    write = _java if language == "java" else _javascript
    texts = [
        f"{name}({', '.join(f'{k}={write(v)}' for k, v in given.items())})" for name, given in calls
    ]
    return f"[{', '.join(texts)}]"


def _java(value: Any) -> str:
    if isinstance(value, list):
        return f"new Object[]{{{', '.join(map(_java, value))}}}"
    if isinstance(value, dict):
        puts = "".join(f"put({json.dumps(k)}, {_java(v)}); " for k, v in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts}}}}}"
    return json.dumps(value, ensure_ascii=False)


def _javascript(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)}: {_javascript(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    return json.dumps(value, ensure_ascii=False)


def as_source(calls: Written, language: str) -> str:
    return as_python(calls) if language == "python" else as_foreign(calls, language)


def as_tool_calls(calls: Written) -> str:
    """As an endpoint gives them: no dots in names."""
    return as_text(
        [
            {"function": {"name": name.replace(".", "_"), "arguments": json.dumps(given)}}
            for name, given in calls
        ]
    )


def spoilt(item: Item) -> Iterator[tuple[str, Written]]:
    """Ways in which the first call goes wrong, each with its name."""
    right = choose(item, 0, sparing=True)
    for how in ("value", "type", "missing", "function", "unexpected", "extra", "fewer"):
        calls = copy.deepcopy(right)
        name, given = calls[0]
        required = [k for k in _schema(item, name).get("required", []) if k in given]
        if how == "function":
            calls[0] = (f"{name}_2", given)
        elif how == "unexpected":
            given["no_such_parameter"] = 1
        elif how == "extra":
            calls.append(copy.deepcopy(calls[-1]))
        elif how == "fewer":
            calls.pop()
        elif not required:
            continue
        elif how == "missing":
            del given[required[0]]
        else:
            given[required[0]] = _other(given[required[0]], how)
        yield how, calls


def _other(value: Any, how: str) -> Any:
    """Another value of the same type, or one of another type."""
    if how == "type":
        return {"no": "such"} if not isinstance(value, dict) else [[value]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 987654
    if isinstance(value, str):
        return value + " qqq"
    return [*value, value[0] if value else 1] if isinstance(value, list) else {**value, "qqq": 1}


def _schema(item: Item, name: str) -> dict[str, Any]:
    return next(f["parameters"] for f in item.gold["functions"] if f["name"] == name)


def main() -> None:
    for as_tools in (True, False):
        task = BFCL(TaskConfig(file=Path(sys.argv[1])), as_tools=as_tools)
        seen: dict[str, Counter[str]] = {}
        for item in task.items():
            count = seen.setdefault(item.facts["category"], Counter())
            if item.gold["wants"] != "calls":
                continue
            write = as_tool_calls if as_tools else None
            for which in (0, 1, 99):
                for sparing in (True, False):
                    calls = choose(item, which, sparing)
                    text = write(calls) if write else as_source(calls, item.gold["language"])
                    grade = task.grade(item, text)
                    count[f"possible {grade.verdict}"] += 1
                    if grade.verdict != "right":
                        print(item.id, grade.verdict, grade.detail[:200], text[:300])
            for how, calls in spoilt(item):
                text = write(calls) if write else as_source(calls, item.gold["language"])
                grade = task.grade(item, text)
                count[f"{how} {grade.verdict}"] += 1
                if grade.verdict == "right":
                    print("PASSED", item.id, how, text[:200])
        print("tools" if as_tools else "text")
        for category, count in seen.items():
            print(category, dict(count))


if __name__ == "__main__":
    main()
