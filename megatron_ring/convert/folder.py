"""Everything of a checkpoint folder that is not a tensor, and how a folder comes into being.

A Megatron checkpoint of ours holds, besides the torch_dist files: `metadata.json` and `common.pt`
for megatron-core, `ring.json` for us, and `tokenizer/`, the files of the Hugging Face folder that
are neither weights nor config.json. Its `hf` entry is the Hugging Face config.json as it was read,
so that export gives it back with all the keys we know nothing about.
"""

import contextlib
import fnmatch
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import megatron_ring
from megatron_ring.config import ModelConfig, RopeScaling
from megatron_ring.convert import ling
from megatron_ring.convert.ops import ConversionError

FORMAT = 1
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SPARE_BYTES = 64 * 1024**2  # headers, tokenizer, metadata

# Copied unread and never imported: tokenizer, generation settings, licence, and the authors' own
# Python files, without which an exported folder could not be loaded elsewhere.
TOKENIZER = (
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "vocab*",
    "merges*",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "tokenization_*.py",
)
BESIDE_TOKENIZER = (
    "generation_config.json",
    "LICENSE*",
    "configuration_*.py",
    "modeling_*.py",
)
COMPANIONS = TOKENIZER + BESIDE_TOKENIZER
STEP = "step-"  # a run's checkpoints are checkpoints/step-00000100


@contextlib.contextmanager
def published(target: Path, num_bytes: int) -> Iterator[Path]:
    """A new folder under a temporary name, renamed to `target` when the block ends well.

    Refuses an existing target and a disk without room for `num_bytes` before anything is written;
    removes what was written when the block fails.
    """
    check_target(target, num_bytes)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        check_absent(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already when all went well


def check_target(target: Path, num_bytes: int) -> None:
    """Raise ConversionError when `target` exists or its disk has no room for `num_bytes`."""
    check_absent(target)
    there = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes + SPARE_BYTES:
        raise ConversionError(
            f"{target} needs {(num_bytes + SPARE_BYTES) / 1e9:,.2f} GB, the disk of {there} has "
            f"{free / 1e9:,.2f} GB free; make room or choose another disk"
        )


def check_absent(target: Path) -> None:
    if target.exists():
        raise ConversionError(f"{target} exists already; it is not overwritten. Choose a new name")


def copy_companions(
    source: Path, target: Path, patterns: tuple[str, ...] = COMPANIONS
) -> list[str]:
    """Copy tokenizer and other small files of `source` into `target`; the names copied."""
    if not source.is_dir():
        return []
    names = [
        path.name
        for path in sorted(source.iterdir())
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
    ]
    for name in names:
        target.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return names


def read_hf_json(folder: Path) -> dict[str, Any]:
    """The Hugging Face config.json of a folder, every key as it is."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def write_megatron_files(
    folder: Path, model: ModelConfig, dtype: torch.dtype, hf: dict[str, Any]
) -> None:
    """The small files that make torch_dist data a weights checkpoint of megatron-core and ours."""
    torch.save({}, folder / "common.pt")
    backends = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    _write_json(folder / "metadata.json", backends)
    ring = {
        "format": FORMAT,
        "kind": "weights",
        "model": model.model_dump(),
        "dtype": NAMES[dtype],
        "step": 0,
        "config": None,
        "data_fingerprint": None,
        "versions": {"megatron_ring": megatron_ring.__version__, "torch": torch.__version__},
        "hf": hf,
    }
    _write_json(folder / "ring.json", ring)


def checkpoints_of(run_dir: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = (Path(run_dir) / "checkpoints").glob(f"{STEP}*")
    complete = [path for path in found if (path / "ring.json").is_file()]
    return sorted(path for path in complete if path.name.removeprefix(STEP).isdigit())


def newest(path: str | Path) -> Path:
    """The newest checkpoint when `path` is a run's folder, else `path`."""
    there = checkpoints_of(path)
    return there[-1] if there else Path(path)


def read_ring(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Architecture and the whole of `ring.json` of a Megatron checkpoint."""
    file = Path(folder) / "ring.json"
    if not file.is_file():
        raise ConversionError(
            f"{folder} is not a checkpoint of this program: there is no {file}. Name the folder of "
            "one step, or import a Hugging Face folder first"
        )
    try:
        ring = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConversionError(f"{file} is not JSON: {error}") from None
    if ring.get("format") != FORMAT:
        raise ConversionError(
            f"{file} has format {ring.get('format')!r}, this program reads format {FORMAT}"
        )
    try:
        return ModelConfig.model_validate(ring["model"]), ring
    except ValidationError as error:
        raise ConversionError(f"{file}: model: {error}") from None


def hf_config(model: ModelConfig, hf: dict[str, Any]) -> dict[str, Any]:
    """config.json of `model`: what it was imported from, or else the minimum, brought up to date.

    Equal to the original, key for key, when the model is still the imported one.
    """
    config = dict(hf or ling.HF_CONFIG)
    defaults = {name: field.default for name, field in ModelConfig.model_fields.items()}
    for name, value in model.model_dump(exclude={"rope_scaling"}).items():
        if name in config or value != defaults[name]:
            config[name] = value
    # It has two spellings and keys that need not be there: the same scaling stays as it was said.
    given, ours = config.get("rope_scaling"), model.rope_scaling
    if ours != (None if given is None else RopeScaling.model_validate(given)):
        config["rope_scaling"] = None if ours is None else ours.model_dump(exclude_defaults=True)
    return config


def write_hf_config(folder: Path, config: dict[str, Any]) -> None:
    _write_json(folder / "config.json", config)


def _write_json(file: Path, tree: dict[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
