"""Script of a model that does what a text orders it to.

<<judge a, b>>    what a judge says: `a` greedily, `b` when it samples; `first` is the first listed
<<solve x; y>>    answers of solutions, one after the other, x first; the last for ever
<<topics x; y>>   names under a topic, one a line

What is to be known by heart, a judge calls recall.
"""

import re
from collections import Counter
from random import Random
from typing import Any

DRAWN: Counter[str] = Counter()  # solutions of each problem


def script(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> str:
    """What it says; each problem that it writes is another."""
    text = messages[-1]["content"]
    if "Answer with one of these words" in text:
        return _judged(text, body["temperature"] == 0)
    if "narrower topics" in text:
        return "\n".join(_ordered("topics", text, "").split("; "))
    if "Write one new problem" in text:
        about = re.search(r"Topic: (.*)", text)[1]
        words = " ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(20))
        return f"<think>\nHm.\n</think>\n\n<problem>\n{about}: {words}?\n</problem>"
    answers = _ordered("solve", text, "5 m/s").split("; ")
    DRAWN[text] += 1
    said = answers[min(DRAWN[text], len(answers)) - 1]
    return f"<think>\nSo it is.\n</think>\n\n\\boxed{{{said}}}"


def _judged(text: str, is_greedy: bool) -> str:
    if re.search(r"by heart$", text, re.MULTILINE):
        return "recall"
    said = _ordered("judge", text, "compute").split(", ")
    word = said[0] if is_greedy else said[-1]
    if word == "first":
        return text.rpartition("these words and nothing else: ")[2].split(",")[0]
    return word


def _ordered(kind: str, text: str, otherwise: str) -> str:
    found = re.search(rf"<<{kind} (.*?)>>", text)
    return found[1] if found else otherwise
