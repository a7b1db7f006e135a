"""Evaluations on disk -> tables: what was asked, what it was worth, and how each run came to be.

What a run was made with is read from its folder (config.yaml, metrics.jsonl, the manifest of its
packed data); its arms come from a plan, which also says that a coin decided them, or from rules.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from megatron_ring import run_folder
from megatron_ring.config.base import ConfigError
from megatron_ring.curation.shards import read_json
from megatron_ring.effects import sources
from megatron_ring.effects.plan import Plan, Planned
from megatron_ring.effects.sources import Asked, Result, digest
from megatron_ring.effects.tables import EvalRow, ItemRow, RunRow, Tables

# Nothing is learnt from these: names, folders, how often something is said or saved.
INCIDENTAL = ("run.", "log.", "checkpoint.", "data.", "profile.", "evaluate.")
SIZES = ("num_hidden_layers", "hidden_size")


@dataclass(frozen=True)
class Rule:
    """How a run that no plan made tells whether it had an intervention."""

    name: str
    key: str  # of its configuration; "source": a source of the packed data
    value: str

    def arm(self, config: Mapping[str, Any], recipe: Mapping[str, float]) -> int:
        """1 where the configuration has this value, or the data this source."""
        if self.key == "source":
            return int(recipe.get(self.value, 0.0) > 0)
        return int(str(config.get(self.key)) == self.value)


@dataclass(frozen=True)
class Options:
    """How results become tables."""

    plans: Sequence[Plan] = ()
    rules: Sequence[Rule] = ()
    earlier: Sequence[str] = ()  # results of other models, which say how hard items are
    topic: str = ""  # the fact of an item that is its tax_l1; empty: its benchmark
    subtopic: str = ""  # its tax_l2; empty: as tax_l1
    reading: sources.Options = sources.Options()


def parse_rule(text: str) -> Rule:
    """NAME=source:SOURCE or NAME=KEY:VALUE; ConfigError for another form."""
    name, _, rest = text.partition("=")
    key, _, value = rest.partition(":")
    if not (name and key and value):
        raise ConfigError(
            f"--intervention {text!r} is none; write NAME=source:SOURCE (its data have this "
            "source) or NAME=KEY:VALUE (its configuration has this value)"
        )
    return Rule(name, key, value)


def load(given: Sequence[str], options: Options) -> Tables:
    """Tables of results, each RUN=OUT, or OUT alone where it says itself of which run it is.

    RUN is the folder of a training run. ConfigError where a run is not as its plan says, or does
    not tell its arms, and where two results do not fit each other.
    """
    results = [sources.read(one, options.reading) for one in given]
    folders = Counter(result.run.resolve() for result in results)
    if twice := [folder for folder, count in folders.items() if count > 1]:
        raise ConfigError(f"{twice[0]} has two results; give one")
    hard = _difficulty(options, set(folders))
    names = _names(results)
    planned = _by_folder(options.plans)
    runs, evals, known = [], [], dict[str, Asked]()
    for result, name in zip(results, names, strict=True):
        own = planned.get(result.run.resolve())
        runs.append(_run(result.run, name, own, options.rules))
        for key, asked in result.items.items():
            known.setdefault(key, asked)
            evals.append(_eval(runs[-1].run_id, key, asked, result.version))
    items = [_item(key, asked, hard.get(key), options) for key, asked in known.items()]
    return Tables(runs, items, evals)


def _names(results: Sequence[Result]) -> list[str]:
    """The name of each run's folder, or its path where others have that name too."""
    counts = Counter(result.run.name for result in results)
    return [one.run.name if counts[one.run.name] == 1 else str(one.run) for one in results]


def _difficulty(options: Options, runs: set[Path]) -> dict[str, float]:
    """1 - mean score by item, of earlier models."""
    scores: dict[str, list[float]] = {}
    for one in options.earlier:
        result = sources.read(one, options.reading)
        if result.run.resolve() in runs:
            raise ConfigError(
                f"--earlier {one}: {result.run} is one of the runs; how hard an item is must not "
                "depend on what is studied"
            )
        for key, asked in result.items.items():
            scores.setdefault(key, []).append(asked.score)
    return {key: 1 - sum(found) / len(found) for key, found in scores.items()}


def _by_folder(plans: Sequence[Plan]) -> dict[Path, tuple[Plan, Planned]]:
    found = {}
    for plan in plans:
        for run in plan.runs:
            folder = run.overrides.get("run.dir")
            if folder is None:
                raise ConfigError(
                    f"the plan {plan.config.name} sets no run.dir, by which its runs are found; "
                    "add run.dir: FOLDER/{run} to its overrides"
                )
            found[Path(folder).resolve()] = (plan, run)
    return found


def _run(
    folder: Path, name: str, planned: tuple[Plan, Planned] | None, rules: Sequence[Rule]
) -> RunRow:
    tree = run_folder.read_config(folder)
    if not tree:
        raise ConfigError(f"{folder} has no config.yaml: it is no folder of a training run")
    config = run_folder.flatten(tree)
    manifest = _manifest(config.get("data.train"))
    recipe = _recipe(manifest)
    arms = {rule.name: rule.arm(config, recipe) for rule in rules}
    told: dict[str, Any] = {"randomized": False}
    if planned is not None:
        plan, run = planned
        name = run.run
        _check_planned(folder, run, config, arms)
        told = {"randomized": plan.randomized, "assign_seed": run.coin}
        arms |= run.arms
    if not arms:
        raise ConfigError(
            f"{folder} is in no plan, and no rule tells its arms; give --plan PLAN, or "
            "--intervention NAME=source:SOURCE"
        )
    last = _last_line(folder)
    kept = {key: value for key, value in config.items() if not key.startswith(INCIDENTAL)}
    return RunRow(
        run_id=name,
        parent_ckpt=config.get("run.init_from"),
        config_hash=digest([kept, manifest.get("fingerprint")]),
        scale=" layers of ".join(str(config.get(f"model.{key}")) for key in SIZES),
        tokens=_tokens(last, config, manifest),
        date=_date(last),
        recipe=recipe,
        interventions=arms,
        **told,
    )


def _check_planned(
    folder: Path, run: Planned, config: Mapping[str, Any], arms: Mapping[str, int]
) -> None:
    """ConfigError where a run is not what the coin said."""
    for key, value in run.overrides.items():
        there = config.get(key)
        if key in config and there != value and there != yaml.safe_load(str(value)):
            raise ConfigError(
                f"{folder}: {key} is {there!r}, but the plan of {run.run} says {value!r}; a run "
                "that did not follow its coin is no randomized run: train it again"
            )
    for name, arm in arms.items():
        if run.arms.get(name, arm) != arm:
            raise ConfigError(
                f"{folder}: by --intervention it has {name}={arm}, by its plan {run.arms[name]}; "
                "a run that did not follow its coin is no randomized run: train it again"
            )


def _manifest(folder: str | None) -> dict[str, Any]:
    return (read_json(Path(folder) / "manifest.json") if folder else None) or {}


def _recipe(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Share of tokens by source, as often as they are seen."""
    seen = {
        one["name"]: one["tokens"] * one["placements"] / max(one["documents"], 1)
        for one in manifest.get("sources", [])
    }
    total = sum(seen.values()) or 1.0
    return {name: tokens / total for name, tokens in seen.items()}


def _last_line(folder: Path) -> dict[str, Any]:
    """The run's last line of metrics; {} where it has none."""
    if not (folder / "metrics.jsonl").is_file():
        return {}
    lines = run_folder.read_lines(folder)
    return lines[-1] if lines else {}


def _tokens(
    last: Mapping[str, Any], config: Mapping[str, Any], manifest: Mapping[str, Any]
) -> int | None:
    known = (last.get("step"), config.get("data.rows_per_step"), manifest.get("row_tokens"))
    step, rows, row_tokens = known
    return None if None in known else step * rows * row_tokens


def _date(last: Mapping[str, Any]) -> str | None:
    if "time" not in last:
        return None
    return datetime.fromtimestamp(last["time"], UTC).isoformat(timespec="seconds")


def _item(key: str, asked: Asked, difficulty: float | None, options: Options) -> ItemRow:
    for fact in filter(None, (options.topic, options.subtopic)):
        if fact not in asked.facts:
            known = ", ".join(asked.facts) or "none"
            raise ConfigError(f"item {key} has no fact {fact}; it has: {known}")
    topic = str(asked.facts[options.topic]) if options.topic else asked.benchmark
    return ItemRow(
        item_id=key,
        benchmark=asked.benchmark,
        tax_l1=topic,
        tax_l2=str(asked.facts[options.subtopic]) if options.subtopic else topic,
        difficulty=difficulty,
        n_tok=asked.length,
    )


def _eval(run: str, key: str, asked: Asked, version: str) -> EvalRow:
    return EvalRow(
        run_id=run,
        item_id=key,
        score=asked.score,
        n_samples=asked.samples,
        metric=asked.metric,
        harness_version=version,
        prompt_hash=asked.prompt_hash,
        grader_version=asked.grader_version,
    )
