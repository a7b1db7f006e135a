"""The teacher: arithmetic of worked solutions, its errors, and the endpoint as a client sees it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import reasoning_gym

from megatron_ring.small_corpus.problems import FAMILIES, TASKS
from megatron_ring.think import tag_errors
from tools import teach

ROOT = Path(__file__).parents[2]
EQUATION = re.compile(r"[\d+*/ -]+(?: = [\d+*/ -]+)+")


@pytest.mark.parametrize("task", [*TASKS, *FAMILIES])
def test_every_worked_line_is_true_and_the_answer_is_the_data_sets(task: str) -> None:
    settings = (FAMILIES | TASKS)[task]
    dataset = reasoning_gym.create_dataset(task, seed=99, size=300, **settings)
    num_solved = 0
    for entry in dataset:
        worked = teach.work_out(entry["question"].strip())
        if worked is None:
            continue
        thought, answer = worked
        assert answer == entry["answer"], entry["question"]
        for line in thought.splitlines():
            check_equation(line.split(",")[0])
        num_solved += 1
    # Only equations have shapes without a worked solution, such as two unknown terms.
    assert num_solved == 300 or (task == "simple_equations" and num_solved > 280)


def check_equation(line: str) -> None:
    """All sides of a line of plain arithmetic have the same value; other lines pass."""
    if EQUATION.fullmatch(line):
        values = {eval(side) for side in line.split(" = ")}
        assert len(values) == 1, line


def test_the_check_of_equations_can_fail() -> None:
    check_equation("7 + 2 * 3 = 13")
    with pytest.raises(AssertionError):
        check_equation("7 + 2 * 3 = 27")


def test_worked_solutions_by_hand() -> None:
    assert teach.chain_sum("State the final answer: 6 + 10 - 21 =") == (
        "6 + 10 = 16\n16 - 21 = -5",
        "-5",
    )
    assert teach.gcd("of these numbers: 12, 18.") == (
        "18 = 1 * 12 + 6\n12 = 2 * 6 + 0\nThe last divisor is 6.",
        "6",
    )
    assert teach.simple_equations("Solve for k: 14 - 2*k = -6") == (
        "2*k = 14 + 6 = 20\nk = 20 / 2 = 10",
        "10",
    )
    assert teach.simple_equations("Solve for k: 2*k + 3*k = 5") is None
    assert teach.simple_equations("Solve for k: 2*k = 5") is None
    assert teach.calendar_arithmetic("Is 1900 a leap year?")[1] == "No"
    assert teach.calendar_arithmetic("Is 2000 a leap year?")[1] == "Yes"
    assert teach.work_out("What is the capital of Peru?") is None


def body(question: str, seed: int = 1, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "seed": seed, **more}


def test_a_share_of_answers_is_wrong_and_of_another_sort_never() -> None:
    question = "of these numbers: 12, 18. Greatest Common Divisor"
    said = [teach.answer(body(question, seed)) for seed in range(2000)]
    finals = Counter(text.rpartition("</think>\n\n")[2] for text in said)
    assert set(finals) == {"4", "5", "6", "7", "8"}
    # 5 % of 2,000 are 100, with a standard deviation of 10.
    assert 60 < sum(finals.values()) - finals["6"] < 140
    assert all(tag_errors(text) == [] for text in said)
    leap = {teach.answer(body("Is 1900 a leap year?", n))[-3:].strip() for n in range(200)}
    assert leap == {"No", "Yes"}


def test_a_share_of_answers_is_damaged_when_it_is_asked_for() -> None:
    question = "of these numbers: 12, 18. Greatest Common Divisor"
    said = [teach.answer(body(question, seed, damaged_tags=0.2)) for seed in range(1000)]
    kinds = Counter(kind for text in said for kind in tag_errors(text))
    # 200, with a standard deviation of 13; as often each of five kinds.
    assert 150 < sum(kinds.values()) < 250 and len(kinds) == 5 and min(kinds.values()) > 15
    assert said == [teach.answer(body(question, seed, damaged_tags=0.2)) for seed in range(1000)]


def test_what_it_does_not_know_it_says() -> None:
    assert teach.answer(body("What is the capital of Peru?")).endswith(teach.UNABLE)


@pytest.fixture(scope="module")
def server() -> Iterator[teach.Server]:
    serving = teach.Server(0)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()
    serving.server_close()


def post(url: str, data: bytes) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as reply:
        return json.load(reply)


def test_the_endpoint_speaks_chat_completions(server: teach.Server) -> None:
    asked = body("State the final answer to the following arithmetic problem: 6 + 10 - 21 =")
    reply = post(f"{server.endpoint}/chat/completions", json.dumps(asked).encode())
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": teach.answer(asked)}
    assert choice["finish_reason"] == "stop"
    assert reply["usage"]["prompt_tokens"] == 15  # nine words, three numbers, three signs
    assert reply["usage"]["completion_tokens"] == len(teach.answer(asked).split())
    with urllib.request.urlopen(f"{server.endpoint}/models", timeout=20) as models:
        assert json.load(models)["data"][0]["id"] == "teacher"


@pytest.mark.parametrize(
    ("path", "data", "status", "told"),
    [
        ("/chat/completions", b"{", 400, "no chat with a question: JSONDecodeError"),
        ("/chat/completions", b"[]", 400, "no chat with a question: TypeError"),
        ("/chat/completions", b'{"messages": []}', 400, "no chat with a question: IndexError"),
        ("/completions", b"{}", 404, "no /v1/completions; there are /v1/chat/completions"),
    ],
)
def test_what_is_no_request_is_told(
    server: teach.Server, path: str, data: bytes, status: int, told: str
) -> None:
    with pytest.raises(HTTPError) as raised:
        post(server.endpoint + path, data)
    assert raised.value.code == status
    assert told in json.load(raised.value)["error"]["message"]


ASKS = (
    "import json, sys, urllib.request as r; url = sys.argv[1]; "
    "print(json.load(r.urlopen(url + '/models'))['data'][0]['id']); sys.exit(int(sys.argv[2]))"
)


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "tools/teach.py", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_serves_as_long_as_a_command_runs_and_ends_as_it_does() -> None:
    child = start("--", sys.executable, "-c", ASKS, "{endpoint}", "3")
    said, _ = child.communicate(timeout=60)
    assert (said, child.returncode) == ("teacher\n", 3)


def test_its_end_is_the_commands_end() -> None:
    """No command is left behind, and none is given up on an interrupt that it handles itself."""
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    child = start("--", sys.executable, "-c", waits)
    assert child.stdout is not None
    command = int(child.stdout.readline())
    child.send_signal(signal.SIGINT)  # the terminal sends it to both; here only to the teacher
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=0.5)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(command, 0)
    child.communicate()


def test_a_command_that_is_not_there_and_a_port_that_is_taken(server: teach.Server) -> None:
    child = start("--", "no-such-program")
    _, told = child.communicate(timeout=60)
    assert child.returncode == 1 and "cannot run no-such-program: " in told
    port = str(server.server_address[1])
    child = start("--port", port)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 1 and f"port {port}: " in told and "choose another one" in told
