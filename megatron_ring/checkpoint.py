"""Checkpoints: written under a temporary name, made visible by one rename, loadable on any layout.

`RUN/checkpoints/step-00000100/` holds megatron-core's torch_dist files (weights and optimizer state
as global tensors), `rng.safetensors` and `ring.json` (config, progress, data fingerprint). The
unsharded part of megatron-core's optimizer state is not kept: it follows from config and step, and
its shape differs between layouts, which is what breaks resharding elsewhere. `checksums.json` has
size and checksum of every file; `ring.json` is written last.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
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
from megatron.core.optimizer import MegatronOptimizer
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

import megatron_ring
from megatron_ring import parallel, recovery, watchdog, writing
from megatron_ring.config import Config
from megatron_ring.convert import checksums
from megatron_ring.convert.folder import (
    BESIDE_TOKENIZER,
    FORMAT,
    STEP,
    checkpoints_of,
    copy_companions,
    newest,
    read_ring,
)
from megatron_ring.data.rows import Rows
from megatron_ring.model.ling import LingModel
from megatron_ring.model.weights import metadata
from megatron_ring.optim import make_state, set_step, sharded
from megatron_ring.platform import dtype_name
from megatron_ring.recovery import CheckpointError
from megatron_ring.writing import Staged


@dataclass(frozen=True)
class Progress:
    """How far a run is: all that resuming needs beside the tensors."""

    step: int = 0  # batches tried; without spikes also updates made, and the plan's next batch
    tokens: int = 0  # real tokens of the updates
    supervised: int = 0  # of which predicted
    spikes: dict[str, Any] = field(default_factory=dict)  # spikes.Guard.state

    @property
    def updates(self) -> int:
        """Steps that changed the weights: Adam's count, and the learning rate schedule's."""
        return self.step - self.spikes.get("skipped", 0)

    def after(self, tokens: int, supervised: int, spikes: dict[str, Any]) -> "Progress":
        """One step further, by an update over that many tokens, or by none over 0."""
        return Progress(self.step + 1, self.tokens + tokens, self.supervised + supervised, spikes)


@contextmanager
def locked(folder: str | Path, key: str = "run.dir") -> Iterator[None]:
    """Keep other runs out of `folder`: two writers would delete each other's checkpoints.

    The lock ends with the process, however it ends. CheckpointError names who holds it. On a file
    system without locks there is none. What killed runs left of saves and deletions is deleted.
    """
    file = Path(folder) / "lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise CheckpointError(
                f"{key}={folder} is in use by {stream.read().strip()}; wait for it, stop it, or "
                f"choose another {key}"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        for end in ("tmp", "deleted"):
            for rest in file.parent.glob(f"checkpoints/{STEP}*.{end}"):
                shutil.rmtree(rest, ignore_errors=True)
        stream.truncate(0)
        with suppress(OSError):  # a second_dir that is full must not keep the run from starting
            os.write(stream.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def keep_origin(config: Config) -> None:
    """Copy to the run folder what an export will need of the weights the run starts from.

    They may be gone when a checkpoint is saved, and a save must not fail for that.
    """
    origin = _origin(config)
    if config.run.init_from is None or origin.is_dir() or recovery.candidates(config):
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


@dataclass
class Save:
    """A checkpoint on its way: its tensors are copied, its files not yet all written."""

    config: Config
    final: Path
    temporary: Path
    staged: Staged
    ring: dict[str, Any]
    rng: dict[str, torch.Tensor]  # on rank 0
    packed: Path  # the folder of the rows: its tokenizer goes along
    problem: str | None = None  # why this rank could not write

    def write(self) -> None:
        """Write this rank's files; no collective, so that it may run in a thread."""
        try:
            self.staged.write()
        except Exception as error:
            self.problem = f"rank {dist.get_rank()}: {error}"

    def publish(self, keep: Collection[Path] = ()) -> None:
        """After all ranks' `write`: complete it, make it visible, delete the ones too many.

        Collective. `keep` are not to be deleted now. Raises CheckpointError when it cannot be
        completed; earlier checkpoints are then untouched.
        """
        with _explained(self.config, self.final, self.temporary):
            everyone = parallel.gathered((self.problem, self.staged.entries))
            problems = [problem for problem, _ in everyone if problem is not None]
            if problems:
                raise OSError(problems[0])
            self.staged.finish()
            entries = {name: entry for _, own in everyone for name, entry in own.items()}
            parallel.on_rank_0(lambda: self._finish(entries))
        parallel.on_rank_0(lambda: _delete_old(self.config, keep))

    def _finish(self, entries: dict[str, checksums.Entry]) -> None:
        folder = self.temporary
        save_file(self.rng, folder / "rng.safetensors")
        # The tokenizer is the data's; what else a Hugging Face folder needs came with the weights.
        shutil.copytree(self.packed / "tokenizer", folder / "tokenizer")
        copy_companions(_origin(self.config), folder / "tokenizer", BESIDE_TOKENIZER)
        text = json.dumps(self.ring, indent=1).encode()
        checksums.complete(folder, entries, "ring.json", text)
        self.temporary.rename(self.final)
        checksums.sync_folder(self.final.parent)


def begin(
    config: Config,
    stages: list[LingModel],
    optimizer: MegatronOptimizer,
    progress: Progress,
    rows: Rows,
) -> Save | None:
    """Plan and copy the checkpoint of `progress.step`; None when it is there already. Collective.

    Raises CheckpointError when there is no room for it; earlier checkpoints are then untouched.
    """
    parent = Path(config.run.dir) / "checkpoints"
    final = parent / f"{STEP}{progress.step:08d}"
    if (final / "ring.json").is_file():
        return None
    temporary = parent / f"{final.name}.tmp"
    if progress.updates == 0:
        make_state(optimizer)
    with _explained(config, final, temporary):
        state = _state(stages, optimizer, loading=False)
        num_bytes = _num_bytes(state)
        parallel.on_rank_0(lambda: _fresh_folder(temporary, num_bytes))
        staged = writing.stage(state, temporary)
        ring = _ring(config, progress, rows.fingerprint)
        return Save(config, final, temporary, staged, ring, _gather_rng(), rows.folder)


def save(
    config: Config,
    stages: list[LingModel],
    optimizer: MegatronOptimizer,
    progress: Progress,
    rows: Rows,
) -> None:
    """Write the checkpoint of `progress.step` (nothing if it is there) while everybody waits."""
    under_way = begin(config, stages, optimizer, progress, rows)
    if under_way is not None:
        under_way.write()
        under_way.publish()


@contextmanager
def _explained(config: Config, final: Path, temporary: Path) -> Iterator[None]:
    """Turn what goes wrong with a save into a CheckpointError, and remove what it wrote."""
    try:
        yield
    except (Exception, CheckpointException) as error:  # torch's is no Exception
        if watchdog.is_loss(
            error
        ):  # told by train.py; what was written is removed at the next save
            raise
        free = shutil.disk_usage(config.run.dir).free
        if parallel.is_first_rank():
            shutil.rmtree(temporary, ignore_errors=True)
        kept = ", ".join(path.name for path in checkpoints_of(config.run.dir))
        raise CheckpointError(
            f"could not save {final}: {error}\nThe disk of {config.run.dir} had "
            f"{free / 1e9:.3f} GB free when it failed. Earlier checkpoints are untouched: "
            f"{kept or 'none yet'}"
        ) from error


def resume(
    config: Config, stages: list[LingModel], optimizer: MegatronOptimizer, fingerprint: str
) -> Progress | None:
    """Load the run's newest whole checkpoint, on whatever layout; None when it has none at all.

    Raises CheckpointError when it is of another architecture, other data or another batch size, or
    when there are checkpoints and all are damaged.
    """
    folder = recovery.newest_whole(config)
    if folder is None:
        return None
    ring = check_same_run(folder, config, fingerprint)
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
    set_step(optimizer, progress.updates)
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
        "checksums": checksums.FILE,  # so that their absence is noticed
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
    there = recovery.readable(config)  # a run folder that was moved without its origin
    return read_ring(there[-1])[1]["hf"] if there else {}


def check_start(config: Config, fingerprint: str) -> bool:
    """Are there checkpoints to resume from? CheckpointError when they are another run's."""
    readable = recovery.readable(config)
    if readable:
        check_same_run(readable[-1], config, fingerprint)
    return bool(recovery.candidates(config))


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


def _delete_old(config: Config, keep: Collection[Path]) -> None:
    for folder in checkpoints_of(config.run.dir)[: -config.checkpoint.keep_last]:
        if folder not in keep:
            delete(folder)


def delete(folder: Path) -> None:
    """Rename before deleting: a kill must not leave half a checkpoint that looks whole."""
    doomed = folder.with_name(f"{folder.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _gather_rng() -> dict[str, torch.Tensor]:
    """Random states of all ranks on rank 0. Training itself draws no random number today."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    everyone = enumerate(parallel.gathered(own))
    return {f"{kind}.{r}": s for r, states in everyone for kind, s in states.items()}


def _restore_rng(folder: Path) -> None:
    states = load_file(folder / "rng.safetensors")
    rank = dist.get_rank()
    if f"cpu.{rank}" in states:  # absent when the run has grown to more ranks
        torch.set_rng_state(states[f"cpu.{rank}"])
    if f"cuda.{rank}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda.{rank}"])
