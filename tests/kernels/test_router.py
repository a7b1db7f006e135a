"""The router's two backends against each other, by definition, and through autograd in float64."""

import numpy as np
import pytest
import torch

from megatron_ring.kernels.router import Routed, route

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="fp32 through the interpreter")


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


def case(T, E, seed=0, padded=0.0):
    g = torch.Generator().manual_seed(seed)
    logits, padding = 2 * torch.randn(T, E, generator=g), torch.rand(T, generator=g) < padded
    return logits, padding


def by_definition(logits, padding, K, normalise, pinned=None):
    """Token by token in float64, differentiable."""
    T, E = logits.shape
    prob, experts, counts = [], [], np.zeros(E)
    scores = torch.zeros(E, dtype=torch.float64)
    z, entropy = torch.zeros(2, dtype=torch.float64)
    for t in range(T):
        p = logits[t].exp() / logits[t].exp().sum()
        if padding[t]:
            experts.append([(t * K + k) % E for k in range(K)])
            prob.append(p[:K] * 0)
            continue
        best = sorted(range(E), key=lambda e: (-logits[t, e].item(), e))[:K]
        best = best if pinned is None else pinned[t].tolist()
        chosen = p[best]
        prob.append(chosen / chosen.sum() if normalise else chosen)
        experts.append(best)
        counts[best] += 1
        scores, z = scores + p, z + logits[t].logsumexp(0) ** 2
        entropy = entropy - (p * p.log()).sum().detach()
    counted = torch.tensor(counts)
    return Routed(torch.stack(prob), torch.tensor(experts), counted, scores, z, entropy)


def functional(routed, weights):
    """One number that depends on all that is differentiable."""
    a, b, c = weights
    return (routed.prob_TK * a).sum() + (routed.scores_E * b).sum() + routed.z * c


def check(T, E, K, backend, normalise=True, padded=0.0, seed=0, pinned=None):
    logits, padding = case(T, E, seed, padded)
    g = torch.Generator().manual_seed(seed + 1)
    weights = torch.randn(T, K, generator=g), torch.randn(E, generator=g), 0.3
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    got = route(ours, padding, K, normalise, pinned, backend)
    expected = by_definition(theirs, padding, K, normalise, pinned)
    assert torch.equal(got.experts_TK, expected.experts_TK)
    assert got.experts_TK.dtype == torch.int64 and got.prob_TK.dtype == torch.float32
    assert torch.equal(got.counts_E.double(), expected.counts_E)
    for a, b in ((got.prob_TK, expected.prob_TK), (got.scores_E, expected.scores_E)):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.z.double(), expected.z, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.entropy.double(), expected.entropy, atol=2e-6 * T, rtol=1e-5)
    (a,) = torch.autograd.grad(functional(got, weights), ours)
    (b,) = torch.autograd.grad(functional(expected, weights), theirs)
    torch.testing.assert_close(a.double(), b, atol=2e-6, rtol=1e-5)
    assert not a[padding].any()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("T", "E", "K"), [(1, 1, 1), (7, 4, 2), (65, 64, 6), (19, 5, 3), (12, 6, 1), (9, 4, 4)], ids=str
)
def test_value_and_gradient(T, E, K, normalise, backend):
    """One expert, E no power of two, K = 1, K = E, T no multiple of a block."""
    check(T, E, K, backend, normalise, padded=0.3, seed=T)


def test_any_size(backend):
    rng = np.random.default_rng(5)
    for seed in range(6):
        E = int(rng.integers(1, 70))
        K = int(rng.integers(1, min(E, 8) + 1))
        check(int(rng.integers(1, 90)), E, K, backend, bool(seed % 2), float(rng.random()), seed)


def test_pinned_choices_are_made(backend):
    pinned = torch.stack([torch.randperm(5)[:2] for _ in range(11)])
    check(11, 5, 2, backend, pinned=pinned, padded=0.2)


def test_only_padding(backend):
    logits, _ = case(6, 4)
    logits.requires_grad_()
    got = route(logits, torch.ones(6, dtype=torch.bool), 2, True, None, backend)
    assert not got.prob_TK.any() and not got.counts_E.any() and got.z == 0
    assert torch.bincount(got.experts_TK.flatten()).tolist() == [3] * 4  # dealt evenly
    (gradient,) = torch.autograd.grad(functional(got, (1.0, 1.0, 1.0)), logits)
    assert torch.equal(gradient, torch.zeros(6, 4))


def test_no_tokens(backend):
    got = route(torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool), 2, True, None, backend)
    assert got.prob_TK.shape == (0, 2) and not got.counts_E.any()


def test_ties_go_to_the_lowest_expert():
    """On Triton; torch.topk promises no order."""
    pytest.importorskip("triton")
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]])
    got = route(logits, torch.zeros(1, dtype=torch.bool), 2, True, None, "triton")
    assert got.experts_TK.tolist() == [[1, 2]]


def test_extreme_logits_overflow_nothing(backend):
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    got = route(logits, torch.zeros(1, dtype=torch.bool), 1, True, None, backend)
    assert got.prob_TK.tolist() == [[1.0]] and got.z.item() == pytest.approx(1e8)
    (gradient,) = torch.autograd.grad(functional(got, (1.0, 1.0, 1e-8)), logits)
    assert gradient.isfinite().all()
