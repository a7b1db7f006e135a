"""How long the parts of a step take, without waiting for the device until somebody asks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds by part since the last `read`; time outside every part is "other".

    On a GPU two events a part are recorded into its stream and compared when they are read: the
    host runs ahead of the device, so its own clock would show who waits, not who works. What goes
    through the host alone (reading rows, writing files) shows as the device being idle, which is
    what it costs.
    """

    def __init__(self) -> None:
        self._on_gpu = torch.cuda.is_available()
        self._host: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._since = time.monotonic()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the `with` block as `part`."""
        if self._on_gpu:
            first = torch.cuda.Event(enable_timing=True)
            last = torch.cuda.Event(enable_timing=True)
            first.record()
            yield
            last.record()
            self._events.append((part, first, last))
            return
        began = time.monotonic()
        yield
        self._host[part] = self._host.get(part, 0.0) + time.monotonic() - began

    def read(self) -> dict[str, float]:
        """Seconds of each part and of "other" since the last call; waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
            for part, first, last in self._events:
                self._host[part] = self._host.get(part, 0.0) + first.elapsed_time(last) / 1e3
        now = time.monotonic()
        seconds = self._host
        seconds["other"] = max(now - self._since - sum(seconds.values()), 0.0)
        self._host, self._events, self._since = {}, [], now
        return seconds
