"""A script of the scripted endpoint that solves the problem of code_replies.py, or fails to."""

import re
from random import Random
from typing import Any

from tests.curation.code_replies import SOLUTION, reply
from tests.curation.scripted import last_user

SAID = {
    "sound": f"<think>Sorted.</think>Here:\n```python\n{SOLUTION}\n```\nUse it:\n"
    "```python\nprint(largest_gap([1, 2]))\n```",
    "wrong": "<think>```python\nno\n```</think>```python\ndef largest_gap(n):\n    return 5\n```",
    "none": "<think>It is easy.</think>I do not know.",
}


def share(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> Any:
    """Right in the share of draws that the prompt names, "[share=0.4]"; else one of the others.

    With "[cut]" it is right, and its tokens end where it does.
    """
    if "[cut]" in last_user(messages):
        return {"content": SAID["sound"], "finish_reason": "length"}
    found = re.search(r"\[share=([\d.]+)\]", last_user(messages))
    assert found is not None, messages
    if rng.random() < float(found[1]):
        return SAID["sound"]
    return SAID[rng.choice(["wrong", "none"])]


def writes_and_solves(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> str:
    """Writes problems "add_N", some badly; solves each as often as its statement says."""
    asked = last_user(messages)
    problem = re.search(r"`add_(\d+)\(x\)`.*share=([\d.]+)", asked)
    if problem is None:
        return written(rng)
    off = 0 if rng.random() < float(problem[2]) else 1
    program = f"def add_{problem[1]}(x):\n    return x + {int(problem[1]) + off}"
    return f"<think>Easy.</think>```python\n{program}\n```"


def written(rng: Random) -> str:
    """A reply of the writer: one in five has no tests, one in five wrong ones."""
    number, share, kind = rng.randrange(1000), rng.choice([0, 0.5, 0.5, 1]), rng.randrange(5)
    statement = f"Write a function `add_{number}(x)` that adds {number} to x. [share={share}]"
    program = f"def add_{number}(x):\n    return x + {number}"
    wrong = 1 if kind == 0 else 0
    tests = "\n".join(f"assert add_{number}({x}) == {x + number + wrong}" for x in range(4))
    text = reply(statement, program, tests)
    return text.partition("## Tests")[0] if kind == 1 else text
