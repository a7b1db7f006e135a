"""Checkpoints: written under a temporary name, made visible by one rename, loadable on any layout.

`RUN/checkpoints/step-00000100/` holds megatron-core's torch_dist files (weights and optimizer state
as global tensors), `rng.safetensors` and `ring.json` (config, progress, data fingerprint). The
unsharded part of megatron-core's optimizer state is not kept: it follows from config and step, and
its shape differs between layouts, which is what breaks resharding elsewhere.
"""

import errno
import fcntl
import json
import os
import queue
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    ShardedTensorFactory,
    is_main_replica,
)
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.optimizer import MegatronOptimizer
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

import megatron_ring
from megatron_ring import parallel
from megatron_ring.config import Config, ConfigError
from megatron_ring.convert.folder import (
    BESIDE_TOKENIZER,
    FORMAT,
    STEP,
    checkpoints_of,
    copy_companions,
    newest,
    read_ring,
)
from megatron_ring.convert.torch_dist import read_metadata
from megatron_ring.data.rows import Rows
from megatron_ring.model.ling import LingModel
from megatron_ring.model.weights import metadata
from megatron_ring.optim import set_step, sharded
from megatron_ring.platform import dtype_name


@dataclass(frozen=True)
class Progress:
    """How far a run is: all that resuming needs beside the tensors."""

    step: int = 0  # updates made; also the next step of the packing plan
    tokens: int = 0  # real tokens seen
    supervised: int = 0  # of which predicted

    def after(self, tokens: int, supervised: int) -> "Progress":
        """One step further, over a batch with that many tokens."""
        return Progress(self.step + 1, self.tokens + tokens, self.supervised + supervised)


class CheckpointError(ConfigError):
    """A checkpoint could not be written or does not belong to this run."""


@contextmanager
def locked(run_dir: str | Path) -> Iterator[None]:
    """Keep other runs out of `run_dir`: two writers would delete each other's checkpoints.

    The lock ends with the process, however it ends. CheckpointError names who holds it. On a file
    system without locks there is none.
    """
    file = Path(run_dir) / "lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise CheckpointError(
                f"run.dir={run_dir} is in use by {stream.read().strip()}; wait for it, stop it, or "
                "choose another run.dir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield


def keep_origin(config: Config) -> None:
    """Copy to the run folder what an export will need of the weights the run starts from.

    They may be gone when a checkpoint is saved, and a save must not fail for that.
    """
    origin = _origin(config)
    if config.run.init_from is None or origin.is_dir() or checkpoints_of(config.run.dir):
        return
    start = newest(config.run.init_from)
    temporary = origin.with_name("origin.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if (start / "ring.json").is_file():
        hf = read_ring(start)[1]["hf"]
        copy_companions(start / "tokenizer", temporary, BESIDE_TOKENIZER)
    else:
        hf = json.loads((start / "config.json").read_text(encoding="utf-8"))
        copy_companions(start, temporary, BESIDE_TOKENIZER)
    (temporary / "config.json").write_text(json.dumps(hf, indent=1), encoding="utf-8")
    temporary.rename(origin)


def _origin(config: Config) -> Path:
    return Path(config.run.dir) / "origin"


def save(
    config: Config,
    stages: list[LingModel],
    optimizer: MegatronOptimizer,
    progress: Progress,
    rows: Rows,
) -> Path:
    """Write the checkpoint of `progress.step` (nothing if it is there), delete the ones too many.

    Raises CheckpointError when it cannot be written; earlier checkpoints are then untouched.
    """
    parent = Path(config.run.dir) / "checkpoints"
    final = parent / f"{STEP}{progress.step:08d}"
    if (final / "ring.json").is_file():
        return final
    temporary = parent / f"{final.name}.tmp"
    try:
        state = _state(stages, optimizer, loading=False)
        num_bytes = _num_bytes(state)
        _on_rank_0(lambda: _fresh_folder(temporary, num_bytes))
        # megatron-core would start a process, which imports torch again, to hand results from
        # a background writer to this one. We write in the foreground.
        filesystem_async._results_queue = queue.Queue()
        dist_checkpointing.save(state, str(temporary), ("torch_dist", 1))
        rng = _gather_rng()
        ring = _ring(config, progress, rows.fingerprint)
        _on_rank_0(lambda: _finish(temporary, final, ring, rng, rows.folder, _origin(config)))
    except (Exception, CheckpointException) as error:  # torch's is no Exception
        free = shutil.disk_usage(config.run.dir).free
        if parallel.is_first_rank():
            shutil.rmtree(temporary, ignore_errors=True)
        kept = ", ".join(path.name for path in checkpoints_of(config.run.dir))
        raise CheckpointError(
            f"could not save {final}: {error}\nThe disk of {config.run.dir} had "
            f"{free / 1e9:.3f} GB free when it failed. Earlier checkpoints are untouched: "
            f"{kept or 'none yet'}"
        ) from error
    _on_rank_0(lambda: _delete_old(config))
    return final


def resume(
    config: Config, stages: list[LingModel], optimizer: MegatronOptimizer, fingerprint: str
) -> Progress | None:
    """Load the run's newest checkpoint, on whatever layout; None when it has none.

    Raises CheckpointError when it is of another architecture, other data or another batch size.
    """
    there = checkpoints_of(config.run.dir)
    if not there:
        return None
    folder = there[-1]
    ring = check_same_run(folder, config, fingerprint)
    read_metadata(folder)  # refuses pickles with anything but checkpoint metadata in them
    for part in sharded(optimizer):
        part._init_optimizer_states_with_dummy_values()  # torch's AdamW has none before a step
    loaded = dist_checkpointing.load(_state(stages, optimizer, loading=True), str(folder))
    for index, stage in enumerate(stages):
        stage.load_state_dict(loaded[f"model{index}"])
    for index, part in enumerate(sharded(optimizer)):
        for state in part.optimizer.state.values():
            state.pop("step", None)  # a number a parameter; set below from ours
        part.load_parameter_state_from_fully_reshardable(loaded[f"optimizer{index}"])
    progress = Progress(**ring["progress"])
    set_step(optimizer, progress.step)
    _restore_rng(folder)
    return progress


def _state(stages: list[LingModel], optimizer: MegatronOptimizer, loading: bool) -> dict[str, Any]:
    models = {f"model{i}": s.sharded_state_dict(metadata=metadata()) for i, s in enumerate(stages)}
    tensors = {
        f"optimizer{i}": part.sharded_param_state_fully_reshardable(models, loading, metadata())
        for i, part in enumerate(sharded(optimizer))
    }
    return models | tensors


def _ring(config: Config, progress: Progress, fingerprint: str) -> dict[str, Any]:
    packages = ("torch", "megatron-core", "transformers")
    return {
        "format": FORMAT,
        "kind": "training",
        "model": config.model.model_dump(),
        "dtype": dtype_name(config.run.dtype),
        "step": progress.step,
        "progress": asdict(progress),
        "config": config.model_dump(),
        "data_fingerprint": fingerprint,
        "versions": {"megatron-ring": megatron_ring.__version__}
        | {name: version(name) for name in packages},
        "hf": _inherited_hf(config),
    }


def _inherited_hf(config: Config) -> dict[str, Any]:
    """Hugging Face keys of the weights the run began with, so that export can give them back."""
    kept = _origin(config) / "config.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    there = checkpoints_of(config.run.dir)  # a run folder that was moved without its origin
    return read_ring(there[-1])[1]["hf"] if there else {}


def check_same_run(folder: Path, config: Config, fingerprint: str) -> dict[str, Any]:
    """`ring.json` of a checkpoint that `config` may resume from; CheckpointError says why not."""
    model, ring = read_ring(folder)
    then, now = model.model_dump(), config.model.model_dump()
    for key, value in now.items():
        if then[key] != value and key != "initializer_range":
            raise CheckpointError(
                f"{folder} was trained with model.{key}={then[key]!r}, this run has {value!r}; "
                "resume with the same architecture or choose another run.dir"
            )
    if ring["data_fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{folder} was trained on data with fingerprint {ring['data_fingerprint']}, "
            f"data.train={config.data.train} has {fingerprint}; resume with the same packed rows "
            "or choose another run.dir (run.init_from starts a new run from these weights)"
        )
    rows = ring["config"]["data"]["rows_per_step"]
    if rows != config.data.rows_per_step:
        raise CheckpointError(
            f"{folder} was trained with data.rows_per_step={rows}, this run has "
            f"{config.data.rows_per_step}; its place in the data would be lost"
        )
    return ring


def _on_rank_0(action: Any) -> None:
    """Run `action` on rank 0; if it fails there, fail everywhere instead of waiting for ever."""
    problem: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            problem[0] = str(error)
    dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise OSError(problem[0])


def _num_bytes(state: dict[str, Any]) -> int:
    """Size of the tensors that all ranks together will write."""
    own = sum(
        tensor.data.numel() * tensor.data.element_size()
        for tensor in nested_values(state)
        if isinstance(tensor, ShardedTensor | ShardedTensorFactory)
        and is_main_replica(tensor.replica_id)
    )
    total = torch.tensor(own, dtype=torch.int64, device=torch.cuda.current_device())
    dist.all_reduce(total)
    return int(total)


def _fresh_folder(temporary: Path, num_bytes: int) -> None:
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
    temporary.mkdir(parents=True)
    free = shutil.disk_usage(temporary).free
    if free < num_bytes:
        raise OSError(
            f"it takes {num_bytes / 1e9:.3f} GB, the disk has {free / 1e9:.3f} GB free; make room, "
            "lower checkpoint.keep_last or choose another run.dir"
        )


def _finish(
    temporary: Path,
    final: Path,
    ring: dict[str, Any],
    rng: dict[str, torch.Tensor],
    packed: Path,
    origin: Path,
) -> None:
    save_file(rng, temporary / "rng.safetensors")
    # The tokenizer is the data's; what else a Hugging Face folder needs came with the weights.
    shutil.copytree(packed / "tokenizer", temporary / "tokenizer")
    copy_companions(origin, temporary / "tokenizer", BESIDE_TOKENIZER)
    with (temporary / "ring.json").open("w", encoding="utf-8") as file:
        json.dump(ring, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(final)


def _delete_old(config: Config) -> None:
    """Rename before deleting: a kill must not leave half a checkpoint that looks whole."""
    for folder in checkpoints_of(config.run.dir)[: -config.checkpoint.keep_last]:
        doomed = folder.with_name(f"{folder.name}.deleted")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _gather_rng() -> dict[str, torch.Tensor]:
    """Random states of all ranks on rank 0. Training itself draws no random number today."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return {f"{kind}.{r}": s for r, states in enumerate(everyone) for kind, s in states.items()}


def _restore_rng(folder: Path) -> None:
    states = load_file(folder / "rng.safetensors")
    rank = dist.get_rank()
    if f"cpu.{rank}" in states:  # absent when the run has grown to more ranks
        torch.set_rng_state(states[f"cpu.{rank}"])
    if f"cuda.{rank}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda.{rank}"])
