"""Files of records: whole or not there at all, and the same bytes for the same records."""

import errno
import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ring.curation.record import Record

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HALF = ".half"  # end of the name of a file that is being written
# Columns of Parquet in this order. What has no fixed shape is JSON text; tools/pack.py takes tools
# and a call's arguments as such, and any reader the rest.
CALL = pa.struct(
    {
        "id": pa.string(),
        "type": pa.string(),
        "function": pa.struct({"name": pa.string(), "arguments": pa.string()}),
    }
)
TURN = pa.struct(
    {
        "role": pa.string(),
        "content": pa.string(),
        "reasoning_content": pa.string(),
        "name": pa.string(),
        "tool_call_id": pa.string(),
        "tool_calls": pa.list_(CALL),
        "train": pa.bool_(),
    }
)
TEXTS = ("answer", "source", "split", "revision", "licence", "domain", "level", "topic")
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "messages": pa.list_(TURN),
        "tools": pa.string(),
        **dict.fromkeys(TEXTS, pa.string()),
        "confidence": pa.float64(),
        "seed_ids": pa.list_(pa.string()),
        "card": pa.string(),
        "extra": pa.string(),
    }
)
GROUP = 1000  # rows of a Parquet row group


@contextmanager
def writing(path: Path, synced: bool = False) -> Iterator[BinaryIO]:
    """A file that gets its name when it is whole.

    It survives the end of its process; with `synced` that of the machine as well, at the price of
    waiting for the disk. Work files do without: their lines are counted again at the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write the same file, one of them left over from a run that was killed.
    name = f".{path.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{HALF}"
    half = path.with_name(name)
    try:
        with half.open("wb") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # a write knows no name
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        half.unlink(missing_ok=True)


def file_stem(name: str) -> str:
    """What the file of a source or a quota is called."""
    return name.replace("/", "_")


def dump(value: Any) -> bytes:
    """A line of JSON; NaN is an error, since other readers do not know it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which only escaped JSON can hold
        return json.dumps(value, allow_nan=False).encode() + b"\n"


def write_lines(path: Path, lines: Iterable[bytes], synced: bool = False) -> None:
    """Write lines that end in a line feed."""
    with writing(path, synced) as file:
        file.writelines(lines)


def write_json(path: Path, value: Any) -> None:
    """Write one value as JSON to be read by people too."""
    with writing(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n")


def read_json(path: Path) -> Any:
    """One value; None when there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a JSONL file; ValueError names the line that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path} line {number} is no JSON: {error}") from None


def write_parquet(path: Path, lines: Iterable[bytes], synced: bool = False) -> None:
    """Write lines of records as Parquet. ValueError when a value does not fit its column."""
    with (
        writing(path, synced) as file,
        pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer,
    ):
        rows: list[dict[str, Any]] = []
        for line in lines:
            rows.append(_row(json.loads(line)))
            if len(rows) == GROUP:
                writer.write_table(_table(rows))
                rows = []
        if rows:
            writer.write_table(_table(rows))


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"one of the records {rows[0]['id']} to {rows[-1]['id']} does not fit the columns of "
            f"Parquet: {error}; use format=jsonl"
        ) from None


def _row(record: Record) -> dict[str, Any]:
    """A record's columns; keys that records do not have by themselves join `extra`."""
    row: dict[str, Any] = {key: record[key] for key in SCHEMA.names if key in record}
    row["messages"] = [_turn(turn) for turn in record["messages"]]
    more = {key: value for key, value in record.items() if key not in SCHEMA.names}
    if more:
        row["extra"] = {**record.get("extra", {}), **more}
    for key in ("tools", "card", "extra"):
        if key in row:
            row[key] = json.dumps(row[key], ensure_ascii=False)
    return row


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(turn) - {field.name for field in TURN})
    if unknown:
        raise ValueError(f"a turn has {unknown[0]!r}, for which Parquet has no column; use jsonl")
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        named = {"name": function["name"], "arguments": arguments}
        calls.append({"id": call.get("id"), "type": "function", "function": named})
    return {**turn, "tool_calls": calls}
