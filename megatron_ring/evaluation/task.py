"""What a benchmark is to the rest: items with prompts, and a grade for each answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a benchmark."""

    id: str  # unique in its task; the same for all runs
    messages: Sequence[Mapping[str, Any]]  # the prompt, as chat turns
    gold: Any = None  # what a right answer is compared with, plain JSON
    facts: Mapping[str, Any] = field(default_factory=dict)  # subject, level, ...: reports group by
    tools: Sequence[Mapping[str, Any]] = ()  # OpenAI-style definitions


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What an answer is worth, and why: enough to be looked at later without grading again."""

    score: float  # 0 to 1
    verdict: str  # right, wrong, no_answer, timeout, ... a short name, to be counted
    extracted: str | None = None  # what was taken for the answer
    detail: str = ""  # what the grader saw
    # Other numbers from 0 to 1 of the same answer, the same names for all answers to an item.
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Average:
    """How a benchmark's number is made of its items': a mean of means of groups."""

    part: str = ""  # of Grade.parts, over the items that have it; empty: the score
    fact: str = ""  # items are grouped by this one of Item.facts; empty: all are one group
    # Values of the fact that are one group, and its share; the others do not count. Empty: a group
    # for each value, all alike.
    groups: Sequence[tuple[Sequence[str], float]] = ()
    weight: str = ""  # a fact, the number of times that an item counts in its group; empty: once


class Task(Protocol):
    """A benchmark. Made once; holds what it needs to grade."""

    name: str  # of the task, in tables and files: gsm8k, math500
    title: str  # as the paper's table writes it: GSM8K, MATH-500
    samples: int  # answers an item gets where nobody says otherwise
    version: str  # of prompts and rules; another one: scores are not comparable
    averages: Mapping[str, Average]  # by name; "score" stands for the mean over items

    def items(self) -> list[Item]:
        """All items in a fixed order; ConfigError when the data are not there, and what to do."""

    def grade(self, item: Item, text: str) -> Grade:
        """An answer's grade. `text` is all the model said, its thought in <think> tags."""
