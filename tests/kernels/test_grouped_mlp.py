"""All experts at once against one token after the other, in float64."""

import numpy as np
import pytest
import torch

from megatron_ring.kernels.grouped_mlp import GROUPED_MLP

D, WIDTH = 16, 8  # rows of 16 bytes and more in every dtype: what grouped_mm asks


def case(counts, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    E, T = len(counts), sum(counts)
    x, prob = torch.randn(T, D, generator=g), torch.rand(T, generator=g)
    w1, w2 = (
        torch.randn(E, 2 * WIDTH, D, generator=g) / 4,
        torch.randn(E, D, WIDTH, generator=g) / 4,
    )
    return [x.to(dtype), prob, torch.tensor(counts), w1.to(dtype), w2.to(dtype)]


def token_by_token(x, prob, counts, w1, w2):
    """p · down(silu(gate · x) * (up · x)), by definition; silu written out."""
    rows = []
    for t, e in enumerate(np.repeat(np.arange(len(counts)), counts.tolist())):
        gate, up = w1[e, :WIDTH] @ x[t], w1[e, WIDTH:] @ x[t]
        rows.append(prob[t] * (w2[e] @ (gate / (1 + torch.exp(-gate)) * up)))
    return torch.stack(rows) if rows else x.sum() * 0 + torch.zeros(0, D, dtype=x.dtype)


def value_and_gradients(function, given, dtype=None):
    """Output and the gradients of x, prob, w1, w2 of a random functional of it."""
    tensors = [t if t.dtype == torch.int64 else t.to(dtype or t.dtype) for t in given]
    leaves = [t.clone().requires_grad_() for t in tensors if t.is_floating_point()]
    x, prob, w1, w2 = leaves
    out = function(x, prob, tensors[2], w1, w2)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    grads = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]
    return [out.detach(), *grads]


@pytest.mark.parametrize("backend", GROUPED_MLP)
@pytest.mark.parametrize(
    "counts",
    [[3, 5, 2], [4, 0, 3], [0, 0, 6], [7, 0, 0], [0, 2, 0], [1, 1, 1], [0, 0, 0], [9]],
    ids=str,
)
def test_value_and_gradients(backend, counts):
    """Experts without tokens first, in the middle and last; one with all; no tokens at all."""
    given = case(counts)
    got = value_and_gradients(GROUPED_MLP[backend], given)
    expected = value_and_gradients(token_by_token, given, torch.float64)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-6, rtol=2e-5)
    for e, count in enumerate(counts):
        assert got[3][e].any() == (count > 0)


def test_any_split_of_tokens():
    rng = np.random.default_rng(4)
    for seed in range(20):
        counts = rng.multinomial(rng.integers(0, 40), rng.dirichlet(np.full(6, 0.3))).tolist()
        given = case(counts, seed)
        expected = value_and_gradients(token_by_token, given, torch.float64)
        for backend in GROUPED_MLP:
            for a, b in zip(
                value_and_gradients(GROUPED_MLP[backend], given), expected, strict=True
            ):
                torch.testing.assert_close(a.double(), b, atol=4e-6, rtol=2e-5)


@pytest.mark.parametrize("backend", GROUPED_MLP)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_counts_of_any_integer_type(backend, dtype):
    x, prob, counts, w1, w2 = case([3, 0, 4])
    got = GROUPED_MLP[backend](x, prob, counts.to(dtype), w1, w2)
    torch.testing.assert_close(got, GROUPED_MLP[backend](x, prob, counts, w1, w2), atol=0, rtol=0)


@pytest.mark.parametrize("backend", GROUPED_MLP)
def test_bf16(backend):
    """Each of three roundings on the way (gate and up, their product, the output) is 2^-9."""
    given = case([20, 0, 33, 11], dtype=torch.bfloat16)
    got = value_and_gradients(GROUPED_MLP[backend], given)
    expected = value_and_gradients(token_by_token, given, torch.float64)
    assert [t.dtype for t in got] == [torch.bfloat16] * 2 + [torch.float32] + [torch.bfloat16] * 2
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).norm() / b.norm() < 4 * 2**-9
