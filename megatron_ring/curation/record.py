"""What curation works on: a record, and what a stage says of it.

A record is plain JSON, a line of a JSONL shard. Stages are pure: they never change the record they
are given, and the same record always meets the same fate, whatever process or machine looks at it.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypedDict


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


def prompt_of(record: Record) -> str:
    """Text of the user's turns, in order."""
    turns = (turn for turn in record["messages"] if turn["role"] == "user")
    return "\n".join(turn.get("content") or "" for turn in turns)


def response_of(record: Record) -> str | None:
    """Text of the last assistant's turn, reasoning included; None when there is no such turn."""
    for turn in reversed(record["messages"]):
        if turn["role"] == "assistant":
            return (turn.get("reasoning_content") or "") + (turn.get("content") or "")
    return None
