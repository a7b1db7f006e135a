"""The chunked head against plain log-softmax in float64, alone and with the vocabulary split."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_ring import parallel, platform
from megatron_ring.config import ParallelConfig
from megatron_ring.kernels import linear_logprob as module
from megatron_ring.kernels.device import has_triton
from megatron_ring.kernels.linear_logprob import (
    column_norm,
    linear_logprob,
    linear_logprob_reference,
    linear_logprob_stats,
)
from tests import ranks

V, D = 24, 7
BACKENDS = [
    "torch",
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            not has_triton(torch.device("cpu")), reason="needs Triton's interpreter"
        ),
    ),
]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
either_mode = pytest.mark.parametrize("gradient", ["backward", "forward"])


def case(N, seed=0, dtype=torch.float32):
    """Hidden states, head, labels (both edges of the vocabulary among them), output gradient."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(N, D, generator=g).to(dtype)
    w = torch.randn(V, D, generator=g).to(dtype)
    labels = torch.randint(V, (N,), generator=g)
    edges = torch.tensor([0, V - 1, V // 2, V // 2 - 1])[:N]
    labels[: len(edges)] = edges
    return h, w, labels, torch.randn(N, generator=g)


def uniform(N, seed=0, dtype=torch.float32):
    """The same with one gradient for all tokens."""
    h, w, labels, _ = case(N, seed, dtype)
    return h, w, labels, torch.full((N,), -0.7)


def oracle(h, w, labels, grad, scale=None):
    """Value and both gradients, float64, through torch's own log_softmax and autograd."""
    h, w = h.double().requires_grad_(), w.double().requires_grad_()
    rows = torch.arange(len(h))
    scaled = h if scale is None else h / scale.double()
    logp = (scaled @ w.T).log_softmax(-1)[rows, labels]
    return logp.detach(), *torch.autograd.grad(logp, (h, w), grad.double())


def ours(h, w, labels, grad, chunk, group=None, **options):
    h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
    logp = linear_logprob(h, w, labels, chunk, group, **options)
    assert logp.dtype == torch.float32
    return logp.detach(), *torch.autograd.grad(logp, (h, w), grad)


def errors(got, expected):
    """Norm of each difference over the norm of what is right."""
    return [((a - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True)]


def assert_close(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, **tolerance)


@every_backend
@either_mode
@pytest.mark.parametrize("scaled", [False, True])
def test_every_way_is_log_softmax_to_a_millionth(gradient, backend, scaled):
    """V is no multiple of a block of Triton's, 5 tokens none of a chunk."""
    given = uniform(5) if gradient == "forward" else case(5)
    scale = torch.linspace(0.5, 3, D) if scaled else None
    options = {"gradient": gradient, "backend": backend, "scale_D": scale}
    assert max(errors(ours(*given, 3, **options), oracle(*given, scale))) < 1e-6


@pytest.mark.parametrize("chunk", [1, 3, 10, 11, 64])
def test_value_and_gradients(chunk):
    """Chunks that divide 10 tokens, that do not, and one larger than all."""
    given = case(10)
    assert_close(ours(*given, chunk), oracle(*given), atol=2e-6, rtol=2e-6)
    h, w, labels, _ = given
    reference = linear_logprob_reference(h, w, labels)
    torch.testing.assert_close(reference.double(), oracle(*given)[0], atol=2e-6, rtol=2e-6)


@every_backend
@either_mode
def test_a_row_without_targets(gradient, backend):
    logp, dh, dw = ours(*case(0), chunk=4, gradient=gradient, backend=backend)
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


@every_backend
@either_mode
def test_extreme_logits_overflow_nothing(gradient, backend):
    """Logits of ±10000, exact in fp32: the likely label has 0, the other -20000."""
    h = torch.tensor([[1e4], [1e4], [-1e4]])
    w = torch.tensor([[1.0], [-1.0]])
    labels = torch.tensor([0, 1, 1])
    options = {"gradient": gradient, "backend": backend}
    logp, dh, dw = ours(h, w, labels, torch.ones(3), chunk=2, **options)
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
        (h, w, labels, grad), scale = uniform(10, seed=3), torch.linspace(0.5, 3, D)
        half = w.chunk(2)[group.rank()]
        options = {"scale_D": scale, "gradient": "forward"}
        logp, dh, dw = ours(h, half, labels, grad, 4, group, **options)
        dist.all_reduce(dh)
        out.append((logp, dh, dw, *linear_logprob_stats(h, half, labels, 4, group)))
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
    results = ranks.run(2, with_half_a_vocabulary, cases, folder=tmp_path)
    (*first, a), (*second, b) = results
    given = uniform(10, seed=3)
    expected = oracle(*given, torch.linspace(0.5, 3, D))
    assert max(errors((a[0], a[1], torch.cat([a[2], b[2]])), expected)) < 1e-6
    for rank in (a, b):
        assert max(errors(rank[3:], stats(*given[:3]))) < 1e-6
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
    for got in (
        linear_logprob(h / column_norm(w), w, labels, 4),
        linear_logprob(h, w, labels, 4, scale_D=column_norm(w)),
        linear_logprob_reference(h, w, labels, column_norm(w)),
    ):
        got = (got.detach(), *torch.autograd.grad(got, (h, w), grad))
        assert_close(got, expected, atol=2e-6, rtol=2e-6)
    assert not column_norm(w).requires_grad


def test_norm_of_bf16_columns_is_taken_in_fp32():
    """65536 ones: the norm is 256; a bf16 sum of squares would stop at 256, its root 16."""
    norm = column_norm(torch.ones(65536, 2, dtype=torch.bfloat16))
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm, torch.full((2,), 256.0))
    assert column_norm(torch.zeros(4, 1)).item() == pytest.approx(1e-7)  # never a division by 0


def stats(h, w, labels, scale=None):
    """logp, log-sum-exp and entropy in float64, each from its definition."""
    scaled = h.double() if scale is None else h.double() / scale.double()
    logp = (scaled @ w.double().T).log_softmax(-1)
    lse = (scaled @ w.double().T).exp().sum(-1).log()
    entropy = -(logp.exp() * logp).sum(-1)
    return logp[torch.arange(len(h)), labels], lse, entropy


@every_backend
def test_log_sum_exp_and_entropy(backend):
    h, w, labels, grad = case(5, seed=4)
    scale = torch.linspace(0.5, 3, D)
    h = h.requires_grad_()
    got = linear_logprob_stats(h, w, labels, 3, backend=backend, scale_D=scale)
    assert max(errors([x.detach() for x in got], stats(h.detach(), w, labels, scale))) < 1e-6
    assert [x.requires_grad for x in got] == [True, False, False]
    (dh,) = torch.autograd.grad(got.logp_N, h, grad)
    assert errors([dh], [oracle(h.detach(), w, labels, grad, scale)[1]])[0] < 1e-6


@every_backend
def test_entropy_of_extreme_rows(backend):
    """Certain: 0, although exp of all other logits is 0; all alike: ln V."""
    h, w = torch.tensor([[1e4], [0.0]]), torch.zeros(V, 1)
    w[3] = 1
    entropy = linear_logprob_stats(h, w, torch.tensor([3, 3]), 2, backend=backend).entropy_N
    assert entropy[0] == 0
    torch.testing.assert_close(entropy[1], torch.tensor(float(V)).log())


@every_backend
def test_labels_at_the_edges_of_a_slice(backend, monkeypatch):
    """The label's logit of rows at and beyond both ends: this rank's own, and never another's.

    The torch backend takes two of the five rows at a time."""
    monkeypatch.setitem(module.FP32_LOGITS, "cpu", 2 * V)
    statistics, to_gradient = module._passes(backend)
    logits = torch.randn(5, V, generator=torch.Generator().manual_seed(0))
    row = torch.tensor([-1, 0, V - 1, V, -V])
    parts = statistics(logits, row, False)
    assert parts[2].tolist() == [0, logits[1, 0], logits[2, V - 1], 0, 0]
    assert torch.equal(parts[0], logits.amax(-1))
    lse, factor = logits.logsumexp(-1), torch.tensor([1.0, 2, 3, 4, 5])
    expected = -logits.softmax(-1)
    expected[1, 0] += 1
    expected[2, V - 1] += 1
    to_gradient(logits, row, lse, factor)
    torch.testing.assert_close(logits, factor[:, None] * expected)


def like_ddp(w):
    """What megatron-core's DDP does to a weight: a buffer, a flag, and a hook that empties .grad"""
    w.main_grad, w.grad_added_to_main_grad = torch.ones(w.shape), False

    def hook(w):
        if not w.grad_added_to_main_grad:
            w.main_grad += w.grad
        w.grad = None

    w.register_post_accumulate_grad_hook(hook)
    return w


@either_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_main_grad_takes_the_gradients_of_all_calls(gradient, dtype):
    h, w, labels, grad = uniform(10, dtype=dtype)
    weight = like_ddp(w.clone().requires_grad_())
    for factor in (1, 2):
        linear_logprob(h, weight, labels, 4, gradient=gradient).backward(factor * grad)
        assert weight.grad_added_to_main_grad
        assert weight.grad is None
        weight.grad_added_to_main_grad = False
    _, _, dw = oracle(h, w, labels, grad)
    limit = 1e-6 if dtype == torch.float32 else 2e-2
    assert errors([weight.main_grad - 1], [3 * dw])[0] < limit


@either_mode
def test_a_shared_weight_hands_over_zeros(gradient):
    """`zero_out_wgrad`: DDP adds what the embedding and the head return, whatever the flag says."""
    h, w, labels, grad = uniform(6)
    weight = w.clone().requires_grad_()
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros_like(w), False
    weight.zero_out_wgrad = True
    linear_logprob(h, weight, labels, 4, gradient=gradient).backward(grad)
    assert not weight.grad.any()
    assert errors([weight.main_grad], [oracle(h, w, labels, grad)[2]])[0] < 1e-6


def test_main_grad_without_a_flag_or_in_bf16():
    """Nobody to tell: no gradient is returned. A buffer in bf16 is left to DDP itself."""
    h, w, labels, grad = case(6)
    expected = oracle(h, w, labels, grad)[2]
    weight = w.clone().requires_grad_()
    weight.main_grad = torch.zeros_like(w)
    linear_logprob(h, weight, labels, 4).backward(grad)
    assert weight.grad is None
    assert errors([weight.main_grad], [expected])[0] < 1e-6
    weight.main_grad = torch.zeros_like(w, dtype=torch.bfloat16)
    linear_logprob(h, weight, labels, 4).backward(grad)
    assert not weight.main_grad.any()
    assert errors([weight.grad], [expected])[0] < 1e-6


def test_gradients_made_in_the_forward_want_one_number_for_all_tokens():
    h, w, labels, grad = uniform(4)
    h = h.requires_grad_()
    logp = linear_logprob(h, w, labels, 4, gradient="forward")
    grad[1] = 2
    with pytest.raises(ValueError) as error:
        logp.backward(grad)
    assert str(error.value) == (
        "linear_logprob: gradient='forward' wants one and the same incoming gradient for all "
        "tokens; gradient='backward' takes any (here: -0.699999988079071 to 2.0)"
    )
    # A loss that is not a number reaches the step, which says so.
    logp = linear_logprob(h, w, labels, 4, gradient="forward")
    logp.backward(torch.full((4,), float("nan")))
    assert h.grad.isnan().all()


@either_mode
def test_a_graph_is_run_back_once(gradient):
    """Gradients made in the forward are scaled in place: no second time, silently wrong."""
    h, w, labels, grad = uniform(4)
    h = h.requires_grad_()
    logp = linear_logprob(h, w, labels, 4, gradient=gradient)
    logp.backward(grad, retain_graph=True)
    first = h.grad.clone()
    if gradient == "forward":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            logp.backward(grad)
    else:
        logp.backward(grad)
        assert torch.equal(h.grad, 2 * first)


class Watch(TorchDispatchMode):
    """Counts operations, and the bytes of all memory that they made and that still lives."""

    def __init__(self, *known):
        super().__init__()
        self.calls, self.peak, self.largest = Counter(), 0, 0
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.live = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self.largest = max(self.largest, storage.nbytes())
        self.live = {k: (ref, n) for k, (ref, n) in self.live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(n for _, n in self.live.values()))
        return out

    @property
    def products(self):
        return self.calls["mm"] + self.calls["addmm_"]


@pytest.mark.parametrize(
    ("h_wants", "w_wants", "gradient", "forward", "backward"),
    [
        (True, True, "backward", 3, 9),
        (True, True, "forward", 9, 0),
        (True, False, "backward", 3, 6),
        (True, False, "forward", 6, 0),
        (False, True, "backward", 3, 6),
        (False, True, "forward", 6, 0),
        (False, False, "forward", 3, 0),
    ],
)
def test_products_of_matrices(h_wants, w_wants, gradient, forward, backward):
    """Of 3 chunks: no gradient is computed that nobody wants, nor any logits a second time."""
    h, w, labels, grad = uniform(10)
    h, w = h.requires_grad_(h_wants), w.requires_grad_(w_wants)
    with Watch() as watch, torch.no_grad():
        linear_logprob(h, w, labels, 4, gradient=gradient)
    assert watch.products == 3
    with Watch() as watch:
        logp = linear_logprob(h, w, labels, 4, gradient=gradient)
    assert watch.products == forward
    if h_wants or w_wants:
        with Watch() as watch:
            logp.backward(grad)
        assert watch.products == backward
        assert [h.grad is not None, w.grad is not None] == [h_wants, w_wants]


@pytest.mark.parametrize(
    ("gradient", "fused", "fp32_copies"),
    [("backward", True, 0), ("forward", True, 1), ("backward", False, 1), ("forward", False, 1)],
)
def test_peak_memory(gradient, fused, fp32_copies, monkeypatch):
    """bf16: a chunk of logits, the gradient of h, and small change. Never [N, V]; and a second
    [V, D] in no case but where a gradient must be kept in fp32 outside of main_grad."""
    N, vocab, width, chunk = 512, 4096, 256, 32
    monkeypatch.setitem(module.FP32_LOGITS, "cpu", 4 * vocab)
    monkeypatch.setattr(module, "FP32_ROWS", 64)
    h = torch.randn(N, width).bfloat16().requires_grad_()
    w = torch.randn(vocab, width).bfloat16().requires_grad_()
    labels, scale = torch.randint(vocab, (N,)), torch.ones(width)
    if fused:
        w = like_ddp(w)
    with Watch(h, w, labels, scale, *([w.main_grad] if fused else [])) as watch:
        logp = linear_logprob(h, w, labels, chunk, scale_D=scale, gradient=gradient)
        logp.sum().backward()
    fp32, short = 4 * vocab * width, 2 * vocab * width
    once = 2 * chunk * vocab + 2 * N * width  # logits of a chunk; gradient of h
    # Numbers by token; logits in fp32; rows of a product; a chunk's h and its gradient in fp32.
    change = 8 * 4 * N + 3 * 4 * 4 * vocab + 2 * 4 * 64 * width + 3 * 4 * chunk * width
    working = fp32_copies * fp32 + once + change
    # Without main_grad, the gradient in bf16 is made of the one in fp32, logits gone by then.
    returned = fp32 + short + 2 * N * width + 8 * 4 * N
    assert watch.peak <= (working if fused else max(working, returned))
    assert watch.largest <= (fp32 if fp32_copies else 2 * chunk * vocab)
    assert once + change < short < 2 * N * vocab  # any of these in vain would have been seen
