"""The next token from its logits: the likeliest, or drawn by a key that names the place.

Letters: N documents · V vocabulary.
"""

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class How:
    """How answers are drawn and where they end. ValueError names a number that cannot be."""

    max_tokens: int = 256  # of an answer
    temperature: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0  # only the likeliest tokens that together have this probability
    seed: int = 0
    stop: tuple[str, ...] = ()  # an answer ends before the first of these

    def __post_init__(self) -> None:
        for name, value, right, what in (
            ("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", self.seed, abs(self.seed) < 2**63, "a number of 64 bits"),
            ("stop", list(self.stop), all(self.stop), "texts of at least one character"),
        ):
            if not right:
                raise ValueError(f"{name}={value} must be {what}")


def uniform(seed: int, prompt: int, sample: int, position: int) -> float:
    """A number in [0, 1) that these four decide and nothing else: 52 bits of their hash.

    So a token does not depend on which documents are answered beside it, nor on which ranks.
    """
    key = struct.pack("<4q", seed, prompt, sample, position)
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 12) / 2**52


def draw(logits_NV: Tensor, how: How, places: list[tuple[int, int, int]]) -> list[int]:
    """One token a document; `places` are (prompt, sample, position) of each.

    Where the cumulated probability, in float64, first exceeds the place's number. With `top_p` the
    tokens are sorted before, and those are left out before which `top_p` is reached.
    """
    if how.temperature == 0:
        return logits_NV.argmax(-1).tolist()
    p_NV = (logits_NV.double() / how.temperature).softmax(-1)
    order_NV = None
    if how.top_p < 1:
        p_NV, order_NV = p_NV.sort(dim=-1, descending=True, stable=True)
        p_NV = p_NV * (p_NV.cumsum(-1) - p_NV < how.top_p)
    reached_NV = p_NV.cumsum(-1)
    u_N = [uniform(how.seed, *place) for place in places]
    u_N1 = torch.tensor(u_N, dtype=torch.float64, device=p_NV.device)[:, None]
    # Of 52 bits, a number below 1 stays below the sum after rounding: a token of probability 0,
    # whose sum is that of the token before it, is never the first to exceed.
    at_N1 = torch.searchsorted(reached_NV, u_N1 * reached_NV[:, -1:], right=True)
    chosen_N1 = at_N1 if order_NV is None else order_NV.gather(1, at_N1)
    return chosen_N1[:, 0].tolist()
