"""Rotary embedding on a fused projection: backends against complex multiplication in float64."""

import pytest
import torch

from megatron_ring.kernels.rotary import split_and_rotate
from megatron_ring.model.attention import rotary_angles

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="fp32 through the interpreter")


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


def turned(x_SHR, positions, theta):
    """Coordinates (i, i + R/2) as a complex number, times exp(i · position · theta^(-2i/R))."""
    half = x_SHR.shape[-1] // 2
    x = torch.complex(x_SHR[..., :half], x_SHR[..., half:])
    rate = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    y = x * torch.polar(torch.ones(()).double(), positions.double()[:, None, None] * rate)
    return torch.cat([y.real, y.imag], dim=-1)


def oracle(qkv, positions, theta):
    S, G, slots, R = qkv.shape
    q = qkv[:, :, : slots - 2].reshape(S, G * (slots - 2), R)
    return turned(q, positions, theta), turned(qkv[:, :, -2], positions, theta), qkv[:, :, -1]


@pytest.mark.parametrize(("G", "queries", "R"), [(2, 3, 8), (1, 1, 4), (4, 4, 16), (3, 2, 12)])
def test_value_and_gradient(G, queries, R, backend):
    """Groups and widths that are powers of two and that are not; positions restart."""
    g = torch.Generator().manual_seed(G)
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 900])
    cos, sin = rotary_angles(positions, R, 10_000.0)
    qkv = torch.randn(len(positions), G, queries + 2, R, generator=g)
    ours, theirs = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    got, expected = (
        split_and_rotate(ours, cos, sin, backend),
        oracle(theirs, positions, 10_000.0),
    )
    weights = [torch.randn(part.shape, generator=g) for part in got]
    for a, b in zip(got, expected, strict=True):
        # fp32 angles of position 900 are right to 900 · 2^-24.
        torch.testing.assert_close(a.double(), b, atol=3e-4, rtol=0)
    sums = [
        sum((part * w).sum() for part, w in zip(parts, weights, strict=True))
        for parts in (got, expected)
    ]
    (a,), (b,) = torch.autograd.grad(sums[0], ours), torch.autograd.grad(sums[1], theirs)
    torch.testing.assert_close(a.double(), b, atol=3e-4, rtol=0)


def test_backends_agree_closely():
    pytest.importorskip("triton")
    positions = torch.arange(9)
    cos, sin = rotary_angles(positions, 16, 600_000.0)
    qkv = torch.randn(9, 2, 4, 16, generator=torch.Generator().manual_seed(0))
    for a, b in zip(
        *(split_and_rotate(qkv, cos, sin, x) for x in ("torch", "triton")), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        assert b.is_contiguous()


def test_no_tokens(backend):
    cos, sin = rotary_angles(torch.arange(0), 8, 1e4)
    q, k, v = split_and_rotate(torch.zeros(0, 2, 5, 8), cos, sin, backend)
    assert (q.shape, k.shape, v.shape) == ((0, 6, 8), (0, 2, 8), (0, 2, 8))
