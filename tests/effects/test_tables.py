"""Tables of runs, items and scores: round trips, and what does not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from megatron_ring.config import ConfigError
from megatron_ring.effects import tables
from megatron_ring.effects.tables import ItemRow, Tables
from tests.effects.making import eval_row, misleading, run_row


def small() -> Tables:
    more = {"recipe": {"web": 0.25, "sums": 0.75}, "tokens": 7, "date": "2026-01-02T03:04:05+00:00"}
    runs = [run_row("a", 0, True, **more), run_row("b", 1, False, parent_ckpt="base")]
    items = [
        ItemRow(item_id="i", benchmark="m", tax_l1="t", tax_l2="u", n_tok=3, emb=[0.5, -2.0]),
        ItemRow(item_id="j", benchmark="m", tax_l1="t", tax_l2="v", n_tok=0, difficulty=0.25),
    ]
    evals = [eval_row("a", "i", 0.125), eval_row("a", "j", 1.0), eval_row("b", "i", -3.5)]
    return Tables(runs, items, evals)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tables.write(small(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evals.parquet",
        "items.parquet",
        "runs.parquet",
    ]
    assert tables.read(tmp_path) == small()
    columns = pq.read_table(tmp_path / "runs.parquet").column_names
    assert columns == [
        *("run_id", "parent_ckpt", "randomized", "assign_seed", "config_hash", "scale", "tokens"),
        *("date", "recipe", "interventions"),
    ]
    tables.write(misleading(), tmp_path)
    assert tables.read(tmp_path) == misleading()


def test_interventions_are_those_that_all_runs_know() -> None:
    runs = [
        run_row("a", 0, False, interventions={"x": 1, "y": 0, "z": 0}),
        run_row("b", 0, False, interventions={"z": 1, "x": 1}),
    ]
    assert Tables(runs, [], []).interventions == ["x", "z"]
    assert Tables([], [], []).interventions == []


def test_some_runs_with_what_belongs_to_them() -> None:
    kept = tables.chosen(small(), lambda run: run.run_id == "b")
    assert [run.run_id for run in kept.runs] == ["b"]
    assert [item.item_id for item in kept.items] == ["i"]
    assert [one.score for one in kept.evals] == [-3.5]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda t: {"runs": [*t.runs, t.runs[0]]},
            "runs.parquet: run_id a comes twice; leave one out",
        ),
        (
            lambda t: {"items": [*t.items, t.items[1]]},
            "items.parquet: item_id j comes twice; leave one out",
        ),
        (
            lambda t: {"evals": [*t.evals, t.evals[2]]},
            "evals.parquet: run_id b with item i comes twice; leave one out",
        ),
        (
            lambda t: {"evals": [*t.evals, eval_row("c", "i", 1)]},
            "evals.parquet has run_id 'c', which runs.parquet has not; import both again",
        ),
        (
            lambda t: {"evals": [*t.evals, eval_row("a", "k", 1)]},
            "evals.parquet has item_id 'k', which items.parquet has not; import both again",
        ),
        (
            lambda t: {"runs": [run_row("a", 0, True, assign_seed=None), t.runs[1]]},
            "runs.parquet: a is randomized, but has no assign_seed: a run is randomized only where "
            "a coin is on record (tools/effects.py plan)",
        ),
        (
            lambda t: {"runs": [run_row("a", 0, True, interventions={}), t.runs[1]]},
            "a is randomized, but has no interventions",
        ),
        (
            lambda t: {"evals": [*t.evals, eval_row("b", "j", 1, prompt_hash="q")]},
            "evals.parquet: item j has prompt_hash p-j in run a and q in b: they are not to be "
            "compared; evaluate one of them again",
        ),
        (
            lambda t: {"evals": [*t.evals, eval_row("b", "j", 1, metric="nll")]},
            "evals.parquet: item j has metric score in run a and nll in b",
        ),
        (
            lambda t: {"items": [t.items[0], t.items[1].model_copy(update={"emb": [1.0]})]},
            "items.parquet: embeddings of [1, 2] numbers; give all as many",
        ),
    ],
)
def test_what_does_not_fit(tmp_path: Path, change: Any, told: str) -> None:
    wrong = replace(small(), **change(small()))
    with pytest.raises(ConfigError) as error:
        tables.write(wrong, tmp_path)
    assert told in str(error.value)
    assert not list(tmp_path.iterdir())


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        tables.read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/runs.parquet is missing; python tools/effects.py import writes it"
    )
    tables.write(small(), tmp_path)
    path = tmp_path / "runs.parquet"
    table = pq.read_table(path)
    for made, told in (
        (table.drop_columns("scale"), "row 0: missing config key scale"),
        (table.rename_columns({"date": "dates"}), "row 0: unknown config key dates; did you mean"),
        (table.set_column(6, "tokens", [[7, -7]]), "row 1: tokens=-7: input should be greater"),
    ):
        pq.write_table(made, path)
        with pytest.raises(ConfigError) as error:
            tables.read(tmp_path)
        assert str(error.value).startswith(f"{path} {told}")
    path.write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=f"{path} is no Parquet file: "):
        tables.read(tmp_path)
