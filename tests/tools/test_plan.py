"""The planner's command line: verdicts, times by hand, layouts shipped, questions refused."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_ring import metrics
from megatron_ring.config import Config, load, read_hf_config
from megatron_ring.data.rows import Rows
from megatron_ring.step import Counts
from tools import plan

LITE = ["configs/model/ling_lite.yaml", "configs/sft_stage1.yaml"]
TINY = Path("tests/golden/ling_lite_tiny")


def ask(*arguments):
    return CliRunner().invoke(plan.app, [str(a) for a in arguments])


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_what_does(tmp_path):
    done = ask(*LITE, "parallel.ep=8", "--memory", "80GB", "--json", tmp_path / "plan.json")
    assert done.exit_code == 1
    assert "does not fit: the fullest rank needs 103.60 of 75.00 GB" in done.output
    assert "parallel.ep=8 parallel.recompute=full" in done.output
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["fits"] is False
    assert written["stages"][0]["total"] == pytest.approx(103.60e9, abs=5e6)
    assert all(layout["peak"] <= 75e9 for layout in written["layouts"])


@pytest.mark.parametrize("file", sorted(Path("configs/parallel").glob("*.yaml")), ids=str)
def test_shipped_layouts_fit_as_they_say(file):
    """The figures in their comments are the planner's of today."""
    text = file.read_text()
    gpus, memory = re.search(r"--gpus (\d+) --memory (\w+)", text).groups()
    promised = re.search(r"fullest rank needs ([0-9.]+) GB", text)[1]
    done = ask(*LITE, file, "--gpus", gpus, "--memory", memory)
    assert done.exit_code == 0
    assert f"fits: the fullest rank needs {promised} of" in done.output


@pytest.mark.parametrize("file", sorted(Path("configs/long").glob("*.yaml")), ids=str)
def test_long_rows_fit_as_they_say(file):
    """Both figures, and that the model takes rows of that length."""
    text = file.read_text()
    files = ["configs/model/ling_lite_1_5.yaml", "configs/sft_stage1.yaml", file]
    row_tokens = re.search(r"--row-tokens (\d+)", text)[1]
    promised = re.search(r"fullest rank needs ([0-9.]+) GB", text)[1]
    smaller = re.search(r"recompute=full: ([0-9.]+) GB", text)[1]
    for keys, memory, figure in (
        ([], "141GB", promised),
        (["parallel.recompute=full"], "80GB", smaller),
    ):
        done = ask(*files, *keys, "--gpus", 8, "--memory", memory, "--row-tokens", row_tokens)
        assert done.exit_code == 0
        assert f"fits: the fullest rank needs {figure} of" in done.output
        assert "received for a row, cp" in done.output
    config = load(Config, [str(f) for f in files], [])
    assert config.model.longest >= int(row_tokens)
    assert config.data.rows_per_step * int(row_tokens) == 256 * 16384


def test_what_is_offloaded_is_shown():
    """Of 28 layers, an input [131072 / 8, 2048] in bf16."""
    layout = ["parallel.recompute=full", "parallel.offload=true"]
    files = ["configs/model/ling_lite_1_5.yaml", "configs/long/128k.yaml"]
    done = ask(*files, *layout, "--gpus", 8, "--memory", "80GB", "--row-tokens", 131072)
    assert (
        f"{28 * 16384 * 2048 * 2 / 1e9:.2f}"
        in re.search(r"layer inputs in host memory +(\S+)", done.output)[1]
    )


def test_time_by_hand(packed):
    """Oracle: FLOPs of the documents one by one, over devices, peak and share."""
    rows = Rows.open(packed)
    model = read_hf_config(TINY)
    flops = 0.0
    for number in range(rows.num_rows):
        row = rows.row(number)
        lengths = row.cu_seqlens[1 : row.num_documents + 1] - row.cu_seqlens[: row.num_documents]
        squares = sum(int(n) ** 2 for n in lengths)
        counts = Counts((0,), row.num_supervised, row.num_tokens, squares)
        flops += metrics.train_flops(model, counts)
    done = ask(
        *(f"model.hf_config={TINY}", "data.rows_per_step=2", "--gpus", 2, "--packed", packed),
        *("--peak-tflops", 1e-6, "--mfu", 0.5),
    )
    assert done.exit_code == 0
    seconds = flops / (2 * 1e6 * 0.5)
    steps = -(-rows.num_rows // 2)
    assert f"{rows.num_rows:,} rows, {steps:,} steps" in done.output
    assert f"{flops:.2e} in all" in done.output
    assert f"{plan.duration(seconds)}, {seconds / steps:.1f} s a step" in done.output


def test_preference_training_holds_one_model():
    done = ask("configs/model/ling_tiny.yaml", "loss.head=dpo", "data.rows_per_step=8")
    assert "there is no second model" in done.output


def test_sizes_and_durations_by_hand():
    assert plan.size("80GB", "--memory") == 80 * 10**9
    assert plan.size("79.5GiB", "--memory") == round(79.5 * 2**30)
    assert [plan.duration(s) for s in (90, 7200, 3 * 86400)] == [
        "2 minutes",
        "2.0 hours",
        "3.0 days",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "80"], "--memory 80 is no size such as 80GB, 141GB or 79GiB"),
        (["--tokens", "many"], "--tokens many is no number such as 800M or 21.2B"),
        (["parallel.ep=7"], "model.num_experts=8 is not a multiple of parallel.ep=7"),
        (
            ["parallel.recompte=full"],
            "unknown config key parallel.recompte; did you mean parallel.recompute?",
        ),
        (["--memory", "4GB"], "--memory 4GB is no more than --reserve 5GB"),
        (["--json", "no/where.json"], "--json no/where.json: there is no folder no"),
        (["--packed", "nowhere"], "nowhere is not a packed folder"),
    ],
)
def test_questions_that_have_no_answer(arguments, message):
    done = ask("configs/model/ling_tiny.yaml", "data.rows_per_step=56", "--gpus", 7, *arguments)
    assert done.exit_code == 2
    assert message in done.output
