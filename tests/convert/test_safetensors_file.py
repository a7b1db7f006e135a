from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ring.convert.ops import ConversionError
from megatron_ring.convert.safetensors_file import read_header, read_rows, write_file

TENSORS = {
    "matrix": torch.arange(12.0).view(4, 3),
    "vector": torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16),
    "half": torch.tensor([[0.5]], dtype=torch.float16),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_reads_what_the_library_writes(file: Path) -> None:
    header = read_header(file)
    assert header.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        out = torch.empty(tensor.shape, dtype=header[name].dtype)
        read_rows(header[name], 0, out)
        assert out.dtype == tensor.dtype and torch.equal(out, tensor)


def test_reads_some_rows(file: Path) -> None:
    out = torch.empty(2, 3)
    read_rows(read_header(file)["matrix"], 1, out)
    assert out.tolist() == [[3, 4, 5], [6, 7, 8]]


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    write_file(tmp_path / "b.safetensors", entries, iter(TENSORS.values()))
    found = load_file(tmp_path / "b.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_another_tensor_than_announced_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a: torch.float32 \(3,\) announced as .* \(2,\)"):
        write_file(tmp_path / "b.safetensors", {"a": (torch.float32, (2,))}, [torch.ones(3)])


@pytest.mark.parametrize("lost", [1, 30])
def test_truncated_file_is_named_with_both_sizes(file: Path, lost: int) -> None:
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-lost])
    with pytest.raises(ConversionError) as error:
        read_header(file)
    assert str(error.value) == (
        f"{file} is cut short: its header asks for {size:,} bytes, the file has {size - lost:,}. "
        "Copy or download it again"
    )


def test_truncated_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ConversionError, match=r"is cut short: .* the file has 50\."):
        read_header(file)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"not a safetensors file at all"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConversionError, match="is not a safetensors file"):
        read_header(tmp_path / "a")


def test_damaged_header(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes((4).to_bytes(8, "little") + b"{{{{")
    with pytest.raises(ConversionError, match="the header of .* is not JSON"):
        read_header(tmp_path / "a")


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, dtype=torch.float8_e4m3fn)}, tmp_path / "a")
    with pytest.raises(ConversionError, match="w has dtype F8_E4M3; only F32, BF16, F16 convert"):
        read_header(tmp_path / "a")


def test_header_at_odds_with_itself(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"shape":[4,3]', b'"shape":[4,9]'))
    with pytest.raises(ConversionError, match=r"matrix \[4, 9\] F32 takes 144 bytes, .* says 48"):
        read_header(file)
