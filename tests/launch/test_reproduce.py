"""The small reproduction, smaller still: all steps of two seeds, and the tables of both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ["pretrain", "sft_stage1", "sft_stage2", "dpo"]
SIZES = "--pretrain 60 --stage1 240 --stage2 120 --general 60 --test 24"
WHERE = {"VENV": str(Path(sys.executable).parents[1]), "PYTHONPATH": str(ROOT)}


def reproduce(output: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | WHERE | {"OUTPUT": str(output), "SIZES": SIZES, **more}
    command = [ROOT / "launch/reproduce.sh", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_two_seeds_from_nothing_to_the_tables(tmp_path: Path) -> None:
    ended = reproduce(tmp_path, SEEDS="0 1")
    assert ended.returncode == 0, ended.stdout + (tmp_path / "seed-0.log").read_text()[-4000:]
    tables = json.loads((tmp_path / "tables/tables.json").read_text())
    assert [column["name"] for column in tables["columns"]] == STAGES
    assert [len(column["runs"]) for column in tables["columns"]] == [2] * 4
    assert tables["unit"] == "seeds"
    titles = [row["title"] for row in tables["table2"]["rows"]]
    assert titles[:4] == [
        "Reasoning-gym",
        "Closed-book facts",
        "Format-following",
        "Tool calls",
    ]
    said = (tmp_path / "tables/tables.md").read_text()
    assert "Table 2" in said and "Table 3" in said
    # Seeds differ in what is learnt, not in what is tested.
    tests = [(tmp_path / f"seed-{n}/raw/test/calls.jsonl").read_bytes() for n in (0, 1)]
    learnt = [(tmp_path / f"seed-{n}/raw/pretrain.jsonl").read_bytes() for n in (0, 1)]
    assert tests[0] == tests[1] and learnt[0] != learnt[1]

    again = reproduce(tmp_path, SEEDS="0 1")  # all is there: nothing is trained or asked
    assert again.returncode == 0
    log = (tmp_path / "seed-1.log").read_text()
    assert log.count("done before") == len(list((tmp_path / "seed-1/done").iterdir())) == 18
    assert json.loads((tmp_path / "tables/tables.json").read_text()) == tables


def test_a_scale_that_is_none(tmp_path: Path) -> None:
    ended = reproduce(tmp_path, SCALE="tpu")
    assert ended.returncode == 2
    assert ended.stderr == "error: SCALE=tpu is neither cpu nor h200\n"


def test_a_seed_that_is_none(tmp_path: Path) -> None:
    ended = reproduce(tmp_path, SEEDS="0 a")
    assert (ended.returncode, ended.stderr) == (2, "error: SEEDS=0 a: a is no number\n")


def test_a_seed_that_fails_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    ended = reproduce(tmp_path, SEEDS="0", SIZES="--pretrain many")
    assert ended.returncode != 0
    assert f"seed 0 failed; the end of {tmp_path}/seed-0.log:" in ended.stdout
    assert "Invalid value for '--pretrain'" in ended.stdout and not (tmp_path / "tables").exists()
