"""The router against its definition, and its losses by hand and through autograd in float64."""

import pytest
import torch

from megatron_ring import config, parallel, platform
from megatron_ring.config import Config
from megatron_ring.model.ling import build_stages
from megatron_ring.model.router import RouterLoss, RouterStats
from tests.model.layouts import GOLDEN

E, K = 4, 2
STEEP = torch.tensor([0.4, 0.3, 0.2, 0.1])  # a token's probabilities; its experts are 0 and 1


@pytest.fixture(scope="module")
def built():
    """The first layer's router of a real model, with 4 experts and 2 a token."""
    options = [f"model.hf_config={GOLDEN / 'ling_lite_tiny'}", f"model.num_experts={E}"]
    made = config.load(Config, [], [*options, f"model.num_experts_per_tok={K}"])
    device = platform.prepare()
    with parallel.process_groups(made.parallel, device, seed=1):
        (stage,) = build_stages(made, torch.float32, device)
        yield stage.routers[1]


@pytest.fixture
def router(built):
    """In training, with losses that weigh nothing yet."""
    built.train()
    built.loss, built.stats, built.normalise = RouterLoss(0.0, 0.0), RouterStats(), True
    return built


def random_logits(T, seed=0):
    return torch.randn(T, 1, E, generator=torch.Generator().manual_seed(seed))


def padding(*positions, T):
    mask = torch.zeros(T, 1, dtype=torch.bool)
    mask[list(positions)] = True
    return mask


@pytest.mark.parametrize("normalise", [True, False])
def test_probabilities_by_definition(router, normalise):
    """softmax over all, the K largest, divided by their sum if so configured."""
    router.normalise = normalise
    logits = random_logits(50)
    probs, chosen = router.routing(logits)
    for t in range(50):
        p = [x.exp().item() for x in logits[t, 0].double()]
        p = [x / sum(p) for x in p]
        best = sorted(range(E), key=lambda e: -p[e])[:K]
        total = sum(p[e] for e in best) if normalise else 1
        expected = [p[e] / total if e in best else 0 for e in range(E)]
        assert probs[t].tolist() == pytest.approx(expected, abs=1e-6)
        assert chosen[t].nonzero()[:, 0].tolist() == sorted(best)


def test_bf16_logits_are_routed_in_fp32(router):
    logits = random_logits(20).bfloat16()
    probs, _ = router.routing(logits)
    assert probs.dtype == torch.float32
    assert torch.equal(probs, router.routing(logits.float())[0])


def test_padding_weighs_nothing_and_is_dealt_round_robin(router):
    """Token t of padding goes to experts 2t and 2t + 1 modulo 4, however it would have chosen."""
    logits = STEEP.log().expand(6, 1, E)
    probs, chosen = router.routing(logits, padding(1, 3, 4, T=6))
    experts = [row.nonzero()[:, 0].tolist() for row in chosen]
    assert experts == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1], [0, 1]]
    for t in (1, 3, 4):
        assert not probs[t].any()
    for t in (0, 2, 5):
        assert probs[t].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_counts_and_losses_by_hand(router):
    """Two tokens alike: f = (1, 1, 0, 0), P = (.4, .3, .2, .1), aux = 4/2 · .7 = 1.4 a token.

    Then two opposite ones: f = (.5, .5, .5, .5), P = .25 everywhere, aux = 1, the least there is.
    Log-sum-exps of 3, -1 and of 0, 2 give z = 9 + 1 and 0 + 4.
    """
    alike = torch.stack([STEEP.log() + 3, STEEP.log() - 1])[:, None]
    router.routing(alike)
    assert router.stats.counts_E.tolist() == [2, 2, 0, 0]
    assert float(router.stats.aux) == pytest.approx(2 * 1.4)
    assert float(router.stats.z) == pytest.approx(10)

    opposite = torch.stack([STEEP.log(), STEEP.flip(0).log() + 2])[:, None]
    router.routing(opposite)
    assert router.stats.counts_E.tolist() == [3, 3, 1, 1]
    assert float(router.stats.aux) == pytest.approx(2 * 1.4 + 2 * 1)
    assert float(router.stats.z) == pytest.approx(10 + 4)

    router.stats.reset()
    assert (router.stats.counts_E, router.stats.aux, router.stats.z) == (None, 0.0, 0.0)


def test_padding_is_in_no_count_and_no_loss(router):
    logits = random_logits(10)
    router.routing(logits[:7])
    alone, router.stats = router.stats, RouterStats()
    router.routing(logits, padding(7, 8, 9, T=10))
    assert torch.equal(router.stats.counts_E, alone.counts_E)
    assert alone.counts_E.sum() == 7 * K
    torch.testing.assert_close(router.stats.aux, alone.aux)
    torch.testing.assert_close(router.stats.z, alone.z)


def test_a_row_of_padding_alone(router):
    router.loss = RouterLoss(1.0, 1.0, per_token=1.0)
    logits = random_logits(5).requires_grad_()
    probs, _ = router.routing(logits, torch.ones(5, 1, dtype=torch.bool))
    probs.sum().backward()
    assert not logits.grad.any()
    assert router.stats.counts_E.tolist() == [0, 0, 0, 0]
    assert (float(router.stats.aux), float(router.stats.z)) == (0, 0)


@pytest.mark.parametrize(("aux_coeff", "z_coeff"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_gradient_of_the_losses(router, aux_coeff, z_coeff):
    """Switch's E/K Σ f P (f held fixed) and mean logsumexp², weighted, through autograd.

    `per_token` is what the step gives: one over the real tokens of the batch, here twice this row.
    """
    T, real = 12, 9
    mask = padding(9, 10, 11, T=T)
    router.loss = RouterLoss(aux_coeff, z_coeff, per_token=1 / (2 * real))
    logits = random_logits(T, seed=3).requires_grad_()
    probs, chosen = router.routing(logits, mask)
    (probs.sum() * 0).backward()

    x = logits.detach()[:real, 0].double().requires_grad_()
    f = chosen[:real].double().mean(0)
    aux = E / K * (f * x.softmax(-1).mean(0)).sum()
    z = x.exp().sum(-1).log().square().mean()
    ((aux_coeff * aux + z_coeff * z) / 2).backward()
    torch.testing.assert_close(logits.grad[:real, 0].double(), x.grad, atol=1e-7, rtol=1e-5)
    assert not logits.grad[real:].any()


def test_gradient_of_the_probabilities_is_unchanged_by_the_losses(router):
    logits = random_logits(6).requires_grad_()
    weights = torch.rand(6, E, generator=torch.Generator().manual_seed(1))
    (router.routing(logits)[0] * weights).sum().backward()
    x = logits.detach()[:, 0].requires_grad_()
    top = x.softmax(-1).topk(K)
    (
        (top.values / top.values.sum(-1, keepdim=True)) * weights.gather(1, top.indices)
    ).sum().backward()
    torch.testing.assert_close(logits.grad[:, 0], x.grad)


def test_counted_once_in_training_and_never_elsewhere(router):
    """Recomputation runs a layer first without gradients; validation is no training."""
    with torch.no_grad():
        router.routing(random_logits(3))
    router.eval()
    router.routing(random_logits(3))
    assert router.stats.counts_E is None
    router.train()
    router.routing(random_logits(3))
    assert router.stats.counts_E.sum() == 3 * K


def test_pinned_experts_replace_the_choice_only(router):
    """The probabilities of pinned experts are the router's own, renormalised."""
    experts = torch.tensor([[3, 0], [2, 3]])
    router.loss = RouterLoss(0.0, 0.0, pinned={1: experts}, record={})
    probs, chosen = router.routing(STEEP.log().expand(2, 1, E))
    assert probs[0].tolist() == pytest.approx([0.8, 0, 0, 0.2])
    assert probs[1].tolist() == pytest.approx([0, 0, 2 / 3, 1 / 3])
    assert chosen.tolist() == [[True, False, False, True], [False, False, True, True]]
    assert torch.equal(router.loss.record[1][0], experts)

    router.loss = RouterLoss(0.0, 0.0, pinned={2: experts}, record={})  # another layer's
    _, chosen = router.routing(STEEP.log().expand(2, 1, E))
    assert chosen.tolist() == [[True, True, False, False]] * 2
    assert router.loss.record[1][0].tolist() == [[0, 1]] * 2
