"""A run: items are asked, all that was said is written down, and grading reads that alone.

In the output folder, a file a benchmark, each whole or not there:
    items/TASK.jsonl    what was asked, with what a right answer is and by what it is counted
    samples/TASK.jsonl  each answer: prompt, text, and the card that says how it was made
    grades/TASK.jsonl   what each answer is worth, and why
and results.json with scores, intervals and counts of verdicts. Replies are remembered by the door
as they come, so a run that was killed is run again and asks for what is missing alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from megatron_ring import config as configuration
from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.curation.finish import versions
from megatron_ring.curation.segment import Paths
from megatron_ring.curation.shards import dump, read_json, read_lines, write_json, write_lines
from megatron_ring.curation.work import claimed
from megatron_ring.evaluation import accuracies, statistics, tasks
from megatron_ring.evaluation.door import REFUSED, Ask, Door, Said
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Grade, Item, Task

RECIPE, RESULTS = "recipe.yaml", "results.json"
CUT = "length"  # finish of an answer that was cut at max_tokens
AGAIN = "give the command of its `run` again, which asks for nothing that is among the replies"
PARTS = ("task", "id", "sample", "asked", "version", "text", "finish", "card")  # of a sample
TRUNCATED = "truncated"  # verdict of such an answer, unless it was right all the same


class Teller:
    """What a run says while it goes on; this one says nothing."""

    def say(self, line: str) -> None:
        """One line for the user."""

    def begin(self, name: str, total: int) -> None:
        """So many answers are to come."""

    def step(self) -> None:
        """One is there. From any thread."""

    def end(self) -> None:
        """All are there, or it failed."""


def run(config: EvaluationConfig, door: Door, teller: Teller | None = None) -> dict[str, Any]:
    """Ask what was not asked yet, grade, and return what results.json holds.

    ConfigError for data that are not there, before anything is asked. ValueError where the door
    gives up: run it again.
    """
    teller = teller or Teller()
    with claimed(Paths(config.output)), Means(config.grading) as means:
        wanted = {name: tasks.make(name, config.tasks[name], means) for name in config.tasks}
        items = {name: tasks.items_of(task, config.tasks[name]) for name, task in wanted.items()}
        configuration.save(config, config.output / RECIPE)
        for name, task in wanted.items():
            sample(config, task, items[name], door, teller)
            # After what was said to them: a run that breaks off leaves the right answers of before.
            write_lines(_file(config.output, "items", name), map(dump, map(asdict, items[name])))
        return _grade(config, wanted, teller)


def grade(output: Path, teller: Teller | None = None) -> dict[str, Any]:
    """Grade again what was sampled in `output`, with the rules of today. Nobody is asked."""
    if not (output / RECIPE).is_file():
        raise ConfigError(f"{output} has no run in it: there is no {RECIPE}")
    config = configuration.load(EvaluationConfig, [str(output / RECIPE)], [f"output={output}"])
    with claimed(Paths(output)), Means(config.grading) as means:
        found = [n for n in config.tasks if _file(output, "samples", n).is_file()]
        if not found:
            raise ConfigError(f"{output}: nothing was sampled yet")
        wanted = {name: tasks.make(name, config.tasks[name], means) for name in found}
        return _grade(config, wanted, teller or Teller())


def asks_of(config: EvaluationConfig, task: Task, items: Iterable[Item]) -> list[tuple[str, Ask]]:
    """(id of the item, what is asked), all samples of an item after each other."""
    samples = tasks.samples_of(task, config)
    return [
        (item.id, Ask(tasks.prompt_of(item, config.system), number, item.tools))
        for item in items
        for number in range(samples)
    ]


def sample(
    config: EvaluationConfig, task: Task, items: list[Item], door: Door, teller: Teller
) -> None:
    """Write the samples of a benchmark, unless the same were written before."""
    path, asks = _file(config.output, "samples", task.name), asks_of(config, task, items)
    described = door.described()
    head = [
        {"task": task.name, "id": name, "sample": ask.sample, "messages": ask.messages}
        | ({"tools": list(ask.tools)} if ask.tools else {})
        | {"asked": described, "version": task.version}
        for name, ask in asks
    ]
    if path.is_file() and _same(head, path):
        teller.say(f"{task.title}: {len(head):,} answers, sampled before")
        return
    teller.begin(task.title, len(head))
    try:
        said = door.answers([ask for _, ask in asks], teller.step)
    finally:
        teller.end()
    own = versions()
    lines = (dump({**one, **_told(what, own)}) for one, what in zip(head, said, strict=True))
    write_lines(path, lines, synced=True)


def graded(task: Task, item: Item, line: dict[str, Any]) -> Grade:
    """What a sample is worth. Cut short and not right is truncated, whatever else it may be."""
    if line["finish"] == REFUSED:
        parts = dict.fromkeys(task.grade(item, "").parts, 0.0)
        told = line["card"].get("error", "")
        return Grade(score=0.0, verdict=REFUSED, detail=told, parts=parts)
    found = task.grade(item, line["text"])
    if line["finish"] == CUT and found.score == 0:
        told = f"cut at the most tokens allowed; by itself {found.verdict}: {found.detail}"
        return replace(found, verdict=TRUNCATED, detail=told)
    return found


def summary(
    task: Task,
    items: dict[str, Item],
    grades: list[dict[str, Any]],
    tokens: list[int | None],
) -> dict[str, Any]:
    """Score, interval, pass@k, counts and other named numbers of a benchmark.

    Where its score is no plain mean over items, each line of `grades` is told its item's weight.
    """
    by_item: dict[str, list[float]] = {}
    for line in grades:
        by_item.setdefault(line["id"], []).append(line["score"])
    scores = list(by_item.values())
    score, weights = accuracies.score(items, by_item, task.averages)
    if accuracies.SCORE in task.averages:
        for line in grades:
            line["weight"] = weights.get(line["id"], 0.0)
    least = min(map(len, scores))
    powers = [2**n for n in range(least.bit_length())]
    known = [count for count in tokens if count is not None]
    return {
        "title": task.title,
        "version": task.version,
        "items": len(scores),
        "samples": least,
        "score": asdict(score),
        "accuracies": accuracies.named(items, grades, task.averages),
        "pass_at": {str(k): asdict(statistics.pass_at_k(scores, k)) for k in powers if least > 1},
        "verdicts": dict(sorted(Counter(line["verdict"] for line in grades).items())),
        "tokens": sum(known) / len(known) if known else None,  # of an answer with its thought
    }


def read_items(output: Path, name: str) -> dict[str, Item]:
    """The items of a benchmark, by id; ConfigError where their file is gone or damaged."""
    path = _file(output, "items", name)
    try:
        return {line["id"]: Item(**line) for line in read_lines(path)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {AGAIN}") from None


def read_samples(output: Path, name: str, items: dict[str, Item]) -> list[dict[str, Any]]:
    """The samples of a benchmark with these items; ConfigError where their file is damaged."""
    path = _file(output, "samples", name)
    try:
        lines = list(read_lines(path))
    except ValueError as error:
        raise ConfigError(f"{error}; {AGAIN}") from None
    if not lines:
        raise ConfigError(f"{path} is empty; {AGAIN}")
    for number, line in enumerate(lines, start=1):
        if missing := [part for part in PARTS if part not in line]:
            raise ConfigError(f"{path} line {number} has no {missing[0]!r}; {AGAIN}")
        if line["id"] not in items:
            items_path = _file(output, "items", name)
            raise ConfigError(f"{items_path} has no item {line['id']!r}, sampled; {AGAIN}")
    return lines


def _grade(config: EvaluationConfig, wanted: dict[str, Task], teller: Teller) -> dict[str, Any]:
    """Grades of all benchmarks, and the results."""
    results = {}
    for name, task in wanted.items():
        items = read_items(config.output, name)
        lines = read_samples(config.output, name, items)
        if old := {line["version"] for line in lines} - {task.version}:
            teller.say(
                f"{task.title}: sampled with version {', '.join(sorted(old))} of its prompts and "
                f"graded with {task.version}: not to be compared with others of {task.version}"
            )
        teller.begin(f"{task.title}, grades", len(lines))
        try:
            grades = _all_graded(config, task, items, lines, teller.step)
        finally:
            teller.end()
        tokens = [line["card"].get("output_tokens") for line in lines]
        options = config.tasks[name]
        told = {"asked": lines[0]["asked"], "group": options.group, "tags": options.tags}
        results[name] = summary(task, items, grades, tokens) | told
        write_lines(_file(config.output, "grades", name), map(dump, grades))
    told = {"tasks": results, "versions": versions()}
    write_json(config.output / RESULTS, told)
    return told


def _all_graded(
    config: EvaluationConfig,
    task: Task,
    items: dict[str, Item],
    lines: list[dict[str, Any]],
    tell: Callable[[], None],
) -> list[dict[str, Any]]:
    def one(line: dict[str, Any]) -> dict[str, Any]:
        found = graded(task, items[line["id"]], line)
        tell()
        head = {key: line[key] for key in ("task", "id", "sample", "finish")}
        return {**head, **asdict(found), "version": task.version}

    with ThreadPoolExecutor(config.grading.workers) as threads:
        return list(threads.map(one, lines))


def _same(head: list[dict[str, Any]], path: Path) -> bool:
    """Whether the file has these, whole and none of them refused."""
    try:
        there = list(read_lines(path))
    except ValueError:  # damaged: written anew
        return False
    return len(there) == len(head) and all(
        all(part in line for part in PARTS)
        and line["finish"] != REFUSED
        and {key: line.get(key) for key in one} == one
        for one, line in zip(head, there, strict=True)
    )


def _told(said: Said, own: dict[str, str]) -> dict[str, Any]:
    return {"text": said.text, "finish": said.finish, "card": {**said.card, "versions": own}}


def _file(output: Path, kind: str, name: str) -> Path:
    return output / kind / f"{name}.jsonl"


def load_results(output: Path) -> dict[str, Any]:
    """What a run found; ConfigError where there is no such run."""
    try:
        found = read_json(output / RESULTS)
    except ValueError as error:
        raise ConfigError(
            f"{output / RESULTS} cannot be read: {error}; python tools/evaluate.py grade {output} "
            "writes it again"
        ) from None
    if found is None:
        raise ConfigError(f"{output} has no {RESULTS}; finish the run first")
    return found
