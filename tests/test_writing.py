"""What is staged is what is written, whatever becomes of the tensors meanwhile."""

import os

import torch
from megatron.core.dist_checkpointing import ShardedTensor

from megatron_ring import parallel, platform, writing
from megatron_ring.config import ParallelConfig
from megatron_ring.convert import checksums
from megatron_ring.convert.torch_dist import TorchDistReader
from tests import ranks


def stage_change_write(folder):
    """A tensor that owns its memory, one that is part of another's, and one of rank 1 alone."""
    rank, size = int(os.environ["RANK"]), parallel.world_size()
    with parallel.process_groups(ParallelConfig(), platform.prepare(), seed=0):
        whole, table = torch.arange(6.0), torch.arange(12.0).reshape(3, 4)
        half = torch.full((2,), float(rank))
        state = {
            "whole": ShardedTensor.from_rank_offsets("whole", whole, replica_id=rank),
            "part": ShardedTensor.from_rank_offsets("part", table[1], replica_id=rank),
            "half": ShardedTensor.from_rank_offsets("half", half, (0, rank, size)),
        }
        staged = writing.stage(state, folder)
        for tensor in (whole, table, half):
            tensor.fill_(-1)
        staged.write()
        entries = parallel.gathered(staged.entries)
        staged.finish()
    return [{name: list(entry) for name, entry in own.items()} for own in entries]


def test_training_may_go_on_after_staging(tmp_path):
    (tmp_path / "out").mkdir()
    entries, _ = ranks.run(2, stage_change_write, tmp_path / "out", folder=tmp_path / "ranks")
    reader = TorchDistReader(tmp_path / "out")
    assert reader.read("whole", (0,), (6,)).tolist() == [0, 1, 2, 3, 4, 5]
    assert reader.read("part", (0,), (4,)).tolist() == [4, 5, 6, 7]
    assert reader.read("half", (0,), (4,)).tolist() == [0, 0, 1, 1]
    written = {name: checksums.Entry(*entry) for own in entries for name, entry in own.items()}
    files = sorted((tmp_path / "out").glob("*.distcp"))
    assert {file.name: checksums.of_file(file) for file in files} == written
