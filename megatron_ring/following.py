"""Following a run that goes on: only what is new is read, and told is whether it still lives.

metrics.jsonl grows, its last line may be torn, and a run that resumes puts a shorter file in its
place. Opening reads the last megabytes and a sample of what lies before, so that a file of any size
costs the same; from then on only new bytes are read.
"""

import json
import os
import re
import socket
import statistics
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import psutil

from megatron_ring import run_folder
from megatron_ring.run_folder import Line

TAIL = 2 << 20  # bytes at the end that are read whole: a thousand steps or more
SEARCHED = 32 << 20  # bytes before them in which the last of a rare kind of line is looked for
SAMPLES = 200  # lines taken from what lies before
RARE = (b'"valid_loss"', b'"expert_load"')
CHECKED = 64  # bytes before the end of what was read: are they still the same?


class News(NamedTuple):
    lines: list[Line]
    afresh: bool = False  # the file is another than before: forget what its lines said


class Follower:
    """New whole lines of a file of JSON objects that grows, is replaced, or is not there yet."""

    def __init__(self, file: Path, tail: int = TAIL) -> None:
        self.file, self.tail = file, tail
        self.damaged = 0  # whole lines that are no JSON objects
        self._inode: int | None = None  # None: never seen
        self._position = 0  # of the first byte that is not read, the beginning of a line
        self._before = b""  # the last bytes before it

    def poll(self) -> News:
        """What has been written since the last call; the first call also samples what is old."""
        try:
            with self.file.open("rb") as stream:
                return self._poll(stream)
        except (FileNotFoundError, NotADirectoryError):
            known, self._inode = self._inode is not None, None
            return News([], afresh=known)

    def _poll(self, stream: BinaryIO) -> News:
        inode, size = _identity(stream)
        afresh = inode != self._inode or size < self._position or not self._continues(stream)
        old: list[Line] = []
        if afresh:
            self._inode, self._before, self.damaged = inode, b"", 0
            self._position = _line_start(stream, max(size - self.tail, 0))
            old = self._sample(stream, self._position)
        stream.seek(self._position)
        new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]  # the rest is torn, or still being written
        self._position += len(whole)
        self._before = (self._before + whole)[-CHECKED:]
        return News(old + self._parsed(whole.split(b"\n")[:-1]), afresh)

    def _continues(self, stream: BinaryIO) -> bool:
        """Is what was read last still there? A new file may have the number of the old one."""
        stream.seek(self._position - len(self._before))
        return stream.read(len(self._before)) == self._before

    def _sample(self, stream: BinaryIO, end: int) -> list[Line]:
        """Lines from before `end`, in order: spread evenly, and the last of each rare kind."""
        found: dict[int, bytes] = {}
        for number in range(SAMPLES if end else 0):
            start = _line_start(stream, end * number // SAMPLES)
            if start < end:
                stream.seek(start)
                found[start] = stream.readline()
        searched = max(end - SEARCHED, 0)
        stream.seek(searched)
        text = stream.read(end - searched)
        for kind in RARE:
            if (at := text.rfind(kind)) >= 0:
                start = text.rfind(b"\n", 0, at) + 1
                found[searched + start] = text[start : text.index(b"\n", at)]
        return self._parsed([found[start] for start in sorted(found)])

    def _parsed(self, texts: list[bytes]) -> list[Line]:
        lines = []
        for text in texts:
            try:
                line = json.loads(text)
            except ValueError:  # no JSON, or no text at all
                line = None
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
            else:
                self.damaged += 1
        return lines


def _identity(stream: BinaryIO) -> tuple[int, int]:
    about = os.fstat(stream.fileno())
    return about.st_ino, about.st_size


def _line_start(stream: BinaryIO, offset: int) -> int:
    """The first beginning of a line at or after `offset`."""
    if offset == 0:
        return 0
    stream.seek(offset - 1)
    return offset - 1 + len(stream.readline())


class History:
    """What is kept of metrics.jsonl for looking at: the curve, and the last lines of each kind."""

    MOST = 2000  # points of the curve; beyond, every other is dropped

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.curve: list[tuple[int, float]] = []  # steps and losses
        self.training: deque[Line] = deque(maxlen=50)
        self.valid: deque[Line] = deque(maxlen=2)
        self.spikes: deque[Line] = deque(maxlen=1)
        self.counts: Line = {}  # the last line that counts them
        self.load: Line | None = None  # the last line with a heat map
        self.step = 0

    def add(self, line: Line) -> None:
        self.step = max(self.step, line["step"])
        if "loss" in line:
            self.training.append(line)
            self.curve.append((line["step"], line["loss"]))
            if len(self.curve) > self.MOST:
                self.curve = self.curve[::-2][::-1]
        if any(key.startswith("valid_") for key in line):
            self.valid.append(line)
        if any(key.startswith("spike_") for key in line):
            self.spikes.append(line)
        if "skipped" in line:
            self.counts = line
        if "expert_load" in line:
            self.load = line

    @property
    def last(self) -> Line:
        """The newest training line; {} before there is one."""
        return self.training[-1] if self.training else {}

    def seconds_a_step(self, since: float) -> float | None:
        """Of recent steps, with all that happens between them, but of this start of the run only.

        `since`: when it started. Until two lines tell, the step times that lines name.
        """
        own = [line for line in self.training if line.get("time", 0.0) >= since > 0]
        if len(own) >= 2 and own[-1]["step"] > own[0]["step"]:
            return (own[-1]["time"] - own[0]["time"]) / (own[-1]["step"] - own[0]["step"])
        named = [line["step_seconds"] for line in self.training if "step_seconds" in line]
        return statistics.median(named) if named else None


class Holder(NamedTuple):
    """Whose the run folder's lock is, or was: the file stays when the process ends."""

    process: int
    host: str
    since: float
    alive: bool | None  # None: on another host, who knows


def holder(run: Path) -> Holder | None:
    """Who holds, or held last, the lock of `run`. It is only looked at: trying it would take it."""
    file = run / "lock"
    try:
        text, since = file.read_text(encoding="utf-8", errors="replace"), file.stat().st_mtime
    except OSError:
        return None
    said = re.fullmatch(r"process (\d+) on (\S+)", text.strip())
    if said is None:  # just being written
        return None
    process, host = int(said[1]), said[2]
    return Holder(process, host, since, _lives(process, since) if _is_here(host) else None)


def _is_here(host: str) -> bool:
    return host == socket.gethostname()


def _lives(process: int, since: float) -> bool:
    """Does the process run that wrote a lock at `since`, and not a later one of its number?"""
    try:
        there = psutil.Process(process)
        return there.status() != psutil.STATUS_ZOMBIE and there.create_time() <= since + 2
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it is there, and another user's
        return True


CLOSING = ("stopped", "failed", "finished")  # the last event of a process that ends in order
OPENING = ("start", "resume")
PATIENCE = 60.0  # seconds without a sign of life that are nothing
PATIENCE_STEPS = 10  # or this many times what passes between two lines
PATIENCE_FIRST = 600.0  # before the first line of a start: loading, checking, compiling


class State(NamedTuple):
    """waiting, starting, running, silent, killed, stopped, failed or finished; and a remark."""

    word: str
    remark: str = ""


def state(
    held: Holder | None,
    event: Line | None,
    newest: float | None,
    usual: float | None,
    now: float,
    complete: bool = False,
) -> State:
    """How the run is, from its lock, its last event, and when its files last grew (`newest`).

    `usual`: seconds between two log lines of this start of the run, None before there are two;
    `complete`: all steps are made, for older runs, which have no events.
    """
    if held is None and event is None and newest is None:
        return State("waiting", "nothing has been written yet")
    said = event["time"] if event else 0.0
    again = held is not None and held.alive is not False and held.since > said
    if event and event["kind"] in CLOSING and not again:
        return State(event["kind"])
    gone = held is not None and held.alive is False
    age = now - max(newest or 0.0, said, held.since if held else 0.0)
    if gone and event is None and complete:
        return State("finished")
    if gone:
        return State("killed", f"process {held.process} ended without a word {seconds(age)} ago")
    patience = PATIENCE_FIRST if usual is None else max(PATIENCE, PATIENCE_STEPS * usual)
    if age > patience:
        where = f"; process {held.process} on {held.host}" if held else ""
        return State("silent", f"no sign of life for {seconds(age)}{where}")
    if again and (newest is None or held.since > newest):
        return State("starting")
    return State("running")


def seconds(count: float) -> str:
    """A length of time for people: 42 s, 12 min 5 s, 3 h 20 min, 2 d 4 h."""
    total = max(round(count), 0)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    if total < 48 * 3600:
        return f"{total // 3600} h {total % 3600 // 60} min"
    return f"{total // 86400} d {total % 86400 // 3600} h"


def changed(file: Path) -> float | None:
    """When a file was last written, in seconds since 1970; None where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return None


class Watcher:
    """All that is known of a run; `look` brings it up to date."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.metrics, self.diary = Follower(run / "metrics.jsonl"), Follower(run / "events.jsonl")
        self.history, self.events = History(), list[Line]()
        self.config: dict[str, Any] = {}
        self.problem = ""  # with the configuration
        self.state = State("waiting")
        self.now = 0.0
        self._config_time = 0.0

    def look(self, now: float) -> None:
        """Read what is new; `now`: seconds since 1970."""
        self.now = now
        news = self.diary.poll()
        self.events = news.lines if news.afresh else self.events + news.lines
        news = self.metrics.poll()
        if news.afresh:
            self.history.forget()
        for line in news.lines:
            self.history.add(line)
        self._read_config()
        files = [self.run / name for name in ("metrics.jsonl", "events.jsonl")]
        times = [when for file in files if (when := changed(file)) is not None]
        self.state = state(
            holder(self.run),
            self.events[-1] if self.events else None,
            max(times, default=None),
            self._usual(),
            now,
            bool(self.total) and self.history.step >= self.total,
        )

    def _read_config(self) -> None:
        written = changed(self.run / "config.yaml")
        if written is None or written == self._config_time:
            return
        try:
            self.config, self.problem = run_folder.read_config(self.run), ""
        except (ValueError, OSError) as problem:
            self.problem = str(problem)
        self._config_time = written

    @property
    def start(self) -> Line:
        """The event with which this start of the run began; {} without events."""
        return next((one for one in reversed(self.events) if one["kind"] in OPENING), {})

    @property
    def total(self) -> int | None:
        """Steps of the run, when that is known: spikes that are tried again make it longer."""
        optim = self.config.get("optim") or {}
        planned = self.start.get("total") or optim.get("steps")
        return max(planned, self.history.step) if planned else None

    def _usual(self) -> float | None:
        since = self.start.get("time", 0.0)
        own = [line["time"] for line in self.history.training if line.get("time", 0.0) > since]
        return (own[-1] - own[0]) / (len(own) - 1) if len(own) >= 2 else None

    def left(self) -> float | None:
        """Seconds to the end at the pace of the last steps; None when nobody can say."""
        pace = self.history.seconds_a_step(self.start.get("time", 0.0))
        if pace is None or self.total is None:
            return None
        return (self.total - self.history.step) * pace
