"""All tables of a comparison as plain JSON: what Markdown, the page, wandb and the console show."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from megatron_ring.evaluation.compare import estimates, items, scores, tags, topics
from megatron_ring.evaluation.compare.cells import Cell, Frame, Row, cell_of
from megatron_ring.evaluation.compare.reading import Column, any_of, tasks_of
from megatron_ring.evaluation.run import Teller
from megatron_ring.evaluation.statistics import CONFIDENCE, Estimate

PER_CENT = f"{100 * CONFIDENCE:.0f} %"
INTERVALS = (
    f"Intervals are of {PER_CENT}. ▲ and ▼ mark differences whose interval does not hold 0; of "
    "twenty comparisons without any difference one is marked all the same, on average."
)
OVER_ITEMS = (
    "Items are the unit: intervals speak of other items like these, asked of the same checkpoints. "
    "Differences are paired by item (Student's t). Means give each benchmark the same weight."
)
OVER_SEEDS = (
    "Seeds are the unit where a column has several runs: values are means over its seeds, "
    "intervals Student's t over seeds, differences are of seeds paired in the order given (a "
    "single run is paired with each). They speak of other seeds on these same items. Between two "
    "columns of one run each, and where all seeds agree exactly, items are the unit."
)
TAGS = (
    "Rates are of finished answers; truncated ones, which were cut at the most tokens allowed, are "
    "counted apart and of all answers. A thought that the prompt opens needs no opening tag. "
    "Intervals are Wilson's, of differences Newcombe's; both take answers as independent."
)
TAGS_SEEDS = (
    " Of several seeds: pooled over all their answers with Wilson's interval, the lowest and the "
    "highest seed behind it; differences by Student's t over paired seeds."
)
ITEMS = (
    "An item is right where its answers score more than a half on average, over all samples and "
    "seeds. p: McNemar's exact test, two-sided; it takes items as the unit."
)
TAXONOMY = (
    " Of all benchmarks together each item weighs the same; they were labelled from their prompts "
    "alone by the program's own labeller, which errs."
)

# Of what a benchmark was asked with: who was asked, and which seed. Columns differ in these.
WHOSE = ("model", "checkpoint", "step", "weights", "seed")


def build(frame: Frame, teller: Teller, with_taxonomy: bool = False) -> dict[str, Any]:
    """All numbers. ConfigError where seeds of a column and its baseline do not pair."""
    frame.check_seeds()
    unit = OVER_SEEDS if frame.has_seeds else OVER_ITEMS
    by_topic = list(topics.by_facts(frame))
    if with_taxonomy:
        try:
            by_topic += topics.by_taxonomy(
                frame, lambda total: teller.begin("labels of the taxonomy", total), teller.step
            )
        finally:
            teller.end()
    every = tags.expected(frame.columns)
    told = {
        "columns": [_told(column) for column in frame.columns],
        "against": list(frame.against),
        "confidence": CONFIDENCE,
        "unit": "seeds" if frame.has_seeds else "items",
        "notes": notes(frame),
        "table2": {"caption": f"{unit} {INTERVALS}", "rows": scores.rows(frame)},
        "table3": {
            "caption": TAGS + TAGS_SEEDS * frame.has_seeds,
            "rows": tags.rows(frame) if every else [],
            "by_task": [
                _by_task(frame, task)
                for task in tasks_of(frame.columns)
                if any_of(frame.columns, task).tags
            ],
        },
        "accuracies": {"rows": accuracies(frame)},
        "topics": {
            "caption": unit + TAXONOMY * with_taxonomy,
            "tables": by_topic,
        },
        "items": {"caption": ITEMS, "pairs": items.pairs(frame)},
    }
    return plain(told)


def plain(value: Any) -> Any:
    """Dataclasses as dicts, for JSON."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    kinds = (Row, Cell, items.Pair, items.Changes)
    return asdict(value) if isinstance(value, kinds) else value


def accuracies(frame: Frame) -> list[Row]:
    """Further scores of benchmarks that have such: IFEval's four, BFCL's categories."""
    found = []
    for task in tasks_of(frame.columns):
        there = [bench for column in frame.columns if column.has(task) for bench in column.of(task)]
        told = {name: one for bench in there for name, one in bench.accuracies.items()}
        for name, one in told.items():
            cells = [_accuracy(column, task, name) for column in frame.columns]
            of = f"{one['of']:,}" if isinstance(one.get("of"), int) else str(one.get("of", ""))
            title = f"{there[0].title}: {name}"
            found.append(Row(f"{task}/{name}", title, of, cells, kind="accuracy"))
    return found


def notes(frame: Frame) -> list[str]:
    """What a reader of the tables has to know besides."""
    said = []
    for column in frame.columns:
        missing = [
            any_of(frame.columns, task).title
            for task in tasks_of(frame.columns)
            if not column.has(task)
        ]
        if missing:
            said.append(
                f"{column.name} has no {', '.join(missing)}: a dash in its column; means and "
                "Table 3 are of the benchmarks that all columns have."
            )
    for task in tasks_of(frame.columns):
        said += _sampling(frame.columns, task)
    return said


def _sampling(columns: Sequence[Column], task: str) -> list[str]:
    """Where columns were sampled in other ways; a model has another name, and seeds other seeds."""
    by_column = {
        column.name: [bench.asked for bench in column.of(task)]
        for column in columns
        if column.has(task)
    }
    keys = dict.fromkeys(key for asked in by_column.values() for one in asked for key in one)
    said = []
    for key in keys:
        if key in WHOSE:
            continue
        values = {
            name: ", ".join(dict.fromkeys(str(one.get(key)) for one in asked))
            for name, asked in by_column.items()
        }
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value} in {name}" for name, value in values.items())
            said.append(f"{any_of(columns, task).title}: {key} is {told}.")
    return said


def _told(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "runs": [str(run.folder) for run in column.runs],
        "asked": [
            {task: bench.asked for task, bench in run.benchmarks.items()} for run in column.runs
        ],
    }


def _by_task(frame: Frame, task: str) -> dict[str, Any]:
    bench = any_of(frame.columns, task)
    rows = tags.rows(frame, {task: list(bench.items)})
    return {"task": task, "title": bench.title, "rows": rows}


def _accuracy(column: Column, task: str, name: str) -> Cell | None:
    if not column.has(task):
        return None
    found = [bench.accuracies.get(name) for bench in column.of(task)]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    values = [one["value"] for one in known]
    if len(known) > 1 and not estimates.agree(values):
        return cell_of(estimates.over_seeds(values), values)
    low, high = (fmean(one[end] for one in known) for end in ("low", "high"))  # over items
    return cell_of(Estimate(fmean(values), low, high), values)
