"""BFCL as a task: items of its files, and a grade from the calls of an answer."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.evaluation.bfcl.calls import Calls, read_calls
from megatron_ring.evaluation.bfcl.compare import matching_fault, same_name
from megatron_ring.evaluation.bfcl.prompts import tools_of, with_text
from megatron_ring.evaluation.json_lines import given, read_lines
from megatron_ring.evaluation.task import Grade, Item
from megatron_ring.think import split

CATEGORIES = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)
NEEDED = (
    "bfcl wants CATEGORY.jsonl and possible_answer_CATEGORY.jsonl (or .jsonl.gz), which are "
    "BFCL_v4_CATEGORY.json of ShishirPatil/gorilla, bfcl_eval/data and its possible_answer"
)


class BFCL:
    """An answer is right when its calls are a possible answer's, in any order.

    In irrelevance it is right when it says without a call that none fits, in relevance when it
    calls any function that was offered. The executed categories of v1 are no part of it.
    """

    name = "bfcl"
    title = "BFCL v2"
    samples = 1

    def __init__(
        self, folder: Path | None, as_tools: bool = True, categories: Sequence[str] = CATEGORIES
    ) -> None:
        unknown = [name for name in categories if name not in CATEGORIES]
        if unknown:
            raise ConfigError(
                f"bfcl categories {', '.join(unknown)}: not known; known: {', '.join(CATEGORIES)}"
            )
        self.folder, self.as_tools, self.categories = folder, as_tools, categories
        self.version = "1-tools" if as_tools else "1-text"

    def items(self) -> list[Item]:
        """Items in the order of categories and files. ConfigError: read_lines, or no answer."""
        return [item for category in self.categories for item in self._of(category)]

    def grade(self, item: Item, text: str) -> Grade:
        """1 for the right decision and calls.

        Verdicts: right; wrong (calls, and others than wanted), called (and should not),
        not_called (and should), unreadable (no call can be read, and it is no refusal in plain
        words either), no_answer. The thought is no part of the answer.
        """
        answer = split(text).answer.strip()
        gold = item.gold
        names = [function["name"] for function in gold["functions"]]
        read = read_calls(answer, gold["language"], names)
        verdict, detail = _judge(read, gold, names)
        return Grade(
            score=float(verdict == "right"), verdict=verdict, extracted=answer, detail=detail
        )

    def _of(self, category: str) -> list[Item]:
        rows = read_lines(self._path(category), ("id", "question", "function"), NEEDED)
        answers: dict[str, Any] = {}
        if "relevance" not in category:
            path = self._path(f"possible_answer_{category}")
            listed = read_lines(path, ("id", "ground_truth"), NEEDED)
            answers = {row["id"]: row["ground_truth"] for row in listed}
            lacking = [row["id"] for row in rows if row["id"] not in answers]
            if lacking:
                raise ConfigError(f"{path}: no answer for {lacking[0]}; {NEEDED}")
        return [self._item(row, category, answers.get(row["id"], [])) for row in rows]

    def _item(self, row: dict[str, Any], category: str, answers: list[Any]) -> Item:
        language = category.removeprefix("simple_")
        language = language if language in ("java", "javascript") else "python"
        wants = "calls"
        if "relevance" in category:
            wants = "nothing" if "irrelevance" in category else "any_call"
        functions, messages = row["function"], row["question"][0]
        names = {function["name"] for function in functions}
        strange = [name for answer in answers for name in answer if name not in names]
        if strange:
            raise ConfigError(f"{row['id']}: answer calls {strange[0]}, not offered; {NEEDED}")
        as_text = [] if self.as_tools else with_text(messages, functions, language)
        gold = {"wants": wants, "answers": answers, "functions": functions, "language": language}
        return Item(
            id=row["id"],
            messages=as_text or messages,
            gold=gold,
            facts={"category": category},
            tools=tools_of(functions, language) if self.as_tools else (),
        )

    def _path(self, name: str) -> Path:
        folder = given(self.folder, self.name, NEEDED)
        packed = folder / f"{name}.jsonl.gz"
        return packed if packed.exists() else folder / f"{name}.jsonl"


def accuracies(items: Sequence[Item], grades: Sequence[Grade]) -> dict[str, float]:
    """Share of right answers by category, then "all" (of items) and "mean" (of categories).

    The leaderboard's overall score weighs its categories in ways of its own, which change with its
    versions; "mean" is none of them. {} for no items.
    """
    found: dict[str, list[float]] = {}
    for item, grade in zip(items, grades, strict=True):
        found.setdefault(item.facts["category"], []).append(grade.score)
    shares = {category: fmean(scores) for category, scores in found.items()}
    if not shares:
        return {}
    every = [score for scores in found.values() for score in scores]
    return {**shares, "all": fmean(every), "mean": fmean(shares.values())}


def _judge(read: Calls, gold: dict[str, Any], names: list[str]) -> tuple[str, str]:
    """Verdict and what the grader saw."""
    if read.kind in ("silent", "unreadable"):
        return {"silent": "no_answer"}.get(read.kind, read.kind), read.fault
    made = ", ".join(call.name for call in read.made)
    if gold["wants"] == "nothing":
        return ("right", "") if read.kind == "none" else ("called", made)
    if read.kind == "none":
        return "not_called", ""
    if gold["wants"] == "any_call":
        strange = [c.name for c in read.made if not any(same_name(c.name, n) for n in names)]
        return ("wrong", f"{strange[0]} is not offered") if strange else ("right", made)
    fault = matching_fault(read.made, gold["answers"], gold["functions"], gold["language"])
    return ("wrong", fault) if fault else ("right", made)
