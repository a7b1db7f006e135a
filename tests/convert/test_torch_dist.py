"""The torch_dist format, against torch's own and megatron-core's loader and saver."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo

from megatron_ring.convert.ops import ConversionError
from megatron_ring.convert.torch_dist import (
    TorchDistReader,
    TorchDistWriter,
    read_metadata,
    split_into_chunks,
)

TENSORS = {
    "norm": torch.arange(5.0),
    "matrix": torch.arange(28.0).view(7, 4).bfloat16(),
    "experts": torch.arange(24.0).view(3, 4, 2),
}


def write(folder: Path, limit: int = 20, file_bytes: int = 3000) -> Path:
    folder.mkdir()
    with TorchDistWriter(folder, file_bytes) as writer:
        for key, tensor in TENSORS.items():
            for chunk in split_into_chunks(key, tuple(tensor.shape), tensor.itemsize, limit):
                writer.write(key, tuple(tensor.shape), chunk.offsets, box(tensor, *chunk[1:]))
        writer.finish()
    return folder


def box(tensor: Tensor, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    return tensor[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))].clone()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "ckpt")


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_chunks_are_whole_rows_and_single_experts() -> None:
    assert [c[1:] for c in split_into_chunks("m", (7, 4), 2, 20)] == [
        ((0, 0), (2, 4)),
        ((2, 0), (2, 4)),
        ((4, 0), (2, 4)),
        ((6, 0), (1, 4)),
    ]
    assert [c.offsets for c in split_into_chunks("e", (3, 4, 2), 4, 20)] == [
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
    ]
    assert [c.sizes for c in split_into_chunks("n", (5,), 4, 12)] == [(3,), (2,)]
    assert [c.sizes for c in split_into_chunks("wide", (2, 100), 4, 1)] == [(1, 100), (1, 100)]


def test_torch_loads_what_is_written(folder: Path) -> None:
    assert len(list(folder.glob("*.distcp"))) > 1
    state = {key: torch.zeros_like(tensor) for key, tensor in TENSORS.items()}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    for key, tensor in TENSORS.items():
        assert torch.equal(state[key], tensor), key


def test_any_box_is_read_across_chunks(folder: Path) -> None:
    reader = TorchDistReader(folder)
    assert reader.keys() == {key: tuple(tensor.shape) for key, tensor in TENSORS.items()}
    for key, offsets, shape in [
        ("matrix", (0, 0), (7, 4)),
        ("matrix", (1, 1), (5, 2)),
        ("experts", (1, 2, 0), (2, 2, 1)),
        ("norm", (4,), (1,)),
    ]:
        found = reader.read(key, offsets, shape)
        assert found.dtype == TENSORS[key].dtype
        assert torch.equal(found, box(TENSORS[key], offsets, shape)), (key, offsets)


def test_reads_what_torch_saves(tmp_path: Path) -> None:
    state = TENSORS | {"not_a_tensor": {"step": 3}}
    dcp.save(state, checkpoint_id=tmp_path / "saved", no_dist=True)
    reader = TorchDistReader(tmp_path / "saved")
    assert reader.keys() == {key: tuple(tensor.shape) for key, tensor in TENSORS.items()}
    for key, tensor in TENSORS.items():
        assert torch.equal(reader.read(key, (0,) * tensor.ndim, tuple(tensor.shape)), tensor)


def test_megatron_loads_what_is_written(tmp_path: Path, one_process: None) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    from megatron_ring.convert.folder import write_megatron_files
    from megatron_ring.platform import prepare

    prepare()
    folder = write(tmp_path / "ckpt")
    write_megatron_files(folder, _model(), torch.float32, {})
    state = {
        key: ShardedTensor.from_rank_offsets(key, torch.zeros_like(tensor))
        for key, tensor in TENSORS.items()
    }
    # The second half of the experts, as expert parallelism asks for it.
    state["half"] = ShardedTensor.from_rank_offsets("norm", torch.zeros(1), (0, 4, 5), replica_id=1)
    loaded = dist_checkpointing.load(state, str(folder), validate_access_integrity=False)
    for key, tensor in TENSORS.items():
        assert torch.equal(loaded[key], tensor), key
    assert loaded["half"].tolist() == [4.0]


def test_reads_what_megatron_saves(tmp_path: Path, one_process: None) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    from megatron_ring.platform import prepare

    prepare()
    whole = TENSORS["experts"]
    state: dict[str, object] = {
        f"half{i}": ShardedTensor.from_rank_offsets(
            "experts", whole[:, 2 * i : 2 * i + 2].contiguous(), (1, i, 2)
        )
        for i in range(2)
    }
    state["rng_state"] = ShardedObject("rng_state", [1, 2], (1,), (0,))
    (tmp_path / "saved").mkdir()
    dist_checkpointing.save(state, str(tmp_path / "saved"), validate_access_integrity=False)
    reader = TorchDistReader(tmp_path / "saved")
    assert reader.keys() == {"experts": (3, 4, 2)}
    assert torch.equal(reader.read("experts", (1, 1, 0), (2, 2, 2)), whole[1:, 1:3])


class Attack:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_that_runs_a_command_is_refused(folder: Path) -> None:
    mark = folder / "was_here"
    (folder / ".metadata").write_bytes(pickle.dumps(Attack(f"touch {mark}")))
    with pytest.raises(ConversionError, match=r"\.metadata asks to load (posix|os)\.system, which"):
        read_metadata(folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["torch load", "torch hub", "builtins eval", "os.path join"])
def test_only_listed_names_are_loaded(folder: Path, name: str) -> None:
    module, attribute = name.split()
    (folder / ".metadata").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(ConversionError, match=f"asks to load {module}.{attribute}, which no"):
        read_metadata(folder)


def test_damaged_metadata(folder: Path) -> None:
    (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:-9])
    with pytest.raises(ConversionError, match=r"\.metadata is damaged: "):
        read_metadata(folder)


def test_metadata_of_something_else(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps([1]))
    with pytest.raises(ConversionError, match=r"\.metadata holds list, not checkpoint metadata"):
        read_metadata(folder)


def test_folder_without_metadata(tmp_path: Path) -> None:
    with pytest.raises(
        ConversionError, match="is not a Megatron checkpoint: there is no .*metadata"
    ):
        read_metadata(tmp_path)


def test_truncated_data_file_is_named_with_both_sizes(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConversionError) as error:
        read_metadata(folder)
    assert str(error.value) == (
        f"{file} is cut short: .metadata expects {size:,} bytes, the file has {size - 1:,}. "
        "Copy it again, or use an earlier checkpoint"
    )


def test_missing_data_file(folder: Path) -> None:
    (folder / "__0_1.distcp").unlink()
    with pytest.raises(ConversionError, match=r"__0_1.distcp is missing; .metadata expects it"):
        read_metadata(folder)


def test_data_file_of_another_tensor(folder: Path) -> None:
    """Zeros where a chunk should be: found when it is read, with the place."""
    file = folder / "__0_0.distcp"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ConversionError, match=r"__0_0.distcp: the chunk of norm at byte 0 is dam"):
        TorchDistReader(folder).read("norm", (0,), (5,))


def edit(folder: Path, change: object) -> None:
    metadata = read_metadata(folder)
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_paths_out_of_the_folder_are_refused(folder: Path) -> None:
    def outside(metadata: dcp.Metadata) -> None:
        index = next(iter(metadata.storage_data))
        metadata.storage_data[index] = _StorageInfo("../secret", 0, 1)

    edit(folder, outside)
    with pytest.raises(ConversionError, match="puts norm outside its folder: ../secret"):
        read_metadata(folder)


def test_tensor_with_a_hole(folder: Path) -> None:
    edit(folder, lambda metadata: metadata.state_dict_metadata["norm"].chunks.pop())
    with pytest.raises(ConversionError, match="the chunks of norm cover 0 of the 5 values"):
        TorchDistReader(folder).read("norm", (0,), (5,))


def test_chunk_of_another_shape(folder: Path) -> None:
    def swap(metadata: dcp.Metadata) -> None:
        places = metadata.storage_data
        a, b = [index for index in places if index.fqn in ("norm", "experts")][:2]
        places[a], places[b] = places[b], places[a]

    edit(folder, swap)
    with pytest.raises(ConversionError, match=r"chunk of norm .* is \[1, 4, 2\] .* says \[5\]"):
        TorchDistReader(folder).read("norm", (0,), (5,))


def _model() -> object:
    from megatron_ring.config import read_hf_config

    return read_hf_config(Path(__file__).parents[1] / "golden" / "ling_lite_tiny")
