"""Being told to stop: the run saves, leaves with a status of its own, and the same command goes on.

A scheduler tells before it ends a job (Slurm: SIGUSR1 ahead of the time limit, SIGTERM when another
job goes first), a person presses ctrl-c. Before the first step there is nothing to save, so the
process leaves at once; from then on a signal is only noted, and the loop asks after every step
whether any rank was told. A second signal changes nothing; SIGQUIT and SIGKILL still end at once.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Exit status of a run that was told to stop and will go on: EX_TEMPFAIL of sysexits.h, which no
# crash of Python has. The scripts in launch/ start the run again on it.
STOPPED = 75
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Told:
    """What this process was told."""

    def __init__(self) -> None:
        self.number = 0  # of the last signal; 0 when there was none
        self.starting = True

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler of all signals in STOPS."""
        self.number = number
        if self.starting:
            # print() may be what was interrupted, and is not to be entered twice. Nor may an
            # exception be thrown into a collective that other ranks wait in: just be gone.
            os.write(2, f"{name(number)}: leaving at once, there is nothing to save\n".encode())
            os._exit(STOPPED)

    def begin(self) -> None:
        """The first step begins: from here on signals are only noted."""
        self.starting = False


def name(number: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(number).name


@contextmanager
def caught() -> Iterator[Told]:
    """Catch the signals in STOPS meanwhile; under nohup SIGHUP stays ignored."""
    told = Told()
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    stops = [number for number in STOPS if number != signal.SIGHUP or not ignored]
    before = {number: signal.signal(number, told.receive) for number in stops}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
