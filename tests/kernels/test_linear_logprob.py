"""The chunked head against plain log-softmax in float64, alone and with the vocabulary split."""

import pytest
import torch
import torch.distributed as dist

from megatron_ring import parallel, platform
from megatron_ring.config import ParallelConfig
from megatron_ring.kernels.linear_logprob import (
    column_norm,
    linear_logprob,
    linear_logprob_reference,
)
from tests import ranks

V, D = 24, 7


def case(N, seed=0, dtype=torch.float32):
    """Hidden states, head, labels (both edges of the vocabulary among them), output gradient."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(N, D, generator=g).to(dtype)
    w = torch.randn(V, D, generator=g).to(dtype)
    labels = torch.randint(V, (N,), generator=g)
    edges = torch.tensor([0, V - 1, V // 2, V // 2 - 1])[:N]
    labels[: len(edges)] = edges
    return h, w, labels, torch.randn(N, generator=g)


def oracle(h, w, labels, grad, scale=None):
    """Value and both gradients, float64, through torch's own log_softmax and autograd."""
    h, w = h.double().requires_grad_(), w.double().requires_grad_()
    rows = torch.arange(len(h))
    logp = (h @ w.T).log_softmax(-1)[rows, labels]
    return logp.detach(), *torch.autograd.grad(logp, (h, w), grad.double())


def ours(h, w, labels, grad, chunk, group=None):
    h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
    logp = linear_logprob(h, w, labels, chunk, group)
    assert logp.dtype == torch.float32
    return logp.detach(), *torch.autograd.grad(logp, (h, w), grad)


def assert_close(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, **tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 10, 11, 64])
def test_value_and_gradients(chunk):
    """Chunks that divide 10 tokens, that do not, and one larger than all."""
    given = case(10)
    assert_close(ours(*given, chunk), oracle(*given), atol=2e-6, rtol=2e-6)
    h, w, labels, _ = given
    reference = linear_logprob_reference(h, w, labels)
    torch.testing.assert_close(reference.double(), oracle(*given)[0], atol=2e-6, rtol=2e-6)


def test_a_row_without_targets():
    logp, dh, dw = ours(*case(0), chunk=4)
    assert logp.shape == (0,)
    assert dh.shape == (0, D)
    assert torch.equal(dw, torch.zeros(V, D))


def test_a_gradient_of_zero_gives_zero():
    """A token whose loss weighs nothing: no trace in either gradient."""
    h, w, labels, grad = case(6)
    grad[2] = 0
    _, dh, dw = ours(h, w, labels, grad, chunk=4)
    assert not dh[2].any()
    keep = [0, 1, 3, 4, 5]
    _, _, without = ours(h[keep], w, labels[keep], grad[keep], chunk=4)
    torch.testing.assert_close(dw, without)


def test_extreme_logits_overflow_nothing():
    """Logits of ±10000, exact in fp32: the likely label has 0, the other -20000."""
    h = torch.tensor([[1e4], [1e4], [-1e4]])
    w = torch.tensor([[1.0], [-1.0]])
    labels = torch.tensor([0, 1, 1])
    logp, dh, dw = ours(h, w, labels, torch.ones(3), chunk=2)
    assert logp.tolist() == [0.0, -2e4, 0.0]
    # d logp / d logits = onehot - softmax: (0, 0), (-1, 1), (0, 0)
    assert dh.tolist() == [[0.0], [-2.0], [0.0]]
    assert dw.tolist() == [[-1e4], [1e4]]


def test_bf16_is_as_near_as_its_logits():
    """Products are rounded to bf16, 2^-9 of the largest logit M; label and log-sum err once each.

    Relative errors of probabilities, and so of gradients, are that much; results are bf16 again.
    """
    given = case(300, dtype=torch.bfloat16)
    h, w, labels, grad = given
    expected = oracle(*given)
    got = ours(*given, chunk=77)
    assert (got[1].dtype, got[2].dtype) == (torch.bfloat16, torch.bfloat16)
    largest = (h.double() @ w.double().T).abs().max().item()
    bound = 2 * 2**-9 * largest
    assert (got[0] - expected[0]).abs().max() < bound
    for a, b in zip(got[1:], expected[1:], strict=True):
        assert (a.double() - b).norm() / b.norm() < bound


def test_weight_gradients_of_many_chunks_add_up_in_fp32():
    """4096 equal gradients of one token each: a bf16 sum would stop growing at 256."""
    N = 4096
    h, w = torch.ones(N, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    labels = torch.zeros(N, dtype=torch.int64)
    _, _, dw = ours(h, w, labels, torch.ones(N), chunk=1)
    assert dw.flatten().tolist() == [N / 2, -N / 2]


def with_half_a_vocabulary(cases):
    """Each case's value, this rank's part of the gradients, and the norm of the head's columns."""
    out = []
    with parallel.process_groups(ParallelConfig(tp=2), platform.prepare(), seed=1):
        group = dist.group.WORLD
        for (h, w, labels, grad), chunk in cases:
            half = w.chunk(2)[group.rank()]
            logp, dh, dw = ours(h, half, labels, grad, chunk, group)
            whole_dh = dh.clone()
            dist.all_reduce(whole_dh)
            out.append((logp, dh, whole_dh, dw, column_norm(half, group)))
    return out


def test_split_vocabulary(tmp_path):
    """Over two ranks: the whole's value on both, dW of each one's rows, dh as parts of a sum."""
    extreme = (
        torch.tensor([[1e4], [-1e4]]),
        torch.tensor([[1.0], [-1.0]]),
        torch.tensor([1, 1]),
        torch.ones(2),
    )
    cases = [(case(10, seed=1), 4), (case(0), 4), (extreme, 1)]
    first, second = ranks.run(2, with_half_a_vocabulary, cases, folder=tmp_path)
    for (given, _), a, b in zip(cases, first, second, strict=True):
        logp, dh, dw = oracle(*given)
        assert torch.equal(a[0], b[0])
        torch.testing.assert_close(a[0].double(), logp, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(a[2].double(), dh, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(torch.cat([a[3], b[3]]).double(), dw, atol=2e-6, rtol=2e-6)
        assert not len(logp) or (a[1] - a[2]).norm() > 1e-3, "already summed: the caller sums again"
        assert torch.equal(a[4], b[4])
        torch.testing.assert_close(a[4], column_norm(given[1]))


def test_norm_head_is_the_authors_formula():
    """W / (norm(W, dim=0, keepdim) + 1e-7).detach(): logits, and gradients of W and h, float64."""
    h, w, labels, grad = case(10, seed=2)
    w[:, 3] *= 50
    h64, w64 = h.double().requires_grad_(), w.double().requires_grad_()
    unit = w64 / (torch.norm(w64, p=2, dim=0, keepdim=True) + 1e-7).detach()
    logp = (h64 @ unit.T).log_softmax(-1)[torch.arange(10), labels]
    expected = (logp.detach(), *torch.autograd.grad(logp, (h64, w64), grad.double()))

    h, w = h.requires_grad_(), w.requires_grad_()
    got = linear_logprob(h / column_norm(w), w, labels, 4)
    got = (got.detach(), *torch.autograd.grad(got, (h, w), grad))
    assert_close(got, expected, atol=2e-6, rtol=2e-6)
    assert not column_norm(w).requires_grad


def test_norm_of_bf16_columns_is_taken_in_fp32():
    """65536 ones: the norm is 256; a bf16 sum of squares would stop at 256, its root 16."""
    norm = column_norm(torch.ones(65536, 2, dtype=torch.bfloat16))
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm, torch.full((2,), 256.0))
    assert column_norm(torch.zeros(4, 1)).item() == pytest.approx(1e-7)  # never a division by 0
