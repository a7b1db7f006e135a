"""The head on a GPU in bf16: against float64, repeatable to the bit, its memory at full size."""

import subprocess
import sys

import pytest
import torch

from megatron_ring.kernels.linear_logprob import (
    choose_backend,
    linear_logprob,
    linear_logprob_stats,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
either_mode = pytest.mark.parametrize("gradient", ["backward", "forward"])
every_backend = pytest.mark.parametrize("backend", ["torch", "triton"])


def case(N, V, D, dtype=torch.bfloat16):
    """Labels at both ends among them; logits of about unit variance."""
    g = torch.Generator("cuda").manual_seed(0)
    h = torch.randn(N, D, device="cuda", generator=g).to(dtype)
    w = (torch.randn(V, D, device="cuda", generator=g) / D**0.5).to(dtype)
    labels = torch.randint(V, (N,), device="cuda", generator=g)
    labels[:2] = torch.tensor([0, V - 1])
    return h, w, labels


def oracle(h, w, labels, scale, grad):
    """logp, log-sum-exp, entropy and both gradients, in float64."""
    h, w = h.double().requires_grad_(), w.double().requires_grad_()
    logits = (h / scale.double()) @ w.T
    all_logp = logits.log_softmax(-1)
    logp = all_logp[torch.arange(len(h), device="cuda"), labels]
    entropy = -(all_logp.exp() * all_logp).sum(-1)
    dh, dw = torch.autograd.grad(logp, (h, w), grad.double())
    return [x.detach() for x in (logp, logits.logsumexp(-1), entropy, dh, dw)]


def ours(h, w, labels, scale, grad, fused=False, **options):
    h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
    if fused:
        w.main_grad = torch.zeros(w.shape, device="cuda")
    got = linear_logprob_stats(h, w, labels, 96, scale_D=scale, **options)
    got.logp_N.backward(grad)
    return [x.detach() for x in (*got, h.grad, w.main_grad if fused else w.grad)]


def errors(got, expected):
    return [((a - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True)]


@every_backend
@either_mode
@pytest.mark.parametrize("V", [10000, 4099])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float32, 3e-6)])
def test_it_is_log_softmax(backend, gradient, V, dtype, limit):
    """250 tokens in chunks of 96; V no multiple of 4096, nor, once, of 2."""
    assert choose_backend(torch.device("cuda")) == "triton"
    given = case(250, V, 64, dtype)
    scale = torch.linspace(0.5, 3, 64, device="cuda")
    grad = torch.full((250,), -0.7, device="cuda")
    if gradient == "backward":
        grad = torch.linspace(-1, 2, 250, device="cuda")
    expected = oracle(*given, scale, grad)
    options = {"backend": backend, "gradient": gradient}
    for fused in (False, True):
        got = ours(*given, scale, grad, fused, **options)
        again = ours(*given, scale, grad, fused, **options)
        assert max(errors(got, expected)) < limit
        for one, other in zip(got, again, strict=True):
            assert torch.equal(one, other)


def test_weight_gradients_add_up_in_fp32():
    """4096 equal gradients, one a chunk: a bf16 sum would stop growing at 256."""
    h = torch.ones(4096, 8, dtype=torch.bfloat16, device="cuda")
    w = torch.zeros(8, 8, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    w.main_grad = torch.zeros(8, 8, device="cuda")
    labels = torch.zeros(4096, dtype=torch.int64, device="cuda")
    linear_logprob(h, w, labels, 1, backend="triton").sum().backward()
    assert w.main_grad[0].tolist() == [4096 * 7 / 8] * 8
    assert w.main_grad[1:].eq(-4096 / 8).all()


@pytest.mark.parametrize(("gradient", "fp32_copies"), [("backward", 0), ("forward", 1)])
def test_peak_memory_at_full_size(gradient, fp32_copies):
    """16,384 × 126,464: below 0.4 GB beyond inputs and main_grad, and in "forward" the gradient
    that is kept in fp32 besides."""
    N, V, D = 16384, 126464, 2048
    h, w, labels = case(N, V, D)
    h, w = h.requires_grad_(), w.requires_grad_()
    w.main_grad = torch.zeros(V, D, device="cuda")
    linear_logprob(h[:8], w, labels[:8], 8, backend="triton").sum().backward()  # cuBLAS' workspace
    h.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    linear_logprob(h, w, labels, 1024, gradient=gradient, backend="triton").sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 0.4e9 + fp32_copies * 4 * V * D


UNEVEN = """
import torch
from megatron_ring.kernels.linear_logprob import linear_logprob
h = torch.randn(4, 8, device="cuda", requires_grad=True)
w = torch.randn(16, 8, device="cuda")
labels = torch.zeros(4, dtype=torch.int64, device="cuda")
logp = linear_logprob(h, w, labels, 4, gradient="forward")
logp.backward(torch.tensor([1.0, 1, 2, 1], device="cuda"))
torch.cuda.synchronize()
print("unnoticed")
"""


def test_an_uneven_gradient_fails_on_the_device():
    """In a process of its own: a failed assertion ends the use of the device."""
    done = subprocess.run([sys.executable, "-c", UNEVEN], capture_output=True, text=True)
    assert done.returncode != 0
    assert "unnoticed" not in done.stdout
    assert "one and the same incoming gradient" in done.stderr
