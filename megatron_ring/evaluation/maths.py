"""Benchmarks whose answers are short: a number, a formula, or the letter of an option."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.curation.collect.answers import as_number, final_answer, normal
from megatron_ring.evaluation.data import Row, Source, rows
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Average, Grade, Item
from megatron_ring.think import split

SOLVE = "{question}\n\nReason step by step, and put your final answer within \\boxed{{}}."
CHOOSE = (
    "{question}\n\n{options}\n\nOne of the options is right. Reason step by step, and put its "
    "letter within \\boxed{{}}."
)
LETTERS = "ABCDEFGHIJ"
# \text{(B)}, B, (B), B. the words of the option
LETTER = re.compile(r"(?:\\\w+\{)?\s*\(?\s*([A-Ja-j])\s*(?:\}?\s*$|[).:}]\s*.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a row asks."""

    id: str
    text: str
    gold: str  # the short answer; the letter, where there are options
    options: Sequence[str] = ()
    tolerance: float | None = None  # of a number, absolute, where the benchmark has one
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShortAnswers:
    """A benchmark of such questions, as megatron_ring.evaluation.task.Task."""

    name: str
    title: str
    samples: int
    version: str
    source: Source
    read: Callable[[str, int, Row], Question]  # (path of the row's file, number from 0, row)
    options: TaskConfig
    means: Means
    averages: Mapping[str, Average] = field(default_factory=dict)

    def items(self) -> list[Item]:
        """All items in the order of the data."""
        found = rows(self.name, self.options, self.source)
        return [self._item(number, path, row) for number, (path, row) in enumerate(found)]

    def grade(self, item: Item, text: str) -> Grade:
        """right, wrong, no_answer, timeout; unknown where nobody can tell whether it is right."""
        given = final_answer(split(text).answer)
        if given is None:
            return Grade(
                score=0.0, verdict="no_answer", detail="no final answer behind the thought"
            )
        gold = item.gold
        if gold["options"]:
            return _chosen(given, gold["answer"], gold["options"])
        if gold["tolerance"] is not None:
            numbers = as_number(normal(given)), as_number(normal(gold["answer"]))
            if None not in numbers:
                away = float(abs(numbers[0] - numbers[1]))
                right = away <= gold["tolerance"]
                told = f"{away:g} from {gold['answer']}, {gold['tolerance']:g} allowed"
                return _graded("right" if right else "wrong", given, told)
        verdict = self.means.equality.compare(given, gold["answer"])
        return _graded(verdict, given, f"compared with {gold['answer']}")

    def _item(self, number: int, path: str, row: Row) -> Item:
        try:
            return item_of(self.read(path, number, row))
        except (KeyError, ValueError) as error:
            what = f"no column {error}" if isinstance(error, KeyError) else error
            raise ConfigError(
                f"tasks.{self.name}: row {number + 1}{path and ' of '}{path}: {what}; its columns "
                f"are {', '.join(map(str, row))}. Is this the data of {self.title}?"
            ) from None


def item_of(question: Question) -> Item:
    """With the prompt."""
    listed = "\n".join(f"{x}. {option}" for x, option in zip(LETTERS, question.options))  # noqa: B905
    prompt = (
        CHOOSE.format(question=question.text, options=listed)
        if listed
        else SOLVE.format(question=question.text)
    )
    gold = {
        "answer": question.gold,
        "options": list(question.options),
        "tolerance": question.tolerance,
    }
    messages = [{"role": "user", "content": prompt}]
    return Item(id=question.id, messages=messages, gold=gold, facts=question.facts)


def _chosen(given: str, gold: str, options: Sequence[str]) -> Grade:
    """The letter, or the words of exactly one option."""
    same = [letter for letter, one in zip(LETTERS, options) if normal(one) == normal(given)]  # noqa: B905
    letter = LETTER.fullmatch(given.strip())
    chosen = same[0] if len(same) == 1 else letter[1].upper() if letter else None
    if chosen is None or LETTERS.index(chosen) >= len(options):
        told = f"no letter up to {LETTERS[len(options) - 1]} and none of the options"
        return Grade(score=0.0, verdict="no_answer", extracted=given, detail=told)
    return _graded("right" if chosen == gold else "wrong", given, f"{chosen} for {gold}")


def _graded(verdict: str, given: str, detail: str) -> Grade:
    return Grade(score=float(verdict == "right"), verdict=verdict, extracted=given, detail=detail)
