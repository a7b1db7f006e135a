"""What was answered, on disk: append-only files of JSON lines, one a process, all read by all.

No locks and no database, so that processes on many machines can share a folder of any file system.
Lines:
    {"key": ..., "value": ...}   a reply, or a verdict that might be another next time
    {"sent": key, "most": [..]}  a request is about to be sent; tokens it may read and write
    {"of": key, "spent": {...}}  it came to an end, and what it cost; with key and value if good
A line that a dying process left half written is no line.
"""

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ring.config.base import ConfigError

LOOK_SECONDS = 1.0  # between two looks at what other processes wrote


@dataclass
class Spent:
    """What was sent and what it cost, by all processes that used a folder of replies."""

    requests: int = 0  # attempts that came to an end, good or bad
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    by_purpose: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Count an attempt: purpose, input_tokens, output_tokens, cost."""
        self.requests += 1
        self.input_tokens += line["input_tokens"]
        self.output_tokens += line["output_tokens"]
        self.cost += line["cost"]
        one = self.by_purpose.setdefault(line["purpose"], Counter())
        one["requests"] += 1
        for key in ("input_tokens", "output_tokens", "cost"):
            one[key] += line[key]


class Memory:
    """Values by key. Keys are texts; values are plain JSON."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"replies={folder} is no folder to write to: {error}") from None
        self.folder = folder
        self.spent = Spent()
        self._places: dict[str, tuple[str, int, int]] = {}  # key -> file, start, length
        self._read: dict[str, int] = {}  # file -> bytes that were gone through
        # Requests without an end: key -> file -> tokens read and written at most.
        self._open: dict[str, dict[str, tuple[int, int]]] = {}
        self._lock = threading.Lock()
        self._own: int | None = None
        self._own_name = ""
        self._looked = 0.0
        self.look()

    def recall(self, key: str) -> Any | None:
        """The value that was kept, or None."""
        place = self._places.get(key)
        if place is None:
            return None
        name, start, length = place
        with (self.folder / name).open("rb") as file:
            file.seek(start)
            return json.loads(file.read(length))["value"]

    def keep(self, key: str, value: Any) -> None:
        """Remember a value; when this returns it survives the death of the process."""
        self._write({"key": key, "value": value})

    def note_sent(self, key: str, most: tuple[int, int]) -> None:
        """A request is about to go out, which may read and write so many tokens."""
        self._write({"sent": key, "most": most})

    def open_elsewhere(self) -> list[tuple[int, int]]:
        """Tokens read and written, at most, of requests that other processes sent without an end.

        They are on their way, or their process died: then they may have been charged all the same.
        Where the same request was answered later, as many as that answer took.
        """
        return [
            most
            for files in self._open.values()
            for name, most in files.items()
            if name != self._own_name
        ]

    def note_end(self, key: str, spent: dict[str, Any], value: Any = None) -> None:
        """An attempt is over: what it cost, as Spent.add takes it, and the value that it gave."""
        told: dict[str, Any] = {"of": key, "spent": spent}
        self._write(told if value is None else {"key": key, "value": value, **told})

    def look(self, at_once: bool = False) -> None:
        """Read what others wrote meanwhile; unless `at_once`, at most every LOOK_SECONDS."""
        now = time.monotonic()
        if self._looked and not at_once and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for path in sorted(self.folder.glob("*.jsonl"), key=_began):
            if path.name != self._own_name:
                for start, line in self._new_lines(path):
                    self._take(path.name, start, line)

    def close(self) -> None:
        """Everything is on disk, also if the machine goes down now."""
        if self._own is not None:
            os.fsync(self._own)
            os.close(self._own)
            self._own = None

    def _new_lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        at = self._read.get(path.name, 0)
        with path.open("rb") as file:
            file.seek(at)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written, or its process died
                yield at, line
                at += len(line)
        self._read[path.name] = at

    def _take(self, name: str, start: int, line: bytes) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            return  # two halves of lines, after a machine went down
        if "key" in told:
            self._places[told["key"]] = (name, start, len(line))
        if "sent" in told:
            read, written = told["most"]
            self._open.setdefault(told["sent"], {})[name] = read, written
        if "spent" in told:
            self._end(name, told)

    def _end(self, name: str, told: dict[str, Any]) -> None:
        """An attempt of the process with this file is over."""
        spent = told["spent"]
        self.spent.add(spent)
        files = self._open.get(told["of"], {})
        files.pop(name, None)
        if "key" in told:
            files.update(
                {other: (spent["input_tokens"], spent["output_tokens"]) for other in files}
            )
        if not files:
            self._open.pop(told["of"], None)

    def _write(self, told: dict[str, Any]) -> None:
        """Append a line in one call, and take it in."""
        line = json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with self._lock:
            if self._own is None:
                self._own_name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL | os.O_CLOEXEC
                self._own = os.open(self.folder / self._own_name, flags, 0o644)
            start, rest = self._read.get(self._own_name, 0), memoryview(line)
            try:
                while rest:
                    rest = rest[os.write(self._own, rest) :]
            except OSError as error:
                os.ftruncate(self._own, start)  # the next line must not go on from half of this
                raise ConfigError(f"replies={self.folder}: cannot write: {error}") from None
            self._read[self._own_name] = start + len(line)
            self._take(self._own_name, start, line)


def _began(path: Path) -> tuple[str, str]:
    """Orders files by the time in their names: what died comes before what went on from it."""
    return path.stem.rpartition("-")[2].zfill(20), path.name
