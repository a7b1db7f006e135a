"""All backends against one token after the other, in float64; Triton through its interpreter."""

import numpy as np
import pytest
import torch

from megatron_ring.kernels.experts import BACKENDS, grouped_mlp, moe_mlp

D, WIDTH = 16, 8  # rows of 16 bytes and more in every dtype: what grouped_mm and TMA ask
ON_CPU_IN_BF16 = ("torch", "loop")  # Triton's interpreter cannot
TILES = (True, False)  # by descriptors (TMA), by pointers


@pytest.fixture(params=["loop", "torch", "triton-tma", "triton-pointers"])
def backend(request, monkeypatch):
    """The name of a backend. Triton's twice: as compiled for sm_90, and for sm_80."""
    name, _, way = request.param.partition("-")
    if name == "triton":
        use_tiles(monkeypatch, tma=way == "tma")
    return name


def use_tiles(monkeypatch, tma):
    if torch.cuda.is_available():
        pytest.skip("fp32 on Triton is for the interpreter; see test_experts_gpu.py")
    fused = pytest.importorskip("megatron_ring.kernels.experts_fused")
    small = fused.interpreted(tma, rows=16, columns=32, inner=16)
    monkeypatch.setattr(fused, "tiles_for", lambda _: small)


def weights(E, d, width, g):
    w1, w2 = torch.randn(E, 2 * width, d, generator=g), torch.randn(E, d, width, generator=g)
    return w1 / 4, w2 / 4


def sorted_case(counts, seed=0, dtype=torch.float32, d=D, width=WIDTH):
    """Rows, probabilities, counts, weights: what a dispatcher hands over."""
    g = torch.Generator().manual_seed(seed)
    x, prob = torch.randn(sum(counts), d, generator=g), torch.rand(sum(counts), generator=g)
    w1, w2 = weights(len(counts), d, width, g)
    return [x.to(dtype), prob, torch.tensor(counts), w1.to(dtype), w2.to(dtype)]


def routed_case(experts_TK, E, seed=0, dtype=torch.float32, d=D, width=WIDTH):
    """Tokens, probabilities, choices, weights: what a router hands over."""
    g = torch.Generator().manual_seed(seed)
    experts_TK = torch.as_tensor(experts_TK)
    x, prob = (
        torch.randn(len(experts_TK), d, generator=g),
        torch.rand(experts_TK.shape, generator=g),
    )
    w1, w2 = weights(E, d, width, g)
    return [x.to(dtype), prob, experts_TK, w1.to(dtype), w2.to(dtype)]


def random_choices(T, K, E, seed, skew=0.0):
    """K different experts for each of T tokens; with `skew`, Zipf's law."""
    g = torch.Generator().manual_seed(seed)
    scores = -skew * torch.arange(1, E + 1).log() - torch.rand(T, E, generator=g).log().neg().log()
    return scores.topk(K, dim=-1).indices if T else torch.zeros(0, K, dtype=torch.int64)


def one(x, prob, w1, w2):
    """p · down(silu(gate · x) * (up · x)) of one token, by definition; silu written out."""
    half = len(w1) // 2
    gate, up = w1[:half] @ x, w1[half:] @ x
    return prob * (w2 @ (gate / (1 + torch.exp(-gate)) * up))


def row_by_row(x, prob, counts, w1, w2):
    experts = np.repeat(np.arange(len(counts)), counts.tolist())
    rows = [one(x[t], prob[t], w1[e], w2[e]) for t, e in enumerate(experts)]
    return torch.stack(rows) if rows else x * 1.0


def token_by_token(x, prob, experts, w1, w2):
    rows = [
        sum(one(x[t], prob[t, k], w1[e], w2[e]) for k, e in enumerate(chosen))
        for t, chosen in enumerate(experts.tolist())
    ]
    return torch.stack(rows) if rows else x * 1.0


def value_and_gradients(function, given, *more, dtype=None):
    """Output and the gradients of x, prob, w1, w2 of a random functional of it."""
    tensors = [
        t if t.dtype in (torch.int32, torch.int64) else t.to(dtype or t.dtype) for t in given
    ]
    leaves = [t.clone().requires_grad_() for t in tensors if t.is_floating_point()]
    x, prob, w1, w2 = leaves
    out = function(x, prob, tensors[2], w1, w2, *more)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    grads = torch.autograd.grad((out * factors).sum(), leaves, allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]
    return [out.detach(), *grads]


def check(given, backend, sorted_rows=False):
    """Value and all gradients within fp32 rounding of float64; the results."""
    function, oracle = (grouped_mlp, row_by_row) if sorted_rows else (moe_mlp, token_by_token)
    got = value_and_gradients(function, given, backend)
    expected = value_and_gradients(oracle, given, dtype=torch.float64)
    for name, a, b in zip(("out", "x", "prob", "w1", "w2"), got, expected, strict=True):
        assert a.shape == b.shape
        worst = (a.double() - b).abs().max().item() if a.numel() else 0.0
        assert worst <= 4e-6 * (1 + b.abs().max().item() if b.numel() else 1), name
    return got


@pytest.mark.parametrize(
    "counts",
    [[3, 5, 2], [4, 0, 3], [0, 0, 6], [7, 0, 0], [0, 2, 0], [1, 1, 1], [0, 0, 0], [9], [16, 17]],
    ids=str,
)
def test_sorted_rows(backend, counts):
    """Experts without rows first, in the middle and last; one with all; no rows; full blocks."""
    got = check(sorted_case(counts), backend, sorted_rows=True)
    for e, count in enumerate(counts):
        assert got[3][e].any() == (count > 0)


@pytest.mark.parametrize(
    ("T", "K", "E", "skew"),
    [
        (0, 2, 4, 0),
        (1, 1, 1, 0),
        (5, 2, 4, 0),
        (33, 1, 3, 0),
        (17, 3, 5, 0),
        (40, 2, 6, 2),
        (7, 4, 4, 0),
    ],
    ids=str,
)
def test_tokens_and_choices(backend, T, K, E, skew):
    """No tokens, one expert, K = 1, no power of two, Zipf routing, every expert visited by all."""
    check(routed_case(random_choices(T, K, E, seed=T, skew=skew), E), backend)


def test_all_tokens_go_to_one_expert(backend):
    got = check(routed_case([[2]] * 35, E=4), backend)
    assert not got[3][[0, 1, 3]].any()


@pytest.mark.parametrize(("d", "width"), [(48, 40), (64, 64), (16, 72)])
def test_widths_that_no_block_divides(backend, d, width):
    check(routed_case(random_choices(19, 2, 3, seed=1), 3, d=d, width=width), backend)


@pytest.mark.parametrize("name", ["loop", "torch"])
def test_any_split(name):
    rng = np.random.default_rng(4)
    for seed in range(20):
        counts = rng.multinomial(rng.integers(0, 40), rng.dirichlet(np.full(6, 0.3))).tolist()
        check(sorted_case(counts, seed), name, sorted_rows=True)
        K = int(rng.integers(1, 5))
        choices = random_choices(int(rng.integers(0, 20)), K, 5, seed, skew=float(rng.random()))
        check(routed_case(choices, 5, seed), name)


@pytest.mark.parametrize("tma", TILES)
def test_any_routing_on_triton(tma, monkeypatch):
    """Random sizes: each costs a second or two."""
    use_tiles(monkeypatch, tma)
    rng = np.random.default_rng(11)
    for seed in range(3):
        E = int(rng.integers(1, 7))
        K = int(rng.integers(1, E + 1))
        choices = random_choices(int(rng.integers(1, 30)), K, E, seed, skew=float(rng.random() * 2))
        d, width = 8 * rng.integers(1, 6, 2)
        check(routed_case(choices, E, seed, d=int(d), width=int(width)), "triton")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_counts_of_any_integer_type(backend, dtype):
    x, prob, counts, w1, w2 = sorted_case([3, 0, 4])
    got = grouped_mlp(x, prob, counts.to(dtype), w1, w2, backend)
    torch.testing.assert_close(got, grouped_mlp(x, prob, counts, w1, w2, backend), atol=0, rtol=0)


@pytest.mark.parametrize("name", ON_CPU_IN_BF16)
def test_bf16(name):
    """Each of three roundings on the way (gate and up, their product, the output) is 2^-9."""
    given = sorted_case([20, 0, 33, 11], dtype=torch.bfloat16)
    got = value_and_gradients(grouped_mlp, given, name)
    expected = value_and_gradients(row_by_row, given, dtype=torch.float64)
    assert [t.dtype for t in got] == [torch.bfloat16] * 2 + [torch.float32] + [torch.bfloat16] * 2
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).norm() / b.norm() < 4 * 2**-9


def test_twice_the_same_bits(backend):
    given = routed_case(random_choices(21, 3, 4, seed=3), 4)
    once, again = (value_and_gradients(moe_mlp, given, backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("tma", TILES)
def test_weight_gradients_go_into_main_grad(tma, monkeypatch):
    """As Megatron's DDP keeps it: fp32, added to, and marked; what autograd gets is not read."""
    use_tiles(monkeypatch, tma)
    given = routed_case(random_choices(21, 2, 4, seed=3), 4, d=48, width=40)
    expected = value_and_gradients(moe_mlp, given, "triton")[3:]
    x, prob, experts, w1, w2 = given
    for weight in (w1, w2):
        weight.requires_grad_()
        weight.main_grad, weight.grad_added_to_main_grad = torch.ones_like(weight), False
    out = moe_mlp(x, prob, experts, w1, w2, "triton")
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    (out * factors).sum().backward()
    for weight, gradient in zip((w1, w2), expected, strict=True):
        assert weight.grad_added_to_main_grad
        torch.testing.assert_close(weight.main_grad, 1 + gradient)


def test_only_input_and_pre_activation_are_kept(monkeypatch):
    """[T, D] and [2, R, F], beside weights and the numbers of the order."""
    use_tiles(monkeypatch, tma=True)
    T, K, E, d, width = 40, 2, 3, 32, 24
    x, prob, experts, w1, w2 = routed_case(random_choices(T, K, E, 0), E, d=d, width=width)
    w1.requires_grad_(), w2.requires_grad_(), x.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        moe_mlp(x, prob, experts, w1, w2, "triton")
    shapes = [tuple(t.shape) for t in kept]
    [h] = [shape for shape in shapes if len(shape) == 3 and shape[0] == 2 and shape[2] == width]
    assert T * K <= h[1] <= T * K + E * 15
    assert sorted(shapes) == sorted([(T, d), h, tuple(w1.shape), tuple(w2.shape)])


def test_backends_are_known():
    assert set(BACKENDS) == {"triton", "torch", "loop"}
