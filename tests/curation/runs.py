"""Runs of recipes for the tests, and what they leave."""

import json
from collections.abc import Iterator
from pathlib import Path

from megatron_ring import config
from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.curation.collect import SourceConfig
from megatron_ring.curation.collect.adapt import complete, to_record
from megatron_ring.curation.reading import cut_source, read_piece
from megatron_ring.curation.record import Record, Rejection

HERE = Path(__file__).parent
SMOKE = HERE / "smoke.yaml"


def load(*overrides: str, output: Path, file: Path = SMOKE) -> CurateConfig:
    """The recipe of a file, its sources in this folder wherever the test runs."""
    sources = [
        f"sources.sums.path={HERE}/smoke.jsonl",
        f"sources.chat.path={HERE}/smoke_chat.jsonl",
    ]
    given = sources if file == SMOKE else []
    return config.load(CurateConfig, [str(file)], [*given, f"output={output}", *overrides])


def read_source(source: SourceConfig, size: int = 2) -> Iterator[Record | Rejection]:
    """What a run makes of a source's rows, before any stage; in pieces of `size` rows."""
    source, most = complete(source), 4_000_000
    for piece in cut_source(source, 0, size, most):
        for row in read_piece(source, piece, most):
            yield row.fault if row.fault is not None else to_record(source, row)


def simple(output: Path, *paths: Path, **keys: object) -> CurateConfig:
    """A recipe that reads files with prompt and response, and does nothing more by itself."""
    columns = {"prompt": "prompt", "response": "response"}
    sources = [{"path": str(path), "columns": columns} for path in paths]
    return CurateConfig(**{"sources": sources, "stages": [], "output": str(output), **keys})


def outcome(output: Path) -> dict[str, object]:
    """All of a run that must not depend on who did it when: files as bytes, and counts."""
    found: dict[str, object] = {
        str(path.relative_to(output)): path.read_bytes()
        for part in ("kept", "rejected", "mix")
        for path in sorted((output / part).rglob("*"))
        if path.is_file()
    }
    report = json.loads((output / "report.json").read_text())
    for stage in report["stages"]:
        stage.pop("seconds"), stage.pop("records_per_second")
    report.pop("wall_seconds")
    return found | {"report": report}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ids(output: Path, source: str) -> list[str]:
    """Ids of the kept records of a source, in order."""
    path = output / f"kept/{source}.jsonl"
    return [line["id"] for line in lines(path)] if path.exists() else []


def rejected(output: Path, stage: str) -> list[dict]:
    """A stage's rejections, in order."""
    files = sorted((output / "rejected" / stage).glob("*.jsonl"))
    return [line for file in files for line in lines(file)]


def write_rows(path: Path, count: int, more: str = "") -> Path:
    """A JSONL file of additions, some of which come twice."""
    with path.open("w") as file:
        for n in range(count):
            a, b = (n % 5 if n % 7 == 0 else n), n % 11
            row = {"prompt": f"What is {a} plus {b}?{more}", "response": f"It is {a + b}."}
            file.write(json.dumps(row) + "\n")
    return path
