"""A run that hangs, or has lost a rank, ends with one line instead of waiting for ever.

Each rank has a thread that counts seconds since the last `beat`. When a step takes longer than
run.hang_timeout, it says where this rank is and which other ranks are silent or behind, writes the
stacks of all threads to a file, and ends the process, whatever a collective is waiting for.
"""

import faulthandler
import itertools
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from megatron_ring.config import RunConfig

LOST = 76  # exit status of a rank that hangs or has lost another: starting again helps
FIRST = 4  # times hang_timeout until the first step is complete: loading, checking, compiling
MOST_NAMED = 8  # ranks in the line
NETWORK_SECONDS = 10  # that asking the others may take
PACKAGE = Path(__file__).parent
# What gloo, NCCL and torch's store say when the other side is gone or silent.
GONE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|timeout|socket|gloo|nccl|"
    r"store.*(stopped|failed)|remote process",
    re.IGNORECASE,
)


class Watchdog:
    """Counts from its making on; see the module. `beat` says that a step is complete."""

    def __init__(self, run: RunConfig) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.timeout, self.folder = run.hang_timeout, Path(run.dir)
        self.step: int | None = None  # the last complete one, as far as this process knows
        self._beats = 0
        self.host = socket.gethostname()
        self._main = threading.get_ident()
        self._tick = min(5.0, run.hang_timeout / 8)  # seconds between looks at the clock
        self._idle = 0.0  # seconds since the last beat, those in which the process stood still out
        self._stop = threading.Event()
        self._store: dist.Store | None = None
        for target in (self._watch, *[self._publish] * (self.size > 1)):
            threading.Thread(target=target, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """`step` is complete. The first call says after which step the run begins."""
        self.step, self._idle = step, 0.0
        self._beats += 1

    def alive(self) -> None:
        """No step is complete, but what goes on beside the steps does go on."""
        self._idle = 0.0

    def stop(self) -> None:
        self._stop.set()

    def where(self) -> str:
        """Where the main thread is in this program: its functions, outermost first."""
        names: list[str] = []
        frame: FrameType | None = sys._current_frames().get(self._main)
        place = ""
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(PACKAGE):
                names.insert(0, frame.f_code.co_name)
                place = place or f"{file.name}:{frame.f_lineno}"
            frame = frame.f_back
        return f"in {' > '.join(names)} ({place})" if names else "outside the program"

    def progress(self) -> str:
        """The last complete step, in words."""
        return f"last completed step {'unknown' if self.step is None else self.step}"

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """End with one line and status LOST when an error says that another rank is gone."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not is_loss(error):
                raise
            file = self.folder / f"lost-rank-{self.rank}.txt"
            with suppress(OSError):  # a full disk must not hide the line, nor change the status
                file.write_text(traceback.format_exc(), encoding="utf-8")
            first = str(error).strip().splitlines()[0][:200]
            print(
                f"error: rank {self.rank} on {self.host}: a peer died or does not answer, "
                f"{self.progress()}, {_innermost(error)}: {first}; traceback in {file}. Start the "
                "run again: it resumes from its newest checkpoint",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(LOST) from None

    def _watch(self) -> None:
        """Time in which this process was stopped as a whole does not count."""
        before = time.monotonic()
        while not self._stop.wait(self._tick):
            now = time.monotonic()
            self._idle += min(now - before, 2 * self._tick)
            before = now
            if self._idle > self.timeout * (1 if self._beats > 1 else FIRST):
                self._end()

    def _end(self) -> None:
        seconds, where = self._idle, self.where()
        peers: list[str] = []
        asking = threading.Thread(target=lambda: peers.append(self._peers()), daemon=True)
        asking.start()
        asking.join(NETWORK_SECONDS + 3 * self._tick)
        if self._idle < seconds:  # it went on after all
            return
        stacks = self.folder / f"hang-rank-{self.rank}.txt"
        if asking.is_alive():
            peers = ["the other ranks could not be asked: the store does not answer"]
        print(
            f"error: rank {self.rank} on {self.host} hangs: no step for {seconds:.0f} s "
            f"(run.hang_timeout={self.timeout:g}), {self.progress()}, {where}; "
            f"{' '.join(peers) or 'it runs alone'}; stacks in {stacks}",
            file=sys.stderr,
            flush=True,
        )
        with suppress(OSError), open(stacks, "w", encoding="utf-8") as stream:  # as above
            faulthandler.dump_traceback(stream, all_threads=True)
        # The others are asking now too, and are to find this rank alive.
        time.sleep(3 * self._tick)
        os._exit(LOST)

    def _publish(self) -> None:
        """Tell the store, again and again, that this process lives, and where it is."""
        try:
            self._store = _connect()
            for count in itertools.count():
                state = f"{count}|{self.host}|{self.progress()}, {self.where()}"
                self._store.set(f"watchdog/{self.rank}", state)
                if self._stop.wait(self._tick):
                    return
        except RuntimeError:  # rank 0 or the launcher, which keeps it, is gone
            self._store = None

    def _peers(self) -> str:
        """Which ranks are silent, and where those are that answer but have done fewer steps."""
        store = self._store
        if self.size == 1 or store is None:
            return "" if self.size == 1 else "the other ranks could not be asked: no store"
        first = self._states(store)
        time.sleep(2.5 * self._tick)
        second = self._states(store)
        silent = [
            f"rank {rank}" + (f" on {was[1]} (when last heard of: {was[2]})" if was else "")
            for rank, (was, now) in enumerate(zip(first, second, strict=True))
            if rank != self.rank and (was == now or now is None)
        ]
        if silent:
            more = f" and {len(silent) - MOST_NAMED} more" * (len(silent) > MOST_NAMED)
            return f"no sign of life from {', '.join(silent[:MOST_NAMED])}{more}"
        places = {now[2] for rank, now in enumerate(second) if rank != self.rank and now}
        return f"all other ranks live; they are: {' | '.join(sorted(places)[:MOST_NAMED])}"

    def _states(self, store: dist.Store) -> list[list[str] | None]:
        keys = [f"watchdog/{rank}" for rank in range(self.size)]
        return [store.get(k).decode().split("|", 2) if store.check([k]) else None for k in keys]


def is_loss(error: BaseException) -> bool:
    """Is this what a collective says when its other side is gone or silent?"""
    return isinstance(error, RuntimeError) and GONE.search(str(error)) is not None


def _innermost(error: BaseException) -> str:
    """The function of this program that the error came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(f[0]).parents]
    last = frames[-1]
    return f"in {last.name} ({Path(last.filename).name}:{last.lineno})"


def _connect() -> dist.Store:
    """A connection to the launch's store of our own: the other one may be busy waiting."""
    store, _, _ = next(dist.rendezvous("env://"))
    store.set_timeout(timedelta(seconds=NETWORK_SECONDS))
    return store


@contextmanager
def watching(run: RunConfig) -> Iterator[Watchdog]:
    """A watchdog, from before the ranks meet until they have parted."""
    dog = Watchdog(run)
    try:
        yield dog
    finally:
        dog.stop()
