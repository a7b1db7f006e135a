"""How often think tags are wrong, and how: Table 3 of the Ring-Lite-Distill report, from samples.

A sample is a mapping: text, finish_reason, and where they are so primed (the prompt ended in
`<think>`), calls (tools are called beside the text) and whatever it is grouped by.

Rates are of finished answers. One that was cut at max_tokens (finish_reason "length") says little
about tags: it may have been about to close them. Such answers are counted apart.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from megatron_ring import think

CONFIDENCE = 0.95
CUT = "length"  # the finish_reason of an answer that reached max_tokens
TITLES = {error: error.replace("_", " ") for error in think.ERRORS}
COLUMNS = ("finished", "any error", *TITLES.values(), "truncated", "of these in the thought")


@dataclass(frozen=True)
class Share:
    """`part` of `whole`, and Wilson's interval of CONFIDENCE; 0 to 1 where `whole` is 0.

    Wilson 1927; it takes answers as independent, which several answers to one prompt are not quite.
    """

    part: int
    whole: int

    @property
    def value(self) -> float:
        """NaN where `whole` is 0."""
        return self.part / self.whole if self.whole else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.whole:
            return 0.0, 1.0
        z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
        n, p = self.whole, self.value
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        reach = math.sqrt(z2 * p * (1 - p) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
        return max(0.0, middle - reach), min(1.0, middle + reach)

    def __str__(self) -> str:
        if not self.whole:
            return "0 of 0"
        low, high = self.interval
        return (
            f"{self.part} of {self.whole}, {self.value:.1%} ({100 * low:.1f} to {100 * high:.1f})"
        )


@dataclass
class TagCounts:
    """Counts over one group of answers."""

    answers: int = 0
    truncated: int = 0
    truncated_thinking: int = 0  # of those: cut before the thought was closed
    wrong: int = 0  # finished answers with an error; one can have several
    errors: Counter[str] = field(default_factory=Counter)  # of finished answers

    @property
    def finished(self) -> int:
        return self.answers - self.truncated

    def add(
        self, text: str, *, truncated: bool = False, primed: bool = False, calls: bool = False
    ) -> None:
        """Count one answer."""
        self.answers += 1
        if truncated:
            self.truncated += 1
            parts = think.split(text, primed)
            self.truncated_thinking += parts.thought is None or not parts.closed
            return
        wrong = think.tag_errors(text, primed, calls=calls)
        self.wrong += bool(wrong)
        self.errors.update(wrong)

    def shares(self) -> dict[str, Share]:
        """By COLUMNS; of "finished" the share of all answers."""
        finished = self.finished
        named = {title: Share(self.errors[error], finished) for error, title in TITLES.items()}
        shares = (
            Share(finished, self.answers),
            Share(self.wrong, finished),
            *named.values(),
            Share(self.truncated, self.answers),
            Share(self.truncated_thinking, self.truncated),
        )
        return dict(zip(COLUMNS, shares, strict=True))


def count(samples: Iterable[Mapping[str, Any]]) -> TagCounts:
    """Counts over all samples; ValueError names the one that lacks a key."""
    return by_group(samples, ())[()]


def by_group(
    samples: Iterable[Mapping[str, Any]], keys: Sequence[str]
) -> dict[tuple[Any, ...], TagCounts]:
    """Counts for each combination of what `keys` hold, in order of appearance: task, subject, ...

    ValueError for a sample without one of them, without text, or without finish_reason.
    """
    groups: dict[tuple[Any, ...], TagCounts] = {} if keys else {(): TagCounts()}
    for number, sample in enumerate(samples, 1):
        missing = [key for key in ("text", "finish_reason", *keys) if key not in sample]
        if missing:
            raise ValueError(
                f"sample {number} has no {', '.join(missing)} (its keys: "
                f"{', '.join(sample) or 'none'}); sample again, or give what it was grouped by"
            )
        counts = groups.setdefault(tuple(sample[key] for key in keys), TagCounts())
        counts.add(
            sample["text"],
            truncated=sample["finish_reason"] == CUT,
            primed=bool(sample.get("primed")),
            calls=bool(sample.get("calls")),
        )
    return groups


def markdown(groups: Mapping[str, TagCounts]) -> str:
    """A row a group, a column for each of COLUMNS."""
    head = ["", *COLUMNS]
    rows = [[name, *map(str, counts.shares().values())] for name, counts in groups.items()]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
