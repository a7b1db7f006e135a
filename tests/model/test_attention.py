"""Packed attention against one dense softmax with a mask, and rotary angles against complex."""

import re

import numpy as np
import pytest
import torch

from megatron_ring.config import ConfigError
from megatron_ring.data.rows import make_row
from megatron_ring.kernels.rotary import rotate
from megatron_ring.model.attention import Packing, choose_backend, rotary_angles, sdpa

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def packing(lengths, width=8, theta=1e4):
    positions = torch.cat([torch.arange(n) for n in lengths])
    cu = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    return Packing(cu, lengths, *rotary_angles(positions, width, theta))


def dense(q, k, v, lengths):
    """[S, S] scores; a position sees itself and what precedes it in its own document."""
    S, H, R = q.shape
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    sees = (document[:, None] == document) & torch.ones(S, S, dtype=torch.bool).tril()
    out = torch.empty_like(q)
    for h in range(H):
        g = h // (H // k.shape[1])
        scores = (q[:, h] @ k[:, g].T / R**0.5).masked_fill(~sees, -torch.inf)
        out[:, h] = scores.softmax(-1) @ v[:, g]
    return out


def random_qkv(S, heads, groups, dtype, R=8):
    g = torch.Generator().manual_seed(S + heads)
    return [
        torch.randn(S, n, R, generator=g).to(dtype).requires_grad_()
        for n in (heads, groups, groups)
    ]


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("lengths", [[17], [1], [5, 1, 9, 1, 1, 3], [1] * 6], ids=str)
def test_documents_attend_to_themselves_alone(lengths, heads, groups):
    """Values and all gradients; documents of one token, of all tokens, grouped heads."""
    qkv = random_qkv(sum(lengths), heads, groups, torch.float32)
    out = sdpa(*qkv, packing(lengths))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((out * weights).sum(), qkv)

    exact = [x.detach().double().requires_grad_() for x in qkv]
    expected = dense(*exact, lengths)
    expected_grads = torch.autograd.grad((expected * weights).sum(), exact)
    for a, b in zip([out, *grads], [expected, *expected_grads], strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-6, rtol=1e-5)


def test_a_document_of_one_token_is_its_value():
    q, k, v = random_qkv(4, 4, 2, torch.float32)
    out = sdpa(q, k, v, packing([1, 1, 1, 1]))
    torch.testing.assert_close(out, v.repeat_interleave(2, dim=1))


def test_large_scores_overflow_nothing():
    """A query of 10^4 along its own key: all weight on that token."""
    q = torch.full((3, 1, 8), 1e4)
    k = torch.stack([torch.full((1, 8), float(s)) for s in (1, -1, 2)])
    v = torch.arange(3.0)[:, None, None].expand(3, 1, 8)
    assert sdpa(q, k, v, packing([3]))[:, 0, 0].tolist() == [0.0, 0.0, 2.0]


@pytest.mark.parametrize("theta", [1e4, 6e5])
def test_rotation_is_multiplication_by_a_complex_number(theta):
    """Channels i and i + R/2 as one number, times e^(i · position · theta^(-2i/R)); float64."""
    S, R = 400, 32
    x = torch.randn(S, 3, R, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary_angles(torch.arange(S), R, theta)
    got = rotate(x, cos, sin)

    x = x.double()
    frequency = theta ** (-torch.arange(R // 2, dtype=torch.float64) * 2 / R)
    turn = torch.polar(torch.ones(S, R // 2).double(), torch.arange(S)[:, None] * frequency)
    number = torch.complex(x[..., : R // 2], x[..., R // 2 :]) * turn[:, None]
    expected = torch.cat([number.real, number.imag], -1)
    # Angles up to 400 have fp32's 400 × 2^-24 = 2.4e-5, times |x| < 5.
    torch.testing.assert_close(got.double(), expected, atol=1.2e-4, rtol=0)
    torch.testing.assert_close(got[0], x[0].float())  # position 0 is not turned


def test_positions_restart_and_only_their_differences_count():
    """A document's attention is the same at the start of a row, later in it, or restarted."""
    documents = [(np.ones(n, np.int32), np.ones(n, bool)) for n in (3, 6)]
    row = make_row(documents, row_tokens=12, pad_id=0)
    assert row.positions_S.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1, 2]

    q, k, v = random_qkv(6, 2, 2, torch.float64)
    results = []
    for start in (0, 3, 1000):
        cos, sin = rotary_angles(torch.arange(start, start + 6), 8, 1e4)
        where = Packing(torch.tensor([0, 6]), [6], cos, sin)
        results.append(sdpa(rotate(q, cos, sin), rotate(k, cos, sin), v, where))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(results[2], results[0], atol=1e-3, rtol=1e-3)  # 1000 in fp32


def test_rotation_keeps_bf16_but_turns_in_fp32():
    x = torch.randn(50, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    where = packing([50])
    got = rotate(x, where.cos_SR, where.sin_SR)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, rotate(x.float(), where.cos_SR, where.sin_SR).bfloat16())


def test_auto_takes_what_there_is():
    assert choose_backend("auto", CPU, torch.float32) == "sdpa"
    assert choose_backend("auto", CPU, torch.bfloat16) == "sdpa"
    assert choose_backend("auto", CUDA, torch.float32) == "sdpa"
    assert choose_backend("auto", CUDA, torch.bfloat16) == "varlen"
    assert choose_backend("sdpa", CUDA, torch.bfloat16) == "sdpa"


@pytest.mark.parametrize(
    ("name", "device", "dtype", "message"),
    [
        (
            "te",
            CUDA,
            torch.bfloat16,
            "attention.backend=te is not offered: TransformerEngine's packed attention has not "
            "been run with this program; use attention.backend=auto",
        ),
        (
            "varlen",
            CPU,
            torch.float32,
            "attention.backend=varlen needs CUDA, bf16 and torch >= 2.10; this run has cpu, "
            f"torch.float32 and torch {torch.__version__}; use attention.backend=sdpa",
        ),
        (
            "varlen",
            CUDA,
            torch.float32,
            "attention.backend=varlen needs CUDA, bf16 and torch >= 2.10; this run has cuda, "
            f"torch.float32 and torch {torch.__version__}; use attention.backend=sdpa",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(name, device, dtype, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        choose_backend(name, device, dtype)
