"""What is known of runs: three tables, as Parquet files of a folder, their rows checked.

runs.parquet    what each run was made with, and whether a coin decided it
items.parquet   what was asked
evals.parquet   what each answer was worth
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from megatron_ring.config.base import ConfigError, Part, explain
from megatron_ring.curation.shards import writing

R = TypeVar("R", bound=Part)


class RunRow(Part):
    """One training run."""

    run_id: str
    parent_ckpt: str | None = Field(None, description="what its weights began as")
    randomized: bool = Field(description="coins decided its interventions, by a plan")
    assign_seed: NonNegativeInt | None = Field(None, description="of the coins")
    config_hash: str = Field(description="of its configuration without names, folders and seeds")
    scale: str = Field(description="effects are not to be carried from one to another")
    tokens: NonNegativeInt | None = Field(None, description="trained on; None: not known")
    date: str | None = Field(None, description="of its end, ISO 8601 in UTC")
    recipe: dict[str, NonNegativeFloat] = Field({}, description="share of tokens by source")
    interventions: dict[str, Literal[0, 1]] = Field(description="arm by name")


class ItemRow(Part):
    """One question. Nothing in it may depend on the runs."""

    item_id: str
    benchmark: str
    tax_l1: str = Field(description="topic")
    tax_l2: str = Field(description="topic within tax_l1")
    difficulty: float | None = Field(
        None, ge=0, le=1, description="1 - mean score of earlier models, none of them in runs"
    )
    n_tok: NonNegativeInt = Field(description="length, in tokens where they were counted, or words")
    emb: list[float] | None = Field(None, description="an embedding, as long for all items")


class EvalRow(Part):
    """What one run's answers to one item are worth."""

    run_id: str
    item_id: str
    score: float = Field(description="mean over samples; more is better")
    n_samples: PositiveInt = 1
    metric: str
    harness_version: str
    prompt_hash: str
    grader_version: str


SCHEMAS = {
    RunRow: pa.schema(
        {
            "run_id": pa.string(),
            "parent_ckpt": pa.string(),
            "randomized": pa.bool_(),
            "assign_seed": pa.int64(),
            "config_hash": pa.string(),
            "scale": pa.string(),
            "tokens": pa.int64(),
            "date": pa.string(),
            "recipe": pa.map_(pa.string(), pa.float64()),
            "interventions": pa.map_(pa.string(), pa.int8()),
        }
    ),
    ItemRow: pa.schema(
        {
            "item_id": pa.string(),
            "benchmark": pa.string(),
            "tax_l1": pa.string(),
            "tax_l2": pa.string(),
            "difficulty": pa.float64(),
            "n_tok": pa.int64(),
            "emb": pa.list_(pa.float32()),
        }
    ),
    EvalRow: pa.schema(
        {
            "run_id": pa.string(),
            "item_id": pa.string(),
            "score": pa.float64(),
            "n_samples": pa.int64(),
            "metric": pa.string(),
            "harness_version": pa.string(),
            "prompt_hash": pa.string(),
            "grader_version": pa.string(),
        }
    ),
}
FILES = {RunRow: "runs.parquet", ItemRow: "items.parquet", EvalRow: "evals.parquet"}


@dataclass(frozen=True)
class Tables:
    """The three tables."""

    runs: Sequence[RunRow]
    items: Sequence[ItemRow]
    evals: Sequence[EvalRow]

    @property
    def interventions(self) -> list[str]:
        """Those that all runs know their arm of, in the order of the first run."""
        known = [run.interventions.keys() for run in self.runs]
        return [name for name in known[0] if all(name in one for one in known)] if known else []


def write(tables: Tables, folder: Path) -> None:
    """Write the three files, checked; each appears whole."""
    check(tables)
    for cls, rows in _parts(tables):
        table = pa.Table.from_pylist([_to_arrow(row) for row in rows], schema=SCHEMAS[cls])
        with writing(folder / FILES[cls]) as file:
            pq.write_table(table, file)


def read(folder: Path) -> Tables:
    """The three files; ConfigError names a file that is missing, a column, a row and its value."""
    tables = Tables(_read(folder, RunRow), _read(folder, ItemRow), _read(folder, EvalRow))
    check(tables)
    return tables


def check(tables: Tables) -> None:
    """ConfigError where the tables do not fit each other."""
    _check_unique("runs", "run_id", (run.run_id for run in tables.runs))
    _check_unique("items", "item_id", (item.item_id for item in tables.items))
    pairs = (f"{one.run_id} with item {one.item_id}" for one in tables.evals)
    _check_unique("evals", "run_id", pairs)
    for key, there in (
        ("run_id", {run.run_id for run in tables.runs}),
        ("item_id", {item.item_id for item in tables.items}),
    ):
        if missing := {getattr(one, key) for one in tables.evals} - there:
            raise ConfigError(
                f"evals.parquet has {key} {sorted(missing)[0]!r}, which {key[:-3]}s.parquet has "
                "not; import both again"
            )
    for run in tables.runs:
        if run.randomized and (run.assign_seed is None or not run.interventions):
            raise ConfigError(
                f"runs.parquet: {run.run_id} is randomized, but has "
                f"{'no assign_seed' if run.assign_seed is None else 'no interventions'}: a run is "
                "randomized only where a coin is on record (tools/effects.py plan)"
            )
    _check_prompts(tables.evals)
    if len(sizes := {len(item.emb) for item in tables.items if item.emb is not None}) > 1:
        raise ConfigError(f"items.parquet: embeddings of {sorted(sizes)} numbers; give all as many")


def _check_unique(table: str, key: str, values: Iterable[str]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ConfigError(f"{table}.parquet: {key} {twice[0]} comes twice; leave one out")


def _check_prompts(evals: Iterable[EvalRow]) -> None:
    """An item that was asked in two ways is two items."""
    first: dict[str, EvalRow] = {}
    for one in evals:
        before = first.setdefault(one.item_id, one)
        for key in ("prompt_hash", "metric"):
            if getattr(before, key) != getattr(one, key):
                raise ConfigError(
                    f"evals.parquet: item {one.item_id} has {key} {getattr(before, key)} in run "
                    f"{before.run_id} and {getattr(one, key)} in {one.run_id}: they are not to be "
                    "compared; evaluate one of them again"
                )


def _parts(tables: Tables) -> list[tuple[type[Part], Sequence[Part]]]:
    return [(RunRow, tables.runs), (ItemRow, tables.items), (EvalRow, tables.evals)]


def _to_arrow(row: Part) -> dict[str, Any]:
    """Maps as lists of pairs."""
    told = row.model_dump()
    return {key: list(one.items()) if isinstance(one, dict) else one for key, one in told.items()}


def _read(folder: Path, cls: type[R]) -> list[R]:
    path = folder / FILES[cls]
    if not path.is_file():
        raise ConfigError(f"{path} is missing; python tools/effects.py import writes it")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path} is no Parquet file: {error}") from None
    maps = [field.name for field in SCHEMAS[cls] if pa.types.is_map(field.type)]
    rows = []
    for number, line in enumerate(table.to_pylist()):
        told = line | {key: dict(line[key] or []) for key in maps if key in line}
        rows.append(_checked(cls, told, f"{path} row {number}"))
    return rows


def _checked(cls: type[R], told: dict[str, Any], where: str) -> R:
    try:
        return cls.model_validate(told)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(cls, error.errors()[0])}") from None


Match = Callable[[RunRow], bool]


def chosen(tables: Tables, keep: Match) -> Tables:
    """Those runs, their evaluations, and the items of these."""
    runs = [run for run in tables.runs if keep(run)]
    names = {run.run_id for run in runs}
    evals = [one for one in tables.evals if one.run_id in names]
    asked = {one.item_id for one in evals}
    return Tables(runs, [item for item in tables.items if item.item_id in asked], evals)
