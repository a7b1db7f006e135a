"""Any file of chat samples as a benchmark: the last turn of each is the right answer.

A line is what tools/pack.py takes, {"messages": [...], "tools": [...]}, so that what is held out of
a corpus can be asked. What right means, a line decides:
    instructions    it has `instructions`, each {"id", "kwargs"} of IFEval: all are followed
    calls           its last turn has `tool_calls`: the same tools with the same arguments, in order
    answer          else: the same final answer, as text or as a number
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import CheckToolsConfig
from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.curation.collect.answers import as_number, normal
from megatron_ring.curation.collect.tools import CheckTools
from megatron_ring.curation.segment import ROLES
from megatron_ring.evaluation.data import Row, Source, rows
from megatron_ring.evaluation.ifeval.rules import RULES, follows
from megatron_ring.evaluation.task import Average, Grade, Item
from megatron_ring.think import split

CHECK = CheckTools(CheckToolsConfig(stage="check_tools"))
OPEN, CLOSE = "<tool_call>", "</tool_call>"
FACTS = (
    "topic",
    "domain",
    "subject",
    "level",
    "task",
    "relation",
    "rehearsed",
)  # by which scores are grouped


@dataclass(frozen=True)
class ChatSamples:
    """A benchmark of a user's own, as megatron_ring.evaluation.task.Task."""

    name: str
    options: TaskConfig

    samples = 1
    version = "1"
    averages: ClassVar[Mapping[str, Average]] = {}

    @property
    def title(self) -> str:
        """As tables write it."""
        return self.options.title or self.name

    def items(self) -> list[Item]:
        """In the order of the file; an id that is not there is the row's number."""
        advice = "a file of chat samples, as tools/pack.py takes them"
        found = rows(self.name, self.options, Source(advice=advice))
        return [self._item(number, row) for number, (_, row) in enumerate(found, 1)]

    def grade(self, item: Item, text: str) -> Grade:
        """right, wrong, no_answer; of calls also unreadable, and why an argument cannot be."""
        answer = split(text).answer.strip()
        if not answer:
            return Grade(score=0.0, verdict="no_answer", detail="nothing behind the thought")
        gold = item.gold
        if gold["instructions"]:
            broken = [one["id"] for one in gold["instructions"] if not _followed(answer, one)]
            told = f"not followed: {', '.join(broken)}" if broken else "all followed"
            return _graded(not broken, answer, told)
        if gold["calls"]:
            return _called(answer, gold["calls"], item.tools)
        one, other = normal(answer), normal(gold["answer"])
        numbers = as_number(one), as_number(other)
        right = one == other or (None not in numbers and numbers[0] == numbers[1])
        return _graded(right, answer, f"compared with {gold['answer']}")

    def _item(self, number: int, row: Row) -> Item:
        where = f"tasks.{self.name}.file={self.options.file}: sample {number}"
        messages = row.get("messages")
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            raise ConfigError(f"{where} has no messages; its keys are {', '.join(row) or 'none'}")
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant":
            raise ConfigError(
                f"{where}: its last turn is of role {last.get('role')!r}; it must be the "
                "assistant's, the right answer, with a prompt before it"
            )
        if len(messages) < 2:
            raise ConfigError(f"{where}: its only turn is the answer; a prompt stands before that")
        for number, turn in enumerate(messages, 1):
            _check_turn(f"{where}: turn {number}", turn)
        calls = [_function(where, call) for call in last.get("tool_calls") or ()]
        answer = split(last.get("content") or "").answer.strip()
        if not answer and not calls:
            raise ConfigError(f"{where}: its last turn holds neither an answer nor tool_calls")
        instructions = row.get("instructions") or []
        for one in instructions:
            if one.get("id") not in RULES:
                raise ConfigError(
                    f"{where}: no rule for instruction {one.get('id')!r}; known: "
                    f"{', '.join(sorted(RULES))}"
                )
            _check_arguments(where, one)
        return Item(
            id=str(row.get("id", number)),
            messages=messages[:-1],
            tools=row.get("tools") or (),
            gold={"answer": answer, "calls": calls, "instructions": instructions},
            facts={key: str(row[key]) for key in FACTS if row.get(key)},
        )


def _check_turn(where: str, turn: Mapping[str, Any]) -> None:
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise ConfigError(f"{where}: unknown role {role!r}; it is one of {', '.join(ROLES)}")
    if not isinstance(content, str) and (content is not None or role != "assistant"):
        raise ConfigError(f"{where} ({role}): content is {type(content).__name__}, not text")


def _check_arguments(where: str, one: Mapping[str, Any]) -> None:
    """That an instruction can be judged, before anybody is asked: a word is."""
    name, of = one["id"], one.get("kwargs") or {}
    if missing := [key for key in RULES[name][1] if key not in of]:
        raise ConfigError(f"{where}: instruction {name} lacks kwargs {', '.join(missing)}")
    try:
        follows("word", name, of)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise ConfigError(f"{where}: instruction {name} with kwargs {of}: {error}") from None


def _followed(answer: str, one: Mapping[str, Any]) -> bool:
    return follows(answer, one["id"], one.get("kwargs") or {})


def _function(where: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Name and arguments of a call in OpenAI's form."""
    function = call.get("function", call)
    arguments = function.get("arguments") or {}
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError as error:
        raise ConfigError(f"{where}: arguments of its tool_calls are no JSON: {error}") from None
    return {"name": function.get("name"), "arguments": arguments}


def _called(
    answer: str, gold: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> Grade:
    """Calls in <tool_call> tags against the right ones."""
    parts = answer.split(OPEN)
    if len(parts) == 1:
        return Grade(score=0.0, verdict="no_call", extracted=answer, detail=f"no {OPEN}")
    made = []
    for part in parts[1:]:
        inside = part.split(CLOSE)[0]
        try:
            call = json.loads(inside)
            made.append({"name": call["name"], "arguments": call["arguments"]})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            told = f"{type(error).__name__} {error}"
            return Grade(score=0.0, verdict="unreadable", extracted=inside.strip(), detail=told)
    said = json.dumps(made, ensure_ascii=False)
    if made == list(gold):
        return _graded(True, said, "the same calls")
    for call in made:
        if fault := CHECK.fault_of(call["name"], call["arguments"], tools):
            reason, told = fault
            return Grade(score=0.0, verdict=reason, extracted=said, detail=told)
    return _graded(False, said, f"compared with {json.dumps(list(gold), ensure_ascii=False)}")


def _graded(right: bool, given: str, detail: str) -> Grade:
    verdict = "right" if right else "wrong"
    return Grade(score=float(right), verdict=verdict, extracted=given, detail=detail)
