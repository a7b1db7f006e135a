"""CUDA calls answered on a CPU, and nothing touched where there is a GPU."""

import pytest
import torch

from megatron_ring import platform
from megatron_ring.platform import cpu

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@needs_no_gpu
def test_tensors_made_for_cuda_are_made_on_the_cpu():
    assert platform.prepare() == torch.device("cpu")
    for device in ("cuda", "cuda:0", torch.device("cuda", 1), torch.cuda.current_device()):
        assert torch.full((2,), 3.0, device=device).tolist() == [3.0, 3.0]
        assert torch.tensor([1, 2], device=device, pin_memory=True).tolist() == [1, 2]
        assert torch.arange(3).to(device).device.type == "cpu"
        assert torch.arange(3).to(device=device, dtype=torch.float64).dtype == torch.float64
    assert torch.zeros(1, device="meta").device.type == "meta"  # only CUDA is answered
    values = torch.rand(3)
    assert values.cuda() is values


@needs_no_gpu
def test_streams_events_and_random_states():
    platform.prepare()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()) as stream:
        assert stream is None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream())
    event.wait()
    assert event.query()
    state = torch.cuda.get_rng_state()
    first = torch.rand(4)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(4), first)


@needs_no_gpu
def test_type_names_are_those_the_optimizers_accept():
    platform.prepare()
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(1).type(torch.float64).dtype == torch.float64  # as a cast, unchanged


@needs_no_gpu
def test_patched_once():
    platform.prepare()
    before = (torch.zeros, torch.Tensor.to, torch.Tensor.type, torch.cuda.current_device)
    platform.prepare()
    assert before == (torch.zeros, torch.Tensor.to, torch.Tensor.type, torch.cuda.current_device)


def test_with_a_gpu_nothing_is_touched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpu, "install", lambda: pytest.fail("patched although there is a GPU"))
    assert platform.prepare() == torch.device("cuda")
    assert platform.dtype("auto") == torch.bfloat16


def test_number_formats(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    named = [platform.dtype(name) for name in ("auto", "fp32", "bf16")]
    assert named == [torch.float32, torch.float32, torch.bfloat16]
