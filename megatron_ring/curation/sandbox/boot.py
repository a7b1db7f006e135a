"""What the sandbox's Python does first, inside: files, limits, then the program. Never imported.

It is given to `python -c` as text, so it stands alone and runs on any Python from 3.9. The program
runs in the same process; what it could forge with what it finds here is its own verdict only.
"""

import json
import os
import resource
import sys
import traceback
import types


def boot() -> None:
    """Set all up, say "s", run; say "m" where memory was out, the token where tests came to an end.

    Arguments: the file descriptors of the job (JSON), of what is said, and of the word to go.
    """
    job_fd, said_fd, go_fd = map(int, sys.argv[1:4])
    with os.fdopen(job_fd, encoding="ascii") as file:
        job = json.load(file)
    for name, text in job["files"].items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # when the host runs out of memory, this goes first
    os.set_inheritable(said_fd, False)
    for name, limit in job["limits"].items():
        resource.setrlimit(getattr(resource, name), limit)
    main = types.ModuleType("__main__")
    main.__file__ = sys.argv[0] = os.path.abspath("main.py")
    sys.modules["__main__"] = main
    del sys.argv[1:]
    sys.path[0] = os.getcwd()  # only now: what was imported above is no file of the job
    os.write(said_fd, b"s")
    if os.read(go_fd, 1) != b"g":
        sys.exit(1)  # nobody is there any more
    os.close(go_fd)
    try:
        exec(compile(job["files"]["main.py"], "main.py", "exec", dont_inherit=True), main.__dict__)
        if job["tests"] is not None:
            exec(compile(job["tests"], "<tests>", "exec", dont_inherit=True), main.__dict__)
            os.write(said_fd, job["token"].encode())
    except MemoryError:
        os.write(said_fd, b"m")
        traceback.print_exc()
        sys.exit(1)


boot()
