import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ring.config import ConfigError
from megatron_ring.convert import sources
from megatron_ring.convert.folder import read_ring
from megatron_ring.convert.ops import ConversionError
from megatron_ring.convert.sources import HFFolder, HFSource, MegatronSource
from megatron_ring.convert.torch_dist import TorchDistWriter
from megatron_ring.convert.transfer import export_checkpoint, import_checkpoint

Make = Callable[..., Path]


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors (`__` for `.`) in the only file of `folder`; None removes one."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_whole_tensors_by_hand(make_folder: Make) -> None:
    folder = make_folder()
    hf, source = load_file(folder / "model.safetensors"), HFSource(folder)
    assert source.keys()["decoder.layers.1.mlp.experts.w1"] == (4, 12, 16)
    w1 = source.read("decoder.layers.1.mlp.experts.w1")
    at = "model.layers.1.mlp.experts.2."
    assert torch.equal(w1[2, :6], hf[f"{at}gate_proj.weight"])
    assert torch.equal(w1[2, 6:], hf[f"{at}up_proj.weight"])
    w2 = source.read("decoder.layers.1.mlp.experts.w2")
    assert torch.equal(w2[3], hf["model.layers.1.mlp.experts.3.down_proj.weight"])
    fc1 = source.read("decoder.layers.0.mlp.shared_experts.linear_fc1.weight")
    assert torch.equal(fc1[6:], hf["model.layers.0.mlp.shared_experts.up_proj.weight"])
    # Head size 4, four heads in two groups: K of group 0 is row 16 ff. there, 8 ff. here.
    qkv = source.read("decoder.layers.0.self_attention.linear_qkv.weight")
    assert torch.equal(qkv[8:12], hf["model.layers.0.attention.query_key_value.weight"][16:20])


@pytest.mark.parametrize(
    ("key", "offsets", "shape"),
    [
        ("decoder.layers.1.mlp.experts.w1", (1, 0, 0), (2, 12, 16)),
        ("decoder.layers.1.mlp.experts.w1", (3, 4, 5), (1, 5, 7)),
        ("decoder.layers.0.self_attention.linear_qkv.weight", (16, 0), (16, 16)),
        ("decoder.layers.0.self_attention.linear_proj.weight", (0, 8), (16, 8)),
        ("embedding.word_embeddings.weight", (7, 0), (20, 16)),
        ("decoder.final_layernorm.weight", (3,), (5,)),
    ],
)
def test_a_box_equals_that_part_of_the_whole(
    make_folder: Make, key: str, offsets: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    source = HFSource(make_folder(torch.bfloat16))
    there = tuple(slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
    found = source.read(key, offsets, shape)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, source.read(key)[there])


def test_only_the_experts_asked_for_are_read(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, seen = HFSource(make_folder()), []
    real = sources.read_rows

    def watch(stored: object, row: int, out: torch.Tensor) -> None:
        seen.append(out.shape)
        real(stored, row, out)

    monkeypatch.setattr(sources, "read_rows", watch)
    source.read("decoder.layers.0.mlp.experts.w1", (2, 0, 0), (1, 12, 16))
    assert seen == [(6, 16), (6, 16)]  # gate and up of one expert


def test_box_outside_the_tensor(make_folder: Make) -> None:
    source = HFSource(make_folder())
    with pytest.raises(ValueError, match=r"linear_proj.weight \[16, 16\] has no box of \[16, 8\]"):
        source.read("decoder.layers.0.self_attention.linear_proj.weight", (0, 12), (16, 8))


NORM = "model__norm__weight"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({NORM: None}, "1 missing: model.norm.weight. "),
        ({"model__extra": torch.ones(1)}, "1 left over: model.extra. "),
        ({NORM: torch.ones(3)}, r"1 of another shape: model.norm.weight is \[3\], should be \[16"),
    ],
)
def test_import_names_what_is_wrong_and_writes_nothing(
    make_folder: Make, tmp_path: Path, changes: dict[str, torch.Tensor | None], problem: str
) -> None:
    folder = make_folder()
    rewrite(folder, **changes)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConversionError, match=rf"{folder} does not hold .*{problem}"):
        import_checkpoint(folder, tmp_path / "ckpt")
    with pytest.raises(ConversionError, match="Check that config.json belongs to these weights"):
        import_checkpoint(folder, tmp_path / "ckpt")
    assert sorted(tmp_path.iterdir()) == before


def test_parts_of_one_tensor_in_two_dtypes(make_folder: Make) -> None:
    folder = make_folder()
    rewrite(folder, model__layers__0__mlp__experts__1__up_proj__weight=torch.ones(6, 16).half())
    with pytest.raises(ConversionError) as error:
        HFSource(folder)
    assert "experts.w1 is made of " in str(error.value)
    assert "experts.1.up_proj.weight (torch.float16)" in str(error.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_experts": 5}, r"router.weight is \[4, 16\], should be \[5, 16\]"),
        ({"num_hidden_layers": 1}, r"left over: decoder.layers.1.input_layernorm.weight, .*, …"),
        ({"moe_intermediate_size": 7}, r"experts.w1 is \[4, 12, 16\], should be \[4, 14, 16\]"),
    ],
)
def test_export_names_what_is_wrong_and_writes_nothing(
    make_folder: Make, tmp_path: Path, change: dict[str, int], problem: str
) -> None:
    import_checkpoint(make_folder(), tmp_path / "ckpt")
    ring = json.loads((tmp_path / "ckpt/ring.json").read_text())
    ring["model"] |= change
    (tmp_path / "ckpt/ring.json").write_text(json.dumps(ring))
    with pytest.raises(ConversionError, match=problem):
        export_checkpoint(tmp_path / "ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_optimizer_state_is_not_a_left_over_tensor(make_folder: Make, tmp_path: Path) -> None:
    import_checkpoint(make_folder(), tmp_path / "ckpt")
    model, _ = read_ring(tmp_path / "ckpt")
    reader = MegatronSource(tmp_path / "ckpt", model).reader
    (tmp_path / "training").mkdir()
    with TorchDistWriter(tmp_path / "training") as writer:
        for key, shape in reader.keys().items():
            writer.write(key, shape, (0,) * len(shape), reader.read(key, (0,) * len(shape), shape))
        writer.write("optimizer.state.exp_avg.norm", (2,), (0,), torch.ones(2))
        writer.finish()
    again = MegatronSource(tmp_path / "training", model)
    assert "optimizer.state.exp_avg.norm" not in again.names()
    assert torch.equal(
        again.read("model.norm.weight"), HFFolder(tmp_path / "hf").read("model.norm.weight")
    )


def sharded(folder: Path, target: Path) -> Path:
    """Spread the only file of `folder` over two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    target.mkdir()
    for file, of_file in parts.items():
        save_file({name: tensors[name] for name in of_file}, target / file)
    weight_map = {name: file for file, of_file in parts.items() for name in of_file}
    (target / sources.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    shutil.copyfile(folder / "config.json", target / "config.json")
    return target


def test_several_files_with_an_index(make_folder: Make, tmp_path: Path) -> None:
    folder = make_folder()
    spread = HFSource(sharded(folder, tmp_path / "spread"))
    whole = HFSource(folder)
    for key in whole.keys():
        assert torch.equal(spread.read(key), whole.read(key)), key


def test_file_of_the_index_is_missing(make_folder: Make, tmp_path: Path) -> None:
    folder = sharded(make_folder(), tmp_path / "spread")
    (folder / "b.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"b.safetensors is missing; model.safetensors.index"):
        HFFolder(folder)


def test_index_lists_a_tensor_that_is_not_there(make_folder: Make, tmp_path: Path) -> None:
    folder = sharded(make_folder(), tmp_path / "spread")
    tensors = load_file(folder / "a.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "a.safetensors")
    with pytest.raises(ConversionError, match="a.safetensors does not hold lm_head.weight alth"):
        HFFolder(folder)


def test_file_holds_a_tensor_the_index_does_not_list(make_folder: Make, tmp_path: Path) -> None:
    folder = sharded(make_folder(), tmp_path / "spread")
    save_file(load_file(folder / "a.safetensors") | {"x": torch.ones(1)}, folder / "a.safetensors")
    with pytest.raises(ConversionError, match="a.safetensors holds x, .* says it is in no file"):
        HFFolder(folder)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(
        ConversionError, match="holds no weights: there is neither model.safetensors"
    ):
        HFFolder(tmp_path)


def test_folder_without_config(make_folder: Make) -> None:
    folder = make_folder()
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"there is no .*config.json"):
        HFSource(folder)
