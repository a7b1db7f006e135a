"""What many tests need: a tiny packed folder of real chat samples."""

import json
import os

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it first sees a kernel: its interpreter runs them on a CPU.
    os.environ["TRITON_INTERPRET"] = "1"

from megatron_ring import parallel, platform
from megatron_ring.config import PackConfig, ParallelConfig, SourceConfig
from megatron_ring.data.build import pack
from megatron_ring.data.tokenizer import train_sentencepiece


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Test workers share two cores, and forked ranks cannot use a parent's OpenMP threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """Folder of about 40 rows of 128 tokens: additions, answered; vocabulary below 300."""
    folder = tmp_path_factory.mktemp("packed")
    return pack_sums(folder, "train", range(2, 22))


@pytest.fixture(scope="session")
def packed_other(tmp_path_factory):
    """The same kind of folder with other samples in it."""
    return pack_sums(tmp_path_factory.mktemp("packed_other"), "other", range(30, 50))


def pack_sums(folder, name, numbers):
    """Pack "a + b = ?" for all pairs of `numbers`; the folder written."""
    lines = [f"What is {a} + {b}? It is {a + b}." for a in range(60) for b in range(0, 60, 7)]
    train_sentencepiece(lines, folder / "small.model", vocab_size=290)
    samples = folder / f"{name}.jsonl"
    with samples.open("w") as file:
        for a in numbers:
            for b in numbers:
                turns = [
                    {"role": "user", "content": f"What is {a} + {b}?"},
                    {"role": "assistant", "content": f"It is {a + b}."},
                ]
                file.write(json.dumps({"messages": turns}) + "\n")
    config = PackConfig(
        tokenizer=str(folder / "small.model"),
        output=str(folder / name),
        sources=[SourceConfig(path=str(samples))],
        row_tokens=128,
    )
    pack(config)
    return folder / name


@pytest.fixture
def alone():
    """Process groups of one process."""
    with parallel.process_groups(ParallelConfig(), platform.prepare(), seed=1):
        yield
