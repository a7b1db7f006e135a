"""Packed attention against its definition, one query after the other, in float64."""

import re
import sys
import types

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from megatron_ring.config import ConfigError
from megatron_ring.kernels import attention
from megatron_ring.kernels.attention import Segments, choose_backend, packed_attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEADS = [(4, 4), (4, 2), (8, 2), (6, 1)]
ROWS = {
    "one document": ([17], [17]),
    "one token": ([1], [1]),
    "many documents": ([5, 1, 9, 1, 1, 3], [5, 1, 9, 1, 1, 3]),
    "documents of one token": ([1] * 6, [1] * 6),
    "last queries only": ([4, 1, 3], [9, 6, 3]),
    "nothing here of the first": ([0, 5, 0, 2], [7, 5, 3, 4]),
    "nothing of the last": ([3, 0, 0], [8, 2, 0]),
    "several blocks": ([130, 1, 0, 200], [400, 1, 90, 260]),
}


def definition(q, k, v, q_lengths, k_lengths):
    """Query i of len_q sees keys 0 ... len_k - len_q + i of its segment."""
    outs, q_at, k_at = [], 0, 0
    share = q.shape[1] // k.shape[1]
    for len_q, len_k in zip(q_lengths, k_lengths, strict=True):
        for i in range(len_q):
            seen = slice(k_at, k_at + len_k - len_q + i + 1)
            heads = []
            for h in range(q.shape[1]):
                scores = k[seen, h // share] @ q[q_at + i, h] / q.shape[2] ** 0.5
                heads.append(scores.softmax(0) @ v[seen, h // share])
            outs.append(torch.stack(heads))
        q_at, k_at = q_at + len_q, k_at + len_k
    return torch.stack(outs)


def random_qkv(lengths, heads, groups, dtype=torch.float32, R=8):
    S, T = sum(lengths[0]), sum(lengths[1])
    g = torch.Generator().manual_seed(S + T + heads)
    shapes = [(S, heads), (T, groups), (T, groups)]
    return [torch.randn(*s, R, generator=g).to(dtype).requires_grad_() for s in shapes]


def values_and_gradients(attend, qkv):
    out = attend(*qkv)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), qkv)]


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize("row", ROWS)
def test_values_and_gradients_are_those_of_the_definition(row, heads, groups):
    lengths = ROWS[row]
    qkv = random_qkv(lengths, heads, groups)
    segments = Segments.of_lengths(*lengths, CPU)
    found = values_and_gradients(lambda *x: packed_attention(*x, segments, "sdpa"), qkv)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    expected = values_and_gradients(lambda *x: definition(*x, *lengths), exact)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=4e-6, rtol=1e-5)


@pytest.fixture
def dynamo():
    """FlexAttention needs it, also eagerly; platform.prepare has none of it on a CPU."""
    with torch._dynamo.config.patch(disable=False):
        yield torch._dynamo


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 2)])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_sees_what_the_definition_sees(row, heads, groups):
    """Forward only: torch has no backward of FlexAttention on a CPU."""
    lengths = ROWS[row]
    qkv = [x.detach() for x in random_qkv(lengths, heads, groups)]
    found = packed_attention(*qkv, Segments.of_lengths(*lengths, CPU), "flex")
    expected = definition(*(x.double() for x in qkv), *lengths)
    torch.testing.assert_close(found.double(), expected, atol=4e-6, rtol=1e-5)


@pytest.mark.slow
def test_compiled_flex_has_one_kernel_for_all_rows_of_a_size(dynamo):
    """What documents a row has is data, not code. Forward, compiled for the CPU (C++)."""
    counters = dynamo.utils.counters
    rows = [([512], [512]), ([100, 412], [100, 412]), ([1] * 512, [1] * 512)]
    more = [([300, 0, 200], [500, 10, 400]), ([30, 11, 480], [530, 11, 480])]
    for lengths in rows + more:
        segments = Segments.of_lengths(*lengths, CPU)
        qkv = [x.detach() for x in random_qkv(lengths, 4, 2, R=64)]
        given = (x.transpose(0, 1)[None] for x in qkv)
        found = attention._compiled_flex()(*given, block_mask=segments.block_mask, enable_gqa=True)
        expected = packed_attention(*qkv, segments, "sdpa")
        torch.testing.assert_close(found[0].transpose(0, 1), expected, atol=4e-6, rtol=1e-5)
        if lengths == rows[0]:
            kernels = counters["stats"]["unique_graphs"]
        elif lengths in rows:
            assert counters["stats"]["unique_graphs"] == kernels


@pytest.mark.parametrize("row", [*ROWS, "long"])
def test_block_mask_is_the_one_made_of_all_pairs(row):
    """Blocks taken without asking are the same; blocks to ask may be more, but never fewer."""
    lengths = ROWS.get(row, ([300, 0, 500, 128], [700, 200, 500, 256]))
    segments = Segments.of_lengths(*lengths, CPU)
    ours = segments.block_mask
    assert segments.block_mask is ours, "made for each layer anew"
    S, T = sum(lengths[0]), sum(lengths[1])
    theirs = create_block_mask(ours.mask_mod, None, None, S, T, device="cpu")

    def blocks(mask, kind):
        """Blocks × blocks, whether they are of that kind."""
        counts, which = getattr(mask, f"{kind}_num_blocks"), getattr(mask, f"{kind}_indices")
        table = torch.zeros(-(-S // 128), -(-T // 128), dtype=torch.bool)
        for i, (count, order) in enumerate(zip(counts[0, 0], which[0, 0], strict=True)):
            table[i, order[:count].long()] = True
        return table

    assert torch.equal(blocks(ours, "full_kv"), blocks(theirs, "full_kv"))
    extra = blocks(ours, "kv") & ~blocks(theirs, "kv")
    assert not (blocks(theirs, "kv") & ~blocks(ours, "kv")).any()
    assert not extra.any() or 0 in lengths[0]
    assert torch.equal(ours.q_num_blocks.sum(), ours.kv_num_blocks.sum())
    if row == "long":
        assert blocks(ours, "full_kv").any() and not blocks(ours, "kv").all()


def test_each_query_knows_its_range_of_keys():
    first, end = Segments.of_lengths([2, 0, 1, 3], [4, 5, 1, 3], CPU).seen()
    assert first.tolist() == [0, 0, 9, 10, 10, 10]
    assert end.tolist() == [3, 4, 10, 11, 12, 13]


def test_segments_of_a_row_are_those_of_its_lengths():
    cu = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    row, lengths = Segments.of_row(cu, [3, 0, 4]), Segments.of_lengths([3, 0, 4], [3, 0, 4], CPU)
    for a, b in ((row.q_cu, lengths.q_cu), (row.k_cu, lengths.k_cu)):
        assert torch.equal(a, b) and b.dtype == torch.int32


def test_segments_that_cannot_be():
    with pytest.raises(AssertionError, match=re.escape("segments: [(3, 2)]")):
        Segments.of_lengths([3], [2], CPU)
    qkv = random_qkv(([3], [3]), 2, 2)
    with pytest.raises(AssertionError, match="3 queries, 3 keys, 3 values; segments of 3 and 5"):
        packed_attention(*qkv, Segments.of_lengths([3], [5], CPU), "sdpa")


def test_keys_that_no_query_sees_have_no_gradient():
    lengths = ([0, 2, 0], [5, 3, 4])
    qkv = random_qkv(lengths, 4, 2)
    segments = Segments.of_lengths(*lengths, CPU)
    _, _, dk, dv = values_and_gradients(lambda *x: packed_attention(*x, segments, "sdpa"), qkv)
    for gradient in (dk, dv):
        assert (gradient[:5] == 0).all() and (gradient[8:] == 0).all()
        assert (gradient[5:8] != 0).all()


def test_a_document_of_one_token_is_its_value():
    q, k, v = random_qkv(([1] * 4, [1] * 4), 4, 2)
    out = packed_attention(q, k, v, Segments.of_lengths([1] * 4, [1] * 4, CPU), "sdpa")
    torch.testing.assert_close(out, v.repeat_interleave(2, dim=1))


def test_large_scores_overflow_nothing():
    """A query of 10^4 along its own key: all weight on that token."""
    q = torch.full((3, 1, 8), 1e4)
    k = torch.stack([torch.full((1, 8), float(s)) for s in (1, -1, 2)])
    v = torch.arange(3.0)[:, None, None].expand(3, 1, 8)
    out = packed_attention(q, k, v, Segments.of_lengths([3], [3], CPU), "sdpa")
    assert out[:, 0, 0].tolist() == [0.0, 0.0, 2.0]


def test_halves_of_a_row_are_the_row():
    """The second half of a document sees the first half's keys; the first half sees its own."""
    q, k, v = random_qkv(([11, 9], [11, 9]), 4, 2)
    whole = packed_attention(q, k, v, Segments.of_lengths([11, 9], [11, 9], CPU), "sdpa")
    first = Segments.of_lengths([10], [10], CPU)
    second = Segments.of_lengths([1, 9], [11, 9], CPU)
    halves = [
        packed_attention(q[:10], k[:10], v[:10], first, "sdpa"),
        packed_attention(q[10:], k, v, second, "sdpa"),
    ]
    torch.testing.assert_close(torch.cat(halves), whole)


class Watched(torch.autograd.Function):
    """q + k + v, and whether the flag is set while it runs."""

    flags: list[bool] = []

    @staticmethod
    def forward(ctx, *qkv):
        Watched.flags.append(torch.are_deterministic_algorithms_enabled())
        return sum(qkv)

    @staticmethod
    def backward(ctx, grad):
        Watched.flags.append(torch.are_deterministic_algorithms_enabled())
        return grad, grad, grad


@pytest.mark.parametrize("fails", [False, True])
def test_deterministic_sets_torchs_flag_for_the_backward_of_attention_alone(fails, monkeypatch):
    def attend(q, k, v, segments):
        out = Watched.apply(q, k, v)
        if fails:
            out.register_hook(lambda grad: 1 / 0)
        return out

    monkeypatch.setattr(attention, "sdpa", attend)
    monkeypatch.setattr(Watched, "flags", [])
    qkv = random_qkv(([3], [3]), 2, 2)
    segments = Segments.of_lengths([3], [3], CPU)
    around = []
    out = packed_attention(*qkv, segments, "sdpa", deterministic=True) * 2
    out.register_hook(lambda grad: around.append(torch.are_deterministic_algorithms_enabled()))
    if fails:
        with pytest.raises(ZeroDivisionError):
            out.sum().backward()
    else:
        out.sum().backward()
        assert all((x.grad == 2).all() for x in qkv)
    assert Watched.flags == ([False] if fails else [False, True])
    assert around == [False] and not torch.are_deterministic_algorithms_enabled()


def test_deterministic_changes_no_number_and_keeps_a_flag_that_was_set():
    lengths = ROWS["last queries only"]
    segments = Segments.of_lengths(*lengths, CPU)
    qkv = random_qkv(lengths, 8, 2)
    qkv[2] = qkv[2].detach()  # a part that learns nothing

    def run(deterministic):
        out = packed_attention(*qkv, segments, "sdpa", deterministic)
        return [out, *torch.autograd.grad(out.square().sum(), qkv[:2])]

    plain = run(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        ours = run(True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    with torch.no_grad():
        assert torch.equal(packed_attention(*qkv, segments, "sdpa", True), plain[0])


@pytest.mark.parametrize("spelling", ["2.10", "2.11", "2.12"])
def test_varlen_is_called_as_its_release_wants_it(spelling, monkeypatch):
    """Causality and grouped heads have changed names; a stand-in, since torch's needs CUDA."""
    lengths = ROWS["nothing here of the first"]
    segments = Segments.of_lengths(*lengths, CPU)
    qkv = random_qkv(lengths, 4, 2)

    def attend(q, k, v, q_cu, k_cu, max_q, max_k):
        assert (max_q, max_k) == (5, 7) and q.shape[1] == k.shape[1] == v.shape[1]
        own = Segments(q_cu, k_cu, q_cu.diff().tolist(), k_cu.diff().tolist())
        return packed_attention(q, k, v, own, "sdpa")

    def v210(query, key, value, cu_q, cu_k, max_q, max_k, is_causal=False, return_aux=None):
        assert is_causal
        return attend(query, key, value, cu_q, cu_k, max_q, max_k)

    def v211(query, key, value, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
        assert window_size == (-1, 0)
        return attend(query, key, value, cu_q, cu_k, max_q, max_k)

    def v212(
        query, key, value, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False
    ):
        assert window_size == (-1, 0) and enable_gqa and key.shape[1] == 2
        key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        return attend(query, key, value, cu_q, cu_k, max_q, max_k)

    module = types.ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = {"2.10": v210, "2.11": v211, "2.12": v212}[spelling]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = packed_attention(*qkv, segments, "varlen")
    torch.testing.assert_close(found, packed_attention(*qkv, segments, "sdpa"))


@pytest.mark.parametrize("returns_lse", [False, True])
def test_flash3_is_called_with_its_own_names(returns_lse, monkeypatch):
    """A stand-in again; older builds also return the log-sum-exp."""
    lengths = ROWS["last queries only"]
    segments = Segments.of_lengths(*lengths, CPU)
    qkv = random_qkv(lengths, 8, 2)

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        causal=False,
        deterministic=False,
    ):
        assert causal and deterministic and (max_seqlen_q, max_seqlen_k) == (4, 9)
        own = Segments(
            cu_seqlens_q, cu_seqlens_k, cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        )
        out = packed_attention(q, k, v, own, "sdpa")
        return (out, None) if returns_lse else out

    module = types.ModuleType("flash_attn_interface")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    found = packed_attention(*qkv, segments, "flash3", deterministic=True)
    torch.testing.assert_close(found, packed_attention(*qkv, segments, "sdpa"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is chosen depends on the GPU")
def test_auto_takes_what_there_is():
    untried = ", never run on a GPU before this release"
    for device, dtype, backend, why in (
        (CPU, torch.float32, "sdpa", "sdpa (auto: cpu)"),
        (CPU, torch.bfloat16, "sdpa", "sdpa (auto: cpu)"),
        (CUDA, torch.float32, "sdpa", "sdpa (auto: fp32)"),
        (CUDA, torch.bfloat16, "varlen", "varlen (auto: bf16 on CUDA)" + untried),
    ):
        assert choose_backend("auto", device, dtype) == (backend, why)
    assert choose_backend("sdpa", CUDA, torch.bfloat16) == ("sdpa", "sdpa (as configured)")


def test_auto_follows_the_table_of_gpus(monkeypatch):
    """Where what the table says cannot run, varlen; where that cannot either, sdpa."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(attention, "DEFAULTS", {"H100": "sdpa", "H200": "flash3"})
    there = {"flash3", "varlen", "sdpa"}
    monkeypatch.setattr(attention, "runs", lambda backend, device, dtype: backend in there)
    assert choose_backend("auto", CUDA, torch.bfloat16).why.startswith(
        "flash3 (auto: bf16 on NVIDIA H200)"
    )
    there.remove("flash3")
    assert choose_backend("auto", CUDA, torch.bfloat16).backend == "varlen"
    there.remove("varlen")
    assert choose_backend("auto", CUDA, torch.bfloat16).backend == "sdpa"


REFUSED = [
    ("varlen", "cpu", torch.float32, "CUDA, bf16 and torch >= 2.10"),
    ("varlen", "cuda", torch.float32, "CUDA, bf16 and torch >= 2.10"),
    ("flex", "cpu", torch.float32, "CUDA and Triton"),
    ("flash3", "cuda", torch.float32, "a Hopper GPU, bf16 and the package flash_attn_interface"),
]


@pytest.mark.parametrize(("name", "device", "dtype", "needs"), REFUSED)
def test_what_cannot_run_is_refused_with_the_reason(name, device, dtype, needs):
    message = (
        f"attention.backend={name} needs {needs}; this run has {device}, {dtype} and torch "
        f"{torch.__version__}; use attention.backend=sdpa"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        choose_backend(name, torch.device(device), dtype)


def test_transformer_engine_is_not_offered():
    message = (
        "attention.backend=te is not offered: TransformerEngine's packed attention has not been "
        "run with this program; use attention.backend=auto"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        choose_backend("te", CUDA, torch.bfloat16)
