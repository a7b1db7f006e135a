"""The items of a run as a task of lm-evaluation-harness, and what that found beside what we did.

The harness (https://github.com/EleutherAI/lm-evaluation-harness, 0.4.13) is not needed here: a task
is a YAML file and a JSONL file. It sends the same turns with the same sampling, takes an answer by
regular expressions (filters) and compares texts (exact_match). Ours says whether numbers and
formulas are equal: where the two differ, `compare` shows the item.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_ring import config as configuration
from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.curation.shards import dump, read_lines, write_lines
from megatron_ring.evaluation import tasks
from megatron_ring.evaluation.maths import ShortAnswers
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.run import RECIPE, read_items, read_samples
from megatron_ring.evaluation.task import Grade, Item
from megatron_ring.think import answer_of

PREFIX = "ring_"  # of task names: the harness has some of its own under ours
ANSWERS = "answers"  # folder of what the harness wrote
# The last \boxed{}, with braces in it up to two deep; no dollar sign before it, no .00 behind.
BOXED = r"\\boxed\{\s*(?:\\?\$)?((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*?)(?:\.0*)?\s*\}"
# The last number, as the harness's own gsm8k task takes it.
NUMBER = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
FILTERS = {"boxed": BOXED, "flexible-extract": NUMBER}
IGNORED = [",", r"\$", r"\.$"]  # marks that exact_match leaves out, as in that task


@dataclass(frozen=True)
class Exported:
    """A task that was written."""

    name: str  # as the harness calls it
    items: int
    command: list[str]  # asks the items, from any folder


@dataclass(frozen=True)
class Pair:
    """An item, and what became of it here and there."""

    id: str
    gold: str
    texts: tuple[str, str]  # ours, the harness's
    grades: tuple[Grade, Grade]  # of both texts, by our rules
    taken: dict[str, str] = field(default_factory=dict)  # the harness's answer, by filter
    scores: dict[str, float] = field(default_factory=dict)  # what it gave for that, by filter

    @property
    def is_same(self) -> bool:
        """Whether both got one reply, thoughts and white space around it apart."""
        ours, theirs = (answer_of(text).strip() for text in self.texts)
        return ours == theirs


def export(output: Path, folder: Path, only: str = "") -> list[Exported]:
    """Write FOLDER/TASK.jsonl and FOLDER/ring_TASK.yaml for benchmarks of a run in `output`.

    ConfigError for a run that was not sampled through an endpoint, and one without short answers.
    """
    config = _recipe(output)
    exported = []
    with Means(config.grading) as means:
        for name, task in _short(output, config, means, only).items():
            items = read_items(output, name)
            samples = _first_samples(output, name, items)
            asked = samples[0]["asked"]
            if "max_tokens" not in asked:
                raise ConfigError(
                    f"{output}: {name} was not asked through an endpoint; the harness needs one"
                )
            rows = [_row(line, items[line["id"]]) for line in samples]
            path = (folder / f"{name}.jsonl").absolute()
            write_lines(path, map(dump, rows))
            told = task_of(name, path, asked, task.version)
            told |= {"description": "{{system}}"} if rows[0]["system"] else {}
            text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
            write_lines(folder / f"{PREFIX}{name}.yaml", [text.encode()])
            command = _command(config, PREFIX + name, folder.absolute())
            exported.append(Exported(PREFIX + name, len(rows), command))
    return exported


def compare(output: Path, folder: Path, name: str) -> list[Pair]:
    """What the harness logged in `folder` beside the first answers of a run, in the run's order.

    Nobody is asked. ConfigError where it was asked other items than the run.
    """
    config = _recipe(output)
    with Means(config.grading) as means:
        task = _short(output, config, means, name)[name]
        items = read_items(output, name)
        samples = _first_samples(output, name, items)
        logged = _logged(folder, name)
        ours = [_row(line, items[line["id"]]) for line in samples]
        theirs = [next(iter(one.values()))["doc"] for one in logged.values()]
        same = len({tuple(row.items()) for row in ours} & {tuple(row.items()) for row in theirs})
        if same < max(len(ours), len(theirs)):
            raise ConfigError(
                f"{folder}: the harness was asked {len(theirs):,} items and the run in {output} "
                f"{len(ours):,}, {same:,} of them the same; export and ask again"
            )

        def pair(line: dict[str, Any]) -> Pair:
            item, by_filter = items[line["id"]], logged[line["id"]]
            text = _first(next(iter(by_filter.values()))["resps"])
            return Pair(
                id=item.id,
                gold=item.gold["answer"],
                texts=(line["text"], text),
                grades=(task.grade(item, line["text"]), task.grade(item, text)),
                taken={kind: _first(one["filtered_resps"]) for kind, one in by_filter.items()},
                scores={kind: one["exact_match"] for kind, one in by_filter.items()},
            )

        with ThreadPoolExecutor(config.grading.workers) as threads:
            return list(threads.map(pair, samples))


def names_of(output: Path) -> list[str]:
    """The benchmarks of a run that can be exported."""
    config = _recipe(output)
    with Means(config.grading) as means:
        return list(_short(output, config, means, ""))


def _recipe(output: Path) -> EvaluationConfig:
    if not (output / RECIPE).is_file():
        raise ConfigError(f"{output} has no run in it: there is no {RECIPE}")
    return configuration.load(EvaluationConfig, [str(output / RECIPE)], [f"output={output}"])


def _short(
    output: Path, config: EvaluationConfig, means: Means, only: str
) -> dict[str, ShortAnswers]:
    """Benchmarks of short answers that were sampled; the one that is named, if one is."""
    made = {name: tasks.make(name, options, means) for name, options in config.tasks.items()}
    there = {name: task for name, task in made.items() if _samples(output, name).is_file()}
    short = {name: task for name, task in there.items() if isinstance(task, ShortAnswers)}
    if only and only in there and only not in short:
        raise ConfigError(
            f"{only} has no short answers; the harness could not grade it by comparing texts"
        )
    if not short or (only and only not in short):
        wanted = f" of {only}" if only else ""
        known = ", ".join(short) or "none"
        raise ConfigError(f"{output}: no samples{wanted}; those of short answers: {known}")
    return {only: short[only]} if only else short


def _samples(output: Path, name: str) -> Path:
    return output / "samples" / f"{name}.jsonl"


def _first_samples(output: Path, name: str, items: dict[str, Item]) -> list[dict[str, Any]]:
    """Of each item the first: the harness asks once."""
    return [line for line in read_samples(output, name, items) if line["sample"] == 0]


def _row(line: dict[str, Any], item: Item) -> dict[str, str]:
    *system, user = line["messages"]
    return {
        "id": line["id"],
        "system": "".join(turn["content"] for turn in system),
        "prompt": user["content"],
        "answer": item.gold["answer"],
    }


def task_of(name: str, path: Path, asked: dict[str, Any], version: str) -> dict[str, Any]:
    """A task of the harness. Names of columns stand for themselves, so no text is a template."""
    filters = [
        {
            "name": kind,
            "filter": [
                {"function": "regex", "group_select": -1, "regex_pattern": pattern},
                {"function": "take_first"},
            ],
        }
        for kind, pattern in FILTERS.items()
    ]
    return {
        "task": PREFIX + name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "generate_until",
        "num_fewshot": 0,
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "generation_kwargs": {
            **asked["extra"],
            "until": [],  # absent, an answer would end at its first empty line
            "do_sample": asked["temperature"] > 0,
            "temperature": asked["temperature"],
            "top_p": asked["top_p"],
            "max_gen_toks": asked["max_tokens"],
        },
        "filter_list": filters,
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "regexes_to_ignore": IGNORED,
            }
        ],
        "metadata": {"version": version},
    }


def _command(config: EvaluationConfig, name: str, folder: Path) -> list[str]:
    """A run of a checkpoint had no endpoint: the one that serves it is to be filled in."""
    sampler, generator = config.sampler, config.generator
    if generator is None:
        generator = GeneratorConfig(endpoint="http://HOST:8000/v1", model="MODEL", replies=folder)
    told = {
        "model": generator.model,
        "base_url": f"{generator.endpoint.rstrip('/')}/chat/completions",
        "num_concurrent": generator.concurrency,
        "timeout": int(generator.timeout_s),
        "seed": generator.seed if sampler is None else sampler.seed,
    }
    given = ",".join(f"{key}={value}" for key, value in told.items())
    start = ["lm_eval", "--model", "local-chat-completions", "--model_args", given]
    start += ["--include_path", str(folder), "--tasks", name, "--apply_chat_template"]
    return [*start, "--log_samples", "--output_path", str(folder / ANSWERS)]


def _logged(folder: Path, name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Lines of the harness's last log of samples, by id of the item and by filter."""
    wanted = f"samples_{PREFIX}{name}_*.jsonl"
    # Their names end in the time.
    found = sorted((folder / ANSWERS).rglob(wanted), key=lambda path: path.name)
    if not found:
        raise ConfigError(
            f"{folder / ANSWERS} has no {wanted}: run the command that `export` shows, with "
            "--log_samples"
        )
    lines: dict[str, dict[str, dict[str, Any]]] = {}
    for line in read_lines(found[-1]):
        lines.setdefault(line["doc"]["id"], {})[line["filter"]] = line
    return lines


def _first(responses: Iterable[Any]) -> str:
    """The harness nests answers, one list a repetition; `take_first` leaves a text."""
    one: Any = list(responses)[0]
    return one if isinstance(one, str) else _first(one)
