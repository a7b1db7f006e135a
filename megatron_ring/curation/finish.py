"""The last step of a run: files of kept records, their manifest, the report and the card."""

import platform
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.curation.mix import MixConfig
from megatron_ring.curation.mix import write_mix
from megatron_ring.curation.recipe import Segment
from megatron_ring.curation.record import Record
from megatron_ring.curation.segment import CARD, Counts, Paths, merge_counts
from megatron_ring.curation.shards import (
    file_stem,
    read_json,
    read_lines,
    write_json,
    write_lines,
    write_parquet,
    writing,
)

PACKAGES = (
    *("megatron-ring", "datatrove", "numpy", "pyarrow", "pydantic", "xxhash"),
    *("httpx", "math-verify", "sympy"),
)
WRITTEN = "written.json"  # in work/: what the files of kept records follow from


def write_output(
    config: CurateConfig,
    paths: Paths,
    segments: list[Segment],
    described: list[dict[str, Any]],
    found: dict[str, Any],
    counts: dict[str, Counts],
) -> dict[str, Any]:
    """Write kept/, pack.yaml (mix/ when the recipe ends in one), card.json; the report."""
    follows = [described[-1]["fingerprint"], config.format, config.records_per_file]
    written = read_json(paths.work / WRITTEN)
    if written is None or written["follows"] != follows or not _all_there(written):
        (paths.work / WRITTEN).unlink(missing_ok=True)
        files = _write_kept(config, paths, segments[-1], found)
        _write_manifest(config, paths, files)
        mix, folder = config.stages[-1] if config.stages else None, paths.output / "mix"
        shutil.rmtree(folder, ignore_errors=True)  # of another recipe
        if isinstance(mix, MixConfig):
            _write_mix(paths, segments[-2], len(found["pieces"]), mix)
        made = [file for file, _ in files] + list(folder.glob("*"))
        sizes = {str(file): file.stat().st_size for file in made}
        write_json(paths.work / WRITTEN, {"follows": follows, "sizes": sizes})
    _check_lines(paths, segments, len(found["pieces"]), counts)
    with writing(paths.output / "recipe.yaml") as file:
        tree = config.model_dump(mode="json")
        file.write(OmegaConf.to_yaml(OmegaConf.create(tree)).encode())
    write_json(paths.output / CARD, _card(config, found, described[-1]["fingerprint"]))
    return _report(paths, segments, found, counts)


def _all_there(written: dict[str, Any]) -> bool:
    return all(
        Path(name).is_file() and Path(name).stat().st_size == size
        for name, size in written["sizes"].items()
    )


def _write_kept(
    config: CurateConfig, paths: Paths, last: Segment, found: dict[str, Any]
) -> list[tuple[Path, str]]:
    """A file a source, or several numbered ones; (file, name of the source)."""
    folder = paths.output / "kept"
    files: list[tuple[Path, str]] = []
    for index, source in enumerate(found["sources"]):
        shards = [n for n, piece in enumerate(found["pieces"]) if piece[0] == index]
        lines = _lines(paths, last, shards)
        total = sum(read_json(paths.counts(last, shard))["records"] for shard in shards)
        size, stem = config.records_per_file, file_stem(source["name"])
        for number in range(-(-total // size)):
            name = stem if total <= size else f"{stem}-{number:05d}"
            path = folder / f"{name}.{config.format}"
            write = write_lines if config.format == "jsonl" else write_parquet
            write(path, islice(lines, size), synced=True)
            files.append((path, source["name"]))
    if folder.exists():
        for stale in set(folder.iterdir()) - {path for path, _ in files}:
            stale.unlink()
    return files


def _lines(paths: Paths, segment: Segment, shards: list[int]) -> Iterator[bytes]:
    for shard in shards:
        with paths.kept(segment, shard).open("rb") as file:
            yield from file


def _write_manifest(config: CurateConfig, paths: Paths, files: list[tuple[Path, str]]) -> None:
    """pack.yaml: the sources that tools/pack.py reads, paths as output was typed."""
    sources = [
        {"path": str(Path(config.output) / path.relative_to(paths.output)), "name": path.stem}
        for path, _ in files
    ]
    with writing(paths.output / "pack.yaml") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create({"sources": sources})).encode())


def _write_mix(paths: Paths, before: Segment, num_shards: int, mix: MixConfig) -> None:
    def read() -> Iterator[Record]:
        for shard in range(num_shards):
            yield from read_lines(paths.kept(before, shard))

    write_mix(read, mix, paths.output / "mix")


def _check_lines(
    paths: Paths, segments: list[Segment], num_shards: int, counts: dict[str, Counts]
) -> None:
    """Files hold as many records as were counted, or an error."""
    there = {"kept": sum(1 for _ in _lines(paths, segments[-1], list(range(num_shards))))}
    counted = {"kept": counts[segments[-1].labels[-1]].kept}
    for label, one in counts.items():
        files = paths.rejected(label).glob("*.jsonl")
        there[f"rejected/{label}"] = sum(_num_lines(path) for path in files)
        counted[f"rejected/{label}"] = sum(one.rejected.values())
    for name, number in there.items():
        if number != counted[name]:
            raise ValueError(
                f"{name} holds {number} records, {counted[name]} were counted; files in "
                f"{paths.output} were changed or lost: remove work/ in it and run again"
            )


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def versions() -> dict[str, str]:
    """Of Python and of the packages that records depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _card(config: CurateConfig, found: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    inputs = [
        {"source": name, "path": path, "bytes": size, "sha256": checksum}
        for (name, path, size, _), checksum in zip(found["files"], found["sha256"], strict=True)
    ]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "fingerprint": fingerprint,
        "versions": versions(),
        "inputs": inputs,
        "recipe": config.model_dump(mode="json"),
    }


def _report(
    paths: Paths, segments: list[Segment], found: dict[str, Any], counts: dict[str, Counts]
) -> dict[str, Any]:
    """Of each stage, and of each source, what was read, kept and rejected for which reason."""
    stages = [
        {
            "stage": label,
            "read": one.read,
            "kept": one.kept,
            "rejected": dict(sorted(one.rejected.items())),
            "seconds": round(one.seconds, 3),
            "records_per_second": round(one.read / one.seconds) if one.seconds else None,
        }
        for label, one in counts.items()
    ]
    sources = {}
    for index, source in enumerate(found["sources"]):
        shards = [n for n, piece in enumerate(found["pieces"]) if piece[0] == index]
        own = merge_counts(
            read_json(paths.counts(segment, shard))["stages"]
            for segment in segments
            for shard in shards
        )
        rejected = {label: dict(sorted(one.rejected.items())) for label, one in own.items()}
        labels = list(own)
        sources[source["name"]] = {
            "read": own[labels[0]].read if own else 0,
            "kept": own[labels[-1]].kept if own else 0,
            "rejected": {label: reasons for label, reasons in rejected.items() if reasons},
        }
    warnings = [f"source {name}: nothing in it" for name, s in sources.items() if not s["read"]]
    warnings += [
        f"source {name}: none of {one['read']:,} rows is a record: {one['rejected'][labels[0]]}"
        for name, one in sources.items()
        if one["read"] and sum(one["rejected"].get("read", {}).values()) == one["read"]
        for labels in [["read"]]
    ]
    empty = [file[1] for file in found["files"] if not file[2]]
    warnings += [f"empty file: {path}" for path in empty]
    return {"stages": stages, "sources": sources, "warnings": warnings}
