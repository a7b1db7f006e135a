"""The reference against the authors' own numbers, and against itself where it has options."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_ring.config import ModelConfig, read_hf_config
from megatron_ring.convert import reference
from megatron_ring.convert.sources import HFFolder, MegatronSource
from megatron_ring.convert.transfer import export_checkpoint, import_checkpoint


def test_logits_and_nll_are_those_of_the_authors(golden: Path) -> None:
    config, read = read_hf_config(golden), HFFolder(golden).read
    expected = load_file(golden / "reference.safetensors")
    total = 0.0
    for row, tokens_S in enumerate(expected["input_ids"]):
        hidden = reference.hidden_states(read, config, tokens_S)
        found_SV = reference.logits(read, config, hidden.hidden_SD)
        torch.testing.assert_close(found_SV, expected["logits"][row], rtol=0, atol=1e-4)
        nll_S = -reference.token_logp(read, config, hidden.hidden_SD[:-1], tokens_S[1:])
        nll_S = nll_S * (expected["labels"][row][1:] != -100)
        torch.testing.assert_close(nll_S, expected["token_nll"][row], rtol=0, atol=1e-4)
        total += nll_S.sum().item()
    supervised = (expected["labels"][:, 1:] != -100).sum().item()
    assert total / supervised == pytest.approx(expected["loss"].item(), abs=1e-5)


def test_through_the_megatron_checkpoint_it_is_the_same(golden: Path, tmp_path: Path) -> None:
    """Not only a round trip: the Megatron side's layout is undone by its own table."""
    config = read_hf_config(golden)
    import_checkpoint(golden, tmp_path / "ckpt")
    tokens_S = load_file(golden / "reference.safetensors")["input_ids"][0]
    a, b = (
        reference.hidden_states(read, config, tokens_S)
        for read in (HFFolder(golden).read, MegatronSource(tmp_path / "ckpt", config).read)
    )
    assert torch.equal(a.hidden_SD, b.hidden_SD) and torch.equal(a.routed_LSK, b.routed_LSK)


def test_folded_head_computes_the_same(ling_lite_tiny: Path, tmp_path: Path) -> None:
    import_checkpoint(ling_lite_tiny, tmp_path / "ckpt")
    export_checkpoint(tmp_path / "ckpt", tmp_path / "out", norm_head="folded")
    tokens_S = torch.arange(20)
    logits = []
    for folder in (ling_lite_tiny, tmp_path / "out"):
        config, read = read_hf_config(folder), HFFolder(folder).read
        hidden = reference.hidden_states(read, config, tokens_S)
        logits.append(reference.logits(read, config, hidden.hidden_SD))
    torch.testing.assert_close(*logits, rtol=0, atol=2e-6)


def test_packed_documents_are_computed_as_if_alone(ling_lite_tiny: Path) -> None:
    config, read = read_hf_config(ling_lite_tiny), HFFolder(ling_lite_tiny).read
    tokens_S = torch.arange(30) * 7 % 384
    packed = reference.hidden_states(read, config, tokens_S, cu_seqlens=[0, 13, 30])
    for begin, end in ((0, 13), (13, 30)):
        alone = reference.hidden_states(read, config, tokens_S[begin:end])
        torch.testing.assert_close(packed.hidden_SD[begin:end], alone.hidden_SD, rtol=0, atol=1e-5)
        assert torch.equal(packed.routed_LSK[:, begin:end], alone.routed_LSK)


def test_pinned_experts_are_used(ling_lite_tiny: Path) -> None:
    config, read = read_hf_config(ling_lite_tiny), HFFolder(ling_lite_tiny).read
    tokens_S = torch.arange(10)
    free = reference.hidden_states(read, config, tokens_S)
    same = reference.hidden_states(read, config, tokens_S, pinned_LSK=free.routed_LSK)
    torch.testing.assert_close(free.hidden_SD, same.hidden_SD, rtol=0, atol=1e-6)
    other = reference.hidden_states(
        read, config, tokens_S, pinned_LSK=(free.routed_LSK + 1) % config.num_experts
    )
    assert (other.hidden_SD - free.hidden_SD).abs().max() > 0.1
    assert torch.equal(other.routed_LSK[0], free.routed_LSK[0])  # its own choice is reported


def test_dense_layers_have_no_experts(make_folder: Callable[..., Path]) -> None:
    """One dense layer by hand: SwiGLU of the normed residual stream."""
    folder = make_folder(first_k_dense_replace=2)
    config, read = read_hf_config(folder), HFFolder(folder).read
    hidden = reference.hidden_states(read, config, torch.tensor([5]))
    assert hidden.routed_LSK.tolist() == [[[-1, -1]], [[-1, -1]]]
    x = read("model.word_embeddings.weight")[5]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean() + config.rms_norm_eps).sqrt() * read(name)

    for at in ("model.layers.0.", "model.layers.1."):
        # One token attends to itself only: attention gives its V, repeated for each query head.
        qkv = read(f"{at}attention.query_key_value.weight") @ norm(x, f"{at}input_layernorm.weight")
        v = qkv[-8:].view(2, 4).repeat_interleave(2, 0).flatten()
        x = x + read(f"{at}attention.dense.weight") @ v
        y = norm(x, f"{at}post_attention_layernorm.weight")
        gate, up = read(f"{at}mlp.gate_proj.weight") @ y, read(f"{at}mlp.up_proj.weight") @ y
        x = x + read(f"{at}mlp.down_proj.weight") @ (gate * gate.sigmoid() * up)
    torch.testing.assert_close(hidden.hidden_SD[0], norm(x, "model.norm.weight"))


def test_unnormalised_routing_uses_the_probabilities(
    make_folder: Callable[..., Path], make_config: Callable[..., ModelConfig]
) -> None:
    """With all experts chosen, probabilities sum to one: normalising changes nothing."""
    read = HFFolder(make_folder(num_experts_per_tok=4)).read
    tokens_S = torch.arange(6)
    all_chosen = [
        reference.hidden_states(
            read, make_config(num_experts_per_tok=4, norm_topk_prob=flag), tokens_S
        ).hidden_SD
        for flag in (True, False)
    ]
    torch.testing.assert_close(*all_chosen)
    two_chosen = [
        reference.hidden_states(read, make_config(norm_topk_prob=flag), tokens_S).hidden_SD
        for flag in (True, False)
    ]
    assert (two_chosen[0] - two_chosen[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "more", [{}, {"factor": 2.5, "beta_fast": 4.0}, {"mscale": 0.5, "mscale_all_dim": 0.8}]
)
def test_yarn_is_that_of_transformers(make_config: Callable[..., ModelConfig], more: dict) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256} | more
    model = make_config(head_dim=64, rope_scaling=scaling)
    theirs = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=64,
        rope_theta=model.rope_theta,
        max_position_embeddings=1024,
        rope_scaling={"rope_type": "yarn"} | {k: v for k, v in scaling.items() if k != "type"},
    )
    frequencies, length = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    angles = torch.cat([frequencies, frequencies]) * torch.arange(50.0)[:, None]
    cos, sin = reference._rotary(model, torch.arange(50))
    torch.testing.assert_close(cos, angles.cos() * length, atol=2e-5, rtol=0)
    torch.testing.assert_close(sin, angles.sin() * length, atol=2e-5, rtol=0)
