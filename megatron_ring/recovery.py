"""Which checkpoint a run goes on from: the newest that is whole.

A damaged one costs a loud line and the steps since the one before it, never a silent start from
scratch. It is set aside as `step-00000100.damaged`, so that nothing else trusts it.
"""

import shutil
import sys
from pathlib import Path

import torch.distributed as dist

from megatron_ring import parallel
from megatron_ring.config import Config, ConfigError
from megatron_ring.convert import checksums
from megatron_ring.convert.checksums import Entry
from megatron_ring.convert.folder import STEP, read_ring
from megatron_ring.convert.ops import ConversionError
from megatron_ring.convert.torch_dist import read_metadata


class CheckpointError(ConfigError):
    """A checkpoint could not be written, is damaged or does not belong to this run."""


def candidates(config: Config) -> list[Path]:
    """Checkpoints of the run and its second folder, whole or not, oldest first.

    A save makes its folder visible under this name when it is complete, so all should be whole. Of
    the same step, the one in run.dir comes later.
    """
    places = [config.checkpoint.second_dir, config.run.dir]
    found = [
        (int(path.name.removeprefix(STEP)), number, path)
        for number, place in enumerate(places)
        if place is not None
        for path in (Path(place) / "checkpoints").glob(f"{STEP}*")
        if path.name.removeprefix(STEP).isdigit()
    ]
    return [path for *_, path in sorted(found)]


def readable(config: Config) -> list[Path]:
    """Of the candidates, those whose `ring.json` can be read."""
    return [folder for folder in candidates(config) if _unreadable(folder) is None]


def newest_whole(config: Config) -> Path | None:
    """The newest candidate whose files are what was written; None when there is no candidate.

    Collective; the ranks share the reading. CheckpointError when all are damaged.
    """
    there = parallel.from_rank_0(candidates(config) if parallel.is_first_rank() else None)
    if not there:
        return None
    damaged = []
    for folder in reversed(there):
        problems = _problems(folder, config.checkpoint.verify)
        if not problems:
            parallel.on_rank_0(lambda: _set_aside(damaged))
            return folder
        _say(f"{folder} is DAMAGED and not used: {'; '.join(problems)}")
        damaged.append(folder)
    raise CheckpointError(
        f"all {len(there)} checkpoints of {config.run.dir} are damaged (see above), so there is "
        "nothing to resume from. Bring back a copy, or choose another run.dir to start anew"
    )


def _problems(folder: Path, verify: bool) -> list[str]:
    """What is wrong with a checkpoint, on all ranks; [] when it can be loaded."""
    wrong, entries = parallel.from_rank_0(_first_look(folder) if parallel.is_first_rank() else None)
    if wrong is not None:
        return [wrong]
    for name in checksums.deal(entries, dist.get_rank(), dist.get_world_size()):
        wrong = wrong or _compare(folder, name, entries[name], verify)
    return [problem for problem in parallel.gathered(wrong) if problem is not None]


def _first_look(folder: Path) -> tuple[str | None, dict[str, Entry]]:
    """What takes no time: are the small files sound, is each file there, long enough?"""
    unreadable = _unreadable(folder)
    if unreadable is not None:
        return unreadable, {}
    try:
        entries = checksums.read(folder)
        if not entries and read_ring(folder)[1].get("checksums"):
            return f"{folder / checksums.FILE} is missing", {}
        if not entries:
            _say(f"{folder} is from before there were checksums; only sizes of files are compared")
        read_metadata(folder)  # refuses pickles with anything but checkpoint metadata in them
    except (ValueError, OSError) as error:
        return str(error), {}
    return None, entries


def _compare(folder: Path, name: str, entry: Entry, verify: bool) -> str | None:
    file = folder / name
    if verify:
        return checksums.problem(folder, name, entry)
    size = file.stat().st_size if file.is_file() else 0
    short = f"{file} has {size:,} bytes, {checksums.FILE} says {entry.num_bytes:,}"
    return None if size == entry.num_bytes else short


def _unreadable(folder: Path) -> str | None:
    """Why `ring.json` cannot be read."""
    try:
        read_ring(folder)
    except (ConversionError, OSError, UnicodeDecodeError, KeyError) as error:
        return str(error)
    return None


def _set_aside(damaged: list[Path]) -> None:
    for folder in damaged:
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        _say(f"moved to {aside}; delete it when you have looked at it")


def _say(text: str) -> None:
    """One line on rank 0's error stream: the run's own log is not open yet."""
    if parallel.is_first_rank():
        print(f"WARNING: {text}", file=sys.stderr, flush=True)
