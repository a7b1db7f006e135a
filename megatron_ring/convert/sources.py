"""A checkpoint's tensors, one at a time or in slices, under its own and under the other's names.

    HFFolder           Hugging Face folder, Hugging Face names
    HFSource           Hugging Face folder, Megatron names and shapes   (import; loading shards)
    MegatronSource     Megatron checkpoint, Hugging Face names and shapes (export)

Opening one reads headers only and raises ConversionError for the first thing that is wrong with
the checkpoint as a whole, so that nothing is written, and no GPU waits, for one that cannot work.
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from megatron_ring.config import ModelConfig, read_hf_config
from megatron_ring.convert import ling
from megatron_ring.convert.ops import (
    ConversionError,
    Shape,
    check_names_and_shapes,
    inverse,
)
from megatron_ring.convert.safetensors_file import Stored, read_header, read_rows
from megatron_ring.convert.torch_dist import TorchDistReader

INDEX = "model.safetensors.index.json"
# Keys of a training checkpoint that are not weights.
NOT_WEIGHTS = ("optimizer.", "rng_state", "rerun_state")


class HFFolder:
    """The safetensors files of a Hugging Face folder, one or several with an index."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tensors = _read_headers(self.folder)

    def read(self, name: str, row: int = 0, rows: int | None = None) -> Tensor:
        """`rows` rows (default: all) of tensor `name`, in the stored dtype."""
        stored = self.tensors[name]
        rows = stored.shape[0] - row if rows is None else rows
        out = torch.empty((rows, *stored.shape[1:]), dtype=stored.dtype)
        read_rows(stored, row, out)
        return out


class HFSource:
    """A Hugging Face folder as the Megatron tensors it converts to; nothing is kept in memory.

    Each rank of any layout can read its own shard: a box of an expert stack touches only the
    experts in it, a box of any other tensor only its rows.
    """

    def __init__(self, folder: str | Path, config: ModelConfig | None = None) -> None:
        self.hf = HFFolder(folder)
        self.config = read_hf_config(folder) if config is None else config
        rules = ling.rules(self.config)
        self._rules = {rule.key: rule for rule in rules}
        check_names_and_shapes(
            {name: stored.shape for name, stored in self.hf.tensors.items()},
            {name: shape for name, (shape, _) in inverse(rules).items()},
            str(folder),
            "Check that config.json belongs to these weights and that every file of the model is "
            "there",
        )
        self._dtypes = {rule.key: self._one_dtype(rule.key) for rule in rules}

    def keys(self) -> dict[str, Shape]:
        """Megatron key -> global shape, in the order of the forward pass."""
        return {key: rule.shape for key, rule in self._rules.items()}

    def dtype(self, key: str) -> torch.dtype:
        return self._dtypes[key]

    def read(self, key: str, offsets: Shape | None = None, shape: Shape | None = None) -> Tensor:
        """The box of Megatron tensor `key` at `offsets` (default: all of it), as stored."""
        rule = self._rules[key]
        offsets = (0,) * len(rule.shape) if offsets is None else tuple(offsets)
        shape = rule.shape if shape is None else tuple(shape)
        _check_box(key, rule.shape, offsets, shape)
        out = torch.empty(shape, dtype=self._dtypes[key])
        columns = shape[-1] if len(shape) > 1 else 1
        first_column = offsets[-1] if len(shape) > 1 else 0
        # Rows of all experts are numbered through; the box has one run of rows an expert.
        per_expert = rule.shape[1] if len(shape) == 3 else rule.shape[0]
        experts, first_expert = (shape[0], offsets[0]) if len(shape) == 3 else (1, 0)
        first, rows = (offsets[1], shape[1]) if len(shape) == 3 else (offsets[0], shape[0])
        runs_EXC = out.view(experts, rows, columns)
        for e in range(experts):
            low = (first_expert + e) * per_expert + first
            for block in rule.blocks:
                begin, end = max(low, block.row), min(low + rows, block.row + block.rows)
                if begin < end:
                    self._read_into(
                        runs_EXC[e, begin - low : end - low],
                        block.hf,
                        block.hf_row + begin - block.row,
                        first_column,
                    )
        return out

    def _read_into(self, out_XC: Tensor, name: str, row: int, column: int) -> None:
        stored = self.hf.tensors[name]
        if math.prod(stored.shape[1:]) == out_XC.shape[1]:
            read_rows(stored, row, out_XC)
        else:
            wide = self.hf.read(name, row, out_XC.shape[0])
            out_XC.copy_(wide[:, column : column + out_XC.shape[1]])

    def _one_dtype(self, key: str) -> torch.dtype:
        found = {block.hf: self.hf.tensors[block.hf].dtype for block in self._rules[key].blocks}
        if len(set(found.values())) > 1:
            (one, a), (other, b), *_ = {d: (name, d) for name, d in found.items()}.values()
            raise ConversionError(
                f"{key} is made of {one} ({a}) and {other} ({b}); tensors that are merged must "
                "have one dtype. Save the checkpoint in a single dtype first"
            )
        return next(iter(found.values()))


class MegatronSource:
    """A Megatron checkpoint of any layout, as the Hugging Face tensors it converts to."""

    def __init__(self, folder: str | Path, config: ModelConfig) -> None:
        self.reader = TorchDistReader(Path(folder))
        rules = ling.rules(config)
        self._shapes = {rule.key: rule.shape for rule in rules}
        found = {
            key: shape
            for key, shape in self.reader.keys().items()
            if not key.startswith(NOT_WEIGHTS)
        }
        check_names_and_shapes(
            found,
            self._shapes,
            str(folder),
            "Check that ring.json and the .distcp files are of the same run",
        )
        self._inverse = inverse(rules)

    def names(self) -> dict[str, Shape]:
        """Hugging Face name -> shape, in the order in which reading is cheapest."""
        return {name: shape for name, (shape, _) in self._inverse.items()}

    def dtype(self, name: str) -> torch.dtype:
        return self.reader.dtype(self._inverse[name][1][0].key)

    def read(self, name: str) -> Tensor:
        """All of Hugging Face tensor `name`, in the stored dtype."""
        shape, pieces = self._inverse[name]
        if len(pieces) == 1:  # all but QKV: no second copy
            return self._rows(pieces[0].key, pieces[0].row, pieces[0].rows)
        out = torch.empty(shape, dtype=self.dtype(name))
        for piece in pieces:
            out[piece.hf_row : piece.hf_row + piece.rows] = self._rows(
                piece.key, piece.row, piece.rows
            )
        return out

    def _rows(self, key: str, row: int, rows: int) -> Tensor:
        shape = self._shapes[key]
        if len(shape) < 3:
            return self.reader.read(key, (row, *[0] * (len(shape) - 1)), (rows, *shape[1:]))
        expert, row = divmod(row, shape[1])  # a block never crosses experts
        return self.reader.read(key, (expert, row, 0), (1, rows, shape[2]))[0]


def _read_headers(folder: Path) -> dict[str, Stored]:
    index, single = folder / INDEX, folder / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            raise ConversionError(
                f"{folder} holds no weights: there is neither {single.name} nor {INDEX}. "
                "Weights in .bin files must be saved as safetensors first"
            )
        return read_header(single)
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    tensors: dict[str, Stored] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise ConversionError(
                f"{folder / name} is missing; {INDEX} lists it. Download the folder again"
            )
        for tensor, stored in read_header(folder / name).items():
            if weight_map.get(tensor) != name:
                raise ConversionError(
                    f"{folder / name} holds {tensor}, {INDEX} says it is in "
                    f"{weight_map.get(tensor, 'no file')}; the files are of different checkpoints"
                )
            tensors[tensor] = stored
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise ConversionError(
            f"{folder / weight_map[absent[0]]} does not hold {absent[0]} although {INDEX} lists "
            f"it there ({len(absent)} such tensors); the files are of different checkpoints"
        )
    return tensors


def _check_box(key: str, whole: Shape, offsets: Shape, shape: Shape) -> None:
    if len(offsets) != len(whole) or any(
        o < 0 or n < 1 or o + n > w for o, n, w in zip(offsets, shape, whole, strict=True)
    ):
        raise ValueError(
            f"{key} {list(whole)} has no box of {list(shape)} at offset {list(offsets)}"
        )
