from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_ring.convert.compare import (
    compare,
    sample_tokens,
    score_hf_folder,
    score_megatron_checkpoint,
)
from megatron_ring.convert.transfer import import_checkpoint


def test_numbers_by_hand() -> None:
    def first(tokens_S: Tensor, pinned_LSK: Tensor | None) -> tuple[Tensor, Tensor]:
        assert pinned_LSK is None
        return torch.tensor([[1.0, -5.0]]), torch.tensor([[[0, 1]], [[2, 3]]])

    def second(tokens_S: Tensor, pinned_LSK: Tensor | None) -> tuple[Tensor, Tensor]:
        own_LSK = torch.tensor([[[1, 0]], [[3, 4]]])  # order is no difference; 2 became 4
        if pinned_LSK is None:
            return torch.tensor([[1.0, -3.0]]), own_LSK
        assert pinned_LSK.tolist() == [[[0, 1]], [[2, 3]]]
        return torch.tensor([[1.5, -5.0]]), own_LSK

    assert compare(first, second, torch.tensor([7])) == (0.5, 2.0, 0.25, 5.0)


def test_import_computes_the_same(golden: Path, tmp_path: Path) -> None:
    import_checkpoint(golden, tmp_path / "ckpt")
    sides = score_hf_folder(golden), score_megatron_checkpoint(tmp_path / "ckpt")
    result = compare(*sides, sample_tokens(384, 16))
    assert result[:3] == (0, 0, 0) and result.largest > 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mlp.experts.3.gate_proj", "mlp.experts.3.up_proj"),
        ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        ("mlp.experts.0.down_proj", "mlp.experts.1.down_proj"),
        ("input_layernorm", "post_attention_layernorm"),
    ],
)
def test_swapped_tensors_of_equal_shape_are_noticed(
    ling_lite_tiny: Path, tmp_path: Path, one: str, other: str
) -> None:
    """A round trip would not see a swap made both ways; the function does."""
    folder = tmp_path / "hf"
    folder.mkdir()
    tensors = load_file(ling_lite_tiny / "model.safetensors")
    a, b = (f"model.layers.1.{name}.weight" for name in (one, other))
    if torch.equal(tensors[a], tensors[b]):  # fresh norms are all ones
        tensors[a] = tensors[a] * 1.5
    tensors[a], tensors[b] = tensors[b], tensors[a]
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((ling_lite_tiny / "config.json").read_bytes())
    import_checkpoint(folder, tmp_path / "ckpt")
    sides = score_hf_folder(ling_lite_tiny), score_megatron_checkpoint(tmp_path / "ckpt")
    result = compare(*sides, sample_tokens(384, 48))
    assert result.pinned > 1e-3
