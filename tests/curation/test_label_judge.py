"""The judge: a real server on this machine that answers well, badly, and not at all."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.label import JudgeConfig, LabelConfig
from megatron_ring.curation.label.judge import Judge, Verdict, check
from megatron_ring.curation.label.stage import Label
from megatron_ring.curation.record import Record
from megatron_ring.curation.taxonomy import load_taxonomy

OWN = load_taxonomy()
RIGHT = '{"path": "physics/optics", "confidence": 0.9}'


class Server(ThreadingHTTPServer):
    """Gives its `answers` one after the other, the last for ever; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, str]] = [(200, RIGHT)]
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(json.loads(body) | {"at": self.path})
        self.server.keys.append(self.headers["authorization"])
        answers = self.server.answers
        status, content = answers.pop(0) if len(answers) > 1 else answers[0]
        reply = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        data = content.encode() if status == 299 else json.dumps(reply).encode()
        self.send_response(200 if status == 299 else status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def judge(server: Server, **options: Any) -> Judge:
    endpoint = f"http://127.0.0.1:{server.server_port}/v1"
    return Judge(JudgeConfig(endpoint=endpoint, model="m", retry_wait_s=0, **options), OWN)


def test_a_right_answer(server: Server) -> None:
    asked = judge(server, max_characters=9)
    assert asked.ask("A lens of glass") == Verdict("physics/optics", 0.9)
    (request,) = server.requests
    assert request["at"] == "/v1/chat/completions"
    assert (request["model"], request["temperature"]) == ("m", 0)
    system, user = request["messages"]
    assert user == {"role": "user", "content": "<text>\nA lens of\n</text>"}
    for node in OWN.leaves():
        assert f"\n{node.path}: {node.en}" in system["content"]
    assert server.keys == [None] and asked.counts == {"answered": 1}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (f"<think>A lens {{}}</think>\n {RIGHT}\n", Verdict("physics/optics", 0.9)),
        (RIGHT.replace("0.9", "1"), Verdict("physics/optics", 1.0)),
        (f"Sure! {RIGHT}", Verdict(problem="not JSON", detail=f"Sure! {RIGHT}")),
        ("", Verdict(problem="not JSON")),
        ("[]", Verdict(problem="wrong keys", detail="[]")),
        ('{"path": "physics/optics"}', Verdict(problem="wrong keys")),
        (RIGHT.replace("}", ', "why": ""}'), Verdict(problem="wrong keys")),
        (
            RIGHT.replace("optics", "opticks"),
            Verdict(problem="unknown path", detail="physics/opticks"),
        ),
        (RIGHT.replace("/optics", ""), Verdict(problem="unknown path", detail="physics")),
        (RIGHT.replace('"physics/optics"', "null"), Verdict(problem="unknown path", detail="None")),
        (RIGHT.replace("0.9", "1.5"), Verdict(problem="wrong confidence", detail="1.5")),
        (RIGHT.replace("0.9", "true"), Verdict(problem="wrong confidence", detail="True")),
        (RIGHT.replace("0.9", "NaN"), Verdict(problem="wrong confidence", detail="nan")),
        (RIGHT.replace("0.9", '"high"'), Verdict(problem="wrong confidence", detail="high")),
    ],
)
def test_answers_are_taken_strictly(answer: str, verdict: Verdict) -> None:
    found = check(answer, OWN)
    assert (found.path, found.confidence, found.problem) == (
        verdict.path,
        verdict.confidence,
        verdict.problem,
    )
    assert not verdict.detail or found.detail == verdict.detail


def test_bad_answers_are_counted_and_leave_the_record_to_the_text(server: Server) -> None:
    server.answers = [
        (200, RIGHT),
        (200, RIGHT.replace("optics", "magic")),
        (200, "no idea"),
        (500, ""),
        (500, ""),
        (299, "<html>not what was asked for</html>"),
    ]
    endpoint = f"http://127.0.0.1:{server.server_port}/v1"
    options = {"endpoint": endpoint, "model": "m", "retry_wait_s": 0, "retries": 1, "below": 1}
    stage = Label(LabelConfig(judge=options, rules=False))
    turn = {"role": "user", "content": "Why do the leaves of a plant look green?"}
    given = Record(id="1", messages=[turn], source="a")
    found = [stage.apply(given) for _ in range(5)]
    alone = Label(LabelConfig(rules=False)).apply(given)
    assert found[0]["topic"] == "optics"
    for record in found[1:]:
        assert record["domain"] == alone["domain"] and record["confidence"] == alone["confidence"]
    assert [record["extra"]["label"].get("judge") for record in found] == [
        None,
        "unknown path",
        "not JSON",
        "no answer",
        "no answer",
    ]
    assert found[3]["extra"]["label"]["judge_said"].startswith("HTTP 500")
    assert "an answer of another shape: JSONDecodeError" in found[4]["extra"]["label"]["judge_said"]
    assert stage.judge.counts == {
        "answered": 1,
        "unknown path": 1,
        "not JSON": 1,
        "no answer": 2,
    }


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(server: Server) -> None:
    server.answers = [(503, ""), (429, ""), (200, RIGHT)]
    assert judge(server, retries=2).ask("x").path == "physics/optics"
    assert len(server.requests) == 3
    server.answers = [(401, "")]
    assert judge(server, retries=5).ask("x").problem == "no answer"
    assert len(server.requests) == 4


def test_a_dead_endpoint_ends_the_run(server: Server) -> None:
    server.answers = [(500, ""), (500, ""), (200, RIGHT), (500, "")]
    asked = judge(server, retries=0, give_up_after=3)
    problems = [asked.ask(text).problem for text in "abcde"]
    assert problems == ["no answer", "no answer", "", "no answer", "no answer"]
    with pytest.raises(
        RuntimeError, match="no answer for 3 records in a row .*give_up_after=3.*500"
    ):
        asked.ask("f")
    nobody = JudgeConfig(endpoint="http://127.0.0.1:9/v1", model="m", retries=0, give_up_after=1)
    with pytest.raises(RuntimeError, match="no answer for 1 records .* ConnectError"):
        Judge(nobody, OWN).ask("x")


def test_answers_are_kept_and_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.answers = [(500, ""), (200, RIGHT), (200, "nonsense")]
    first = judge(server, retries=0, cache=tmp_path / "cache")
    assert first.ask("x").problem == "no answer"  # silence is no answer to keep
    assert first.ask("x").path == "physics/optics"
    again = judge(server, retries=0, cache=tmp_path / "cache")
    assert again.ask("x").path == "physics/optics" and len(server.requests) == 2
    # Another text, or another model, is another question.
    assert again.ask("y").problem == "not JSON" and len(server.requests) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_key_comes_from_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    judge(server, key_file=tmp_path / "key").ask("x")
    assert server.keys == ["Bearer secret"]
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="key_file=.*empty has no key on its first line"):
        judge(server, key_file=tmp_path / "empty")
    with pytest.raises(ConfigError, match="key_file: cannot read .*nowhere"):
        judge(server, key_file=tmp_path / "nowhere")
