"""Drawing a token: frequencies against probabilities, and the numbers that decide."""

import hashlib
import re

import pytest
import torch

from megatron_ring.sampling.draw import How, draw, uniform

LOGITS = torch.tensor([0.0, 2.0, -torch.inf, 1.0, 1.5])


def frequencies(how, count=4000):
    places = [(prompt, sample, 9) for prompt in range(count // 4) for sample in range(4)]
    drawn = torch.tensor(draw(LOGITS.expand(count, -1), how, places))
    return drawn.bincount(minlength=5) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_probabilities(temperature):
    expected = (LOGITS / temperature).softmax(-1)
    found = frequencies(How(temperature=temperature))
    spread = (expected * (1 - expected) / 4000).sqrt()
    assert ((found - expected).abs() <= 4.5 * spread).all()
    assert found[2] == 0


def test_top_p_keeps_the_likeliest_that_reach_it():
    """Tokens 1, 4, 3, 0 have 7.39, 4.48, 2.72 and 1 of 15.59: they reach 0.47, 0.76, 0.94, 1."""
    p = LOGITS.softmax(-1)
    for top_p, kept in ((0.4, [1]), (0.75, [1, 4]), (0.77, [1, 4, 3]), (0.99, [1, 4, 3, 0])):
        expected = torch.zeros(5)
        expected[kept] = p[kept] / p[kept].sum()
        found = frequencies(How(temperature=1.0, top_p=top_p))
        assert (found > 0).nonzero()[:, 0].tolist() == sorted(kept)
        spread = (expected * (1 - expected) / 4000).sqrt()
        assert ((found - expected).abs() <= 4.5 * spread).all()


def test_without_temperature_it_is_the_likeliest():
    assert draw(LOGITS[None].expand(2, -1), How(), [(0, 0, 0), (1, 0, 0)]) == [1, 1]


def test_numbers_are_uniform_and_each_part_of_the_place_counts():
    numbers = torch.tensor(
        [uniform(0, p, s, t) for p in range(20) for s in range(20) for t in range(10)],
        dtype=torch.float64,
    )
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert numbers.unique().numel() == 4000
    counts = (numbers * 10).long().bincount(minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 33.7  # chi-square, 9 degrees, 1 in 10,000
    one = uniform(1, 2, 3, 4)
    assert one == uniform(1, 2, 3, 4)
    changed = [uniform(9, 2, 3, 4), uniform(1, 9, 3, 4), uniform(1, 2, 9, 4), uniform(1, 2, 3, 9)]
    assert len({one, *changed}) == 5
    key = b"".join(n.to_bytes(8, "little") for n in (1, 2, 3, 4))
    digest = hashlib.blake2b(key, digest_size=8).hexdigest()
    assert one == int(bytes.fromhex(digest)[::-1].hex()[:13], 16) / 16**13 == 0.8237397162346505


def test_the_largest_number_takes_the_last_token_that_can_be(monkeypatch):
    """Also where rounding is worst: the sum of float64 probabilities may be above or below 1."""
    monkeypatch.setattr("megatron_ring.sampling.draw.uniform", lambda *_: 1 - 2**-52)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 50, generator=generator)
    logits[:, 40:] = -torch.inf
    assert draw(logits, How(temperature=1.0), [(0, 0, 0)] * 200) == [39] * 200


def test_the_smallest_number_takes_the_first_token_that_can_be(monkeypatch):
    monkeypatch.setattr("megatron_ring.sampling.draw.uniform", lambda *_: 0.0)
    logits = torch.tensor([[-torch.inf, -torch.inf, 1.0, 2.0]])
    assert draw(logits, How(temperature=1.0), [(0, 0, 0)]) == [2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"temperature": -1}, "temperature=-1 must be 0 or more"),
        ({"top_p": 0}, "top_p=0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"seed": 2**63}, f"seed={2**63} must be a number of 64 bits"),
        ({"stop": ("a", "")}, "stop=['a', ''] must be texts of at least one character"),
    ],
)
def test_numbers_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        How(**given)
