"""The folder of a run: what is in it already, what of that still holds, and who works in it.

Each segment's folder has a fingerprint of all that its records follow from: the input, the options,
code and files of its stages, and the segment before. Where it differs, that segment and all behind
it begin anew. Options that are incidental (how many requests at a time, where a model's replies are
kept, what they may cost) are no part of it.
"""

import fcntl
import inspect
import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

import xxhash

from megatron_ring.config.base import ConfigError, content_of
from megatron_ring.config.curation import CurateConfig
from megatron_ring.curation import collect, reading
from megatron_ring.curation import segment as segment_module
from megatron_ring.curation.collect.adapt import complete
from megatron_ring.curation.collect.read import paths_of
from megatron_ring.curation.reading import Piece, cut_source, sha256_of
from megatron_ring.curation.recipe import READ, Segment, stage_class
from megatron_ring.curation.segment import CARD, JOB, RECORDED, Paths
from megatron_ring.curation.shards import HALF, file_stem, read_json, write_json

BIG = 1 << 26  # bytes; a stage's file beyond is told by size and date instead of its content


@contextmanager
def claimed(paths: Paths) -> Iterator[None]:
    """The output folder, with nobody else at work in it; ConfigError when there is."""
    output, work = paths.output, paths.work
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output={output} is a file; name a folder")
    if output.exists() and not work.exists() and any(output.iterdir()):
        if not (output / CARD).exists():
            raise ConfigError(
                f"output={output} has other files in it and no run; choose another folder"
            )
        shutil.rmtree(output / "rejected", ignore_errors=True)  # of stages that may not come again
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone when its process is
        except OSError:
            raise ConfigError(f"output={output}: another run is at work there") from None
        for half in output.rglob(f".*{HALF}"):  # of runs that were killed
            half.unlink(missing_ok=True)
        yield


def cut_input(config: CurateConfig, old: dict[str, Any] | None) -> dict[str, Any]:
    """Files with checksums, and pieces: a shard each, in the order of sources.

    `old` is what this returned before; it comes back when no source and no file is another. Nothing
    is written. ConfigError for two sources of one name, and a file that is not there.
    """
    sources = [complete(source) for source in config.sources]
    stems: dict[str, str] = {}
    for index, name in enumerate(str(source.name) for source in sources):
        if (stem := file_stem(name)) in stems:
            same = f"two sources are named {name!r}"
            clash = f"sources {stems[stem]!r} and {name!r} would both be written to kept/{stem}"
            told = same if stems[stem] == name else clash
            raise ConfigError(f"{told}; set sources.{index}.name")
        stems[stem] = name
    asked = [source.model_dump(mode="json") for source in sources]
    sizes = [config.records_per_shard, config.max_record_bytes]
    files = []
    for source in sources:
        for path in paths_of(source) if source.path is not None else []:
            facts = path.stat()
            files.append([source.name, str(path), facts.st_size, facts.st_mtime_ns])
    told = {"sources": asked, "sizes": sizes, "files": files}
    if old is not None and {key: old[key] for key in told} == told:
        return old
    known = {tuple(file): old["sha256"][i] for i, file in enumerate(old["files"])} if old else {}
    sums = [known.get(tuple(file)) or _checksum(*file[:2]) for file in files]
    pieces = [
        astuple(piece)
        for index, source in enumerate(sources)
        for piece in cut_source(source, index, *sizes)
    ]
    return {**told, "sha256": sums, "pieces": pieces}


def _checksum(name: str, path: str) -> str:
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise ConfigError(f"source {name}: path={path} cannot be read: {error}") from None


def pieces_of(found: dict[str, Any]) -> list[Piece]:
    """The pieces of what `cut_input` returned."""
    return [Piece(*piece) for piece in found["pieces"]]


def describe(segments: Iterable[Segment], found: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each segment: its fingerprint, and in words that people compare what goes into it."""
    files = [
        [name, path, checksum]
        for (name, path, *_), checksum in zip(found["files"], found["sha256"], strict=True)
    ]
    rows = sum(piece[-1] for piece in found["pieces"])
    content: Any = {"input": [found["sources"], found["sizes"], files, rows]}
    code = [Path(reading.__file__), Path(segment_module.__file__)]
    content["code of read"] = _digest_files([*code, *Path(collect.__file__).parent.glob("*.py")])
    described, before = [], ""
    for segment in segments:
        for step in [*segment.steps, *([segment.tail] if segment.tail else [])]:
            options = content_of(step.options)
            content |= {f"{step.label}.{key}": value for key, value in options.items()}
            content[f"code of {step.label}"] = _digest_code(stage_class(step.options.stage))
            for name in sorted(_strings(options)):
                if (digest := _digest_path(name)) is not None:
                    content[f"{step.label}: {name}"] = digest
        text = json.dumps([before, content], sort_keys=True)
        before = xxhash.xxh3_128_hexdigest(text.encode())
        stages = [*segment.labels, *([segment.tail.label] if segment.tail else [])]
        told = {"fingerprint": before, "stages": stages, "content": content}
        described.append(told)
        content = {}
    return described


def drop_changed(
    paths: Paths,
    segments: list[Segment],
    described: list[dict[str, Any]],
    tell: Callable[[str], None],
) -> None:
    """Remove segments from the first whose fingerprint is another; say which, and why."""
    folders = sorted(path for path in paths.work.glob("[0-9][0-9]-*") if path.is_dir())
    changed: str | None = None
    for folder in folders:
        number = int(folder.name[:2])
        same_place = number < len(segments) and folder.name == segments[number].name
        recorded = read_json(folder / RECORDED)
        if changed is None:
            if same_place and recorded == described[number]:
                continue
            new = described[number] if number < len(segments) else {"content": {}}
            changed = _differences((recorded or {}).get("content", {}), new["content"])
            tell(f"the recipe is another from {folder.name} on ({changed}): done again from there")
        for label in (recorded or {}).get("stages", []):
            # The global stage behind a segment rejects in the next, which goes as well.
            shutil.rmtree(paths.rejected(label), ignore_errors=True)
        _cancel(read_json(folder / "tasks" / JOB))
        (folder / RECORDED).unlink(missing_ok=True)  # first: what is half removed is no segment
        shutil.rmtree(folder)
    for segment, told in zip(segments, described, strict=True):
        if not (paths.folder(segment) / RECORDED).exists():
            for label in segment.labels:
                shutil.rmtree(paths.rejected(label), ignore_errors=True)
            write_json(paths.folder(segment) / RECORDED, told)


def missing_shards(paths: Paths, segment: Segment, num_shards: int) -> list[int]:
    """Shards of a segment that are not finished."""
    folder = paths.counts(segment, 0).parent
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return [n for n in range(num_shards) if paths.counts(segment, n).name not in there]


def _cancel(job: str | None) -> None:
    """Slurm's job of a run before, which would go on writing for its recipe."""
    if job is not None:
        with suppress(OSError):  # no Slurm here any more
            subprocess.run(["scancel", str(job)], capture_output=True)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    told = []
    for key in [*new, *(key for key in old if key not in new)]:
        if old.get(key) == new.get(key):
            continue
        before, after = (json.dumps(tree.get(key), ensure_ascii=False) for tree in (old, new))
        if key == "input" or key.startswith("code of ") or ": " in key:
            told.append(f"{key} changed")
        else:
            told.append(f"{key} was {before}, is {after}")
    shown = "; ".join(told[:4]) + (f"; and {len(told) - 4} more" if len(told) > 4 else "")
    return shown or f"what follows {READ} changed"


def _strings(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value} if len(value) < 1000 and "\n" not in value and "\0" not in value else set()
    if isinstance(value, dict):
        value = list(value.values())
    return {text for one in value for text in _strings(one)} if isinstance(value, list) else set()


def _digest_path(name: str) -> Any:
    """What tells one content of a file or folder from another; None when there is neither."""
    path = Path(name)
    if isfile(name):  # os.path's: of a long regular expression pathlib's is an error
        facts = path.stat()
        if facts.st_size > BIG:
            return [facts.st_size, facts.st_mtime_ns]
        return xxhash.xxh3_128_hexdigest(path.read_bytes())
    if isdir(name) and "/" in name:
        facts = [(str(p), p.stat()) for p in sorted(path.rglob("*")) if p.is_file()]
        return xxhash.xxh3_128_hexdigest(
            json.dumps([[n, f.st_size, f.st_mtime_ns] for n, f in facts]).encode()
        )
    return None


def _digest_code(stage: type) -> str:
    """Of the file that a stage is written in; of its folder, when it has one of its own."""
    path = Path(inspect.getfile(stage))
    own = path.parent != Path(__file__).parent
    return _digest_files(path.parent.glob("*.py") if own else [path])


def _digest_files(paths: Iterable[Path]) -> str:
    digest = xxhash.xxh3_128()
    for path in sorted(paths):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
