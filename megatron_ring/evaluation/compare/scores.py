"""Table 2: scores by benchmark and checkpoint, and the same for groups of items."""

from collections.abc import Collection, Sequence
from statistics import fmean

from megatron_ring.evaluation import statistics
from megatron_ring.evaluation.compare import estimates
from megatron_ring.evaluation.compare.cells import Cell, Frame, Row, cell_of, delta_of
from megatron_ring.evaluation.compare.reading import Benchmark, Column, any_of, tasks_of
from megatron_ring.evaluation.statistics import Estimate

Keys = dict[str, Collection[str]]  # items by benchmark
Rows = list[list[float]]  # scores: a row an item


def rows(frame: Frame) -> list[Row]:
    """A row a benchmark, then means over benchmarks: of each group, and of all."""
    tasks = tasks_of(frame.columns)
    found = []
    for task in tasks:
        bench = any_of(frame.columns, task)
        cells = [_cell(frame, index, task) for index in range(len(frame.columns))]
        found.append(Row(task, bench.title, f"{len(bench.items):,} items", cells, bench.group))
    shared = [task for task in tasks if all(column.has(task) for column in frame.columns)]
    group_of = {task: any_of(frame.columns, task).group for task in shared}
    groups = list(dict.fromkeys(group for group in group_of.values() if group is not None))
    for group in groups:
        own = [task for task in shared if group_of[task] == group]
        if len(own) < len(shared):
            found.append(_mean_row(frame, group, f"Mean, {group}", own))
    if len(shared) > 1:
        found.append(_mean_row(frame, None, "Mean", shared))
    return found


def pooled(frame: Frame, chosen: Keys) -> list[Cell | None]:
    """A cell a column, of these items of several benchmarks, which all count the same.

    None for a column that lacks one of the benchmarks.
    """
    cells: list[Cell | None] = []
    for index, column in enumerate(frame.columns):
        if not all(column.has(task) for task in chosen):
            cells.append(None)
            continue
        own = [_chosen(column, run, chosen) for run in range(len(column.runs))]
        base = frame.base(index)
        other = None
        if base is not None and all(base.has(task) for task in chosen):
            other = [_chosen(base, run, chosen) for run in range(len(base.runs))]
        cells.append(_scored(own, other))
    return cells


def _chosen(column: Column, run: int, chosen: Keys) -> Rows:
    benchmarks = column.runs[run].benchmarks
    return [
        [answer.score for answer in benchmarks[task].answers[key]]
        for task, keys in chosen.items()
        for key in keys
    ]


def _cell(frame: Frame, index: int, task: str) -> Cell | None:
    column, base = frame.columns[index], frame.base(index)
    if not column.has(task):
        return None
    chosen = {task: list(any_of(frame.columns, task).items)}
    own = [_chosen(column, run, chosen) for run in range(len(column.runs))]
    other = None
    if base is not None and base.has(task):
        other = [_chosen(base, run, chosen) for run in range(len(base.runs))]
    tokens = [_tokens(column, run, task) for run in range(len(column.runs))]
    known = [one for one in tokens if one is not None]
    found = any_of(frame.columns, task).weights
    weights = [found[key] for key in chosen[task]] if found else None
    return _scored(own, other, fmean(known) if known else None, weights)


def _scored(
    own: list[Rows],
    other: list[Rows] | None,
    tokens: float | None = None,
    weights: Sequence[float] | None = None,
) -> Cell:
    """Of scores of each run: items are the units of one run, seeds of several that differ."""
    means = [_mean(scores, weights) for scores in own]
    if len(own) > 1 and not estimates.agree(means):
        found = estimates.over_seeds(means)
    else:
        found = statistics.avg_at_k(_together(own), weights)
    delta = None
    if other is not None:
        pairs = estimates.seed_pairs([_mean(scores, weights) for scores in other], means)
        if len(pairs) > 1 and not estimates.agree([b - a for a, b in pairs]):
            delta = estimates.paired([a for a, _ in pairs], [b for _, b in pairs])
        else:
            delta = estimates.over_items(_together(other), _together(own), weights)
    return cell_of(found, means, delta=delta_of(delta), tokens=tokens)


def _together(runs: list[Rows]) -> Rows:
    """The scores of each item in all runs."""
    return [[score for row in rows for score in row] for rows in zip(*runs, strict=True)]


def _mean(scores: Rows, weights: Sequence[float] | None) -> float:
    return fmean(map(fmean, scores), weights)


def _tokens(column: Column, run: int, task: str) -> float | None:
    counts = (answer.tokens for answer in column.runs[run].benchmarks[task].all_answers())
    known = [count for count in counts if count is not None]
    return fmean(known) if known else None


def _mean_row(frame: Frame, group: str | None, title: str, tasks: Sequence[str]) -> Row:
    cells: list[Cell | None] = []
    for index, column in enumerate(frame.columns):
        base = frame.base(index)
        own = [cell for task in tasks if (cell := _cell(frame, index, task)) is not None]
        means = _seed_means(column, tasks)
        known = [cell.tokens for cell in own if cell.tokens is not None]
        tokens = fmean(known) if len(known) == len(tasks) else None
        if len(means) > 1 and not estimates.agree(means):
            found = estimates.over_seeds(means)
        else:
            found = estimates.mean_of([Estimate(c.value, c.low, c.high) for c in own])
        delta = None
        if base is not None:
            pairs = estimates.seed_pairs(_seed_means(base, tasks), means)
            if len(pairs) > 1 and not estimates.agree([b - a for a, b in pairs]):
                delta = estimates.paired([a for a, _ in pairs], [b for _, b in pairs])
            else:
                parts = [cell.delta for cell in own if cell.delta is not None]
                delta = estimates.mean_of([Estimate(d.value, d.low, d.high) for d in parts])
        cells.append(cell_of(found, means, delta=delta_of(delta), tokens=tokens))
    of = f"{len(tasks)} benchmark{'s' * (len(tasks) > 1)}"
    return Row(f"mean_{group}" if group else "mean", title, of, cells, group, "mean")


def _seed_means(column: Column, tasks: Sequence[str]) -> list[float]:
    """Of each run the mean over benchmarks: what a seed does to one it may do to another."""
    return [fmean(map(_score, map(run.benchmarks.__getitem__, tasks))) for run in column.runs]


def _score(bench: Benchmark) -> float:
    return _mean(bench.scores(), list(bench.weights.values()) if bench.weights else None)
