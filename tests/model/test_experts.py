"""Which implementation of the experts a run gets, and that runs may change it."""

import pytest
import torch

from megatron_ring import config as configuration
from megatron_ring import parallel, platform
from megatron_ring.config import Config, ConfigError
from megatron_ring.kernels import device as where
from megatron_ring.model import experts, ling
from tests.model.layouts import GOLDEN, assert_same_gradients, measure, random_documents

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = f"model.hf_config={GOLDEN / 'ling_lite_tiny'}"


def model(*overrides):
    return configuration.load(Config, [], [TINY, *overrides]).model


@pytest.fixture
def gpu(monkeypatch):
    """As on a machine with a supported NVIDIA GPU (True), or one without Triton (False)."""

    def pretend(supported):
        monkeypatch.setattr(experts, "has_triton", lambda device: supported)

    return pretend


def test_auto_takes_triton_on_supported_gpus_and_grouped_mm_elsewhere(gpu):
    gpu(True)
    assert experts.choose_backend("auto", model(), CUDA, torch.bfloat16) == "triton"
    assert experts.choose_backend("auto", model(), CPU, torch.float32) == "torch"
    gpu(False)
    assert experts.choose_backend("auto", model(), CUDA, torch.bfloat16) == "torch"


def test_auto_falls_back_to_the_loop(gpu):
    """In fp32 on a GPU; and where rows are no multiple of 16 bytes: 70 numbers of bf16 are not."""
    gpu(True)
    assert experts.choose_backend("auto", model(), CUDA, torch.float32) == "loop"
    odd = model("model.moe_intermediate_size=70")
    for device, dtype in ((CUDA, torch.bfloat16), (CPU, torch.bfloat16)):
        assert experts.choose_backend("auto", odd, device, dtype) == "loop"


@pytest.mark.parametrize(
    ("name", "overrides", "device", "dtype", "said"),
    [
        (
            "triton",
            [],
            CUDA,
            torch.float32,
            "experts.backend=triton computes in torch.bfloat16 on a GPU, this run in "
            "torch.float32; set run.dtype or use loop",
        ),
        (
            "torch",
            [],
            CUDA,
            torch.float32,
            "experts.backend=torch computes in bf16 on a GPU, this run in torch.float32; use "
            "run.dtype=bf16 or experts.backend=loop",
        ),
        (
            "torch",
            ["model.moe_intermediate_size=70"],
            CPU,
            torch.bfloat16,
            "experts.backend=torch needs rows of a multiple of 16 bytes: "
            "model.moe_intermediate_size=70 in torch.bfloat16 has 140; use experts.backend=loop",
        ),
    ],
)
def test_what_cannot_run_is_refused(gpu, name, overrides, device, dtype, said):
    gpu(True)
    with pytest.raises(ConfigError) as error:
        experts.choose_backend(name, model(*overrides), device, dtype)
    assert str(error.value) == said


def test_triton_without_a_gpu_is_refused(gpu):
    gpu(False)
    with pytest.raises(ConfigError) as error:
        experts.choose_backend("triton", model(), CPU, torch.float32)
    assert str(error.value) == (
        "experts.backend=triton needs Triton and an NVIDIA GPU of compute capability 8.0 or newer, "
        "this run has cpu; use experts.backend=auto"
    )


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_gpus_from_compute_capability_8(monkeypatch, capability):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert where.has_triton(CUDA) == (capability >= (8, 0))
    assert where.architecture(CUDA) == (90 if capability in [(9, 0), (10, 0)] else 80)


def test_deepep_is_refused_where_it_is_not():
    with pytest.raises(ConfigError) as error:
        experts.check_dispatcher("flex", 2, CPU)
    assert str(error.value) == (
        "experts.dispatcher=flex needs DeepEP (the package deep_ep) on GPUs, this run has cpu; use "
        "experts.dispatcher=alltoall"
    )


def test_deepep_alone_sends_nothing(monkeypatch):
    monkeypatch.setattr(experts.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"flex needs parallel.ep of at least 2; without"):
        experts.check_dispatcher("flex", 1, CUDA)
    experts.check_dispatcher("flex", 2, CUDA)


def test_building_a_model_says_nothing(caplog):
    config, device = configuration.load(Config, [], [TINY]), platform.prepare()
    with parallel.process_groups(config.parallel, device, seed=1):
        ling.build_stages(config, torch.float32, device)
    assert "Unknown MLP type" not in caplog.text


def test_a_run_is_told_what_computes():
    config = configuration.load(Config, [], [TINY])
    assert str(ling.choose_kernels(config, torch.float32, CPU)) == (
        "kernels: experts torch, attention sdpa (auto: cpu), head torch, router and rotary torch"
    )


@pytest.mark.parametrize(
    ("backend", "dispatcher"),
    [
        ("triton", "alltoall"),
        pytest.param("triton", "allgather", marks=pytest.mark.slow),
        ("torch", "alltoall"),
        ("torch", "allgather"),
    ],
)
def test_backends_and_dispatchers_give_the_loops_gradients(backend, dispatcher, tmp_path):
    """Packed documents and padding, EP 2, router losses on; oracle: one expert after the other on
    one rank, with the same weights."""
    if backend == "triton":
        pytest.importorskip("triton")
    rows = [random_documents(3, 384, seed=1, longest=20), random_documents(2, 384, seed=2)]
    start = [TINY, f"run.init_from={GOLDEN / 'ling_lite_tiny'}"]
    oracle = measure(1, [*start, "experts.backend=loop"], rows, 96, tmp_path / "loop")
    chosen = [f"experts.backend={backend}", f"experts.dispatcher={dispatcher}", "parallel.ep=2"]
    ours = measure(2, start + chosen, rows, 96, tmp_path / "ours")
    assert ours["nll"] == pytest.approx(oracle["nll"], abs=1e-6)
    assert torch.equal(ours["router"][:, :-3], oracle["router"][:, :-3])
    assert_same_gradients(ours["gradients"], oracle["gradients"])
