"""Packed attention's backends on a GPU against per-segment attention in fp32, and their repeats."""

import pytest
import torch

from megatron_ring.kernels.attention import Segments, packed_attention, runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS = {
    "documents": ([1, 300, 17, 706], [1, 300, 17, 706]),
    "last queries only": ([100, 1, 400, 128], [612, 33, 400, 1000]),
    "segments without queries": ([0, 257, 0, 3], [500, 600, 129, 3]),
}


def inputs(lengths, heads, groups):
    """bf16 values of unit variance, and a gradient of the result."""
    S, T = sum(lengths[0]), sum(lengths[1])
    g = torch.Generator("cuda").manual_seed(0)
    shapes = [(S, heads), (T, groups), (T, groups), (S, heads)]
    made = [torch.randn(*s, 128, device="cuda", generator=g).bfloat16() for s in shapes]
    return [x.requires_grad_() for x in made[:3]], made[3]


def values_and_gradients(qkv, grad, segments, backend, deterministic=False):
    out = packed_attention(*qkv, segments, backend, deterministic)
    return [out, *torch.autograd.grad(out, qkv, grad.to(out.dtype))]


def skip_unless_it_runs(backend):
    if not runs(backend, torch.device("cuda"), torch.bfloat16):
        pytest.skip(f"{backend} does not run here")


@pytest.mark.parametrize(("heads", "groups"), [(16, 4), (8, 8)])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "flex", "flash3"])
def test_values_and_gradients_are_those_in_fp32(backend, row, heads, groups):
    """One rounding of the result and of what goes into the products, 2^-8 each.

    Different numbers of queries and keys tell how causal masks are aligned.
    """
    skip_unless_it_runs(backend)
    segments = Segments.of_lengths(*ROWS[row], "cuda")
    qkv, grad = inputs(ROWS[row], heads, groups)
    found = values_and_gradients(qkv, grad, segments, backend)
    exact = [x.detach().float().requires_grad_() for x in qkv]
    expected = values_and_gradients(exact, grad, segments, "sdpa")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.float(), b, atol=5e-2, rtol=2e-2)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "flex", "flash3"])
def test_deterministic_repeats_bit_by_bit(backend, row):
    skip_unless_it_runs(backend)
    segments = Segments.of_lengths(*ROWS[row], "cuda")
    qkv, grad = inputs(ROWS[row], 16, 4)
    first = values_and_gradients(qkv, grad, segments, backend, deterministic=True)
    for _ in range(5):
        again = values_and_gradients(qkv, grad, segments, backend, deterministic=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
