"""What became of requests and drafts, by cell; every draft is counted once."""

from collections.abc import Iterable
from typing import Any

NUMBERS = ("requests", "replies", "drafts", "new", "kept")
REASONS = ("unparsable", "known", "rejected")


class Funnel:
    """Counts by cell: requests -> replies -> drafts -> new ones -> kept ones.

    unparsable, known, rejected: what went in between, by reason. What has no reply was refused.
    """

    def __init__(self, cells: dict[str, dict[str, Any]] | None = None) -> None:
        self.cells = cells or {}

    def count_request(self, cell: str, answered: bool) -> None:
        """One request, refused or answered."""
        counts = self._of(cell)
        counts["requests"] += 1
        counts["replies"] += answered

    def count_draft(self, cell: str, stage: str, reason: str | None) -> None:
        """The fate of a draft: rejected by a stage for a reason, or kept."""
        counts = self._of(cell)
        if stage == "write":
            return
        if stage == "parse":
            _add(counts["unparsable"], reason)
            return
        counts["drafts"] += 1
        if stage == "novelty":
            _add(counts["known"], reason)
            return
        counts["new"] += 1
        if stage == "verify":
            _add(counts["rejected"], reason)
        else:
            counts["kept"] += 1

    def total(self) -> dict[str, Any]:
        """Of all cells."""
        return add(self.cells.values())

    def check(self, name: str) -> None:
        """ValueError unless every draft has one fate."""
        for cell, counts in self.cells.items():
            known, rejected = (sum(counts[key].values()) for key in ("known", "rejected"))
            if (
                counts["drafts"] != known + counts["new"]
                or counts["new"] != rejected + counts["kept"]
            ):
                raise ValueError(
                    f"{name}, {cell}: {counts['drafts']} drafts, but {known} known, {rejected} "
                    f"rejected and {counts['kept']} kept; remove its folder and run again"
                )

    def _of(self, cell: str) -> dict[str, Any]:
        return self.cells.setdefault(cell, _nothing())


def add(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sum of several cells' counts; reasons in the order of their names."""
    total = _nothing()
    for one in counts:
        for key in NUMBERS:
            total[key] += one[key]
        for key in REASONS:
            for reason, number in one[key].items():
                total[key][reason] = total[key].get(reason, 0) + number
    return {**total, **{key: dict(sorted(total[key].items())) for key in REASONS}}


def _nothing() -> dict[str, Any]:
    return {**dict.fromkeys(NUMBERS, 0), **{key: {} for key in REASONS}}


def _add(reasons: dict[str, int], reason: str | None) -> None:
    assert reason is not None, "a rejection has a reason"
    reasons[reason] = reasons.get(reason, 0) + 1
