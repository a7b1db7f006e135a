"""The attention benchmark on tiny sizes: what it writes, that candidates agree, its judgement."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tools import bench_attention
from tools.bench_attention import Bench, Case, Shape, shapes_of, verdict

CASE = Case(4, 2, 8, "float32", False, 1)
SMALL = ["--heads=4", "--groups=2", "--width=8", "--repeats=1", "--threads=1", "--dtype=fp32"]


def ask(*arguments):
    return CliRunner().invoke(bench_attention.app, [str(a) for a in arguments])


def test_table_and_json_agree(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(bench_attention, "peak", lambda case, shape, bench, name: 12.0)
    shapes = ["--documents=16,24", "--single=40", "--row=64", "--packed", packed]
    done = ask(*SMALL, *shapes, "--json", tmp_path / "attention.json")
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "attention.json").read_text())
    assert written["case"]["heads"] == 4 and {"device", "torch"} <= set(written["machine"])
    first, second, third, fourth = written["results"]
    assert first["lengths"] == [16] * 4 and second["lengths"] == [24, 24, 16]
    assert third["lengths"] == [40] and sum(fourth["lengths"]) == 128
    for result in written["results"]:
        assert result["shape"] in done.output
        flop = 7 * 4 * 8 * sum(n * n for n in result["lengths"])
        for row in result["candidates"]:
            assert row["off"] < 1e-6, "candidates compute different values or gradients"
            assert row["tflops"] * row["seconds"] == pytest.approx(flop / 1e12)
        assert {row["name"] for row in result["candidates"]} >= {"sdpa", "dense"}
    assert written["configured"] == "sdpa" and written["verdict"]["default"] == "sdpa"
    assert written["verdict"]["lines"][-1] in done.output


def test_a_wrong_gradient_shows():
    bench = Bench(CASE, Shape("", [5, 9]), bench_attention.platform.prepare())
    right = bench.candidates["dense"]

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    bench.candidates["doubled"] = lambda q, k, v: right(q, k, Doubled.apply(v))
    off = bench.compare()
    assert off["doubled"] == pytest.approx(1.0)
    assert off["dense"] < 1e-6 and off["sdpa"] == 0


def test_the_middle_row_of_a_folder_is_taken(packed):
    (shape,) = shapes_of("", "", 0, packed, gpu=False)
    rows = bench_attention.Rows.open(packed)
    lengths = [np.diff(rows.row(i).cu_seqlens) for i in range(rows.num_rows)]
    squares = sorted(int(n @ n) for n in lengths)
    assert sum(n * n for n in shape.lengths) == squares[len(squares) // 2]


def test_judgement_of_figures_by_hand():
    """Geometric means relative to the best: sdpa √(1.05 × 1), varlen √(1 × 2)."""
    results = [
        {
            "shape": name,
            "candidates": [
                {"name": "sdpa", "seconds": sdpa},
                {"name": "varlen", "seconds": varlen},
                {"name": "dense", "seconds": 0.1},
            ],
        }
        for name, sdpa, varlen in (("short", 2.1, 2.0), ("long", 1.0, 2.0))
    ]
    judged = verdict(results, "sdpa")
    assert judged["default"] == "sdpa" and judged["configured_is_fine"]
    assert judged["mean_ratios"]["sdpa"] == pytest.approx(1.05**0.5)
    assert judged["mean_ratios"]["varlen"] == pytest.approx(2**0.5)
    assert judged["lines"][0] == (
        "short: best varlen; configured sdpa takes 1.05 × its time, within 1.1 ×"
    )
    other = verdict(results, "varlen")
    assert not other["configured_is_fine"] and other["default"] == "sdpa"
    assert other["lines"][1] == (
        "long: best sdpa; configured varlen takes 2.00 × its time, NOT within 1.1 ×"
    )


@pytest.mark.slow
@pytest.mark.slow
def test_peak_of_a_process_of_its_own():
    """Inputs of 4096 × 4 × 8 in fp32 are 0.5 MiB; a mask of 4096² bytes alone is 16."""
    bench = Bench(CASE, Shape("", [64] * 64), bench_attention.platform.prepare())
    shape = Shape("", [64] * 64)
    assert bench_attention.peak(CASE, shape, bench, "sdpa") < 16
    assert bench_attention.peak(CASE, shape, bench, "dense") > 16


def test_what_cannot_be_measured_is_refused():
    done = ask(*SMALL, "--backend=varlen")
    assert done.exit_code == 1
    assert "attention.backend=varlen needs CUDA, bf16 and torch >= 2.10" in done.output
    assert "documents of 99 tokens do not fit --row 64" in ask("--documents=99", "--row=64").output
    assert "lengths '0': each must be at least 1" in ask("--single=0").output
