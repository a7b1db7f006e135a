"""Finished runs of an evaluation, as columns of a table: a checkpoint each, one run or several.

Texts are not kept, only what is counted of them: benchmarks with long thoughts are gigabytes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.shards import read_lines
from megatron_ring.evaluation.door import REFUSED
from megatron_ring.evaluation.run import CUT, Teller, load_results
from megatron_ring.evaluation.tag_report import TagCounts

RESERVED = ("previous", "first")  # what --baseline may be besides a column
# Tables 2 and 3 of the Ring-Lite-Distill report: these four are not of reasoning.
GROUPS = dict.fromkeys(("ifeval", "teval", "bfcl", "mmlu"), "general") | dict.fromkeys(
    (
        *("aime24", "math500", "gpqa_diamond", "livecodebench"),
        *("olympiadbench", "mathbench", "gaokao2023en", "gsm8k"),
    ),
    "reasoning",
)


@dataclass(frozen=True)
class Answer:
    """What is counted of one answer."""

    score: float  # 0 to 1
    tags: TagCounts  # of it alone; nothing where it was refused
    tokens: int | None  # with its thought


@dataclass(frozen=True)
class Item:
    """What was asked."""

    prompt: str  # a checksum of all turns and tools
    gold: str  # one of the right answer
    text: str  # the user's turns
    facts: dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of one run; answers by item, in the order of the items."""

    name: str
    title: str
    group: str | None  # reasoning, general, ...; None: of none
    tags: bool  # think tags are expected in its answers
    versions: tuple[str, ...]  # of prompts and rules: sampled with, graded with
    asked: dict[str, Any]  # model and sampling
    accuracies: dict[str, dict[str, Any]]  # further scores of the benchmark, where it has any
    items: dict[str, Item]
    answers: dict[str, list[Answer]]
    weights: dict[str, float] | None = None  # of items in its score, where they do not count alike

    def scores(self) -> list[list[float]]:
        """A row an item."""
        return [[one.score for one in answers] for answers in self.answers.values()]

    def all_answers(self) -> Iterator[Answer]:
        """Those of all items."""
        for answers in self.answers.values():
            yield from answers


@dataclass(frozen=True)
class Run:
    """A folder of tools/evaluate.py run."""

    folder: Path
    benchmarks: dict[str, Benchmark]


@dataclass(frozen=True)
class Column:
    """A checkpoint; several runs are seeds of it."""

    name: str
    runs: list[Run]

    def has(self, task: str) -> bool:
        """Whether all its runs have the benchmark."""
        return all(task in run.benchmarks for run in self.runs)

    def of(self, task: str) -> list[Benchmark]:
        """The benchmark in each run."""
        return [run.benchmarks[task] for run in self.runs]


def parse(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Folders by column, of `COLUMN=OUT[,OUT...]`; ConfigError says what is wrong with one."""
    found: dict[str, list[Path]] = {}
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(
                f"unknown option {argument!r}; known: --output, --baseline, --taxonomy, --wandb, -n"
            )
        name, equals, folders = argument.partition("=")
        paths = [Path(folder) for folder in folders.split(",") if folder]
        if not (name and equals and paths):
            raise ConfigError(
                f"{argument!r} is no column; one is NAME=OUT, with seeds NAME=OUT,OUT, where OUT "
                "is a folder that evaluate.py run wrote"
            )
        if name in found:
            raise ConfigError(f"column {name} is given twice; its runs are {name}=OUT,OUT")
        if name in RESERVED:
            raise ConfigError(f"a column cannot be called {name}: --baseline {name} means another")
        if len({path.resolve() for path in paths}) < len(paths):
            raise ConfigError(f"{argument}: the same folder twice; seeds are runs of their own")
        found[name] = paths
    if not found:
        raise ConfigError("no column is given; one is base=runs/base, another sft=runs/a,runs/b")
    return found


def baselines(names: Sequence[str], wanted: str) -> list[str | None]:
    """What each column is compared with: `previous`, `first`, or a column by its name."""
    if wanted not in (*RESERVED, *names):
        known = ", ".join((*RESERVED, *names))
        raise ConfigError(f"--baseline {wanted}: no such column; there are: {known}")
    if wanted == "previous":
        return [None, *names[:-1]]
    base = names[0] if wanted == "first" else wanted
    return [None if name == base else base for name in names]


def read(folders: dict[str, list[Path]], teller: Teller | None = None) -> list[Column]:
    """All columns. ConfigError for folders without a finished run, and for what is not the same."""
    columns, teller = [], teller or Teller()
    for name, paths in folders.items():
        runs = []
        for path in paths:
            if not path.is_dir():
                raise ConfigError(f"{name}={path}: there is no such folder")
            runs.append(_run(path, teller))
        columns.append(Column(name, runs))
    _check(columns)
    return columns


def lines_of(folder: Path, task: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(sample, grade) of each answer; ConfigError where the two files are not of the same run."""
    samples, grades = (folder / kind / f"{task}.jsonl" for kind in ("samples", "grades"))
    missing = [path for path in (samples, grades) if not path.is_file()]
    if missing:
        raise ConfigError(f"{missing[0]} is missing; python tools/evaluate.py run writes it")
    counts = [_num_lines(path) for path in (samples, grades)]
    again = f"python tools/evaluate.py grade {folder}"
    if counts[0] != counts[1]:
        raise ConfigError(
            f"{folder}: {counts[0]:,} answers in samples/{task}.jsonl, {counts[1]:,} in "
            f"grades/{task}.jsonl; {again}"
        )
    pairs = zip(read_lines(samples), read_lines(grades), strict=True)
    for number, (sample, grade) in enumerate(pairs, 1):
        if any(sample[key] != grade[key] for key in ("id", "sample")):
            raise ConfigError(
                f"{folder}: line {number} of samples/{task}.jsonl is of item {sample['id']}, of "
                f"grades/{task}.jsonl of {grade['id']}; {again}"
            )
        yield sample, grade


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _run(folder: Path, teller: Teller) -> Run:
    results = load_results(folder)["tasks"]
    paths = [folder / "grades" / f"{name}.jsonl" for name in results]
    teller.begin(f"reading {folder}", sum(_num_lines(path) for path in paths if path.is_file()))
    try:
        found = {
            name: _benchmark(folder, name, told, teller.step) for name, told in results.items()
        }
    finally:
        teller.end()
    return Run(folder, found)


def _benchmark(
    folder: Path, name: str, told: dict[str, Any], step: Callable[[], None]
) -> Benchmark:
    facts, golds = {}, {}
    for line in read_lines(folder / "items" / f"{name}.jsonl"):
        facts[line["id"]], golds[line["id"]] = dict(line["facts"]), _checksum(line["gold"])
    items: dict[str, Item] = {}
    answers: dict[str, list[Answer]] = {}
    weights: dict[str, float] = {}
    versions: set[tuple[str, str]] = set()
    for sample, grade in lines_of(folder, name):
        key = sample["id"]
        if key not in items:
            items[key] = _item(sample, golds[key], facts[key])
        versions.add((sample["version"], grade["version"]))
        answers.setdefault(key, []).append(_answer(sample, grade))
        if "weight" in grade:
            weights[key] = grade["weight"]
        step()
    both = sorted({one for pair in versions for one in pair})
    return Benchmark(
        name=name,
        title=told["title"],
        group=told.get("group") or GROUPS.get(name),
        tags=told.get("tags", True),
        versions=tuple(both),
        asked=told["asked"],
        accuracies=told.get("accuracies", {}),
        items=items,
        answers=answers,
        weights=weights or None,
    )


def _item(sample: dict[str, Any], gold: str, facts: dict[str, Any]) -> Item:
    asked = _checksum([sample["messages"], sample.get("tools", [])])
    turns = [str(turn["content"]) for turn in sample["messages"] if turn["role"] == "user"]
    return Item(asked, gold, "\n".join(turns), facts)


def _checksum(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _answer(sample: dict[str, Any], grade: dict[str, Any]) -> Answer:
    tags = TagCounts()
    if sample["finish"] != REFUSED:
        tags.add(
            sample["text"],
            truncated=sample["finish"] == CUT,
            primed=bool(sample["card"].get("primed")),
            calls=sample["finish"] == "tool_calls",
        )
    return Answer(grade["score"], tags, sample["card"].get("output_tokens"))


def _check(columns: Sequence[Column]) -> None:
    """ConfigError where a benchmark is not the same in two runs."""
    for task in tasks_of(columns):
        found = [
            (column.name, run.folder, run.benchmarks[task])
            for column in columns
            for run in column.runs
            if task in run.benchmarks
        ]
        for other in found[1:]:
            _check_same(found[0], other)
        for column in columns:
            missing = [run.folder for run in column.runs if task not in run.benchmarks]
            if 0 < len(missing) < len(column.runs):
                raise ConfigError(
                    f"column {column.name}: {missing[0]} has no {task}, other runs of it have; "
                    f"run it there, or leave that run out"
                )


def _check_same(one: tuple[str, Path, Benchmark], other: tuple[str, Path, Benchmark]) -> None:
    (a, _, first), (b, folder, second) = one, other
    title, where = first.title, f"{a} and {b}"
    if first.versions != second.versions:
        said = " and ".join(map("+".join, (first.versions, second.versions)))
        raise ConfigError(
            f"{title}: versions {said} of its prompts and rules in {where}, which are not to be "
            f"compared; run {folder} again (python tools/evaluate.py grade is enough where only "
            "the rules changed)"
        )
    if missing := first.items.keys() ^ second.items.keys():
        raise ConfigError(
            f"{title}: {len(first.items):,} items in {a}, {len(second.items):,} in {b}, and "
            f"{len(missing):,} of them only in one, {sorted(missing)[0]} among them; use the same "
            f"tasks.{first.name}.file and tasks.{first.name}.limit for both"
        )
    apart = [key for key, item in first.items.items() if item.prompt != second.items[key].prompt]
    if apart:
        raise ConfigError(
            f"{title}: {len(apart):,} of {len(first.items):,} items have another prompt in {b} "
            f"than in {a}, {apart[0]} among them; give both runs the same `system` and data"
        )
    apart = [key for key, item in first.items.items() if item.gold != second.items[key].gold]
    if apart:
        raise ConfigError(
            f"{title}: {len(apart):,} of {len(first.items):,} items have another right answer in "
            f"{b} than in {a}, {apart[0]} among them; give both runs the same "
            f"tasks.{first.name}.file"
        )


def tasks_of(columns: Sequence[Column]) -> list[str]:
    """All benchmarks: in the report's order, then as they come."""
    order = ["aime24", "math500", "gpqa_diamond", "livecodebench", "olympiadbench", "mathbench"]
    order += ["gaokao2023en", "gsm8k", "ifeval", "teval", "bfcl", "mmlu"]
    there = [task for column in columns for run in column.runs for task in run.benchmarks]
    known = [task for task in order if task in there]
    return list(dict.fromkeys([*known, *there]))


def title_of(columns: Sequence[Column], task: str) -> str:
    """As the report's table writes it."""
    return any_of(columns, task).title


def any_of(columns: Sequence[Column], task: str) -> Benchmark:
    """The benchmark in the first run that has it: items are the same in all."""
    runs = (run for column in columns for run in column.runs)
    return next(run.benchmarks[task] for run in runs if task in run.benchmarks)
