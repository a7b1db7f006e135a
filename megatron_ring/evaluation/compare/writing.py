"""A comparison on disk: tables.md, tables.json, changed.jsonl."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ring.curation.console import cut
from megatron_ring.curation.shards import dump, write_json, write_lines, writing
from megatron_ring.evaluation.compare import items
from megatron_ring.evaluation.compare.cells import Frame
from megatron_ring.evaluation.compare.markdown import markdown

TABLES, NUMBERS, CHANGED = "tables.md", "tables.json", "changed.jsonl"
LONGEST = 4000  # characters of a text that are shown; changed.jsonl has all


def write(frame: Frame, told: dict[str, Any], folder: Path, number: int) -> list[dict[str, Any]]:
    """Write the three files; returns the first `number` won and lost items of each benchmark.

    A line of changed.jsonl is one item that was won or lost, with its prompt and both answers.
    """
    with writing(folder / TABLES) as file:
        file.write(markdown(told).encode())
    write_json(folder / NUMBERS, told)
    shown: list[dict[str, Any]] = []
    write_lines(folder / CHANGED, map(dump, _kept(frame, shown, number)))
    return shown


def _kept(frame: Frame, shown: list[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
    """All changed items; the first of each kind also go to `shown`, long texts cut."""
    seen: dict[tuple[str, ...], int] = {}
    for pair in items.pairs(frame):
        for line in items.changed(frame, pair):
            kind = (pair.one, pair.other, line["task"], line["outcome"])
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] <= number:
                shown.append(line | {"prompt": cut(line["prompt"], LONGEST)} | _short(line))
            yield line


def _short(line: dict[str, Any]) -> dict[str, Any]:
    return {
        side: line[side] | {"text": cut(line[side]["text"], LONGEST)} for side in ("one", "other")
    }
