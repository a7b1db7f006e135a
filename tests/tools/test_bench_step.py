"""The step's benchmark on tiny sizes: all candidates compute the same, and figures by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from megatron_ring import config as configuration
from megatron_ring import parallel, platform
from megatron_ring.config import Config
from megatron_ring.data.rows import Rows
from megatron_ring.model import weights
from megatron_ring.model.router import LingRouter
from tools import bench_step

GOLDEN = Path("tests/golden/ling_lite_tiny")
SMALL = ["--rows=2", "--row-tokens=128", "--document-tokens=40", "--repeats=1", "--threads=1"]
# Without router losses the gradients are those of the nll alone, in all implementations.
PLAIN = ["loss.aux_coeff=0", "loss.z_coeff=0"]
TINY = {"V": 2048, "D": 128, "L": 4, "H": 4, "G": 2, "R": 32, "F": 88, "E": 8, "K": 2, "shared": 2}


def ask(*arguments):
    return CliRunner().invoke(bench_step.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """One run of every candidate a CPU has by default, as written and as printed."""
    file = tmp_path_factory.mktemp("step") / "step.json"
    done = ask(*SMALL, *PLAIN, "--peak-tflops=0.5", "--json", file)
    assert done.exit_code == 0, done.output
    return json.loads(file.read_text()), done.output


def test_all_compute_the_same(told):
    """Other people's models are the reference: the same nll, and the same gradient's norm."""
    rows = {row["name"]: row for row in told[0]["results"]}
    usual = ["ours", "recompute", "loop", "step", "megatron-core", "transformers"]
    assert list(rows) == usual
    for name, row in rows.items():
        assert row["loss"] == pytest.approx(rows["ours"]["loss"], rel=1e-5), name
        # The step has clipped it.
        norm = 1.0 if name == "step" else rows["ours"]["gradient_norm"]
        assert row["gradient_norm"] == pytest.approx(norm, rel=1e-5), name
    assert rows["ours"]["gradient_norm"] > 1.5


def test_norm_head_is_folded_into_the_others(tmp_path):
    """In bf16 too, where only rounding may differ; their logits would else be 30 times as large."""
    names = "--candidates=ours,megatron-core,transformers"
    for dtype, rel in (("fp32", 1e-6), ("bf16", 1e-3)):
        options = [names, "model.norm_head=true", f"run.dtype={dtype}", "--json", tmp_path / "x"]
        assert ask(*SMALL, *options).exit_code == 0
        ours, *others = [row["loss"] for row in json.loads((tmp_path / "x").read_text())["results"]]
        assert others == pytest.approx([ours] * 2, rel=rel)


def test_parameters_by_hand(told):
    t = TINY
    attention = t["D"] * t["R"] * (2 * t["H"] + 2 * t["G"])
    experts = 3 * t["D"] * t["F"] * (t["E"] + t["shared"]) + t["D"] * t["E"]
    whole = t["L"] * (attention + experts + 2 * t["D"]) + t["D"] + 2 * t["V"] * t["D"]
    assert {row["parameters"] for row in told[0]["results"]} == {whole}


def test_figures_by_hand(told):
    """FLOPs: 6 a weight and token, documents one by one, attention's causal half."""
    about, t = told[0], TINY
    token = t["D"] * t["R"] * (2 * t["H"] + 2 * t["G"]) + t["D"] * t["E"]
    token = t["L"] * (token + 3 * t["D"] * t["F"] * (t["K"] + t["shared"]))
    case = about["case"]
    for flop, lengths, supervised in zip(
        case["flop"], case["lengths"], case["supervised"], strict=True
    ):
        assert sum(lengths) == 128
        pairs = sum(n * n / 2 for n in lengths)  # of a query and a key
        expected = 6 * 128 * token + 6 * supervised * t["V"] * t["D"]
        expected += t["L"] * 3 * pairs * 2 * (2 * t["H"] * t["R"])
        assert flop == pytest.approx(expected)
    for row in about["results"]:  # the one timed repeat is of the second row
        assert row["tflops"] * row["seconds"] == pytest.approx(case["flop"][1] / 1e12)
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(128)
        assert row["mfu"] == pytest.approx(row["tflops"] / 0.5)


def test_what_is_printed(told):
    about, output = told
    for row in about["results"]:
        assert f"{row['name']:13}" in output
        assert f"{row['tokens_per_second']:,.0f}" in output
    met = "met" if about["results"][0]["mfu"] >= 0.35 else "not met"
    assert f"goal, ours at 35% MFU or more: {met}" in output
    assert about["case"]["convention"] in output
    assert {"device", "torch", "transformers"} <= set(about["machine"])


def test_mfu_is_not_told_where_the_peak_is_unknown(tmp_path):
    done = ask(*SMALL, "--candidates=ours", "--json", tmp_path / "step.json")
    assert "goal" not in done.output
    assert json.loads((tmp_path / "step.json").read_text())["results"][0]["mfu"] == 0


def test_random_documents_are_log_normal():
    """Mean as asked (and half a token for rounding), deviation √(e - 1) of it, half predicted."""
    [row] = bench_step.random_rows(1, 1_000_000, 100, 0.5, 50)
    lengths = np.diff(row.cu_seqlens)
    assert lengths.mean() == pytest.approx(100.5, rel=0.05)
    assert lengths.std() / lengths.mean() == pytest.approx((np.e - 1) ** 0.5, rel=0.1)
    assert row.num_supervised / (row.num_tokens - row.num_documents) == pytest.approx(0.5, rel=0.01)
    first, second = bench_step.random_rows(2, 64, 100, 0.5, 50)
    assert (first.tokens_S != second.tokens_S).any()


@pytest.fixture
def bench():
    """Ours, recomputed, looped and with its optimizer, on two rows of 64 tokens."""
    config = configuration.load(Config, ["configs/model/ling_tiny.yaml"], [])
    device = platform.prepare()
    rows = bench_step.random_rows(2, 64, 20, 0.5, 2048)
    with parallel.process_groups(config.parallel, device, seed=1):
        yield bench_step.Bench(config, rows, ["ours", "recompute", "loop", "step"], device)


def test_load_is_that_of_the_routers_choices(bench):
    bench.run("ours", 1)  # an earlier run is not counted
    told = bench._check("recompute")["load"]
    ratios, bench.stage.router_loss.record = [], {}
    for number in range(2):
        bench.stage.router_loss.record.clear()
        bench.run("ours", number)
        for [experts_TK] in bench.stage.router_loss.record.values():
            visits_E = np.bincount(experts_TK.numpy().ravel(), minlength=8)
            assert visits_E.sum() == 64 * 2
            ratios.append(visits_E.max() / visits_E.mean())
    assert len(ratios) == 2 * 4
    assert told == pytest.approx(np.mean(ratios))


def test_candidates_differ_in_how_they_compute(bench, monkeypatch):
    """Layers are run again by `recompute` alone, and the loop is the loop."""
    routed, choose = [], LingRouter.choose
    monkeypatch.setattr(LingRouter, "choose", lambda *args: routed.append(1) or choose(*args))
    calls, backends = {}, {}
    for name in ("recompute", "loop", "ours", "step"):
        routed.clear()
        bench.run(name, 0)
        calls[name] = len(routed)
        layers = [m for m in bench.stage.modules() if isinstance(m, bench_step.RoutedExperts)]
        backends[name] = {layer.backend for layer in layers}
    assert calls == {"ours": 4, "loop": 4, "step": 4, "recompute": 8}
    assert backends["ours"] == backends["step"] == backends["recompute"] == {"torch"}
    assert backends["loop"] == {"loop"}


def test_a_step_updates_but_moves_nothing(bench):
    """The weights are the others' too; Adam's moments show that it has been at work."""
    before = weights.fingerprint([bench.stage])
    bench.run("step", 0)
    assert weights.fingerprint([bench.stage]) == before
    for group in bench.optimizer.param_groups:
        group["lr"] = 1e-3
    bench.optimizer.step()
    assert weights.fingerprint([bench.stage]) != before


def test_real_rows_and_weights(packed, tmp_path):
    """Rows as planned; the first layer of a checkpoint, the same in ours and in transformers."""
    options = ["--rows=3", "--repeats=1", "--threads=1", "--layers=1", "--packed", packed]
    options += ["--candidates=ours,transformers", "--json", tmp_path / "step.json"]
    model = tmp_path / "model.yaml"
    model.write_text(f"model:\n  hf_config: {GOLDEN.resolve()}\n")
    done = ask("--model", model, *options, "--init-from", GOLDEN, "run.dtype=fp32")
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "step.json").read_text())
    rows = Rows.open(packed)
    lengths = rows.lengths
    assert about["case"]["lengths"] == [lengths[rows.documents_of(n)].tolist() for n in range(3)]
    ours, theirs = about["results"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    done = ask("--model", model, *options, "run.dtype=fp32")
    fresh = json.loads((tmp_path / "step.json").read_text())["results"][0]
    assert abs(fresh["loss"] - ours["loss"]) > 1e-4


def test_wrong_options_are_told_in_a_line(packed):
    rows = Rows.open(packed).num_rows
    for arguments, told in (
        (["--candidates=ours,sonic"], "error: --candidates sonic: none of ours, recompute, torch"),
        (["--packed", packed, "--row-tokens=64"], f"--row-tokens 64: --packed {packed} has its"),
        (["--packed", packed, f"--rows={rows + 1}"], f"--rows {rows + 1}: {packed} has {rows}"),
        (["--packed", "nowhere"], "error: nowhere is not a packed folder"),
        (["--candidates=transformers", "model.norm_topk_prob=false"], "norm_topk_prob=true"),
        (["--candidates=triton", "run.dtype=bf16"], "error: experts.backend=triton computes in"),
        (["parallel.ep=3"], "error: parallel.ep=3 does not divide"),
    ):
        done = ask(*arguments)
        assert done.exit_code == 1
        assert told in done.output and done.output.count("\n") == 1, done.output


def test_profile_names_operations():
    done = ask(*SMALL, "--candidates=ours", "--profile")
    assert done.exit_code == 0
    assert "aten::mm" in done.output and "Self CPU" in done.output
