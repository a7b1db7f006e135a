"""Programs that are killed at any moment, and started again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from megatron_ring.curation.generate.memory import Memory
from tests.curation.asking import start
from tests.curation.scripted import Serving

T = TypeVar("T")


def wait_for(found: Callable[[], T], seconds: float = 60) -> T:
    """What `found` returns when it is at last something."""
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, f"nothing within {seconds} s"
        time.sleep(0.002)
    return value


@dataclass(frozen=True)
class Life:
    """What a process found when it started."""

    num_lines: int  # of the ledger
    remembered: frozenset[str]  # keys that have a reply
    lost: frozenset[str]  # keys that were charged and have none


def kill_and_resume(server: Serving, work: dict[str, Any], times: int, seed: int) -> list[Life]:
    """Starts the work `times` times and kills it each time, then lets it come to its end."""
    rng, lives = Random(seed), []
    for number in range(times + 1):
        lives.append(_found(server, Path(work["options"]["replies"])))
        if number < times:
            _kill_after(server, work, rng.randrange(1, 12), rng.uniform(0, 0.02))
    child = start(work)
    _, told = child.communicate(timeout=120)
    assert child.returncode == 0, told
    return lives


def _found(server: Serving, replies: Path) -> Life:
    kept, lines = Memory(replies), server.ledger.lines
    there = {line["key"] for line in lines if kept.recall(line["key"]) is not None}
    charged = {line["key"] for line in lines if line["charged"]}
    return Life(len(lines), frozenset(there), frozenset(charged - there))


def _kill_after(server: Serving, work: dict[str, Any], lines: int, seconds: float) -> None:
    """Start the work, and kill it so long after it has put so many lines into the ledger."""
    before, child = len(server.ledger), start(work)
    wait_for(lambda: len(server.ledger) >= before + lines or child.poll() is not None)
    time.sleep(seconds)
    child.kill()
    _, told = child.communicate()
    assert child.returncode in (0, -9), told
