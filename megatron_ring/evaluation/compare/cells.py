"""What stands in a table: a value with its interval, and how far it is from the baseline's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.evaluation.compare import estimates
from megatron_ring.evaluation.compare.reading import Column
from megatron_ring.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Delta:
    """How much higher than in the baseline, with its interval."""

    value: float
    low: float
    high: float
    sure: bool  # the interval does not hold 0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value from 0 to 1."""

    value: float
    low: float
    high: float
    seeds: list[float]  # the value of each run, where there are several
    delta: Delta | None = None
    tokens: float | None = None  # of an answer, where the table tells
    part: int | None = None  # `value` is so many
    whole: int | None = None  # of so many


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    name: str  # in files: gsm8k, missing_open
    title: str
    of: str  # of how much: items, benchmarks
    cells: list[Cell | None]  # a column each; None: it has nothing of this
    group: str | None = None
    kind: str = "benchmark"  # or "mean"


@dataclass(frozen=True)
class Frame:
    """What all tables of a comparison share."""

    columns: Sequence[Column]
    against: Sequence[str | None]  # the baseline of each column

    def base(self, index: int) -> Column | None:
        """The column that column `index` is compared with."""
        named = {column.name: column for column in self.columns}
        return named[self.against[index]] if self.against[index] is not None else None

    @property
    def has_seeds(self) -> bool:
        """Is there a column with several runs?"""
        return any(len(column.runs) > 1 for column in self.columns)

    def check_seeds(self) -> None:
        """ConfigError where a column and its baseline have other numbers of runs."""
        for index, column in enumerate(self.columns):
            base = self.base(index)
            if base is None:
                continue
            try:
                estimates.seed_pairs([0.0] * len(base.runs), [0.0] * len(column.runs))
            except ValueError as error:
                raise ConfigError(f"{base.name} and {column.name}: {error}") from None


def delta_of(found: Estimate | None) -> Delta | None:
    """With the mark of one that is told from 0."""
    if found is None:
        return None
    return Delta(found.value, found.low, found.high, found.low > 0 or found.high < 0)


def cell_of(found: Estimate, seeds: Sequence[float], **more: Any) -> Cell:
    """A cell; `seeds` are kept where there are several."""
    kept = list(seeds) if len(seeds) > 1 else []
    return Cell(value=found.value, low=found.low, high=found.high, seeds=kept, **more)
