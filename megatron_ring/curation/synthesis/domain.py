"""What maths, code and science each do in their own way, for the rounds that are the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from megatron_ring.curation.generate import Reply, Request
from megatron_ring.curation.record import Record, Rejection


@dataclass(frozen=True)
class Cell:
    """A kind of problem of which so many are wanted: a topic, and how hard."""

    path: str  # of the taxonomy: math/high_school/functions, physics/optics, code/generation
    about: str  # the topic in words, for the model: "High school: functions"
    difficulty: str = ""  # easy, medium, hard; "" where the domain does not ask

    @property
    def name(self) -> str:
        """Of the cell in reports and quotas."""
        return f"{self.path}:{self.difficulty}" if self.difficulty else self.path


class Domain(Protocol):
    """How a domain's problems are asked for, read, and verified.

    Made once a process. What it decides follows from replies and seeds alone.
    """

    def request(self, cell: Cell, seeds: Sequence[Record], number: int) -> Request:
        """Ask for new problems like `seeds`; `number` tells requests of a cell apart."""

    def parse(self, reply: Reply, cell: Cell, number: int) -> list[Record | Rejection]:
        """The drafts in the reply to a cell's request: records without id, the user's turn alone.

        What verify needs beyond (a solution, tests) stands in `extra`.
        """

    async def verify(self, draft: Record) -> Record | Rejection:
        """The record to keep (answer, messages, extra), or why it goes."""


@runtime_checkable
class ChoosyDomain(Domain, Protocol):
    """One that looks at cells before anything is asked for."""

    async def admit(self, cell: Cell) -> Rejection | None:
        """None, or why no problem of this cell is wanted."""
