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


class Task(Protocol):
    """A benchmark. Made once; holds what it needs to grade."""

    name: str  # of the task, in tables and files: gsm8k, math500
    title: str  # as the paper's table writes it: GSM8K, MATH-500
    samples: int  # answers an item gets where nobody says otherwise
    version: str  # of prompts and rules; another one: scores are not comparable

    def items(self) -> list[Item]:
        """All items in a fixed order; ConfigError when the data are not there, and what to do."""

    def grade(self, item: Item, text: str) -> Grade:
        """An answer's grade. `text` is all the model said, its thought in <think> tags."""
