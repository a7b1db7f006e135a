"""What stands on PATH in place of vLLM and SGLang: takes their command lines, and answers sums.

`python -m tests.launch.serving vllm serve FOLDER --port 1234 ...`. Environment: ASKED, a file that
gets the question of every request; SLOW, seconds an answer takes; DIES, answers after which the
process ends with status 3, 0 before it is ready; DEAF, it never is.
"""

import argparse
import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def options_of(arguments: list[str]) -> argparse.Namespace:
    """As the engines' own parsers: what they do not know is an error."""
    engine, *rest = arguments
    parser = argparse.ArgumentParser(prog=engine)
    if engine == "vllm":
        parser.add_argument("command", choices=["serve"])
        parser.add_argument("model")
        parser.add_argument("--tensor-parallel-size", type=int, required=True)
    else:
        parser.add_argument("--model-path", dest="model", required=True)
        parser.add_argument("--tp-size", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--trust-remote-code", action="store_true")
    return parser.parse_args(rest)


class Handler(BaseHTTPRequestHandler):
    """/v1/models, and /v1/chat/completions that adds."""

    name = ""
    answered = 0

    def do_GET(self) -> None:
        self._say({"object": "list", "data": [{"id": self.name, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = body["messages"][-1]["content"].split("\n")[0]
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{body['model']} {question}\n")
        time.sleep(float(os.environ.get("SLOW", "0")))
        a, b = map(int, re.findall(r"\d+", question)[:2])
        text = f"<think>\n{a} and {b}\n</think>\n\n\\boxed{{{a + b}}}"
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 9}
        self._say({"model": body["model"], "choices": [choice], "usage": usage})
        Handler.answered += 1
        if Handler.answered == int(os.environ.get("DIES", "-1")):
            die()

    def log_message(self, *_: Any) -> None:
        """Nothing for a request."""

    def _say(self, told: dict[str, Any]) -> None:
        data = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


def die() -> None:
    """As an engine does whose memory was not enough."""
    print("torch.OutOfMemoryError: CUDA out of memory", flush=True)
    os._exit(3)


def main(arguments: list[str]) -> None:
    options = options_of(arguments)
    print(f"{arguments[0]} serves {options.model} as {options.served_model_name}", flush=True)
    assert (Path(options.model) / "config.json").is_file()
    if os.environ.get("DIES") == "0":
        die()
    if "DEAF" in os.environ:
        time.sleep(600)
    Handler.name = options.served_model_name
    time.sleep(0.5)  # weights are read; nobody listens yet
    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
