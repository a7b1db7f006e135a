"""The generation client against an endpoint of its own that fails in every way."""

import email.utils
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.generate import Client, NoAnswerError, RefusedError, Reply
from megatron_ring.curation.generate.sending import PROBE, asked_wait
from tests.curation import scripted
from tests.curation.asking import ask, client, request, texts, warm_up
from tests.curation.scripted import Serving

# What a client cannot use, apart from those whose waits have tests of their own.
PASSING = [
    *("http_408", "http_409", "http_425", "http_429_bare", "http_500", "http_502", "http_529"),
    *("drop_before", "drop_headers", "drop_middle", "truncated"),
    *("broken_json", "bad_bytes", "html", "error_200", "no_choices", "not_an_object"),
    *("null_content", "empty_content", "list_content", "deep_json"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Says what it was asked, and a number; fails where the question orders it."""
    warm_up(tmp_path_factory.mktemp("other"))
    with scripted.serve(tmp_path_factory.mktemp("server"), slow_s=8, retry_after="0.5") as made:
        yield made


@pytest.fixture
def asked(server: Serving, tmp_path: Path) -> Iterator[Client]:
    made = client(server, tmp_path / "replies")
    yield made
    made.close()


def done(server: Serving, prompt: str) -> list[str]:
    return [line["did"] for line in server.ledger.of(prompt)]


def test_a_reply_and_its_card(server: Serving, asked: Client) -> None:
    what = request("What is a card?", temperature=0.25, purpose="cards")
    (reply,) = ask(asked, what)
    (line,) = server.ledger.of("What is a card?")
    assert isinstance(reply, Reply)
    assert reply.text.startswith("What is a card? #") and reply.finish_reason == "stop"
    card = dict(reply.card)
    at = time.time() - time.mktime(time.strptime(card.pop("date"), "%Y-%m-%dT%H:%M:%S+00:00"))
    assert abs(at + time.timezone) < 3600 * 2 or abs(at) < 3600 * 14
    assert card == {
        "model": "m",
        "temperature": 0.25,
        "top_p": 0.95,
        "max_tokens": 50,
        "seed": line["body"]["seed"],
        "served_model": "m",
        "fingerprint": None,
        "finish_reason": "stop",
        "input_tokens": 4,
        "output_tokens": 5,
        "request": line["key"],
    }
    assert line["body"] == {
        "model": "m",
        "messages": [{"role": "user", "content": "What is a card?"}],
        "temperature": 0.25,
        "top_p": 0.95,
        "max_tokens": 50,
        "seed": line["body"]["seed"],
    }


def test_defaults_are_those_for_distillation(server: Serving, tmp_path: Path) -> None:
    made = Client(GeneratorConfig(endpoint=server.url, model="m", replies=tmp_path))
    body = made.body_of(request("x"))
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.6, 0.95, 16384)
    made.close()


@pytest.mark.parametrize("kind", PASSING)
def test_a_failure_that_passes(server: Serving, asked: Client, kind: str) -> None:
    prompt = f"passing {kind}"
    (reply,) = ask(asked, f"{prompt} [[{kind} ok]]")
    assert isinstance(reply, Reply) and reply.text.startswith(f"{prompt} #")
    assert done(server, f"{prompt} ") == [kind, "ok"]
    lines = server.ledger.of(f"{prompt} ")
    assert lines[0]["key"] == lines[1]["key"] and lines[0]["body"] == lines[1]["body"]


@pytest.mark.parametrize("kind", PASSING)
def test_a_failure_that_stays_is_the_requests_when_others_are_answered(
    server: Serving, tmp_path: Path, kind: str
) -> None:
    """Or would be: the last one left asks whether anyone is there."""
    asked = client(server, tmp_path, retries=2)
    prompt = f"staying {kind}"
    refused, beside = ask(asked, f"{prompt} [[{kind}]]", f"beside {kind} [[slow_ok]]")
    assert isinstance(refused, RefusedError) and isinstance(beside, Reply), (refused, beside)
    assert "no answer after 3 attempts, the last time: " in str(refused)
    again = done(server, f"{prompt} ")
    assert set(again) == {kind}
    assert len(again) == 3 or (kind == "http_429_bare" and len(again) > 3)  # some are not counted
    asked.close()


def test_others_that_are_answered_save_the_probe(server: Serving, tmp_path: Path) -> None:
    asked = client(server, tmp_path, retry_wait_s=0.15, retries=1)
    refused, _ = ask(asked, "no probe [[http_500]]", "beside no probe [[slow_ok]]")
    assert isinstance(refused, RefusedError)
    assert list(asked.spent.by_purpose) == ["answer"] and asked.spent.requests == 3
    asked.close()


@pytest.mark.parametrize("kind", ["slow", "trickle"])
def test_an_answer_that_takes_too_long(server: Serving, tmp_path: Path, kind: str) -> None:
    asked = client(server, tmp_path, timeout_s=0.4, retries=1)
    prompt = f"late {kind}"
    began = time.monotonic()
    (reply,) = ask(asked, f"{prompt} [[{kind} ok]]")
    assert time.monotonic() - began < 5
    assert texts([reply])[0].startswith(prompt)
    refused, _ = ask(asked, f"never {kind} [[{kind}]]", f"beside never {kind}")
    assert isinstance(refused, RefusedError)
    assert str(refused).endswith("after 2 attempts, the last time: nothing within timeout_s=0.4")
    asked.close()


@pytest.mark.parametrize("kind", ["no_usage", "wrong_usage", "usage_text", "chunked"])
def test_odd_answers_are_taken(server: Serving, asked: Client, kind: str) -> None:
    (reply,) = ask(asked, f"odd {kind} [[{kind}]]")
    assert texts([reply])[0].startswith(f"odd {kind} #")
    assert done(server, f"odd {kind} ") == [kind]
    if kind != "chunked":
        assert reply.card["input_tokens"] is None and reply.card["output_tokens"] is None
        assert asked.spent.input_tokens == asked.spent.output_tokens == 0


def test_a_connection_that_is_closed_after_an_answer(server: Serving, asked: Client) -> None:
    for number in range(5):
        (reply,) = ask(asked, f"closing {number} [[close_after]]")
        assert isinstance(reply, Reply)
    assert server.ledger.twice() == []


def test_half_a_character_can_be_written_and_asked_again(server: Serving, asked: Client) -> None:
    (reply,) = ask(asked, "half [[surrogate]]")
    assert texts([reply])[0].endswith("\N{REPLACEMENT CHARACTER}")
    reply.text.encode()
    (reply,) = ask(asked, "a half \ud83d asked")
    assert "a half \N{REPLACEMENT CHARACTER} asked" in texts([reply])[0]


def test_an_answer_cut_short(server: Serving, tmp_path: Path) -> None:
    asked = client(server, tmp_path, max_tokens=3)
    (reply,) = ask(asked, "one two three four five")
    assert (reply.text, reply.finish_reason) == ("one two three", "length")
    assert reply.card["output_tokens"] == 3
    asked.close()


def test_samples_are_draws_of_their_own(server: Serving, tmp_path: Path) -> None:
    for send_seed in (True, False):
        asked = client(server, tmp_path / str(send_seed), send_seed=send_seed)
        prompt = f"drawn with seed {send_seed}"
        found = texts(ask(asked, *[request(prompt, number) for number in range(8)]))
        assert len(set(found)) == 8
        bodies = [line["body"] for line in server.ledger.of(prompt)]
        assert len({body.get("seed") for body in bodies}) == (8 if send_seed else 1)
        assert all(0 <= body["seed"] < 2**31 for body in bodies if send_seed)
        assert len({line["key"] for line in server.ledger.of(prompt)}) == 8
        again = client(server, tmp_path / str(send_seed), send_seed=not send_seed)
        assert texts(ask(again, request(prompt, 3))) == [found[3]]
        asked.close(), again.close()
    asked = client(server, tmp_path / "True", seed=7)
    other = texts(ask(asked, request("drawn with seed True", 3)))
    assert other != [found[3]] and len(server.ledger.of("drawn with seed True")) == 9
    asked.close()


def test_the_same_request_at_the_same_time_is_sent_once(server: Serving, asked: Client) -> None:
    found = texts(ask(asked, *["one for all"] * 20))
    assert len(set(found)) == 1 and len(server.ledger.of("one for all")) == 1


def test_thoughts_that_come_apart(tmp_path: Path) -> None:
    with scripted.serve(tmp_path, script="apart") as server:
        asked = client(server, tmp_path / "replies")
        (reply,) = ask(asked, "Why?")
        assert texts([reply])[0].startswith("<think>\nThey ask: Why?\n</think>\n\nWhy? #")
        asked.close()


def test_thoughts_that_the_template_opens(server: Serving, tmp_path: Path) -> None:
    asked = client(server, tmp_path, opens_thought=True)
    opened, whole = texts(ask(asked, "opened </think> It is", "<think>whole</think> It is"))
    assert opened.startswith("<think>\nopened </think> It is #")
    assert whole.startswith("<think>whole</think> It is #")
    asked.close()


def test_waits_grow(server: Serving, tmp_path: Path) -> None:
    asked = client(server, tmp_path, retry_wait_s=0.1, retries=3)
    ask(asked, "growing [[http_500 drop_before broken_json ok]]")
    lines = server.ledger.of("growing")
    waits = [b["began"] - a["ended"] for a, b in zip(lines, lines[1:], strict=False)]
    assert len(waits) == 3
    assert waits[0] >= 0.095 and waits[1] >= 0.195 and waits[2] >= 0.395, waits
    asked.close()


@pytest.mark.parametrize("kind", ["http_429", "http_503"])
def test_a_server_says_how_long_to_wait(server: Serving, asked: Client, kind: str) -> None:
    ask(asked, f"asked to wait {kind} [[{kind} ok]]", f"not asked to wait {kind}")
    first, second = server.ledger.of(f"asked to wait {kind} ")
    assert second["began"] - first["ended"] >= 0.49
    began = time.time()
    ask(asked, f"after the wait {kind}")
    assert time.time() - began < 5


def test_a_date_to_wait_for(tmp_path: Path) -> None:
    until = math.ceil(time.time()) + 2
    with scripted.serve(tmp_path, retry_after=email.utils.formatdate(until, usegmt=True)) as server:
        asked = client(server, tmp_path / "replies")
        ask(asked, "wait [[http_429 ok]]")
        assert server.ledger.lines[1]["began"] >= until - 0.05
        asked.close()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-5", 0.0),
        ("nan", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_times_to_wait(header: str | None, seconds: float | None) -> None:
    assert asked_wait(header) == seconds


def test_a_limited_rate_refuses_nobody(tmp_path: Path) -> None:
    """40 requests at 20 a second, 20 at a time, with two retries: all are answered."""
    with scripted.serve(tmp_path, most_in_s=5, window_s=0.25, retry_after="0.2") as server:
        asked = client(server, tmp_path / "replies", retries=2, concurrency=20)
        found = texts(ask(asked, *[f"crowd {number}" for number in range(40)]))
        assert "refused" not in found and len(set(found)) == 40
        did = server.ledger.did()
        assert did["ok"] == 40 and did["limited"] > 20, did
        asked.close()


def test_no_more_at_a_time_than_allowed(tmp_path: Path) -> None:
    rates = {"slow": 0.04, "drop_middle": 0.1, "http_500": 0.1}
    with scripted.serve(tmp_path, latency_s=0.02, slow_s=9, rates=rates) as server:
        warm_up(tmp_path / "other")
        asked = client(server, tmp_path / "replies", concurrency=7, timeout_s=1)
        ask(asked, *[f"crowd {number}" for number in range(100)])
        assert server.ledger.most_at_once() == 7
        asked.close()


@pytest.mark.parametrize("status", [400, 413, 422, 451])
def test_refused_for_good(server: Serving, asked: Client, status: int) -> None:
    bad, good = ask(asked, f"bad {status} [[http_{status}]]", f"good {status}")
    assert isinstance(bad, RefusedError) and isinstance(good, Reply)
    assert str(bad) == (
        f"{server.url}/chat/completions: HTTP {status} "
        f'{{"error": {{"message": "scripted {status}", "type": "scripted"}}}}'
    )
    assert done(server, f"bad {status} ") == [f"http_{status}"]


@pytest.mark.parametrize("status", [301, 401, 402, 403, 404, 405])
def test_what_would_refuse_every_request_ends_the_run(
    server: Serving, asked: Client, status: int
) -> None:
    told = f"HTTP {status} .*. Look at endpoint, model and key_file"
    with pytest.raises(NoAnswerError, match=told):
        ask(asked, f"ours {status} [[http_{status}]]")


def test_a_prompt_that_is_forbidden_is_refused(server: Serving, asked: Client) -> None:
    ask(asked, "allowed before")
    bad, good = ask(asked, "forbidden [[http_403]]", "allowed")
    assert isinstance(bad, RefusedError) and isinstance(good, Reply)


def test_many_refusals_in_a_row_end_the_run(server: Serving, tmp_path: Path) -> None:
    asked = client(server, tmp_path, give_up_after=3, concurrency=1)
    ask(asked, "row 1 [[http_400]]", "row 2 [[http_400]]", "row 3", "row 4 [[http_400]]")
    with pytest.raises(NoAnswerError, match=r"3 requests in a row were refused \(give_up_after=3"):
        ask(asked, "row 5 [[http_400]]", "row 6 [[http_400]]", "row 7")
    assert done(server, "row 7") == []
    asked.close()


def test_a_request_that_always_fails_does_not_stop_the_run_for_ever(
    server: Serving, asked: Client
) -> None:
    """It is the last one left, so that nobody else is answered meanwhile."""
    for number, kind in enumerate(("http_500", "broken_json", "empty_content"), 1):
        (refused,) = ask(asked, f"the last {kind} [[{kind}]]")
        assert isinstance(refused, RefusedError)
        assert asked.spent.by_purpose["probe"]["requests"] == number
    probes = server.ledger.of(PROBE)[-3:]
    assert [line["body"]["max_tokens"] for line in probes] == [16] * 3
    assert len({line["key"] for line in probes}) == 3


def test_an_endpoint_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    asked = client(f"http://127.0.0.1:{port}/v1", tmp_path, retries=2)
    told = (
        rf"127.0.0.1:{port}/v1/chat/completions: no answer after 3 attempts, the last time: "
        r"ConnectError .*\. Start it and run again; nothing is lost"
    )
    with pytest.raises(NoAnswerError, match=told):
        ask(asked, "anyone?")
    asked.close()


def test_an_endpoint_that_goes_down_and_comes_back(tmp_path: Path) -> None:
    prompts = [f"before and after {number}" for number in range(6)]
    with scripted.serve(tmp_path) as server:
        asked = client(server, tmp_path / "replies", retries=1)
        before = texts(ask(asked, *prompts[:3]))
    with pytest.raises(NoAnswerError):
        ask(asked, *prompts)
    with scripted.serve(tmp_path, port=int(server.url.split(":")[2].split("/")[0])) as server:
        after = texts(ask(asked, *prompts))
        assert after[:3] == before and len(set(after)) == 6
        assert len(server.ledger) == 6
    asked.close()


def test_extra_keys_are_sent(server: Serving, tmp_path: Path) -> None:
    extra: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}, "top_k": 20}
    asked = client(server, tmp_path, extra=extra)
    ask(asked, "with extras")
    assert extra.items() <= server.ledger.of("with extras")[0]["body"].items()
    asked.close()


def test_the_first_error_ends_all_and_what_is_on_its_way_comes_home(tmp_path: Path) -> None:
    with scripted.serve(tmp_path, latency_s=0.3) as server:
        asked = client(server, tmp_path / "replies", concurrency=4)

        async def fails() -> None:
            await asked.ask(request("the first"))
            raise KeyError("a bug")

        rest = [asked.ask(request(f"home {number}")) for number in range(30)]
        told: list[int] = []
        with pytest.raises(KeyError, match="a bug"):
            asked.gather([fails(), *rest], lambda: told.append(1))
        assert 4 <= len(server.ledger) < 20
        assert len(told) < len(server.ledger)  # neither what failed nor what was given up
        assert asked.spent.requests == len(server.ledger) == server.ledger.did()["ok"]
        found = texts(ask(asked, *[f"home {number}" for number in range(30)]))
        assert len(set(found)) == 30 and len(server.ledger) == 31
        asked.close()


def test_blocking_work_is_done_aside(asked: Client) -> None:
    async def both() -> list[Any]:
        return [await asked.aside(pow, 2, 10), (await asked.ask(request("beside it"))).text]

    ((power, text),) = asked.gather([both()])
    assert power == 1024 and text.startswith("beside it #")
