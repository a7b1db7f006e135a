"""What curation works on: a record, and what a stage says of it.

A record is plain JSON, a line of a JSONL shard. Stages are pure: they never change the record they
are given, and the same record always meets the same fate, whatever process or machine looks at it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, runtime_checkable


class Record(TypedDict, total=False):
    """One sample with its lineage. Keys that are not known are absent."""

    id: str  # unique in the recipe: the source's name, "/", its own id or number
    messages: list[dict[str, Any]]  # chat turns, as tools/pack.py reads them; a prompt alone is one
    tools: list[dict[str, Any]]  # OpenAI-style definitions
    answer: str  # the short final answer, where the source has one
    source: str  # name of the source in the recipe
    split: str
    revision: str  # commit, or date of access
    licence: str
    seed_ids: list[str]  # records it was made from
    card: dict[str, Any]  # how its answer was generated: model, sampling, date
    domain: str  # of the taxonomy: math, code, physics, ... or a CLC class
    level: str  # of domains that have levels: primary, junior_high, high_school, university
    topic: str
    confidence: float  # of these labels, 0 to 1
    extra: dict[str, Any]  # whatever else the source had


@dataclass(frozen=True)
class Rejection:
    """Why a record is dropped."""

    reason: str  # the rule's name, to be counted
    evidence: str  # what it saw: the matched span, the number and its threshold


class Stage(Protocol):
    """One step of a recipe. Made from its options once a process; loads what it needs then."""

    def apply(self, record: Record) -> Record | Rejection:
        """The record, changed or as it is, or why it goes."""


@runtime_checkable
class BatchStage(Stage, Protocol):
    """A stage that is much faster on many records at a time."""

    batch: int  # records that it wants at a time; it gets as many if its shard has them

    def apply_batch(self, records: Sequence[Record]) -> list[Record | Rejection]:
        """What `apply` says of each."""


@runtime_checkable
class PaidStage(Stage, Protocol):
    """A stage that asks a model, which costs time or money: a trial run shows only the question."""

    def would_ask(self, record: Record) -> str | None:
        """What it would send for a record, for people to read; None where it sends nothing."""

    def bill(self) -> tuple[str, dict[str, float]]:
        """The folder of replies, and what all runs that share it sent and spent."""


class GlobalStage(Protocol):
    """A step that must have seen all records before it decides: deduplication, quotas.

    Processes make summaries of the records that reach it; one process then decides on all of them.
    """

    def summarise(self, record: Record) -> Any:
        """What `decide` needs of the record: small, and plain JSON."""

    def decide(self, summaries: Iterable[tuple[str, Any]]) -> dict[str, Rejection]:
        """Ids of the records that go, and why.

        `summaries` are (id, summary) in the order of the input, and may be gone through again.
        """


def told_apart(name: str, seen: Counter[str]) -> str:
    """The id, or where it came before id#2, id#3: what a source calls unique need not be."""
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"


def prompt_of(record: Record) -> str:
    """Text of the user's turns, in order."""
    turns = (turn for turn in record["messages"] if turn["role"] == "user")
    return "\n".join(turn.get("content") or "" for turn in turns)


def response_of(record: Record) -> str | None:
    """Text of the last assistant's turn, None when there is no such turn.

    Reasoning that stands apart comes before it as <think>…</think>, as tools/pack.py writes it.
    """
    turn = _last_of_assistant(record)
    if turn is None:
        return None
    thought, said = turn.get("reasoning_content"), turn.get("content") or ""
    return f"<think>{thought}</think>{said}" if thought else said


def calls_tools(record: Record) -> bool:
    """Does the last assistant's turn call tools? Then it need not say anything."""
    turn = _last_of_assistant(record)
    return turn is not None and bool(turn.get("tool_calls"))


def _last_of_assistant(record: Record) -> dict[str, Any] | None:
    turns = reversed(record["messages"])
    return next((turn for turn in turns if turn["role"] == "assistant"), None)
