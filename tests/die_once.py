"""The program, one of whose ranks kills itself in the first life of a launch.

    python -m tests.die_once FLAG ARGUMENTS...

Rank 1 sends itself SIGKILL in its fourth update when there is no file FLAG, having made it.
"""

import os
import signal
import sys
from pathlib import Path

from megatron_ring import step, train

if __name__ == "__main__":
    flag = Path(sys.argv[1])
    update, calls = step.update, []

    def die(optimizer, lr):
        calls.append(None)
        if len(calls) == 4 and os.environ["RANK"] == "1" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return update(optimizer, lr)

    step.update = die
    train.main(sys.argv[2:])
