import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_ring.config import ModelConfig
from megatron_ring.convert import folder as files
from megatron_ring.convert import transfer
from megatron_ring.convert.ops import ConversionError
from megatron_ring.convert.sources import HFFolder
from megatron_ring.convert.synthetic import write_random_model
from megatron_ring.convert.torch_dist import TorchDistReader
from megatron_ring.convert.transfer import export_checkpoint, fold_head, import_checkpoint

Make = Callable[..., Path]
ROOT = str(Path(__file__).parents[2])


def assert_same_folder(found: Path, original: Path) -> None:
    a, b = HFFolder(found), HFFolder(original)
    assert a.tensors.keys() == b.tensors.keys()
    for name, stored in b.tensors.items():
        assert a.tensors[name].dtype == stored.dtype, name
        assert torch.equal(a.read(name), b.read(name)), name
    assert files.read_hf_json(found) == files.read_hf_json(original)


def test_round_trip_of_the_golden_checkpoints(golden: Path, tmp_path: Path) -> None:
    done = import_checkpoint(golden, tmp_path / "ckpt")
    assert done[:3] == (30, 1_457_920, ["fp32"])
    done = export_checkpoint(tmp_path / "ckpt", tmp_path / "out")
    assert done[:4] == (99, 1_457_920, ["fp32"], ["model.safetensors"])
    assert_same_folder(tmp_path / "out", golden)
    # Byte for byte what the library reads, too.
    assert load_file(tmp_path / "out/model.safetensors").keys() == HFFolder(golden).tensors.keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"first_k_dense_replace": 1},
        {"num_shared_experts": 0},
        {"num_key_value_heads": 4, "num_hidden_layers": 1},
        {"head_dim": 8, "num_shared_experts": 3},
    ],
)
def test_round_trip_of_other_models(
    make_folder: Make, tmp_path: Path, changes: dict[str, int]
) -> None:
    folder = make_folder(torch.bfloat16, **changes)
    assert import_checkpoint(folder, tmp_path / "ckpt").dtypes == ["bf16"]
    export_checkpoint(tmp_path / "ckpt", tmp_path / "out")
    assert_same_folder(tmp_path / "out", folder)


def test_round_trip_in_many_chunks_and_files(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 200)  # three rows; the QKV blocks have 8 and 4
    import_checkpoint(folder, tmp_path / "ckpt")
    done = export_checkpoint(tmp_path / "ckpt", tmp_path / "out", max_shard=5_000)
    assert done.shards[0] == f"model-00001-of-{len(done.shards):05}.safetensors"
    sizes = [sum(t.nbytes for t in load_file(f).values()) for f in (tmp_path / "out").glob("m*s")]
    assert len(sizes) == len(done.shards) > 3 and max(sizes) <= 5_000
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.bytes == sum(sizes)
    assert_same_folder(tmp_path / "out", folder)
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    a, b = TorchDistReader(tmp_path / "again"), TorchDistReader(tmp_path / "ckpt")
    for key, shape in b.keys().items():
        origin = (0,) * len(shape)
        assert torch.equal(a.read(key, origin, shape), b.read(key, origin, shape)), key


def test_cast_on_the_way(ling_lite_tiny: Path, tmp_path: Path) -> None:
    import_checkpoint(ling_lite_tiny, tmp_path / "bf16", torch.bfloat16)
    assert json.loads((tmp_path / "bf16/ring.json").read_text())["dtype"] == "bf16"
    export_checkpoint(tmp_path / "bf16", tmp_path / "a")
    export_checkpoint(tmp_path / "bf16", tmp_path / "b", dtype=torch.float32)
    original, a, b = (HFFolder(f) for f in (ling_lite_tiny, tmp_path / "a", tmp_path / "b"))
    for name in original.tensors:
        assert torch.equal(a.read(name), original.read(name).bfloat16()), name
        assert torch.equal(b.read(name), original.read(name).bfloat16().float()), name
    assert files.read_hf_json(tmp_path / "a")["torch_dtype"] == "bfloat16"
    assert files.read_hf_json(tmp_path / "b")["torch_dtype"] == "float32"


def test_folded_head_has_unit_columns_and_says_so(ling_lite_tiny: Path, tmp_path: Path) -> None:
    import_checkpoint(ling_lite_tiny, tmp_path / "ckpt")
    export_checkpoint(tmp_path / "ckpt", tmp_path / "out", norm_head="folded")
    head_VD = HFFolder(tmp_path / "out").read("lm_head.weight")
    raw_VD = HFFolder(ling_lite_tiny).read("lm_head.weight").double()
    expected_VD = raw_VD / (raw_VD.square().sum(0).sqrt() + 1e-7)
    torch.testing.assert_close(head_VD.double(), expected_VD, rtol=1e-6, atol=0)
    config = files.read_hf_json(ling_lite_tiny)
    assert config.pop("norm_head") is True
    assert files.read_hf_json(tmp_path / "out") == config | {"norm_head": False}
    others = set(HFFolder(ling_lite_tiny).tensors) - {"lm_head.weight"}
    for name in others:
        assert torch.equal(
            HFFolder(tmp_path / "out").read(name), HFFolder(ling_lite_tiny).read(name)
        )


def test_fold_by_hand() -> None:
    assert fold_head(torch.tensor([[3.0, 0.0], [4.0, 0.0]])).tolist() == [
        pytest.approx([0.6, 0.0]),
        pytest.approx([0.8, 0.0]),
    ]


def test_folding_without_norm_head(make_folder: Make, tmp_path: Path) -> None:
    import_checkpoint(make_folder(norm_head=False), tmp_path / "ckpt")
    with pytest.raises(
        ConversionError, match="--norm-head folded: this checkpoint has norm_head=F"
    ):
        export_checkpoint(tmp_path / "ckpt", tmp_path / "out", norm_head="folded")


def test_companions_travel_both_ways(make_folder: Make, tmp_path: Path) -> None:
    folder = make_folder()
    companions = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "special_tokens_map.json": "{}",
        "generation_config.json": '{"eos_token_id": 3}',
        "modeling_bailing_moe.py": "raise SystemExit('imported')",
        "LICENSE": "MIT",
    }
    for name, text in (companions | {"training_args.bin": "x", "README.md": "y"}).items():
        (folder / name).write_text(text)
    done = import_checkpoint(folder, tmp_path / "ckpt")
    assert done.companions == sorted(companions)
    assert export_checkpoint(tmp_path / "ckpt", tmp_path / "out").companions == sorted(companions)
    for name, text in companions.items():
        assert (tmp_path / "out" / name).read_text() == text


def test_model_that_came_from_nowhere_gets_a_full_config(make_config: object) -> None:
    model = make_config(num_shared_experts=2)
    config = files.hf_config(model, {})
    assert config["architectures"] == ["BailingMoeForCausalLM"]
    assert "head_dim" not in config and config["num_shared_experts"] == 2
    assert (
        ModelConfig.model_validate(
            {name: config[name] for name in ModelConfig.model_fields if name in config}
        )
        == model
    )


@pytest.mark.parametrize(
    "said",
    [
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {"factor": 4, "rope_type": "yarn", "original_max_position_embeddings": 16},
        {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "beta_fast": 32},
        None,
    ],
)
def test_rope_scaling_comes_back_as_it_was_spelt(
    make_folder: Make, tmp_path: Path, said: dict | None
) -> None:
    folder = make_folder()
    original = files.read_hf_json(folder) | {"rope_scaling": said}
    (folder / "config.json").write_text(json.dumps(original))
    import_checkpoint(folder, tmp_path / "ckpt")
    export_checkpoint(tmp_path / "ckpt", tmp_path / "out")
    again = files.read_hf_json(tmp_path / "out")
    assert json.dumps(again["rope_scaling"]) == json.dumps(said)
    assert again == original


def test_another_rope_scaling_overrules_what_it_came_with(make_config: object) -> None:
    """In the spelling that the authors' code reads, and no more than was said."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    model = make_config(rope_scaling=yarn)
    assert files.hf_config(model, {})["rope_scaling"] == yarn
    assert files.hf_config(model, {"rope_scaling": None})["rope_scaling"] == yarn
    other = {"rope_scaling": yarn | {"factor": 2.0, "beta_slow": 2.0}}
    assert files.hf_config(model, other)["rope_scaling"] == yarn
    assert files.hf_config(make_config(), other)["rope_scaling"] is None


def test_changed_model_overrules_the_config_it_came_with(make_config: object) -> None:
    config = files.hf_config(make_config(vocab_size=48), {"vocab_size": 40, "model_type": "x"})
    assert config["vocab_size"] == 48 and config["model_type"] == "x"


@pytest.mark.parametrize("dry_run", [True, False])
def test_nothing_is_overwritten(ling_lite_tiny: Path, tmp_path: Path, dry_run: bool) -> None:
    (tmp_path / "ckpt").mkdir()
    with pytest.raises(ConversionError, match="ckpt exists already; it is not overwritten. Choose"):
        import_checkpoint(ling_lite_tiny, tmp_path / "ckpt", dry_run=dry_run)
    import_checkpoint(ling_lite_tiny, tmp_path / "new")
    with pytest.raises(ConversionError, match="ckpt exists already; it is not overwritten. Choose"):
        export_checkpoint(tmp_path / "new", tmp_path / "ckpt", dry_run=dry_run)
    assert list((tmp_path / "ckpt").iterdir()) == []


def test_dry_run_writes_nothing(ling_lite_tiny: Path, tmp_path: Path) -> None:
    done = import_checkpoint(ling_lite_tiny, tmp_path / "ckpt", dry_run=True)
    assert done[:3] == (30, 1_457_920, ["fp32"]) and list(tmp_path.iterdir()) == []


def test_no_room_on_the_disk(
    ling_lite_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = files.shutil.disk_usage(tmp_path)._replace(free=66_000_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConversionError, match=r"ckpt needs 0.07 GB, the disk of .* has 0.07 GB fr"):
        import_checkpoint(ling_lite_tiny, tmp_path / "a" / "ckpt")
    assert list(tmp_path.iterdir()) == []


def test_failure_half_way_leaves_nothing(
    ling_lite_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(done: int, total: int) -> None:
        assert any(path.name.startswith("ckpt.tmp-") for path in tmp_path.iterdir())
        if done > total / 2:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        import_checkpoint(ling_lite_tiny, tmp_path / "ckpt", on_bytes=full)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_the_total(ling_lite_tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    import_checkpoint(ling_lite_tiny, tmp_path / "ckpt", on_bytes=lambda *at: seen.append(at))
    assert seen[-1] == (1_457_920, 1_457_920) and seen == sorted(seen)
    seen.clear()
    export_checkpoint(tmp_path / "ckpt", tmp_path / "out", on_bytes=lambda *at: seen.append(at))
    assert seen[-1] == (1_457_920, 1_457_920) and len(seen) == 99


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda ring: ring | {"format": 9}, "ring.json has format 9, this program reads format 1"),
        (lambda ring: ring | {"model": {"vocab_size": 0}}, "ring.json: model: "),
        (None, "is not a checkpoint of this program: there is no .*ring.json"),
    ],
)
def test_ring_json_is_checked(
    ling_lite_tiny: Path, tmp_path: Path, change: Callable[[dict], dict] | None, complaint: str
) -> None:
    import_checkpoint(ling_lite_tiny, tmp_path / "ckpt")
    file = tmp_path / "ckpt/ring.json"
    if change is None:
        file.unlink()
    else:
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ConversionError, match=complaint):
        export_checkpoint(tmp_path / "ckpt", tmp_path / "out")


def test_truncated_checkpoint_is_not_exported(ling_lite_tiny: Path, tmp_path: Path) -> None:
    import_checkpoint(ling_lite_tiny, tmp_path / "ckpt")
    file = tmp_path / "ckpt/__0_0.distcp"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ConversionError, match=r"__0_0.distcp is cut short: .metadata expects 1,57"):
        export_checkpoint(tmp_path / "ckpt", tmp_path / "out")


def test_no_more_than_one_piece_is_in_memory(
    make_config: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    """110 MiB of weights in 12 layers pass through; a process's peak may rise by a few pieces.

    The largest piece is 4.5 MiB. tools/bench_convert.py compares depths; growth with depth would
    show here as well, as most of 110 MiB.
    """
    wide = dict(hidden_size=384, moe_intermediate_size=192, num_experts=16, vocab_size=6144)
    model = make_config(num_hidden_layers=12, **wide)
    assert write_random_model(tmp_path / "hf", model, torch.bfloat16) > 90 * 1024**2
    for name in ("import", "export"):
        command = [sys.executable, f"{ROOT}/tools/bench_convert.py", "step", name, tmp_path]
        out = subprocess.check_output(command, text=True, env=os.environ | {"PYTHONPATH": ROOT})
        loaded, peak = map(float, out.split())
        assert peak - loaded < 40, name
