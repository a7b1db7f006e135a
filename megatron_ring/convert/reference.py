"""Ling-Lite's forward pass in plain torch: an oracle, easy to read, slow, independent of megatron.

Written from the model's description (inclusionAI/Ling 5ccaeae, modeling_bailing_moe.py) and tested
against the authors' own numbers. Everything is fp32. Weights come one at a time through `read`,
by their Hugging Face names, so 16.8B parameters need the memory of the largest tensor.

    read = HFFolder(folder).read                      a Hugging Face folder
    read = MegatronSource(checkpoint, config).read    a Megatron checkpoint of any layout
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_ring.config import ModelConfig, RopeScaling
from megatron_ring.convert import ling

Read = Callable[[str], Tensor]
NORM_HEAD_EPS = 1e-7
HEAD_TOKENS = 512  # tokens whose logits exist at once in `token_logp`


class Hidden(NamedTuple):
    """The last hidden states [S, D], after the final norm, and the experts chosen [L, S, K].

    Layers without experts have -1 everywhere. K experts are in order of falling probability.
    """

    hidden_SD: Tensor
    routed_LSK: Tensor


@torch.no_grad()
def hidden_states(
    read: Read,
    c: ModelConfig,
    tokens_S: Tensor,
    cu_seqlens: list[int] | None = None,
    pinned_LSK: Tensor | None = None,
) -> Hidden:
    """Run the transformer over one row of documents.

    `cu_seqlens` are the documents' borders, [0, ..., S]; one document by default. `pinned_LSK`
    replaces the choice of experts (their probabilities are still this model's own), so that two
    models can be compared although a rounding error flips a choice between near-equal experts.
    """
    borders = cu_seqlens or [0, len(tokens_S)]
    positions_S = torch.cat([torch.arange(b - a) for a, b in zip(borders, borders[1:])])  # noqa: B905
    cos_SR, sin_SR = _rotary(c, positions_S)
    x_SD = read(ling.EMBEDDING)[tokens_S].float()
    routed_LSK = torch.full((c.num_hidden_layers, len(tokens_S), c.num_experts_per_tok), -1)
    for l in range(c.num_hidden_layers):  # noqa: E741
        at = f"model.layers.{l}."
        normed_SD = _norm(x_SD, read(f"{at}input_layernorm.weight"), c)
        x_SD = x_SD + _attention(read, c, at, normed_SD, cos_SR, sin_SR, borders)
        normed_SD = _norm(x_SD, read(f"{at}post_attention_layernorm.weight"), c)
        if l < c.first_k_dense_replace:
            x_SD = x_SD + _mlp(read, f"{at}mlp.", normed_SD)
            continue
        pinned_SK = None if pinned_LSK is None else pinned_LSK[l]
        out_SD, routed_LSK[l] = _moe(read, c, f"{at}mlp.", normed_SD, pinned_SK)
        x_SD = x_SD + out_SD
    return Hidden(_norm(x_SD, read("model.norm.weight"), c), routed_LSK)


@torch.no_grad()
def logits(read: Read, c: ModelConfig, hidden_SD: Tensor) -> Tensor:
    """Logits [S, V] of hidden states, NormHead included."""
    return _scaled(hidden_SD, read(ling.HEAD), c) @ read(ling.HEAD).float().T


@torch.no_grad()
def token_logp(read: Read, c: ModelConfig, hidden_SD: Tensor, labels_S: Tensor) -> Tensor:
    """Log-probability [S] of each label; the [S, V] logits never exist as a whole."""
    head_VD = read(ling.HEAD)
    scaled_SD = _scaled(hidden_SD, head_VD, c)
    head_VD = head_VD.float()
    parts = [
        F.log_softmax(part_TD @ head_VD.T, dim=-1).gather(1, labels_T[:, None])[:, 0]
        for part_TD, labels_T in zip(
            scaled_SD.split(HEAD_TOKENS), labels_S.split(HEAD_TOKENS), strict=True
        )
    ]
    return torch.cat(parts)


def _norm(x_SD: Tensor, weight_D: Tensor, c: ModelConfig) -> Tensor:
    return x_SD * torch.rsqrt(x_SD.square().mean(-1, keepdim=True) + c.rms_norm_eps) * weight_D


def _scaled(hidden_SD: Tensor, head_VD: Tensor, c: ModelConfig) -> Tensor:
    """NormHead divides the head's columns by their length; dividing what meets them is equal."""
    if not c.norm_head:
        return hidden_SD
    return hidden_SD / (torch.linalg.vector_norm(head_VD.float(), dim=0) + NORM_HEAD_EPS)


def _rotary(c: ModelConfig, positions_S: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [S, d] of each position and channel; channel i turns together with i + d / 2."""
    exponents = torch.arange(0, c.head_size, 2).float() / c.head_size
    frequencies, length = 1.0 / c.rope_theta**exponents, 1.0
    if c.rope_scaling is not None:
        frequencies, length = _yarn(c, c.rope_scaling)
    angles = positions_S[:, None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * length, angles.sin() * length


def _yarn(c: ModelConfig, yarn: RopeScaling) -> tuple[Tensor, float]:
    """YaRN channel by channel: frequencies [d / 2], and what cos and sin are multiplied with.

    Written from BailingMoeYarnRotaryEmbedding of the authors' code, apart from model/attention.py.
    """
    d, log_base = c.head_size, math.log(c.rope_theta)

    def dimension(rotations: float) -> float:
        length = yarn.original_max_position_embeddings
        return d * math.log(length / (rotations * 2 * math.pi)) / (2 * log_base)

    low = max(math.floor(dimension(yarn.beta_fast)), 0)
    high = min(math.ceil(dimension(yarn.beta_slow)), d - 1)
    frequencies = []
    for i in range(d // 2):
        own = math.exp(-2 * i / d * log_base)
        if i <= low:
            keep = 1.0
        else:
            keep = 0.0 if i >= high else (high - i) / (high - low)
        frequencies.append(keep * own + (1 - keep) * own / yarn.factor)

    def mscale(m: float) -> float:
        return 0.1 * m * math.log(yarn.factor) + 1

    length = yarn.attention_factor or mscale(yarn.mscale or 1) / mscale(yarn.mscale_all_dim or 0)
    return torch.tensor(frequencies), length


def _rotate(x_HSR: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    first, second = x_HSR.chunk(2, dim=-1)
    return x_HSR * cos_SR + torch.cat([-second, first], dim=-1) * sin_SR


def _attention(
    read: Read,
    c: ModelConfig,
    at: str,
    x_SD: Tensor,
    cos_SR: Tensor,
    sin_SR: Tensor,
    borders: list[int],
) -> Tensor:
    H, G, d = c.num_attention_heads, c.num_key_value_heads, c.head_size
    qkv = x_SD @ read(f"{at}attention.query_key_value.weight").float().T
    q, k, v = (
        part.unflatten(1, (-1, d)).transpose(0, 1) for part in qkv.split([H * d, G * d, G * d], 1)
    )
    q_HSR, k_GSR = _rotate(q, cos_SR, sin_SR), _rotate(k, cos_SR, sin_SR)
    k_HSR, v_HSR = k_GSR.repeat_interleave(H // G, 0), v.repeat_interleave(H // G, 0)
    documents = []
    for begin, end in zip(borders, borders[1:]):  # noqa: B905
        here = slice(begin, end)
        scores = q_HSR[:, here] @ k_HSR[:, here].transpose(1, 2) / d**0.5
        future = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        documents.append(weights @ v_HSR[:, here])
    mixed_SD = torch.cat(documents, dim=1).transpose(0, 1).flatten(1)
    return mixed_SD @ read(f"{at}attention.dense.weight").float().T


def _mlp(read: Read, at: str, x_TD: Tensor) -> Tensor:
    gate_TF = F.silu(x_TD @ read(f"{at}gate_proj.weight").float().T)
    up_TF = x_TD @ read(f"{at}up_proj.weight").float().T
    return (gate_TF * up_TF) @ read(f"{at}down_proj.weight").float().T


def _moe(
    read: Read, c: ModelConfig, at: str, x_SD: Tensor, pinned_SK: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Routed and shared experts: output [S, D], and the experts chosen [S, K]."""
    probs_SE = (x_SD @ read(f"{at}gate.weight").float().T).softmax(dim=-1)
    own_SK = probs_SE.topk(c.num_experts_per_tok, dim=-1).indices
    chosen_SK = own_SK if pinned_SK is None else pinned_SK
    weights_SK = probs_SE.gather(1, chosen_SK)
    if c.norm_topk_prob:
        weights_SK = weights_SK / weights_SK.sum(dim=-1, keepdim=True)
    out_SD = torch.zeros_like(x_SD)
    for e in chosen_SK.unique().tolist():
        tokens_T, slots_T = (chosen_SK == e).nonzero(as_tuple=True)
        expert_TD = _mlp(read, f"{at}experts.{e}.", x_SD[tokens_T])
        out_SD.index_add_(0, tokens_T, expert_TD * weights_SK[tokens_T, slots_T, None])
    if c.num_shared_experts:
        out_SD += _mlp(read, f"{at}shared_experts.", x_SD)
    return out_SD, own_SK
