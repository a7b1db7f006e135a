"""Chat messages to tokens and targets.

Only assistant turns and their end token are targets. What a template does to a turn is found by
rendering prefixes of the conversation and taking the difference of the texts, so that any
template serves; prompt and answer are tokenized apart, as they are when the model answers.

Templates that know nothing of tools (Ling's only joins contents) get them as text:
- tool definitions end the system turn, one JSON object a line inside <tools></tools>;
- a call is `<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>` after the content;
- a result is a turn of the role `observation`, which Ling's template writes OBSERVATION.
"""

import json
import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_ring import think
from megatron_ring.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "developer": "system",
}
TOOLS_INTRO = (
    "You can call these tools. To call one, answer with <tool_call>, then a JSON object with its "
    '"name" and "arguments", then </tool_call>, each on a line of its own.'
)


class SampleError(ValueError):
    """A sample that cannot be used; the message names the turn (1 first) and what is wrong."""


@dataclass(frozen=True)
class Piece:
    """Part of a conversation's text: what stands before an answer, or an answer with its end."""

    text: str
    learnt: bool
    turn: dict[str, Any] | None = None  # the answer's; None where this is no answer
    body: int = 0  # characters of an answer before its end token
    ended: bool = True  # False when the end token is still to be added

    @property
    def is_answer(self) -> bool:
        """Does the model write it?"""
        return self.turn is not None


def encode_chat(
    messages: Any, tokenizer: Tokenizer, tools: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [n] and targets bool [n] of one conversation; targets[i]: token i is learnt.

    `messages` are turns of role system, user, assistant or tool with text `content`; assistant
    turns may have OpenAI's `tool_calls`, and `"train": false` keeps one from being learnt. ShareGPT
    turns (`from`, `value`) serve as well. Turns after the last assistant turn are left out.
    SampleError names the turn that cannot be used.
    """
    turns = check_turns(messages)
    if turns[0]["role"] == "assistant":
        raise SampleError("turn 1 is an assistant turn: put a user or system turn before it")
    if all(turn["role"] != "assistant" for turn in turns):
        raise SampleError(f"no assistant turn among {len(turns)}: there is nothing to learn")
    ids: list[int] = []
    targets: list[bool] = []
    for piece in render_turns(turns, tokenizer, tools):
        own = tokenizer.encode(piece.text) + [tokenizer.eos_id] * (not piece.ended)
        ids += own
        targets += [piece.learnt] * len(own)
    return np.array(ids, dtype=np.int32), np.array(targets, dtype=bool)


def check_turns(messages: Any, label: str = "") -> list[dict[str, Any]]:
    """Clean turns in OpenAI's shape; SampleError, beginning with `label`, when they are none."""
    if not isinstance(messages, list) or not messages:
        shown = "an empty list" if messages == [] else type(messages).__name__
        what = label.removesuffix(", ") or "messages"
        raise SampleError(f"{what} is {shown}, not a list of turns")
    return [_check_turn(f"{label}turn {n}", turn) for n, turn in enumerate(messages, 1)]


def render_turns(
    turns: list[dict[str, Any]], tokenizer: Tokenizer, tools: Any = None
) -> Iterator[Piece]:
    """The text of checked turns, up to the last assistant turn: before each answer, and the answer.

    SampleError names the turn that the template cannot write.
    """
    trained = [turn.get("train", True) for turn in turns]
    rendered, tools = _rendered(turns, tokenizer, tools)
    added = len(rendered) - len(turns)  # 1 when tool definitions became a system turn
    done = ""  # the conversation's text up to here, end token of the last answer included
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        turns_to_i = rendered[: i + added + 1]
        try:
            prompt, answer = _prompt_and_answer(turns_to_i, tools, tokenizer, done)
        except ValueError as error:
            raise SampleError(f"turn {i + 1}: {error}") from None
        body, text, ended = _cut_after_end(answer, turns_to_i[-1]["content"], tokenizer)
        yield Piece(prompt[len(done) :], learnt=False)
        yield Piece(text, trained[i], turn, body, ended)
        done = prompt + text


def render_prompt(messages: Any, tokenizer: Tokenizer, tools: Any = None) -> str:
    """The text of turns that the assistant is to go on with, as training data would have it.

    So a template that knows nothing of tools gets them as text. SampleError names a turn that
    cannot be used; ValueError where the template refuses these turns.
    """
    turns, tools = _rendered(check_turns(messages), tokenizer, tools)
    return tokenizer.render(turns, tools, add_generation_prompt=True)


def _rendered(
    turns: list[dict[str, Any]], tokenizer: Tokenizer, tools: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Checked turns and tools as the template is to have them."""
    told = [{key: turn[key] for key in turn if key != "train"} for turn in turns]
    return _fit_to_template(told, _parse_tools(tools), tokenizer.template or "")


def _prompt_and_answer(
    turns: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    tokenizer: Tokenizer,
    done: str,
) -> tuple[str, str]:
    """Texts before the last turn, from the conversation's start on, and of the last turn."""
    prompt = tokenizer.render(turns[:-1], tools, add_generation_prompt=True)
    whole = tokenizer.render(turns, tools)
    for text, beginning, what in (
        (prompt, done, "changes earlier turns once later ones follow"),
        (whole, prompt, "writes the answer differently from its own generation prompt"),
    ):
        if not text.startswith(beginning):
            at = len(os.path.commonprefix([text, beginning]))
            raise ValueError(
                f"the chat template {what} ({beginning[at : at + 30]!r} became "
                f"{text[at : at + 30]!r}); use another one (chat_template=FILE) or split the sample"
            )
    return prompt, whole[len(prompt) :]


def _cut_after_end(answer: str, content: str, tokenizer: Tokenizer) -> tuple[int, str, bool]:
    """Characters before the end token, the answer up to it, and whether the template wrote one.

    The end token is searched only behind the content: after it the tokenizer's end token, or
    another special token that closes the turn (`<end_of_turn>`). A line break behind it is no
    part of the answer: the model has stopped by then.
    """
    content = content.strip()
    # The first occurrence: a content as short as "d" occurs in <|im_end|> again.
    behind = answer.find(content) + len(content) if content in answer else 0
    at = answer.find(tokenizer.eos_text, behind)
    if at >= 0:
        return at, answer[: at + len(tokenizer.eos_text)], True
    closed = answer.rstrip()
    ends = [len(token) for token in tokenizer.special if closed.endswith(token)]
    if len(closed) > behind and ends:
        return len(closed) - max(ends), closed, True
    return len(answer), answer, False


def _check_turn(which: str, turn: Any) -> dict[str, Any]:
    """A clean copy of one turn: absent values gone, tool calls in OpenAI's shape."""
    if not isinstance(turn, dict):
        raise SampleError(f"{which} is {type(turn).__name__}, not an object")
    turn = {key: value for key, value in turn.items() if value is not None}  # Parquet fills in
    if "role" not in turn and "from" in turn:
        turn = _from_sharegpt(which, turn)
    if "role" not in turn:
        raise SampleError(
            f"{which} has no role (its keys: {', '.join(turn) or 'none'}); "
            "a turn is an object with role and content, or with from and value"
        )
    role = turn["role"]
    if role not in ROLES:
        near = OTHER_NAMES.get(str(role).lower(), str(role).lower())
        hint = f"did you mean {near!r}?" if near in ROLES else f"known roles: {', '.join(ROLES)}"
        raise SampleError(f"{which}: unknown role {role!r}; {hint}")
    where = f"{which} ({role})"
    calls = turn.pop("tool_calls", None)
    thought = turn.pop("reasoning_content", None)
    content = turn.setdefault("content", "" if role == "assistant" else None)
    if not isinstance(content, str):
        raise SampleError(f"{where}: content is {type(content).__name__}, not text")
    if role == "assistant" and not content.strip() and not calls:
        raise SampleError(f"{where} is empty: it has neither content nor tool_calls")
    if thought is not None and (role != "assistant" or not isinstance(thought, str)):
        raise SampleError(f"{where}: reasoning_content is text, and of assistant turns only")
    turn["content"] = think.join(thought, content)  # as Ling-2.0's template writes it
    if calls and role != "assistant":
        raise SampleError(f"{where} has tool_calls; only assistant turns may")
    if calls:
        turn["tool_calls"] = _check_calls(where, calls)
    train = turn.get("train", True)
    if not isinstance(train, bool):
        raise SampleError(f"{where}: train is {train!r}, not true or false")
    if role != "assistant" and turn.get("train"):
        raise SampleError(f"{where} says train: true; only assistant turns are learnt")
    return turn


def _from_sharegpt(which: str, turn: dict[str, Any]) -> dict[str, Any]:
    """A turn {"from": ..., "value": ...} as role and content, calls as tool_calls."""
    name, value = turn["from"], turn.get("value")
    role = OTHER_NAMES.get(str(name).lower(), str(name).lower())
    if role not in ROLES:
        known = "system, human, gpt, function_call, observation"
        raise SampleError(f"{which}: unknown from {name!r}; known: {known}")
    if value is not None and not isinstance(value, str):
        raise SampleError(f"{which} ({name}): value is {type(value).__name__}, not text")
    kept = {key: turn[key] for key in turn if key not in ("from", "value")}
    if str(name).lower() != "function_call":
        return {"role": role, "content": value, **kept}
    try:
        calls = json.loads(value or "")
    except json.JSONDecodeError as error:
        raise SampleError(f"{which} ({name}): value is no JSON of a call: {error}") from None
    return {"role": role, "tool_calls": calls if isinstance(calls, list) else [calls], **kept}


def _check_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    """Tool calls as {"type": "function", "function": {"name", "arguments": object}}."""
    if not isinstance(calls, list):
        raise SampleError(f"{where}: tool_calls is {type(calls).__name__}, not a list")
    checked = []
    for number, call in enumerate(calls, 1):
        which = f"{where}, tool call {number}"
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise SampleError(f"{which} has no function name")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except json.JSONDecodeError as error:
                raise SampleError(f"{which}: arguments are not JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise SampleError(f"{which}: arguments are {type(arguments).__name__}, not an object")
        extra = {"id": call["id"]} if call.get("id") else {}
        function = {"name": function["name"], "arguments": arguments}
        checked.append({**extra, "type": "function", "function": function})
    return checked


def _parse_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Tool definitions from a list, or from the JSON text of one."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise SampleError(f"tools are not JSON: {error}") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise SampleError("tools are not a list of objects")
    return tools


def written_out(turns: list[dict[str, Any]], tools: Any = None) -> list[dict[str, Any]]:
    """Checked turns with definitions and calls of tools as text, as Ling's template needs them."""
    return _fit_to_template(turns, _parse_tools(tools), "")[0]


def _fit_to_template(
    turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None, template: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Write as text what the template would leave out (see the module's docstring)."""

    def knows(name: str) -> bool:
        return re.search(rf"\b{name}\b", template) is not None

    fitted = []
    for turn in turns:
        turn = dict(turn)
        if turn["role"] == "tool" and not knows("tool"):
            turn["role"] = "observation"
        if "tool_calls" in turn and not knows("tool_calls"):
            calls = [_dump(call["function"]) for call in turn.pop("tool_calls")]
            texts = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
            turn["content"] = "\n".join([turn["content"]] * bool(turn["content"]) + texts)
        fitted.append(turn)
    if tools and not knows("tools"):
        lines = "\n".join([TOOLS_INTRO, "<tools>", *map(_dump, tools), "</tools>"])
        if fitted[0]["role"] == "system":
            fitted[0]["content"] = f"{fitted[0]['content']}\n\n{lines}"
        else:
            fitted.insert(0, {"role": "system", "content": lines})
        tools = None
    return fitted, tools


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
