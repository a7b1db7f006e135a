"""Results of an evaluation, of whichever program: items, and what their answers scored."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.shards import read_json, read_lines
from megatron_ring.evaluation.run import RECIPE, RESULTS, load_results

SAMPLES = re.compile(r"samples_(?P<task>.+)_\d{4}-\d{2}-\d{2}T[\d.:-]+\.jsonl")
SCORE_VERSION = "1"  # of what is made of log-probabilities


@dataclass(frozen=True)
class Asked:
    """One item in one run."""

    benchmark: str
    score: float  # mean over samples
    samples: int
    facts: dict[str, Any]
    length: int  # tokens of the answer where they are known, else words of the prompt
    metric: str
    prompt_hash: str
    grader_version: str


@dataclass(frozen=True)
class Result:
    """What one run got."""

    run: Path  # its folder
    items: dict[str, Asked]  # by id, which is the same in all runs
    version: str  # of the program that asked


@dataclass(frozen=True)
class Options:
    """What has to be said of results that do not say it themselves."""

    items: Path | None = None  # the chats that tools/score.py was given
    metric: str = ""  # of lm-evaluation-harness; empty: the first
    filter: str = ""  # the same


def read(text: str, options: Options) -> Result:
    """The result that RUN=OUT or OUT names; ConfigError where it is none, or of no known run."""
    run, equals, rest = text.partition("=")
    path = Path(rest if equals else text)
    if path.is_file():
        items, version = dict(_scores(path, options)), f"score.py {SCORE_VERSION}"
    elif (path / RESULTS).is_file():
        items, version = dict(_graded(path)), "evaluate.py"
        run = run if equals else _sampled_from(path)
    elif path.is_dir() and (logs := _logs(path)):
        items, version = dict(_logged(logs, options)), _harness_version(path)
    elif not path.exists():
        raise ConfigError(f"{text}: there is no {path}")
    else:
        raise ConfigError(
            f"{path} has neither {RESULTS} (tools/evaluate.py run) nor samples_*.jsonl "
            "(lm_eval --log_samples), and is no file of tools/score.py"
        )
    if not equals and not (path / RESULTS).is_file():
        raise ConfigError(f"{path} does not say which run it is of; write RUN={path}")
    if not items:
        raise ConfigError(f"{path} has no items")
    return Result(Path(run), items, version)


def digest(value: Any) -> str:
    """16 hex digits of a plain value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sampled_from(folder: Path) -> str:
    """The run whose checkpoint answered."""
    try:
        recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{folder / RECIPE} cannot be read ({error})") from None
    model = (recipe.get("sampler") or {}).get("model")
    if model is None:
        raise ConfigError(
            f"{folder} was answered by a model behind an endpoint; say of which run: RUN={folder}"
        )
    return str(model)


def _graded(folder: Path) -> Iterator[tuple[str, Asked]]:
    """Of tools/evaluate.py run."""
    for task in load_results(folder)["tasks"]:
        items = {line["id"]: line for line in read_lines(folder / "items" / f"{task}.jsonl")}
        found: dict[str, list[dict[str, Any]]] = {}
        for line in read_lines(folder / "grades" / f"{task}.jsonl"):
            found.setdefault(line["id"], []).append(line)
        for key, grades in found.items():
            item = items[key]
            asked = [item["messages"], item.get("tools") or []]
            yield (
                f"{task}/{key}",
                Asked(
                    benchmark=task,
                    score=sum(line["score"] for line in grades) / len(grades),
                    samples=len(grades),
                    facts=dict(item["facts"]),
                    length=_words(item["messages"]),
                    metric="score",
                    prompt_hash=digest(asked),
                    grader_version=grades[0]["version"],
                ),
            )


def _logs(folder: Path) -> dict[str, Path]:
    """The last log of samples of each task, by task."""
    there = ((SAMPLES.fullmatch(path.name), path) for path in folder.rglob("samples_*.jsonl"))
    named = [(found["task"], path) for found, path in there if found]
    return dict(sorted(named, key=lambda pair: pair[1].name))  # names end in the time


def _logged(logs: dict[str, Path], options: Options) -> Iterator[tuple[str, Asked]]:
    """Of lm-evaluation-harness: a line a filter, of which one is taken."""
    for task, path in logs.items():
        filters: dict[str, None] = {}
        for number, line in enumerate(read_lines(path), 1):
            filters[line["filter"]] = None
            wanted = options.filter or next(iter(filters))
            if line["filter"] != wanted:
                continue
            metric = options.metric or line["metrics"][0]
            if metric not in line:
                known = ", ".join(line["metrics"])
                raise ConfigError(f"{path} line {number} has no metric {metric}; known: {known}")
            facts = {key: one for key, one in line["doc"].items() if isinstance(one, str | int)}
            yield (
                f"{task}/{line['doc_hash'][:16]}",
                Asked(
                    benchmark=task,
                    score=float(line[metric]),
                    samples=1,
                    facts=facts,
                    length=len(str(line["doc"]).split()),
                    metric=metric,
                    prompt_hash=line["prompt_hash"][:16],
                    grader_version=f"{metric} of {wanted}",
                ),
            )
        if options.filter and options.filter not in filters:
            known = ", ".join(filters)
            raise ConfigError(f"{path} has no filter {options.filter}; there are: {known}")


def _harness_version(folder: Path) -> str:
    found = sorted(folder.rglob("results_*.json"), key=lambda path: path.name)
    told = read_json(found[-1]) if found else {}
    return f"lm-eval {told.get('lm_eval_version', 'of unknown version')}"


def _scores(path: Path, options: Options) -> Iterator[tuple[str, Asked]]:
    """Of tools/score.py: how likely each token of the right answer is, as a geometric mean.

    exp(mean log-probability), from 0 to 1: it moves long before an answer becomes right, so that
    small runs tell.
    """
    if options.items is None:
        raise ConfigError(f"{path} holds log-probabilities; give the chats they are of by --items")
    chats, lines = list(read_lines(options.items)), list(read_lines(path))
    if len(chats) != len(lines):
        raise ConfigError(
            f"{path} has {len(lines):,} lines and {options.items} {len(chats):,}: it was made of "
            "another file; run tools/score.py again"
        )
    for number, (chat, line) in enumerate(zip(chats, lines, strict=True), 1):
        if "targets" not in line:
            raise ConfigError(f"{path} line {number} has no targets: --items holds no chats")
        marks = zip(line["logprobs"], line["targets"][1:], strict=True)
        told = [logp for logp, is_target in marks if is_target]
        if not told:
            raise ConfigError(f"{options.items} line {number} has no answer to score")
        turns = [chat["messages"], chat.get("tools") or []]
        benchmark = str(chat.get("topic", options.items.stem))
        yield (
            f"{benchmark}/{chat.get('id') or digest(turns)}",
            Asked(
                benchmark=benchmark,
                score=math.exp(sum(told) / len(told)),
                samples=1,
                facts={key: one for key, one in chat.items() if isinstance(one, str | int)},
                length=len(told),
                metric="token probability",
                prompt_hash=digest(line["tokens"]),  # another tokenizer asks something else
                grader_version=SCORE_VERSION,
            ),
        )


def _words(messages: list[dict[str, Any]]) -> int:
    return sum(len(str(turn["content"]).split()) for turn in messages)
