"""From the row of a source to messages, tools and the answers to choose from, a function a form."""

import re
from collections.abc import Callable
from typing import Any

from megatron_ring import think
from megatron_ring.config.curation.collect import Columns, SourceConfig
from megatron_ring.curation.collect import tool_forms, turns
from megatron_ring.curation.collect.cells import pick, text


def by_columns(source: SourceConfig, data: dict[str, Any]) -> dict[str, Any]:
    """Messages, tools and extra of a row whose columns the map names; RowError if it has none."""
    columns = source.columns
    messages: list[dict[str, Any]] = []
    if (system := text(data, columns.system)) is not None:
        messages.append({"role": "system", "content": system})
    if columns.messages is not None:
        messages += turns.to_turns(pick(data, columns.messages), columns.messages)
    else:
        messages += _prompt_and_response(source, data)
    content: dict[str, Any] = {"messages": messages}
    if columns.tools is not None:
        content["tools"] = turns.to_tools(pick(data, columns.tools))
    if found := candidates(source, data):
        content["extra"] = {"candidates": found}
        if messages[-1]["role"] == "assistant":  # one of them; it is chosen later
            content["messages"] = messages[:-1]
    return content


def _prompt_and_response(source: SourceConfig, data: dict[str, Any]) -> list[dict[str, Any]]:
    columns = source.columns
    history = pick(data, columns.history)
    messages = turns.to_turns(history, columns.history or "") if history else []
    prompt = text(data, columns.prompt)
    if prompt is None:
        known = ", ".join(data) or "none"
        where = f"prompt={columns.prompt!r}" if columns.prompt else "neither messages nor prompt"
        raise turns.RowError("no_prompt", f"{where} holds no text (its columns: {known})")
    messages.append({"role": "user", "content": prompt})
    said = text(data, columns.response)
    for pattern, by in source.replace.items():
        said = said and re.sub(pattern, by, said)
    if columns.calls is not None:
        calls = turns.to_calls(pick(data, columns.calls), columns.calls)
        messages.append({"role": "assistant", "content": said or "", "tool_calls": calls})
    elif said is not None:
        messages.append(turns.answer_turn(said, text(data, columns.reasoning)))
    return messages


def candidates(source: SourceConfig, data: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers that a row offers, each with what the set says of it.

    Keys of one: number, text (thought and answer), and where they are known model, correct, finish,
    complete, score. Nothing when the row neither offers a choice nor says anything of its answer.
    """
    columns = source.columns
    names = source.values.get("model", {})
    told = {
        "correct": columns.correct,
        "finish": columns.finish,
        "complete": columns.complete,
        "score": columns.score,
    }
    if columns.generations is None and not any(told.values()):
        return []
    texts = _texts(columns, data)
    several = isinstance(columns.generations, list)
    found = []
    for number, whole in enumerate(texts):
        if not isinstance(whole, str) or not whole.strip():
            continue
        one: dict[str, Any] = {"number": number, "text": whole}
        model = columns.generations[number] if several else text(data, columns.model)
        one["model"] = names.get(model or "", model)
        for key, places in told.items():
            if several:
                values = [pick(data, places[number])] if places else []
            else:
                values = [_element(pick(data, place), number) for place in places]
            one[key] = _say(key, values)
        found.append({key: value for key, value in one.items() if value is not None})
    return found


def _texts(columns: Columns, data: dict[str, Any]) -> list[Any]:
    if isinstance(columns.generations, list):
        return [pick(data, place) for place in columns.generations]
    if columns.generations is not None:
        found = pick(data, columns.generations)
        return found if isinstance(found, list) else [found]
    said = text(data, columns.response)
    return [] if said is None else [think.join(text(data, columns.reasoning), said)]


def _element(value: Any, number: int) -> Any:
    """Of a list with one value a generation, this one's; a single value is the first one's."""
    values = value if isinstance(value, list) else [value]
    return values[number] if number < len(values) else None


def _say(key: str, values: list[Any]) -> Any:
    """What is known: of verdicts, one that says correct is enough; else the first that is there."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return any(known) if key == "correct" else known[0]


FORMS: dict[str, Callable[[SourceConfig, dict[str, Any]], dict[str, Any]]] = {
    "columns": by_columns,
    "glaive": tool_forms.glaive,
    "seal_tools": tool_forms.seal_tools,
    "toolformer": tool_forms.toolformer,
}
