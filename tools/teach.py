"""A teacher without a model: works out the quickstart's problems, behind a real chat endpoint.

    python tools/teach.py --port 8765
    python tools/teach.py -- python tools/curate.py run recipe.yaml endpoint={endpoint}

Speaks OpenAI's chat completions over HTTP on this machine, as vLLM would, and stands in for it
where a first step should need neither a GPU nor a network. Without a command it serves until it is
interrupted; with one it serves as long as the command runs, {endpoint} standing for its address,
and ends with the command's status.

It knows seven kinds of problems, of which it reads nothing but the question; to others it says that
it cannot. Like a model it errs: a share of its answers is wrong, and a request with "damaged_tags":
0.2 gets a fifth of its answers with damaged think tags. The same request gets the same answer.
"""

import json
import math
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any

import typer
from reasoning_gym.arithmetic.leg_counting import ANIMALS  # how many legs each has

from megatron_ring import think
from megatron_ring.curation import corrupt_tags

Worked = tuple[str, str]  # what is thought, line by line, and the final answer
WRONG_SHARE = 0.05
MODEL = "teacher"
UNABLE = "I cannot work this out."


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def chain_sum(question: str) -> Worked:
    """Running totals, left to right."""
    expression = question.split(":")[1].strip(" =")
    total, *rest = re.findall(r"[+-]? ?\d+", expression)
    value, lines = int(total), []
    for term in rest:
        sign, number = term.split()
        after = value + int(number) if sign == "+" else value - int(number)
        lines.append(f"{value} {sign} {number} = {after}")
        value = after
    return "\n".join(lines), str(value)


def euclid(a: int, b: int) -> list[str]:
    """Euclid's algorithm; the last line has remainder 0."""
    a, b, lines = max(a, b), min(a, b), []
    while b:
        lines.append(f"{a} = {a // b} * {b} + {a % b}")
        a, b = b, a % b
    return lines


def gcd(question: str) -> Worked:
    a, b = numbers(question)
    answer = math.gcd(a, b)
    return "\n".join([*euclid(a, b), f"The last divisor is {answer}."]), str(answer)


def simple_equations(question: str) -> Worked | None:
    """a*x + b = c or b - a*x = c, solved in two steps; None for other shapes."""
    left, right = question.split(": ")[1].split(" = ")
    unknown = re.fullmatch(r"(?:(?P<a>\d+)\*)?(?P<x>[a-z])(?: (?P<sign>[+-]) (?P<b>\d+))?", left)
    mirrored = re.fullmatch(r"(?P<b>\d+) (?P<sign>[+-]) (?:(?P<a>\d+)\*)?(?P<x>[a-z])", left)
    found = unknown or mirrored
    if found is None:
        return None
    a, b, c, x = int(found["a"] or 1), int(found["b"] or 0), int(right), found["x"]
    lines = []
    if mirrored and found["sign"] == "-":
        lines.append(f"{a}*{x} = {b} - {c} = {b - c}".replace("- -", "+ "))
        c = b - c
    elif b:
        undo = "-" if found["sign"] == "+" else "+"
        after = c - b if undo == "-" else c + b
        lines.append(f"{a}*{x} = {c} {undo} {b} = {after}")
        c = after
    if c % a:
        return None
    if a > 1:
        lines.append(f"{x} = {c} / {a} = {c // a}")
    return "\n".join(lines) or f"{x} = {c}", str(c // a)


def letter_counting(question: str) -> Worked:
    """A running count, word by word; case does not matter to the task."""
    letter, text = re.search(r'letter "(.)" appear in the text: "(.*)"', question).groups()
    count, lines = 0, []
    for word in text.split():
        count += word.lower().count(letter)
        lines.append(f"{' '.join(word)}: {count}")
    return "\n".join(lines), str(count)


def calendar_arithmetic(question: str) -> Worked:
    """Leap years: the rules for 4, 100 and 400 in turn."""
    year = numbers(question)[0]
    lines, leap = [f"{year} = 4 * {year // 4} + {year % 4}"], year % 4 == 0
    if leap and year % 100 == 0:
        leap = year % 400 == 0
        lines += [f"{year} = 100 * {year // 100}", f"{year} = 400 * {year // 400} + {year % 400}"]
    return "\n".join(lines), "Yes" if leap else "No"


def count_bits(question: str) -> Worked:
    """Halving: each odd number on the way is a 1 bit."""
    rest, count, lines = numbers(question)[-1], 0, []
    while rest:
        count += rest % 2
        lines.append(f"{rest} = 2 * {rest // 2} + {rest % 2}, count {count}")
        rest //= 2
    return "\n".join(lines), str(count)


def leg_counting(question: str) -> Worked:
    """Animal by animal, with a running total."""
    total, lines = 0, []
    for number, animal in re.findall(r"(\d+) ([a-z ]+?)(?=,|\?)", question):
        legs = ANIMALS[animal if animal in ANIMALS else animal.removesuffix("s")]
        total += int(number) * legs
        lines.append(f"{animal}: {number} * {legs} = {int(number) * legs}, total {total}")
    return "\n".join(lines), str(total)


SOLVE: dict[str, Callable[[str], Worked | None]] = {
    # what a question of this kind holds: how it is worked out
    r"arithmetic problem: \d": chain_sum,
    r"Greatest Common Divisor": gcd,
    r"(?:Solve for|Find the value of|Determine the value of) .*: .+ = -?\d+": simple_equations,
    r'letter "." appear in the text': letter_counting,
    r"leap year": calendar_arithmetic,
    r"1 bits .* binary representation": count_bits,
    r"how many legs there are": leg_counting,
}


def work_out(question: str) -> Worked | None:
    """The thought and the answer; None for a problem of another kind or shape."""
    known = (solve for pattern, solve in SOLVE.items() if re.search(pattern, question))
    solve = next(known, None)
    return None if solve is None else solve(question)


def wrong(answer: str, rng: random.Random) -> str:
    """Another answer of the same sort."""
    if answer in ("Yes", "No"):
        return "No" if answer == "Yes" else "Yes"
    return str(int(answer) + rng.choice([-2, -1, 1, 2]))


def answer(body: dict[str, Any]) -> str:
    """What the teacher says to a request: it depends on all of it, and on nothing else."""
    rng = random.Random(json.dumps(body, sort_keys=True))
    worked = work_out(body["messages"][-1]["content"].strip())
    if worked is None:
        return think.join("This is no problem of a kind that I know.", UNABLE)
    thought, said = worked
    if rng.random() < WRONG_SHARE:
        said = wrong(said, rng)
    text = think.join(thought, said)
    if rng.random() < body.get("damaged_tags", 0.0):
        text = corrupt_tags.corrupt(text, rng.choice(corrupt_tags.KINDS), rng)
    return text


class Handler(BaseHTTPRequestHandler):
    """One connection; requests one after the other."""

    protocol_version = "HTTP/1.1"  # connections are kept
    wbufsize = -1  # an answer leaves in one piece

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self._send(200, models) if self.path == "/v1/models" else self._unknown()

    def do_POST(self) -> None:
        if self.path != "/v1/chat/completions":
            return self._unknown()
        given = self.rfile.read(int(self.headers["content-length"]))
        try:
            body = json.loads(given)
            text = answer(body)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            told = f"no chat with a question: {type(error).__name__} {error}"
            return self._send(400, {"error": {"message": told}})
        read = sum(len(turn["content"].split()) for turn in body["messages"])
        written = len(text.split())  # words: it has no tokens
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": read, "completion_tokens": written}
        self._send(
            200,
            {
                "object": "chat.completion",
                "model": MODEL,
                "choices": [{**choice, "finish_reason": "stop"}],
                "usage": {**usage, "total_tokens": read + written},
            },
        )

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: thousands of requests are no news."""

    def _unknown(self) -> None:
        told = f"no {self.path}; there are /v1/chat/completions and /v1/models"
        self._send(404, {"error": {"message": told}})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """On this machine only."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}/v1"


def main(
    command: Annotated[list[str] | None, typer.Argument(help="behind --: what is run")] = None,
    port: Annotated[int, typer.Option(help="0: one that is free", min=0, max=65535)] = 0,
) -> None:
    """Serve until interrupted, or as long as a command runs."""
    try:
        server = Server(port)
    except OSError as error:
        sys.exit(f"port {port}: {error}; choose another one, or 0 for any that is free")
    if not command:
        print(f"{MODEL} at {server.endpoint}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
    threading.Thread(target=server.serve_forever, daemon=True).start()
    given = [argument.replace("{endpoint}", server.endpoint) for argument in command or []]
    try:
        process = subprocess.Popen(given)
    except OSError as error:
        sys.exit(f"cannot run {given[0]}: {error}")
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    sys.exit(status_of(process))


def status_of(process: subprocess.Popen[bytes]) -> int:
    """Its exit status, as a shell gives it. An interrupt of the terminal reaches it by itself."""
    while True:
        try:
            code = process.wait()
            return 128 - code if code < 0 else code
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    typer.run(main)
