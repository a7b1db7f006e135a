"""The benchmark of saving runs, and its figures are about what it says."""

import re

import pytest
from typer.testing import CliRunner

from tests import ranks
from tests.runs import GOLDEN
from tools.bench_checkpoint import app

MODEL = [f"model.hf_config={GOLDEN}", "data.rows_per_step=1", "--saves", "1"]


def invoke(arguments):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output.encode()


def blocked(arguments):
    import torch

    return torch.tensor(list(invoke(arguments)), dtype=torch.uint8)


@pytest.fixture
def empty_yaml(tmp_path):
    (tmp_path / "empty.yaml").write_text("{}")
    return ["--model", str(tmp_path / "empty.yaml")]


def test_blocked(packed, tmp_path, empty_yaml):
    arguments = ["blocked", str(packed), *MODEL, *empty_yaml, "--folder", str(tmp_path)]
    (said,) = ranks.run(1, blocked, arguments, folder=tmp_path / "ranks")
    said = bytes(said.tolist()).decode()
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    size = sum(f.stat().st_size for f in checkpoint.rglob("*") if f.is_file())
    assert f"1 ranks, {size / 1e6:,.0f} MB a checkpoint, medians of 1" in said
    assert re.search(r"foreground: the loop waited \d\.\d{3} s, cost \d\.\d{3} s, 0 steps", said)
    assert re.search(r"background: the loop waited \d\.\d{3} s, cost -?\d\.\d{3} s, [1-9]", said)


def test_kills_that_come_too_soon(packed, empty_yaml):
    arguments = ["kills", str(packed), *MODEL[:2], *empty_yaml, "--every", "0.1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "three lives in a row saved nothing" in str(done.exception) + done.output
