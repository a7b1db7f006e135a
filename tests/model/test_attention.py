"""Rotary angles against complex numbers, and what they do to attention inside documents."""

import numpy as np
import pytest
import torch

from megatron_ring.data.rows import make_row
from megatron_ring.kernels.attention import Segments, packed_attention
from megatron_ring.kernels.rotary import rotate
from megatron_ring.model.attention import rotary_angles


def random_qkv(S, heads, groups, dtype, R=8):
    g = torch.Generator().manual_seed(S + heads)
    return [
        torch.randn(S, n, R, generator=g).to(dtype).requires_grad_()
        for n in (heads, groups, groups)
    ]


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
        turned = rotate(q, cos, sin), rotate(k, cos, sin)
        results.append(packed_attention(*turned, v, Segments.of_lengths([6], [6], "cpu"), "sdpa"))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(results[2], results[0], atol=1e-3, rtol=1e-3)  # 1000 in fp32


def test_rotation_keeps_bf16_but_turns_in_fp32():
    x = torch.randn(50, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    angles = rotary_angles(torch.arange(50), 8, 1e4)
    got = rotate(x, *angles)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, rotate(x.float(), *angles).bfloat16())
