"""tools/convert_checkpoint.py as it is called."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_ring.convert import compare
from megatron_ring.convert.ops import ConversionError
from megatron_ring.convert.sources import HFFolder
from tools import convert_checkpoint as tool

ROOT = Path(__file__).parents[2]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    tool.app([str(word) for word in words], standalone_mode=False)
    return capsys.readouterr().out


def test_import_and_export_verified_in_the_model_that_trains(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = call(capsys, "import", golden, tmp_path / "ckpt", "--verify", "--verify-tokens", 24)
    assert f"wrote {tmp_path / 'ckpt'}: 30 tensors, 0.001 GB, fp32" in said
    assert "choices of experts that flip without pinning: 0.000%" in said
    said = call(capsys, "export", tmp_path / "ckpt", tmp_path / "out", "--verify")
    assert "99 tensors, 0.001 GB, fp32 in 1 file(s)" in said
    assert "largest difference, experts pinned: " in said
    a, b = HFFolder(tmp_path / "out"), HFFolder(golden)
    assert all(torch.equal(a.read(name), b.read(name)) for name in b.tensors)


def test_dense_first_layer_and_cast_verified(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(first_k_dense_replace=1, num_shared_experts=0, moe_intermediate_size=8)
    said = call(capsys, "import", folder, tmp_path / "ckpt", "--dtype", "bf16", "--verify")
    assert ", bf16" in said and "flip without pinning" in said


def test_verify_fails_when_the_function_differs(
    ling_lite_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(folder: Path) -> compare.Score:
        score = compare.score_hf_folder(folder)
        return lambda tokens_S, pinned_LSK: (
            score(tokens_S, pinned_LSK)[0] + 0.01,
            score(tokens_S, pinned_LSK)[1],
        )

    monkeypatch.setattr(tool, "score_hf_folder", wrong)
    words = ["import", ling_lite_tiny, tmp_path / "ckpt", "--verify", "--verify-in", "reference"]
    with pytest.raises(
        ConversionError, match=r"ckpt was written, but does not compute the same fun"
    ):
        tool.app([str(word) for word in words], standalone_mode=False)


def test_dry_run(ling_lite_tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = call(capsys, "import", ling_lite_tiny, tmp_path / "ckpt", "--dry-run", "--verify")
    assert said == f"would write {tmp_path / 'ckpt'}: 30 tensors, 0.001 GB, fp32\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5_000_000_000), ("500MB", 500_000_000), ("7kb", 7_000)]
)
def test_sizes(text: str, size: int) -> None:
    assert tool.parse_size(text) == size


@pytest.mark.parametrize("text", ["5", "GB", "-1GB", "1.5GB", "0GB", "5GiB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConversionError, match=f"--max-shard {text} is not a size such as 500MB"):
        tool.parse_size(text)


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools/convert_checkpoint.py", "export", tmp_path, "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        f"error: {tmp_path} is not a checkpoint of this program: there is no {tmp_path}/ring.json. "
        "Name the folder of one step, or import a Hugging Face folder first\n"
    )
