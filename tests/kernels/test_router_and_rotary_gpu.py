"""Router and rotary kernels on a GPU: against the torch backends, repeatable to the bit."""

import pytest
import torch

from megatron_ring.kernels.rotary import split_and_rotate
from megatron_ring.kernels.router import route
from megatron_ring.model.attention import rotary_angles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("T", "E", "K"), [(1, 4, 1), (777, 64, 6), (16384, 64, 6), (999, 256, 8)])
def test_router(T, E, K, normalise):
    """Sums over 16,384 tokens come in another order: fp32 keeps six digits of them."""
    g = torch.Generator("cuda").manual_seed(T)
    logits = 2 * torch.randn(T, E, device="cuda", generator=g)
    padding = torch.rand(T, device="cuda", generator=g) < 0.2
    factors = torch.randn(T, K, device="cuda", generator=g), torch.randn(E, device="cuda")
    results = []
    for backend in ("torch", "triton", "triton"):
        leaf = logits.clone().requires_grad_()
        got = route(leaf, padding, K, normalise, None, backend)
        total = (got.prob_TK * factors[0]).sum() + (got.scores_E * factors[1]).sum() + got.z / T
        total.backward()
        results.append([*(x.detach() for x in got), leaf.grad])
    expected, once, again = results
    for a, b, c in zip(once, again, expected, strict=True):
        assert torch.equal(a, b)
        if a.dtype == torch.int64:
            assert torch.equal(a, c)
        else:
            torch.testing.assert_close(a, c, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("G", "queries"), [(4, 4), (1, 4), (3, 2)])
def test_rotary(G, queries):
    """bf16 in and out, fp32 between, in both: they differ by two roundings of values below 16."""
    g = torch.Generator("cuda").manual_seed(G)
    cos, sin = rotary_angles(torch.arange(1000, device="cuda"), 128, 600_000.0)
    qkv = torch.randn(1000, G, queries + 2, 128, device="cuda", generator=g).bfloat16()
    results = []
    for backend in ("torch", "triton"):
        leaf = qkv.clone().requires_grad_()
        parts = split_and_rotate(leaf, cos, sin, backend)
        sum((part.float() ** 2).sum() * (i + 1) for i, part in enumerate(parts)).backward()
        results.append([*(part.detach() for part in parts), leaf.grad])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2**-5, rtol=2**-7)
