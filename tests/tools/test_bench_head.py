"""The head's benchmark on tiny sizes: what it writes, and that its candidates agree."""

import json

import pytest
from typer.testing import CliRunner

from tools import bench_attention, bench_head, bench_kernels, bench_step

SMALL = ["--tokens=96", "--vocab=512", "--hidden=32", "--chunk=32", "--repeats=1", "--threads=1"]


def ask(*arguments):
    return CliRunner().invoke(bench_head.app, [str(a) for a in arguments])


def test_table_and_json_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_head, "peak", lambda case, bench, name: 12.0)
    done = ask(*SMALL, "--dtype=fp32", "--norm-head", "--json", tmp_path / "head.json")
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "head.json").read_text())
    assert written["case"]["tokens"] == 96
    assert {"device", "torch"} <= set(written["machine"])
    for row in written["results"]:
        assert row["off"] < 1e-6, "candidates compute different gradients"
        flop = 6 * 96 * 512 * 32
        assert row["tflops"] * row["seconds"] == pytest.approx(flop / 1e12)
        assert row["name"] in done.output
    assert [row["name"] for row in written["results"]][:3] == ["naive", "forward", "backward"]


def test_a_wrong_gradient_shows(monkeypatch):
    case = bench_head.Case(16, 64, 8, 4, "float32", False, "torch", 1)
    bench = bench_head.Bench(case, bench_head.platform.prepare())
    right = bench.candidates["forward"]
    bench.candidates["forward"] = lambda: (right(), right())
    off = bench.compare()
    assert off["forward"] == pytest.approx(1.0)
    assert off["backward"] < 1e-6


@pytest.mark.slow
@pytest.mark.slow
def test_peak_of_a_process_of_its_own():
    """Logits of 4096 × 8192 in fp32 are 128 MiB; ours 8 at a time, with an fp32 block beside."""
    case = bench_head.Case(4096, 8192, 32, 256, "float32", False, "torch", 1)
    bench = bench_head.Bench(case, bench_head.platform.prepare())
    assert 8 < bench_head.peak(case, bench, "backward") < 40


@pytest.mark.parametrize("tool", [bench_head, bench_kernels, bench_step, bench_attention])
def test_where_figures_cannot_be_written_is_said_before_they_are_made(tool, tmp_path):
    """A folder; below a file; and folders that are not there yet are made."""
    (tmp_path / "file").touch()
    runner = CliRunner()
    for name, said in ((tmp_path, "this is a folder; name a file"), (tmp_path / "file/x", "")):
        done = runner.invoke(tool.app, ["--json", str(name)])
        assert done.exit_code == 1
        assert done.output.startswith(f"error: --json {name}: {said}")
    tool.make_room_for(tmp_path / "new" / "folder" / "x.json")
    assert (tmp_path / "new" / "folder").is_dir()


def test_a_format_that_is_not_there():
    done = ask(*SMALL, "--dtype=fp16")
    assert done.exit_code == 1
    assert done.output == "error: --dtype fp16: auto, fp32 or bf16\n"


def test_a_backend_that_is_not_there():
    done = ask(*SMALL, "--backend=cuda")
    assert done.exit_code == 1
    assert "torch, or on a GPU triton" in done.output
