"""Context parallelism: any split of a row's tokens gives one process's losses and gradients."""

import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_ring import parallel, platform
from megatron_ring.config import ParallelConfig
from megatron_ring.kernels.attention import Segments, packed_attention
from megatron_ring.model import context
from tests import ranks
from tests.model.layouts import GOLDEN, assert_same_gradients, measure, random_pairs

TINY = [f"model.hf_config={GOLDEN / 'ling_lite_tiny'}", "model.initializer_range=0.05"]
SFT = [*TINY, "loss.aux_coeff=0.5", "loss.z_coeff=0.01"]


def documents(lengths, seed=7):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 384, n).astype(np.int32), rng.random(n) < 0.5) for n in lengths]


ROWS = {
    # Of 128 tokens: with 8 chunks, boundaries lie at multiples of 16.
    "documents across every boundary": documents([9, 14, 13, 17, 15, 20, 12, 19]),
    "one-token documents": documents([1] * 20 + [60] + [1] * 40),
    "one document": documents([128]),
    "documents that end at boundaries": documents([16, 32, 48, 32]),
    "a rank with only padding": documents([30, 3]),
    "no document": [],
}
LAYOUTS = {
    "cp2": (2, ["parallel.cp=2"]),
    "cp4": (4, ["parallel.cp=4"]),
    "cp2, recompute": (2, ["parallel.cp=2", "parallel.recompute=full"]),
    "cp2 dp2, overlap": (4, ["parallel.cp=2", "parallel.overlap=true"]),
    "cp2 ep2": (2, ["parallel.cp=2", "parallel.ep=2"]),
    "cp2 ep4, dp2": (4, ["parallel.cp=2", "parallel.ep=4"]),
    "cp2 tp2": (4, ["parallel.cp=2", "parallel.tp=2"]),
    "cp2 tp2 ep2": (4, ["parallel.cp=2", "parallel.tp=2", "parallel.ep=2"]),
    "cp2 pp2": (4, ["parallel.cp=2", "parallel.pp=2"]),
    "cp2 pp2 ep2, interleaved, recompute": (
        4,
        [f"parallel.{key}=2" for key in ("cp", "pp", "ep", "vpp")] + ["parallel.recompute=full"],
    ),
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """One process; all rows are one batch."""
    folder = tmp_path_factory.mktemp("oracle")
    return measure(1, SFT, list(ROWS.values()), 128, folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_are_one_processes(layout, oracle, tmp_path):
    world_size, overrides = LAYOUTS[layout]
    ours = measure(world_size, SFT + overrides, list(ROWS.values()), 128, tmp_path)
    assert ours["nll"] == pytest.approx(oracle["nll"], abs=1e-5)
    assert ours["grad_norm"] == pytest.approx(oracle["grad_norm"], rel=1e-5)
    assert_same_gradients(ours["gradients"], oracle["gradients"])
    torch.testing.assert_close(ours["router"], oracle["router"], rtol=1e-5, atol=1e-5)
    for row in range(len(ROWS)):
        for what in ("logp", "logits"):
            torch.testing.assert_close(ours[what][row], oracle[what][row], atol=1e-5, rtol=0)


PAIRS = random_pairs(9, seed=11)
DPO = [
    *TINY,
    "loss.head=dpo",
    "loss.preference.beta=0.5",
    "loss.sources.second={format_only: true, kind: ipo, nll_coeff: 0.5}",
    "loss.aux_coeff=0.5",
]


@pytest.fixture(scope="module")
def pairs_oracle(tmp_path_factory):
    rows = [sum(PAIRS[:4], []), sum(PAIRS[4:8], []), PAIRS[8], []]
    return rows, measure(1, DPO, rows, 256, tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize(
    "layout", ["cp2", "cp4", "cp2 tp2 ep2", "cp2 pp2 ep2, interleaved, recompute"]
)
def test_preference_is_one_processes(layout, pairs_oracle, tmp_path):
    """Answers that cross chunks: their sums need every rank's tokens."""
    world_size, overrides = LAYOUTS[layout]
    rows, oracle = pairs_oracle
    ours = measure(world_size, DPO + overrides, rows, 256, tmp_path)
    assert ours["report"] == pytest.approx(oracle["report"], abs=2e-5, rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(oracle["grad_norm"], rel=1e-5)
    assert_same_gradients(ours["gradients"], oracle["gradients"])
    for row in range(len(rows)):
        torch.testing.assert_close(ours["sums"][row], oracle["sums"][row], atol=1e-5, rtol=0)


HEADS = (4, 2, 2)  # of queries, keys, values


def tensors(tokens, seed):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, heads, 8, generator=g, dtype=torch.float64) for heads in HEADS]


def attend_here(lengths):
    """This rank's part of attention and of its gradients, put together by every rank."""
    layout = ParallelConfig(cp=parallel.world_size())
    with parallel.process_groups(layout, platform.prepare(), seed=1):
        group = context_group()
        tokens = sum(lengths)
        leaves = [x.requires_grad_() for x in tensors(tokens, 1)]
        own = [context.own(x, group) for x in leaves]
        place = context.Context.of(lengths, group, torch.device("cpu"))
        sdpa = functools.partial(packed_attention, backend="sdpa")
        out = context.attend(*own, place, sdpa)
        (out * context.own(tensors(tokens, 2)[0], group)).sum().backward()
        found = [context.whole(out.detach(), group)]
        # Of a leaf, every rank has the gradient of its own tokens and zeros elsewhere.
        for leaf in leaves:
            dist.all_reduce(leaf.grad)
            found.append(leaf.grad)
        return found


def context_group():
    from megatron.core import parallel_state

    return parallel_state.get_context_parallel_group()


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "lengths",
    [[64], [16, 16, 32], [1] * 64, [5, 20, 1, 30, 8], [63, 1], [1, 63], [31, 2, 31]],
    ids=str,
)
def test_attention_is_that_of_the_whole_row(size, lengths, tmp_path):
    """float64; oracle: one attention over the row, whose own test has the definition."""
    leaves = [x.requires_grad_() for x in tensors(64, 1)]
    whole = Segments.of_lengths(lengths, lengths, "cpu")
    out = packed_attention(*leaves, whole, "sdpa")
    (out * tensors(64, 2)[0]).sum().backward()
    expected = [out.detach(), *(leaf.grad for leaf in leaves)]
    for found in ranks.run(size, attend_here, lengths, folder=tmp_path):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


class Noted:
    """torch.distributed, with a note of when a collective begins and when it is waited for."""

    def __init__(self, real, notes):
        self.real, self.notes = real, notes

    def __getattr__(self, name):
        return getattr(self.real, name)

    def _begin(self, what, halves, call):
        again = any(note.startswith(f"{what} ") for note in self.notes)
        name, notes = f"{what} {halves[again]}", self.notes
        notes.append(name)
        work = call()

        class Work:
            def wait(self):
                notes.append(f"{name}, waited for")
                return work.wait()

        return Work()

    def all_gather_into_tensor(self, *given, **options):
        call = functools.partial(self.real.all_gather_into_tensor, *given, **options)
        return self._begin("gather", ("early", "late"), call)

    def reduce_scatter_tensor(self, *given, **options):
        call = functools.partial(self.real.reduce_scatter_tensor, *given, **options)
        return self._begin("scatter", ("late", "early"), call)


class Attention(torch.autograd.Function):
    """Notes its forward and its backward, and hands the first of its queries on."""

    @staticmethod
    def forward(ctx, q, k, v, notes):
        ctx.notes, ctx.shapes = notes, (k.shape, v.shape)
        notes.append("attention")
        return q.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.notes.append("attention's gradient")
        return grad, *(grad.new_zeros(shape) for shape in ctx.shapes), None


def order_of_events():
    notes = []
    with parallel.process_groups(ParallelConfig(cp=2), platform.prepare(), seed=1):
        group = context_group()
        context.dist = Noted(dist, notes)
        leaves = [x.requires_grad_() for x in tensors(64, 1)]
        place = context.Context.of([64], group, torch.device("cpu"))
        own = [context.own(x, group) for x in leaves]
        out = context.attend(*own, place, lambda q, k, v, _: Attention.apply(q, k, v, notes))
        out.sum().backward()
        return notes


def test_what_travels_while_attention_works(tmp_path):
    """The late half comes while the first chunk attends, and its gradients go meanwhile."""
    for notes in ranks.run(2, order_of_events, folder=tmp_path):
        assert notes == [
            "gather early",
            "gather late",
            "gather early, waited for",
            "attention",
            "gather late, waited for",
            "attention",
            "attention's gradient",
            "scatter late",
            "attention's gradient",
            "scatter early",
            "scatter late, waited for",
            "scatter early, waited for",
        ]
