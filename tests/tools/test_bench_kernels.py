"""The kernels' benchmark on tiny sizes: its figures, its reasons, its adapters."""

import json
import sys
import types
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from megatron_ring.kernels.experts import moe_mlp
from megatron_ring.platform.contest import Candidate, Contest, Draw, Operation, both_ways, with_sums
from tools import bench_kernels as bench

CPU = torch.device("cpu")
SMALL = bench.Shape(D=64, F=64, E=4, K=2, shared=48, heads=4, groups=2, head_size=32)
CPU_ONES = ["loop", "grouped_mm", "grouped_mm+add"]


def ask(*arguments):
    return CliRunner().invoke(bench.app, [str(a) for a in arguments])


def inputs(routing="balanced", tokens=32):
    return bench.experts(SMALL, tokens, Draw(CPU, torch.float32), routing).make()


def contest(*candidates, repeats=1):
    """Rows of candidates for the experts of SMALL."""
    operation = bench.experts(SMALL, 32, Draw(CPU, torch.float32), "balanced")
    operation = replace(operation, candidates=candidates)
    return Contest(CPU, repeats, [c.name for c in candidates], None).rows(operation)


def test_all_parts_on_a_cpu(tmp_path):
    done = ask("--tokens=64,96", "--repeats=1", "--json", tmp_path / "kernels.json")
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "kernels.json").read_text())
    assert {"device", "torch"} <= set(written["machine"])
    rows, shape = written["rows"], written["shapes"]["tiny"]
    assert (shape["D"], shape["F"], shape["E"], shape["K"]) == (128, 88, 8, 2)
    found = {(r["op"], r["tokens"], r["routing"], r["name"]): r for r in rows}
    assert len(found) == len(rows)
    for routing in ("balanced", "zipf"):
        for tokens in (64, 96):
            for name in CPU_ONES:
                row = found["experts", tokens, routing, name]
                assert row["failed"] is None
                assert set(row["off"]) == {"output 0", "x", "prob", "w1", "w2"}
                assert max(row["off"].values()) < 1e-5
                # Three matrices of 128 × 88, two choices a token, 2 FLOP; twice as much backward.
                flop = 3 * 2 * 128 * 88 * 2 * tokens
                for what, times in (("forward", 1), ("both", 3)):
                    timing = row["timings"][what]
                    assert timing["tflops"] * timing["seconds"] * 1e12 == pytest.approx(
                        flop * times
                    )
            for name in ("compile", "liger", "moe-ops", "triton", "triton+add"):
                row = found["experts", tokens, routing, name]
                assert (row["failed"], row["timings"]) == ("needs a GPU", {})
            assert found["stages", tokens, routing, "down_backward"]["failed"] == "needs a GPU"
    for op in ("norm", "swiglu", "router", "rotary"):
        row = found[op, 64, "", "torch"]
        assert set(row["timings"]) == {"forward", "both"}
    assert "not timed: compile, liger, moe-ops, triton, triton+add: needs a GPU" in done.output
    assert written["goals"] == []


def test_wrong_options_are_named():
    for option, value, known in (
        ("--part", "layers", "experts, stages, pointwise"),
        ("--shape", "ling-plus", "ling-lite, ling-mini, tiny"),
        ("--routing", "even", "balanced, zipf"),
        ("--candidates", "loop,fast", "loop, grouped_mm"),
    ):
        done = ask(f"{option}={value}")
        strange = value.split(",")[-1]
        assert done.exit_code == 1
        assert done.output.startswith(f"error: {option} {strange}: all, or some of {known}")
    for tokens in ("4k", "0", "64,"):
        assert f"error: --tokens {tokens}: numbers from 1" in ask(f"--tokens={tokens}").output


def test_floors_of_a_ling_lite_layer():
    """The table of 16,384 tokens: TFLOP and GB of each kernel, 5.10 and 9.2 of all."""
    work = bench.stage_work(bench.SHAPES["ling-lite"], 16384, width=2)
    expected = {
        "up": (1.134, 1.64),
        "down": (0.567, 1.05),
        "combine": (0, 0.47),
        "down_backward": (0.567, 1.82),
        "up_backward": (1.134, 1.69),
        "w1": (1.134, 1.36),
        "w2": (0.567, 0.71),
    }
    for name, (tflop, gigabytes) in expected.items():
        assert work[name][0] / 1e12 == pytest.approx(tflop, abs=0.001)
        assert work[name][1] / 1e9 == pytest.approx(gigabytes, abs=0.006)
    # Adding to float32 buffers: 8 bytes a weight in the place of 2.
    more = sum(work[f"{w} added"][1] - work[w][1] for w in ("w1", "w2"))
    assert more == 6 * 3 * 64 * 2048 * 1408


def test_a_floor_is_the_longer_of_products_and_bytes():
    row = {"timings": {}}
    Contest(CPU, 1, [], (100.0, 2.0)).enter(row, "both", [0.5, 0.25, 0.4], (2e13, 1e11))
    timing = row["timings"]["both"]
    assert (timing["seconds"], timing["fastest"]) == (0.4, 0.25)
    assert timing["floor"] == pytest.approx(0.2 / 0.4)  # 20 TFLOP at 100 a second; bytes 0.05 s
    assert timing["gb_per_second"] == pytest.approx(250)
    assert bench.peaks("NVIDIA H200") == (989.0, 4.8)
    assert bench.peaks("NVIDIA H100 80GB HBM3") == (989.0, 3.35)
    for other in ("NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA GH200 480GB", "AMD"):
        assert bench.peaks(other) is None


def test_what_fails_or_is_wrong_is_named_and_the_others_go_on():
    def broken(*given):
        raise RuntimeError("no such kernel\nand more")

    def without_probabilities(x, prob, w1, w2, chosen):
        return moe_mlp(x, prob * 2, chosen, w1, w2, "loop")

    rows = contest(
        Candidate("loop", bench.ours("loop")),
        Candidate("broken", broken),
        Candidate("wrong", without_probabilities),
        Candidate("absent", broken, package="there_is_no_such_package"),
        Candidate("nan", lambda *given: bench.ours("loop")(*given) * float("nan")),
        Candidate("grouped_mm", bench.ours("torch")),
    )
    failed = {row["name"]: row["failed"] for row in rows}
    assert failed["loop"] is failed["grouped_mm"] is None
    assert failed["broken"] == "RuntimeError: no such kernel"
    assert failed["wrong"].startswith("wrong by more than 0.001: output 0 1.0e+00, x 1.0e+00")
    assert failed["absent"] == "there_is_no_such_package is not installed"
    assert "output 0 nan" in failed["nan"]
    assert [bool(row["timings"]) for row in rows] == [True, False, False, False, False, True]


def test_one_that_breaks_down_later_drops_out():
    left = [3]  # calls: check, then warm-up sets

    def tired(*given):
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("tired")
        return bench.ours("loop")(*given)

    rows = contest(Candidate("loop", bench.ours("loop")), Candidate("tired", tired), repeats=2)
    assert rows[1]["failed"] == "ValueError: tired"
    assert set(rows[0]["timings"]) == {"forward", "both"}


def test_float32_buffers_gather_gradients():
    [plain] = [inputs()]
    [added] = with_sums([plain])
    expected = both_ways(bench.ours("loop"), plain)
    for _ in range(2):
        found = both_ways(bench.ours("torch"), added)
    torch.testing.assert_close(found["w1"], 2 * expected["w1"])
    torch.testing.assert_close(found["w2"], 2 * expected["w2"])
    torch.testing.assert_close(found["x"], expected["x"])
    assert "main_grad" not in vars(plain.leaves["w1"])


def test_parts_without_a_candidate_are_left_out(tmp_path):
    done = ask("--tokens=64", "--repeats=1", "--candidates= loop, grouped_mm", "--part=all")
    assert done.exit_code == 0, done.output
    assert "experts: tiny" in done.output and "norm: tiny" not in done.output


def test_routings():
    shape = bench.SHAPES["ling-lite"]
    for routing, heaviest in (("balanced", (1.0, 1.4)), ("zipf", (5.0, 10.7))):
        chosen_TK = bench.choices(shape, 2048, routing, Draw(CPU, torch.float32))
        assert all(len(set(row)) == 6 for row in chosen_TK.tolist())
        load_E = torch.bincount(chosen_TK.flatten(), minlength=64).float()
        assert heaviest[0] < (load_E.max() / load_E.mean()).item() < heaviest[1]


def test_goals_of_rows_made_up():
    def row(name, seconds, tflops, failed=None):
        case = {"part": "experts", "shape": "ling-lite", "tokens": 16384, "routing": "zipf"}
        timings = {"both": {"seconds": seconds, "tflops": tflops}}
        return case | {"name": name, "failed": failed, "timings": {} if failed else timings}

    rows = [row("triton", 0.010, 510), row("liger", 0.016, 0), row("grouped_mm", 0.011, 0)]
    assert [(g["what"], round(g["found"], 2), g["verdict"]) for g in bench.goals(rows)] == [
        ("zipf, times as fast as liger", 1.6, "met"),
        ("zipf, times as fast as grouped_mm", 1.1, "not met"),
        ("zipf, TFLOP/s (good)", 510, "met"),
        ("zipf, TFLOP/s (stretch)", 510, "not met"),
    ]
    assert len(bench.goals([rows[0], row("liger", 0, 0, failed="absent")])) == 2
    assert bench.goals(rows[1:]) == []


def test_stages_are_the_layer():
    """In Triton's interpreter: what the timed calls return is the layer and its gradients."""
    one = inputs(routing="zipf")
    expected = both_ways(bench.ours("loop"), one)
    [added] = with_sums([one])
    stage = bench.stage_runs(added)
    assert set(stage) == set(bench.stage_work(SMALL, 32, 4))
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(stage["combine"](), expected["output 0"], **close)
    for name in ("w1", "w2"):
        torch.testing.assert_close(stage[name](), expected[name], **close)
        stage[f"{name} added"]()
        torch.testing.assert_close(added.sums[name], expected[name], **close)


def test_stages_as_on_a_gpu():
    """Three sets of inputs, a warm-up and two repeats: nine calls; a stage that fails is named."""
    calls, like_a_gpu = [], Contest(CPU, 2, [], None)
    like_a_gpu.device = types.SimpleNamespace(type="cuda")
    works = {"good": (2e9, 1.0), "bad": (1.0, 1.0)}

    def stage(one):
        return {"good": lambda: calls.append(one.leaves["x"]), "bad": lambda: 1 / 0}

    good, bad = like_a_gpu.stages(inputs, stage, works)
    assert len(calls) == 9
    assert all(calls[i] is calls[i % 3] for i in range(9)) and calls[0] is not calls[1]
    timing = good["timings"]["kernel"]
    assert timing["tflops"] * timing["seconds"] == pytest.approx(2e-3)
    assert (bad["failed"], bad["timings"]) == ("ZeroDivisionError: division by zero", {})
    rows = like_a_gpu.stages(inputs, lambda one: 1 / 0, works)
    assert [row["failed"] for row in rows] == ["ZeroDivisionError: division by zero"] * 2


@pytest.mark.parametrize("make", [bench.router, bench.rotary])
def test_our_small_kernels_take_part(make):
    operation = make(SMALL, 32, Draw(CPU, torch.float32))
    everyone = [replace(c, gpu=False) for c in operation.candidates]
    operation = Operation(operation.name, everyone, operation.make, (0, 1), (0, 1))
    rows = Contest(CPU, 1, ["torch", "triton"], None).rows(operation)
    assert [row["failed"] for row in rows] == [None, None]
    assert max(rows[1]["off"].values()) < 1e-5


def test_liger_adapter(monkeypatch):
    """With its signature as of 0.8.5, all gates before all ups, and choices in int32."""

    class Function:
        @staticmethod
        def apply(x, gate_up_proj, down_proj, top_k_index, top_k_weights):
            assert top_k_index.dtype == torch.int32
            choices = top_k_index.long()
            return moe_mlp(x, top_k_weights, choices, gate_up_proj, down_proj, "loop")

    module = types.ModuleType("liger_kernel.ops.fused_moe")
    module.LigerFusedMoEFunction = Function
    for name in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.fused_moe", module)
    check_adapter(bench.liger_experts)


def test_moe_ops_adapter(monkeypatch):
    """With its signatures as of 0.1.0: offsets begin with 0, places are by choice, then token."""

    def permute(x, indices, num_out_tokens, E):
        order = indices.flatten().argsort(stable=True)
        place_TK = torch.empty_like(order)
        place_TK[order] = torch.arange(len(order))
        ends = torch.bincount(indices.flatten(), minlength=E).cumsum(0)
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), ends])
        return x[order // indices.shape[1]], place_TK.view_as(indices).T.flatten(), offsets

    def grouped_gemm(rows, weight, offsets):
        bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), weight, strict=True)
        return torch.cat([rows[begin:end] @ w.T for begin, end, w in bounds])

    def unpermute(y, place, prob, num_tokens, topk):
        return (y[place.view(topk, num_tokens).T] * prob[..., None]).sum(1)

    module = types.ModuleType("moe_ops")
    module.permute, module.grouped_gemm, module.unpermute = permute, grouped_gemm, unpermute
    monkeypatch.setitem(sys.modules, "moe_ops", module)
    check_adapter(bench.moe_ops_experts)


def check_adapter(adapter):
    one = inputs(routing="zipf")
    expected, found = both_ways(bench.ours("loop"), one), both_ways(adapter, one)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
