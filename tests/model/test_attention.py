"""Rotary angles against complex numbers, and what they do to attention inside documents."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_ring.config import RopeScaling
from megatron_ring.data.rows import make_row
from megatron_ring.kernels.attention import Segments, packed_attention
from megatron_ring.kernels.rotary import rotate
from megatron_ring.model.attention import rotary_angles, yarn, yarn_length


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


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SCALINGS = {
    "Ling-lite-1.5": YARN,
    "factor 1": YARN | {"factor": 1.0},
    "factor 40": YARN | {"factor": 40.0, "original_max_position_embeddings": 4096},
    "short": YARN | {"original_max_position_embeddings": 64},
    "long": YARN | {"original_max_position_embeddings": 131072},  # all turn, at 1e4
    "betas": YARN | {"beta_fast": 16, "beta_slow": 2},
    "betas alike": YARN | {"beta_fast": 8, "beta_slow": 8},
    "attention factor": YARN | {"attention_factor": 0.9},
    "mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 1.0},
}


@pytest.mark.parametrize(("head_size", "theta"), [(128, 6e5), (16, 6e5), (64, 1e4)])
@pytest.mark.parametrize("name", SCALINGS)
def test_yarn_is_that_of_transformers(name, head_size, theta):
    given = {key: value for key, value in SCALINGS[name].items() if key != "type"}
    config = LlamaConfig(
        hidden_size=4 * head_size,
        num_attention_heads=4,
        head_dim=head_size,
        rope_theta=theta,
        max_position_embeddings=int(given["factor"] * given["original_max_position_embeddings"]),
        rope_scaling={"rope_type": "yarn", **given},
    )
    expected, length = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    scaling = RopeScaling.model_validate(SCALINGS[name])
    plain = theta ** -(torch.arange(0, head_size, 2).float() / head_size)
    torch.testing.assert_close(yarn(plain, theta, scaling), expected, rtol=1e-6, atol=0)
    assert yarn_length(scaling) == pytest.approx(length, rel=1e-12)

    cos, sin = rotary_angles(torch.arange(300), head_size, theta, scaling)
    angles = torch.arange(300.0)[:, None] * expected
    angles = torch.cat([angles, angles], -1)[:, None]
    torch.testing.assert_close(cos, angles.cos() * length, atol=1e-4, rtol=0)
    torch.testing.assert_close(sin, angles.sin() * length, atol=1e-4, rtol=0)


def test_yarn_is_that_of_the_paper():
    """arXiv 2309.00071: turns r = L · f / 2π; over 32 of them f stays, below one it is f / s.

    Between the two the paper weighs by r, its code and everyone's by the channel's number: there
    only the order of channels and the bounds are common. √(1/t) = 0.1 ln s + 1.
    """
    theta, original, factor = 6e5, 32768, 4.0
    scaling = RopeScaling.model_validate(YARN)
    plain = [theta ** (-2 * i / 128) for i in range(64)]
    turns = [original * f / (2 * math.pi) for f in plain]
    ratio = yarn(torch.tensor(plain), theta, scaling) / torch.tensor(plain)
    fast = sum(r > 32 for r in turns)
    slow = sum(r < 1 for r in turns)
    assert (fast, slow) == (25, 22)
    assert ratio[:fast].tolist() == [1.0] * fast
    assert ratio[64 - slow :].tolist() == pytest.approx([1 / factor] * slow)
    between = ratio[fast - 1 : 64 - slow + 1]
    assert (between.diff() < 0).all()
    # Channel 24 is the last to stay, 42 the first that is slowed in full; halfway 33 of them.
    assert ratio[33].item() == pytest.approx((1 + 1 / factor) / 2)
    assert yarn_length(scaling) == pytest.approx(0.1 * math.log(4) + 1)


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
