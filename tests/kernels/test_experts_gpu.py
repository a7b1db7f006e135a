"""The experts' kernels on a GPU in bf16: against float32 by definition, repeatable to the bit."""

import pytest
import torch

from megatron_ring.kernels.experts import grouped_mlp, moe_mlp
from tests.kernels.test_experts import random_choices

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Three roundings on the way (gate and up, their product, the sum's result), each up to 2^-9 of its
# value, and in a gradient two more: relative errors in the norm stay well below one in a hundred.
LIMIT = 1e-2
LING_LITE = (2048, 1408)


def weights(E, D, width, generator):
    w1 = torch.randn(E, 2 * width, D, device="cuda", generator=generator) / D**0.5
    w2 = torch.randn(E, D, width, device="cuda", generator=generator) / width**0.5
    return w1.bfloat16(), w2.bfloat16()


def case(T, K, E, D=256, width=128, skew=0.0, seed=0):
    """Tokens, fp32 probabilities, choices, weights."""
    g = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(T, D, device="cuda", generator=g).bfloat16()
    prob = torch.rand(T, K, device="cuda", generator=g)
    return [x, prob, random_choices(T, K, E, seed, skew).cuda(), *weights(E, D, width, g)]


def value_and_gradients(function, given, backend, fused=False):
    """Output and the gradients of x, prob, w1, w2; with `fused`, weights' from `main_grad`."""
    x, prob, which, w1, w2 = given
    leaves = [t.clone().requires_grad_() for t in (x, prob, w1, w2)]
    if fused:
        for weight in leaves[2:]:
            weight.main_grad = torch.zeros(weight.shape, device="cuda")
            weight.grad_added_to_main_grad = False
    x, prob, w1, w2 = leaves
    out = function(x, prob, which, w1, w2, backend)
    generator = torch.Generator("cuda").manual_seed(9)
    grad = torch.randn(out.shape, device="cuda", generator=generator).bfloat16()
    out.backward(grad.to(out.dtype))  # the oracle's is rounded, too
    of_weights = [w.main_grad if fused else w.grad for w in (w1, w2)]
    return [out.detach(), x.grad, prob.grad, *of_weights]


def oracle(function, given):
    """One expert after the other, in float32."""
    x, prob, which, w1, w2 = given
    return value_and_gradients(function, [x.float(), prob, which, w1.float(), w2.float()], "loop")


def check(function, given, fused=False):
    got = value_and_gradients(function, given, "triton", fused)
    again = value_and_gradients(function, given, "triton", fused)
    for name, a, b, c in zip(
        ("out", "x", "prob", "w1", "w2"), got, again, oracle(function, given), strict=True
    ):
        assert torch.equal(a, b), f"{name} does not repeat"
        error = (a.float() - c).norm() / c.norm().clamp(min=1e-6)
        # A probability's gradient is a sum that may cancel; of few of them one can weigh much.
        limit = 10 * LIMIT if a.numel() < 64 else LIMIT
        assert error < limit, f"{name}: {error:.1e}"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("T", "K", "E", "skew"),
    [
        (1, 1, 1, 0),
        (100, 2, 8, 0),
        (777, 6, 64, 0),
        (777, 6, 64, 2),
        (1024, 1, 4, 0),
        (50, 4, 4, 0),
    ],
    ids=str,
)
def test_tokens_and_choices(T, K, E, skew, fused):
    """One token, K = 1, K = E, balanced and Zipf routing, T no multiple of a block."""
    check(moe_mlp, case(T, K, E, skew=skew, seed=T), fused)


@pytest.mark.parametrize(("D", "width"), [(264, 136), (128, 72), (2048, 512), LING_LITE])
def test_widths(D, width):
    check(moe_mlp, case(300, 2, 5, D, width))


def test_all_tokens_go_to_one_expert():
    given = case(500, 1, 4)
    given[2].fill_(2)
    check(moe_mlp, given, fused=True)


@pytest.mark.parametrize("counts", [[300, 0, 17, 700], [0, 0, 0, 129], [1, 1, 1, 1]], ids=str)
def test_sorted_rows(counts):
    given = case(sum(counts), 1, len(counts))
    given[1], given[2] = given[1][:, 0], torch.tensor(counts, device="cuda")
    check(grouped_mlp, given)


def test_one_layer_of_ling_lite():
    """16,384 tokens, 6 of 64 experts, as skewed as training may be."""
    given = case(16384, 6, 64, *LING_LITE, skew=0.5)
    got = value_and_gradients(moe_mlp, given, "triton", fused=True)
    for name, a, b in zip(
        ("out", "x", "prob", "w1", "w2"), got, oracle(moe_mlp, given), strict=True
    ):
        error = (a.float() - b).norm() / b.norm()
        assert error < LIMIT, f"{name}: {error:.1e}"


def test_no_tokens():
    out, *grads = value_and_gradients(moe_mlp, case(0, 2, 4), "triton")
    assert out.shape == (0, 256) and not any(g.any() for g in grads)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("function", [moe_mlp, grouped_mlp])
def test_nothing_waits_for_the_device(function, backend):
    """Counts of sorted rows come from the host, as megatron-core's dispatchers leave them."""
    given = case(1000, 6, 64)
    if function is grouped_mlp:
        given = case(900, 1, 3)
        given[1], given[2] = given[1][:, 0], torch.tensor([300, 500, 100])
    value_and_gradients(function, given, backend)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        value_and_gradients(function, given, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
