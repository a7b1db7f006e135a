"""Table 3: how often think tags are wrong, and how, by checkpoint."""

from collections.abc import Iterable, Sequence

from megatron_ring.evaluation.compare import estimates
from megatron_ring.evaluation.compare.cells import Cell, Frame, Row, cell_of, delta_of
from megatron_ring.evaluation.compare.reading import Column, Run, tasks_of
from megatron_ring.evaluation.compare.scores import Keys
from megatron_ring.evaluation.statistics import Estimate
from megatron_ring.evaluation.tag_report import COLUMNS, Share, TagCounts

ANY = "any error"
KINDS = [kind for kind in COLUMNS if kind != "finished"]  # rows of the table, in their order
OF_ANSWERS = ("truncated",)  # of all answers; the others of finished ones
IN_THOUGHT = "of these in the thought"


def rows(frame: Frame, chosen: Keys | None = None) -> list[Row]:
    """A row a kind of error. `chosen`: of these items; absent: of all where tags are expected."""
    found = counts(frame, chosen if chosen is not None else expected(frame.columns))
    return [
        Row(kind.replace(" ", "_"), kind, _of(kind), _cells(frame, found, kind), kind="errors")
        for kind in KINDS
    ]


def any_error(frame: Frame, chosen: Keys) -> list[Cell | None]:
    """A cell a column: answers with any error."""
    return _cells(frame, counts(frame, chosen), ANY)


def counts(frame: Frame, chosen: Keys) -> list[list[TagCounts] | None]:
    """Of each column the counts of each run; None for one that lacks one of the benchmarks."""
    return [
        [_counted(run, chosen) for run in column.runs]
        if all(column.has(task) for task in chosen)
        else None
        for column in frame.columns
    ]


def shared_items(columns: Sequence[Column]) -> Keys:
    """All items of the benchmarks that all columns have."""
    first = columns[0].runs[0].benchmarks
    shared = [task for task in tasks_of(columns) if all(column.has(task) for column in columns)]
    return {task: list(first[task].items) for task in shared}


def expected(columns: Sequence[Column]) -> Keys:
    """Of those the ones whose answers are to have think tags."""
    first = columns[0].runs[0].benchmarks
    return {task: keys for task, keys in shared_items(columns).items() if first[task].tags}


def merged(counts: Iterable[TagCounts]) -> TagCounts:
    """Counts over all of them."""
    total = TagCounts()
    for one in counts:
        total.answers += one.answers
        total.truncated += one.truncated
        total.truncated_thinking += one.truncated_thinking
        total.wrong += one.wrong
        total.errors.update(one.errors)
    return total


def _counted(run: Run, chosen: Keys) -> TagCounts:
    return merged(
        answer.tags
        for task, keys in chosen.items()
        for key in keys
        for answer in run.benchmarks[task].answers[key]
    )


def _of(kind: str) -> str:
    if kind == IN_THOUGHT:
        return "truncated answers"
    return "answers" if kind in OF_ANSWERS else "finished answers"


def _cells(frame: Frame, found: list[list[TagCounts] | None], kind: str) -> list[Cell | None]:
    by_name = {column.name: one for column, one in zip(frame.columns, found, strict=True)}
    cells: list[Cell | None] = []
    for own, base in zip(found, frame.against, strict=True):
        other = by_name[base] if base is not None else None
        cells.append(_cell(own, other, kind) if own is not None else None)
    return cells


def _cell(own: list[TagCounts], other: list[TagCounts] | None, kind: str) -> Cell | None:
    """Pooled over runs with Wilson's interval, and the rate of each run."""
    share, each = merged(own).shares()[kind], [one.shares()[kind] for one in own]
    if not share.whole:
        return None
    low, high = share.interval
    rates = [one.value for one in each if one.whole]
    delta = None
    if other is not None:
        before = [one.shares()[kind] for one in other]
        delta = _difference(before, each)
    found = Estimate(share.value, low, high)
    return cell_of(found, rates, delta=delta_of(delta), part=share.part, whole=share.whole)


def _difference(one: list[Share], other: list[Share]) -> Estimate | None:
    """Over seeds where there are several that differ, else over answers; None of nothing."""
    if not all(share.whole for share in (*one, *other)):
        return None
    pairs = estimates.seed_pairs([a.value for a in one], [b.value for b in other])
    if len(pairs) > 1 and not estimates.agree([b - a for a, b in pairs]):
        return estimates.paired([a for a, _ in pairs], [b for _, b in pairs])
    return estimates.rate_difference(_pooled(one), _pooled(other))


def _pooled(shares: list[Share]) -> Share:
    return Share(sum(share.part for share in shares), sum(share.whole for share in shares))
