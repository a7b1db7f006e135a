"""Profiles of real runs: the trace read back, families that add up, losses that do not change."""

import ast
import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from megatron_ring import config, profiling
from megatron_ring.config import ConfigError, ProfileConfig
from megatron_ring.kernels import families
from tests import ranks, runs

KERNELS = Path(families.__file__).parent


def trace(file: Path) -> list[dict]:
    """The complete events of a trace."""
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return [event for event in events if event["ph"] == "X"]


def test_a_run_is_recorded_and_computes_the_same(packed: Path, tmp_path: Path) -> None:
    more = ["parallel.ep=2", "optim.steps=5"]
    plain, seen = tmp_path / "plain", tmp_path / "seen"
    runs.run(2, runs.options(packed, plain, *more), tmp_path / "0")
    recorded = ["profile.steps=[2,3]", "profile.ranks=[0,1]"]
    runs.run(2, runs.options(packed, seen, *more, *recorded), tmp_path / "1")
    runs.same_losses(plain, seen)
    assert not (plain / "profile").exists()
    names = [f"rank-{n}-{end}" for n in (0, 1) for end in ("steps-2-3.json.gz", "summary.json")]
    names += [f"rank-{n}-summary.txt" for n in (0, 1)]
    assert sorted(path.name for path in (seen / "profile").iterdir()) == sorted(names)
    for rank in (0, 1):
        found = trace(seen / "profile" / f"rank-{rank}-steps-2-3.json.gz")
        # AdamW runs once a step in each of two optimizers: for dense and for expert weights.
        assert sum(event["name"].startswith("Optimizer.step") for event in found) == 2 * 2
        summary = json.loads((seen / "profile" / f"rank-{rank}-summary.json").read_text())
        assert summary["steps"] == [2, 3] and summary["rank"] == rank
        by_name = {line["family"]: line for line in summary["families"]}
        assert set(by_name) == set(families.FAMILIES)
        total = sum(line["seconds"] for line in summary["families"])
        assert total == pytest.approx(summary["self_seconds"])
        assert sum(line["share"] for line in summary["families"]) == pytest.approx(1)
        for name in families.FAMILIES[:-1]:  # all of these happen in a step over two ranks
            assert by_name[name]["calls"] > 0, name
        assert by_name[families.OTHER]["share"] < 0.05


def test_only_steps_that_run_are_recorded(
    packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    run_dir, start = tmp_path / "run", ["optim.schedule=constant", "optim.warmup_steps=0"]

    def go_on(steps: int, profiled: str) -> str:
        more = [*start, f"optim.steps={steps}", f"profile.steps={profiled}", "profile.memory=true"]
        runs.run(1, runs.options(packed, run_dir, *more), tmp_path / f"to{steps}")
        return capfd.readouterr().out

    assert "profile.steps=[5, 6] were not reached: nothing is recorded" in go_on(2, "[5,6]")
    assert not (run_dir / "profile").exists()
    said = go_on(4, "[1,3]")  # the second start begins with step 3
    assert f"profile.steps=[1, 3]: step 3 of rank 0 in {run_dir}/profile" in said
    assert "no snapshot, only the memory of a GPU can be recorded" in said
    assert "profile of step 3, rank 0: " in said
    table = said[said.index("profile of step 3") : said.index("profile.steps=[1, 3]: step 3")]
    assert (run_dir / "profile" / "rank-0-summary.txt").read_text() == table
    said = go_on(6, "[2,3]")
    assert "profile.steps=[2, 3] lie before the first step of this start" in said
    said = go_on(8, "[8,9]")  # the run ends before the second of them
    assert f"profile.steps=[8, 9]: step 8 of rank 0 in {run_dir}/profile" in said
    names = {path.name for path in (run_dir / "profile").iterdir()}
    assert names >= {"rank-0-steps-3-3.json.gz", "rank-0-steps-8-8.json.gz"}
    assert not [name for name in names if name.endswith((".json", ".tmp")) and "steps" in name]


def test_a_profile_that_cannot_be_written_costs_no_run(packed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "profile").write_text("in the way")
    more = ["optim.steps=2", "profile.steps=[1,1]"]
    runs.run(1, runs.options(packed, run_dir, *more), tmp_path / "0")
    assert sorted(runs.lines(run_dir)) == [1, 2]


def test_the_unwritten_profile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    (tmp_path / "profile").write_text("in the way")
    said: list[str] = []
    with profiling.Profiler(ProfileConfig(steps=(1, 1)), str(tmp_path), said.append) as profiler:
        profiler.step(1)
    assert len(said) == 1
    assert said[0].startswith("profile.steps=[1, 1]: the profile could not be written: [Errno 17]")


def test_families_add_up_to_the_profilers_total() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        (torch.softmax(x @ x, 1) * x).sum().backward()
        torch.optim.AdamW([x]).step()
    found = profiling.kernels(list(recorded.events()), on_gpu=False)
    total = recorded.key_averages().self_cpu_time_total / 1e6
    assert sum(kernel.seconds for kernel in found) == pytest.approx(total)
    assert sum(kernel.calls for kernel in found) == len(recorded.events())
    adam = [kernel for kernel in found if kernel.family == families.OPTIMIZER]
    assert {"aten::mul_", "aten::addcdiv_"} <= {kernel.name for kernel in adam}
    summary = profiling.summarise(found, {})
    assert sum(line["seconds"] for line in summary["families"]) == pytest.approx(total)


def event(name: str, device: str, microseconds: float = 0, **more: object) -> SimpleNamespace:
    """What `kernels` reads of torch's FunctionEvent."""
    plain = {"is_user_annotation": False, "is_async": False, "cpu_parent": None, "kernels": []}
    kind = {"cpu": torch.autograd.DeviceType.CPU, "gpu": torch.autograd.DeviceType.CUDA}[device]
    own = {"device_type": kind, "self_device_time_total": microseconds}
    return SimpleNamespace(name=name, **plain | own | more)


def test_kernels_of_a_gpu_belong_to_who_launched_them() -> None:
    """By hand: a head's and a plain gemm, a kernel without a launch, an annotation."""
    gemm = "sm90_xmma_gemm_bf16"
    head = event("_LinearLogprob", "cpu")
    launches = [
        event("aten::mm", "cpu", cpu_parent=head, kernels=[SimpleNamespace(name=gemm, duration=5)]),
        event("aten::mm", "cpu", kernels=[SimpleNamespace(name=gemm, duration=7)]),
    ]
    device = [
        event(gemm, "gpu", 5),
        event(gemm, "gpu", 7),
        event("ncclDevKernel_AllReduce_Sum_f32", "gpu", 2),
        event("strange", "gpu", 1),
        event("step", "gpu", 15, is_user_annotation=True),
    ]
    found = profiling.kernels([head, *launches, *device], on_gpu=True)
    assert [(k.name, k.family, round(k.seconds * 1e6), k.calls) for k in found] == [
        (gemm, families.MATMUL, 7, 1),
        (gemm, families.HEAD, 5, 1),
        ("ncclDevKernel_AllReduce_Sum_f32", families.COMMUNICATION, 2, 1),
        ("strange", families.OTHER, 1, 1),
    ]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("experts_triton.py", families.EXPERTS),
        ("experts_layout_triton.py", families.EXPERTS),
        ("linear_logprob_triton.py", families.HEAD),
        ("rotary_triton.py", families.ATTENTION),
        ("router_triton.py", families.ROUTER),
    ],
)
def test_each_triton_kernel_has_its_family(file: str, expected: str) -> None:
    tree = ast.parse((KERNELS / file).read_text())
    names = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.endswith("kernel")
        if "triton.jit" in map(ast.unparse, node.decorator_list)
    ]
    assert names
    assert {name: families.family(name) for name in names} == dict.fromkeys(names, expected)


def test_no_file_of_triton_kernels_is_forgotten() -> None:
    mark = test_each_triton_kernel_has_its_family.pytestmark[0]
    there = {path.name for path in KERNELS.glob("*_triton.py")}
    assert there == {file for file, _ in mark.args[1]}


@pytest.mark.parametrize(
    ("name", "around", "expected"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", (), families.MATMUL),
        ("ampere_bf16_s16816gemm_bf16_128x128", (), families.MATMUL),
        ("pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", (), families.ATTENTION),
        ("triton_tem_fused_flex_attention_0", (), families.ATTENTION),
        ("Memcpy DtoD (Device -> Device)", (), families.COPIES),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<>", (), families.COPIES),
        ("void at::native::vectorized_elementwise_kernel<4>", (), families.ELEMENTWISE),
        ("SwiGLUFunctionBackward", (), families.ELEMENTWISE),
        ("multi_tensor_apply_kernel", (), families.OPTIMIZER),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", (), families.COMMUNICATION),
        ("aten::mul", ("Optimizer.step#AdamW.step",), families.OPTIMIZER),
        ("aten::mul", ("aten::_fused_rms_norm", "aten::rms_norm"), families.ELEMENTWISE),
        ("aten::mm", ("aten::_grouped_mm", "GroupedMmBackward0"), families.EXPERTS),
        ("aten::copy_", ("RouterGatingLinearFunction",), families.ROUTER),
        ("unknown", ("aten::mm",), families.MATMUL),
        ("unknown", (), families.OTHER),
    ],
)
def test_families_by_hand(name: str, around: tuple[str, ...], expected: str) -> None:
    assert families.family(name, around) == expected


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("profile.steps=[3,2]", r"profile: steps=\[3, 2\] ends before it begins; write the lower"),
        ("profile.steps=[1,21]", r"profile: steps=\[1, 21\] are 21 steps, at most 20 are recorded"),
        ("profile.steps=[0,2]", r"profile\.steps\.0=0: input should be greater than 0"),
        ("profile.steps=[4]", r"missing config key profile\.steps\.1"),
        (
            "profile.memory=true",
            r"profile: memory=true, but steps says .* profile\.steps=\[10,12\]",
        ),
        ("profile.ranks=[-1]", r"profile\.ranks\.0=-1: input should be greater than or equal"),
        ("profile.ranks=[]", r"profile\.ranks=\[\]: tuple should have at least 1 item"),
    ],
)
def test_what_cannot_be_recorded_is_refused(typed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(config.Config, ["configs/model/ling_tiny.yaml"], [typed])


def test_twenty_steps_and_no_steps_are_allowed() -> None:
    assert ProfileConfig(steps=[1, 20]).steps == (1, 20)
    assert ProfileConfig().steps is None


def test_ranks_must_be_in_the_launch(packed: Path, tmp_path: Path) -> None:
    profiling.check(ProfileConfig(steps=(1, 1), ranks=(0, 3)), 4)
    profiling.check(ProfileConfig(ranks=(9,)), 1)  # off
    with pytest.raises(ConfigError, match=r"profile.ranks=\[0, 4\]: .* 4 ranks, the last is 3"):
        profiling.check(ProfileConfig(steps=(1, 1), ranks=(0, 4)), 4)
    more = ["profile.steps=[1,1]", "profile.ranks=[1]"]
    with pytest.raises(
        RuntimeError, match=r"profile.ranks=\[1\]: this launch has 1 rank, the last"
    ):
        ranks.run(1, _main, runs.options(packed, tmp_path / "run", *more), folder=tmp_path / "0")


def _main(arguments: list[str]) -> None:
    from megatron_ring import train

    train.main(arguments)
