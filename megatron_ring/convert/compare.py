"""Do two checkpoints compute the same function? Logits side by side, with routing pinned."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_ring.config import ModelConfig, read_hf_config
from megatron_ring.convert import reference
from megatron_ring.convert.folder import read_ring
from megatron_ring.convert.sources import HFFolder, MegatronSource

# (tokens_S, experts to use [L, S, K] or None) -> (logits_SV in fp32, own choice of experts_LSK)
Score = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


class Comparison(NamedTuple):
    """Two models on the same tokens. Differences are of logits, in fp32."""

    pinned: float  # largest difference when the second uses the first one's experts
    free: float  # largest difference when each chooses its own
    flip_rate: float  # share of the first one's (token, expert) choices the second does not make
    largest: float  # largest |logit| of the first: the scale of the differences


def compare(first: Score, second: Score, tokens_S: Tensor) -> Comparison:
    """Pinned, a difference is an error of conversion. Free, near-equal experts may flip: that
    says how sensitive the model is to rounding, not that something is wrong."""
    logits_SV, routed_LSK = first(tokens_S, None)
    pinned_SV, _ = second(tokens_S, routed_LSK)
    free_SV, own_LSK = second(tokens_S, None)
    kept_LSK = (routed_LSK[..., :, None] == own_LSK[..., None, :]).any(dim=-1)
    kept = kept_LSK[routed_LSK >= 0]  # layers without experts have -1
    return Comparison(
        pinned=(pinned_SV - logits_SV).abs().max().item(),
        free=(free_SV - logits_SV).abs().max().item(),
        flip_rate=1 - kept.float().mean().item() if kept.numel() else 0.0,
        largest=logits_SV.abs().max().item(),
    )


def score_hf_folder(folder: Path) -> Score:
    """A Hugging Face folder through the reference."""
    return _through_reference(HFFolder(folder).read, read_hf_config(folder))


def score_megatron_checkpoint(folder: Path) -> Score:
    """A Megatron checkpoint through the reference, one tensor in memory at a time.

    Shows that every row is where the table says; whether Megatron's model means the same by its
    tensors, only that model can show.
    """
    model, _ = read_ring(folder)
    return _through_reference(MegatronSource(folder, model).read, model)


def sample_tokens(vocab_size: int, count: int) -> Tensor:
    """Tokens [count] drawn with a fixed seed: any function of the weights shows on any tokens."""
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(0))


def _through_reference(read: reference.Read, model: ModelConfig) -> Score:
    def score(tokens_S: Tensor, pinned_LSK: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = reference.hidden_states(read, model, tokens_S, pinned_LSK=pinned_LSK)
        return reference.logits(read, model, hidden.hidden_SD), hidden.routed_LSK

    return score
