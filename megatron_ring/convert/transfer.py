"""Import and export: one pass over the tensors, holding one piece at a time.

All that can be known from headers is checked first; then pieces are read, cast if asked, and
appended to the other side under a temporary name; the last act is one rename.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from megatron_ring.config import ModelConfig
from megatron_ring.convert import folder as files
from megatron_ring.convert import ling
from megatron_ring.convert.ops import ConversionError, Shape
from megatron_ring.convert.safetensors_file import write_file
from megatron_ring.convert.sources import INDEX, HFSource, MegatronSource
from megatron_ring.convert.torch_dist import TorchDistWriter, split_into_chunks

CHUNK_BYTES = 128 * 1024**2  # largest piece of an import that is not one expert
NORM_EPS = 1e-7  # of NormHead, inclusionAI/Ling 5ccaeae, modeling_bailing_moe.py, compute_logit

OnBytes = Callable[[int, int], None]  # (bytes done, bytes in all), after each piece
# In the words of Hugging Face's config.json.
TORCH_DTYPE = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float16: "float16"}


class Summary(NamedTuple):
    """What a conversion wrote, or would write."""

    tensors: int
    bytes: int
    dtypes: list[str]
    shards: list[str]  # safetensors files; empty for an import
    companions: list[str]  # tokenizer and other files copied along


def no_progress(done: int, total: int) -> None:
    """The progress report of a caller who wants none."""


def import_checkpoint(
    hf_dir: Path,
    ckpt_dir: Path,
    dtype: torch.dtype | None = None,
    on_bytes: OnBytes = no_progress,
    dry_run: bool = False,
) -> Summary:
    """Hugging Face folder -> Megatron checkpoint, loadable on any layout.

    `dtype` casts every tensor; by default each keeps its own. Raises ConversionError or
    ConfigError before anything is written when source, target or disk will not do.
    """
    source = HFSource(hf_dir)
    shapes = source.keys()
    dtypes = {key: dtype or source.dtype(key) for key in shapes}
    total = _total_bytes(shapes, dtypes)
    hf = files.read_hf_json(hf_dir)
    if dtype is not None:
        _name_dtype(hf, dtype)
    names = sorted({files.NAMES[one] for one in dtypes.values()})
    if dry_run:
        files.check_target(ckpt_dir, total)
        return Summary(len(shapes), total, names, [], [])
    with files.published(ckpt_dir, total) as temporary:
        done = 0
        with TorchDistWriter(temporary) as writer:
            for key, shape in shapes.items():
                itemsize = dtypes[key].itemsize
                for chunk in split_into_chunks(key, shape, itemsize, CHUNK_BYTES):
                    piece = source.read(key, chunk.offsets, chunk.sizes).to(dtypes[key])
                    writer.write(key, shape, chunk.offsets, piece)
                    done += piece.nbytes
                    on_bytes(done, total)
            writer.finish()
        # The dtype of a mixed checkpoint (say, fp32 routers) is that of most of its bytes.
        most = max(set(dtypes.values()), key=lambda d: _total_bytes(shapes, dtypes, only=d))
        files.write_megatron_files(temporary, source.config, most, hf)
        companions = files.copy_companions(hf_dir, temporary / "tokenizer")
    return Summary(len(shapes), total, names, [], companions)


def export_checkpoint(
    ckpt_dir: Path,
    hf_dir: Path,
    norm_head: Literal["raw", "folded"] = "raw",
    max_shard: int = 5 * 10**9,
    dtype: torch.dtype | None = None,
    on_bytes: OnBytes = no_progress,
    dry_run: bool = False,
) -> Summary:
    """Megatron checkpoint of any layout, weights or training -> Hugging Face folder.

    `norm_head="folded"` divides the head's columns by their lengths and says norm_head false in
    config.json, as Ling-lite-1.5 does; "raw" keeps both and is bit-identical to what was imported.
    `max_shard` is the size of a safetensors file in bytes; one larger tensor gets its own.
    """
    model, ring = files.read_ring(ckpt_dir)
    source = MegatronSource(ckpt_dir, model)
    shapes = source.names()
    dtypes = {name: dtype or source.dtype(name) for name in shapes}
    total = _total_bytes(shapes, dtypes)
    config = _exported_config(model, ring, norm_head, dtypes, dtype is not None)
    if ring["kind"] == "training" and not any((ckpt_dir / "tokenizer").glob("modeling_*.py")):
        config.pop("auto_map", None)  # it would name code that is not there
    shards = _shards(shapes, dtypes, max_shard)
    names = sorted({files.NAMES[one] for one in dtypes.values()})
    if dry_run:
        files.check_target(hf_dir, total)
        return Summary(len(shapes), total, names, list(shards), [])

    done = 0

    def converted(of_shard: list[str]) -> Iterator[Tensor]:
        nonlocal done
        for name in of_shard:
            tensor = source.read(name)
            if name == ling.HEAD and norm_head == "folded":
                tensor = fold_head(tensor)
            yield tensor.to(dtypes[name])
            done += math.prod(shapes[name]) * dtypes[name].itemsize
            on_bytes(done, total)

    with files.published(hf_dir, total) as temporary:
        for file, of_shard in shards.items():
            entries = {name: (dtypes[name], shapes[name]) for name in of_shard}
            write_file(temporary / file, entries, converted(of_shard))
        if len(shards) > 1:
            weight_map = {name: file for file, of_shard in shards.items() for name in of_shard}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        files.write_hf_config(temporary, config)
        companions = files.copy_companions(ckpt_dir / "tokenizer", temporary)
    return Summary(len(shapes), total, names, list(shards), companions)


def fold_head(head_VD: Tensor) -> Tensor:
    """NormHead's effective weight: each column over (its length across the vocabulary + 1e-7).

    Computed in fp32 and returned in fp32; the caller rounds.
    """
    head_VD = head_VD.float()
    return head_VD / (torch.linalg.vector_norm(head_VD, dim=0, keepdim=True) + NORM_EPS)


def _exported_config(
    model: ModelConfig,
    ring: dict[str, Any],
    norm_head: str,
    dtypes: dict[str, torch.dtype],
    cast: bool,
) -> dict[str, Any]:
    if norm_head == "folded":
        if not model.norm_head:
            raise ConversionError(
                "--norm-head folded: this checkpoint has norm_head=False, its head is used as it "
                "is; leave the option out"
            )
        model = model.model_copy(update={"norm_head": False})
    config = files.hf_config(model, ring["hf"])
    # A folder converted back unchanged keeps its word even where it disagrees with its files.
    if cast or ring["kind"] == "training":
        _name_dtype(config, dtypes[ling.EMBEDDING])
    return config


def _name_dtype(config: dict[str, Any], dtype: torch.dtype) -> None:
    """Under the name this config.json uses: transformers renamed torch_dtype to dtype."""
    config["dtype" if "dtype" in config else "torch_dtype"] = TORCH_DTYPE[dtype]


def _shards(
    shapes: dict[str, Shape], dtypes: dict[str, torch.dtype], max_shard: int
) -> dict[str, list[str]]:
    """File name -> the tensors in it, in order."""
    groups: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtypes[name].itemsize
        if not groups or size > room:
            groups.append([])
            room = max_shard
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{i:05}-of-{len(groups):05}.safetensors": group
        for i, group in enumerate(groups, start=1)
    }


def _total_bytes(
    shapes: dict[str, Shape], dtypes: dict[str, torch.dtype], only: torch.dtype | None = None
) -> int:
    return sum(
        math.prod(shape) * dtypes[name].itemsize
        for name, shape in shapes.items()
        if only in (None, dtypes[name])
    )
