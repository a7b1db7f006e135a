"""What the scripted endpoint says to sums; light, as its process starts with it."""

from random import Random
from typing import Any


def adds(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> dict[str, Any]:
    """A script of the endpoint: "a + b?" is answered with a slip in some draws.

    b = 90: cut short; b = 91: says nothing in the end; b = 92: cut behind the right answer.
    """
    a, b = map(int, messages[-1]["content"].split("?")[0].split(" + "))
    thought, found = f"<think>\n{a} and {b}\n</think>\n\n", a + b + (rng.random() < 0.3)
    if b == 90:
        return {"content": f"<think>\nis it \\boxed{{{a + b}}}", "finish_reason": "length"}
    if b == 91:
        return {"content": f"{thought}I do not know."}
    if b == 92:
        return {"content": f"{thought}\\boxed{{{a + b}}} and so", "finish_reason": "length"}
    return {"content": f"{thought}\\boxed{{{found}}}"}


def calls(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Calls the tools that it is given, and says nothing else."""
    if "tools" not in body:
        return {"content": "No tools."}
    (name,) = [tool["function"]["name"] for tool in body["tools"]]
    made = [{"function": {"name": name, "arguments": '{"a": 1}'}}, {"function": {"name": name}}]
    return {"content": "", "reasoning_content": "I add.", "tool_calls": made}
