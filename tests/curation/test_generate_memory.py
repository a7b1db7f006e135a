"""Replies on disk: killed, torn, shared, full."""

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.generate.memory import Memory
from tests.curation import scripted
from tests.curation.asking import ask, client, options, request, start, texts
from tests.curation.killing import kill_and_resume, wait_for

RATES = {"http_429": 0.05, "http_500": 0.1, "drop_before": 0.05, "drop_middle": 0.1}
RATES |= {"truncated": 0.05, "broken_json": 0.05, "error_200": 0.05, "close_after": 0.1}


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    with scripted.serve(tmp_path, rates=RATES, retry_after="0") as server:
        asked = client(server, tmp_path / "replies")
        requests = [request(f"prompt {n}", n % 3, temperature=0.5) for n in range(40)]
        first = ask(asked, *requests)
        asked.close()
        so_far, spent = len(server.ledger), asked.spent
        again = client(server, tmp_path / "replies")
        assert ask(again, *requests) == first and again.num_remembered == 40
        assert len(server.ledger) == so_far and again.spent == spent
        again.close()
        moved = client("http://127.0.0.1:1/v1", tmp_path / "replies")
        assert ask(moved, *requests) == first
        moved.close()


@pytest.mark.parametrize(
    "change", [{"model": "n"}, {"seed": 2}, {"top_p": 0.9}, {"extra": {"top_k": 2}}]
)
def test_another_request_is_asked(tmp_path: Path, change: dict[str, Any]) -> None:
    with scripted.serve(tmp_path) as server:
        for given in ({}, change, change | {"concurrency": 3, "retries": 9, "timeout_s": 3}):
            asked = client(server, tmp_path / "replies", **given)
            ask(asked, "the same?")
            asked.close()
        assert len(server.ledger) == 2


def test_values_are_kept_and_seen_by_others(tmp_path: Path) -> None:
    one, two = Memory(tmp_path), Memory(tmp_path)
    assert one.recall("verdict a") is None
    values = {
        "verdict a": {"timeout": 2.5},
        "b": [1, "\u00e4\u2028\n", None],
        "c": "\ud83d",
        "d": 0,
    }
    for key, value in values.items():
        one.keep(key, value)
    assert {key: one.recall(key) for key in values} == values
    two._looked = 0.0  # it looks once a second
    two.look()
    three = Memory(tmp_path)
    assert {key: two.recall(key) for key in values} == values
    assert {key: three.recall(key) for key in values} == values
    one.keep("b", "another")
    assert (one.recall("b"), Memory(tmp_path).recall("b")) == ("another", "another")
    one.close()


def test_a_torn_line_is_asked_again_and_the_others_are_not(tmp_path: Path) -> None:
    prompts = [f"prompt {n}" for n in range(4)]
    with scripted.serve(tmp_path) as server:
        asked = client(server, tmp_path / "replies", concurrency=1)
        first = texts(ask(asked, *prompts))
        asked.close()
        (file,) = (tmp_path / "replies").iterdir()
        data = file.read_bytes()
        start_of_last = data.rindex(b"\n", 0, -1) + 1
        cuts = [start_of_last, start_of_last + 1, len(data) - 200, len(data) - 1]
        torn = [data[:cut] for cut in cuts]
        torn += [data[:start_of_last] + b"\0" * 30 + b"\n", data[: len(data) - 9] + b"\n"]
        for number, rest in enumerate(torn):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / file.name).write_bytes(rest)
            so_far = len(server.ledger)
            asked = client(server, folder)
            assert texts(ask(asked, *prompts)) == first
            assert len(server.ledger) == so_far + 1, number
            asked.close()
            asked = client(server, folder)
            assert texts(ask(asked, *prompts)) == first
            assert len(server.ledger) == so_far + 1, number
            asked.close()


def test_a_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    """A line that found no room leaves no half of it, and the next ones are whole."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    kept = Memory(tmp_path)
    kept.keep("a", "x" * 100)
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
        with pytest.raises(ConfigError, match="replies=.*: cannot write: .*File too large"):
            kept.keep("b", "y" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.stat().st_size == size
    kept.keep("c", "z" * 100)
    for memory in (kept, Memory(tmp_path)):
        assert memory.recall("a") == "x" * 100 and memory.recall("b") is None
        assert memory.recall("c") == "z" * 100
    kept.close()


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Both get all, and what one asks the other need not."""
    with scripted.serve(tmp_path, latency_s=0.05, rates=RATES, retry_after="0") as server:
        given = options(server, tmp_path / "replies", concurrency=4)
        prompts = [f"prompt {number}" for number in range(60)]
        works = [
            {"options": given, "prompts": list(order), "samples": 1, "out": str(tmp_path / name)}
            for name, order in (("one", prompts), ("two", prompts[::-1]))
        ]
        for child in [start(work) for work in works]:
            _, told = child.communicate(timeout=120)
            assert child.returncode == 0, told
        one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
        assert one == two[::-1] and len(set(one)) == 60
        assert server.ledger.twice() == []
        kept = Memory(tmp_path / "replies")
        # On a busy machine an attempt may end before the server has read it.
        assert 0 <= kept.spent.requests - len(server.ledger) <= 3
        assert len(list((tmp_path / "replies").iterdir())) == 2
        so_far = len(server.ledger)
        asked = client(server, tmp_path / "replies", concurrency=4)
        assert texts(ask(asked, *prompts)) == one and len(server.ledger) == so_far
        asked.close()


def killed_at_random(folder: Path, idempotent: bool, times: int, prompts: int) -> None:
    """A run that is killed comes to what an undisturbed one came to, and nobody pays twice.

    Without a server that knows requests again: only for what was on its way when a process died.
    """
    (quiet := folder / "quiet").mkdir()
    asked_for = [f"prompt {number}" for number in range(prompts)]
    flags = {"rates": RATES, "retry_after": "0", "idempotent": idempotent, "latency_s": 0.03}
    with scripted.serve(quiet, **flags) as server:
        asked = client(server, quiet / "replies", concurrency=8)
        wanted = texts(ask(asked, *[request(p, n) for p in asked_for for n in range(3)]))
        undisturbed = server.ledger.tokens()
        asked.close()
    assert len(set(wanted)) == 3 * prompts and "refused" not in wanted
    with scripted.serve(folder, **flags) as server:
        given = options(server, folder / "replies", concurrency=8)
        work = {"options": given, "prompts": asked_for, "samples": 3, "out": str(folder / "out")}
        lives = kill_and_resume(server, work, times, seed=times)
        assert json.loads((folder / "out").read_text()) == wanted
        ledger, kept = server.ledger, Memory(folder / "replies")
        assert ledger.most_at_once() <= 8
        assert (kept.spent.input_tokens, kept.spent.output_tokens) == undisturbed
        ends = [life.num_lines for life in lives[1:]] + [len(ledger)]
        for life, end in zip(lives, ends, strict=True):
            paid = [line["key"] for line in ledger.lines[life.num_lines : end] if line["charged"]]
            assert len(set(paid)) == len(paid) and not life.remembered & set(paid)
            assert len(life.lost) <= 8 * lives.index(life)
        ever_lost = set().union(*(life.lost for life in lives))
        if idempotent:
            assert ledger.twice() == [] and ledger.tokens() == undisturbed
            assert ledger.replays() >= len(ever_lost)
        else:
            twice = {line["key"] for line in ledger.lines if line["identity"] in ledger.twice()}
            assert twice == ever_lost
        assert ever_lost or times < 10  # many kills do meet answers that came too late
    asked = client("http://127.0.0.1:1/v1", folder / "replies", concurrency=8)
    assert texts(ask(asked, *[request(p, n) for p in asked_for for n in range(3)])) == wanted
    asked.close()


@pytest.mark.parametrize("idempotent", [True, False])
def test_killed_and_resumed(tmp_path: Path, idempotent: bool) -> None:
    killed_at_random(tmp_path, idempotent, times=2, prompts=10)


@pytest.mark.slow
@pytest.mark.parametrize("idempotent", [True, False])
def test_killed_and_resumed_very_often(tmp_path: Path, idempotent: bool) -> None:
    killed_at_random(tmp_path, idempotent, times=25, prompts=80)


def test_an_interrupt_lets_what_is_on_its_way_come_home(tmp_path: Path) -> None:
    """So that nothing is paid twice, also where the endpoint knows no request again."""
    with scripted.serve(tmp_path, latency_s=0.3, idempotent=False) as server:
        given = options(server, tmp_path / "replies", concurrency=5)
        prompts = [f"prompt {number}" for number in range(120)]  # seven seconds, for busy machines
        work = {"options": given, "prompts": prompts, "samples": 1, "out": str(tmp_path / "out")}
        child = start(work)
        wait_for(lambda: len(server.ledger) >= 6)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
        assert child.returncode != 0 and "KeyboardInterrupt" in told
        so_far, kept = server.ledger, Memory(tmp_path / "replies")
        assert 6 <= len(so_far) < 120 and so_far.did()["ok"] == len(so_far)
        assert all(kept.recall(line["key"]) for line in so_far.lines)
        assert kept.open_elsewhere() == []
        child = start(work)
        _, told = child.communicate(timeout=60)
        assert child.returncode == 0, told
        assert len(server.ledger) == 120 and server.ledger.twice() == []


def test_what_a_dead_process_sent_took_what_its_successor_paid(tmp_path: Path) -> None:
    """By hand; the successor has the smaller name, and is read after all the same."""
    spent = {"purpose": "answer", "input_tokens": 3, "output_tokens": 4, "cost": 0.5}
    dead = [{"sent": "a", "most": [10, 100]}, {"sent": "b", "most": [20, 200]}]
    dead += [{"sent": "c", "most": [30, 300]}, {"of": "c", "spent": spent}]
    after = [{"sent": "a", "most": [10, 100]}, {"key": "a", "value": 1, "of": "a", "spent": spent}]
    after += [{"sent": "b", "most": [20, 200]}, {"of": "b", "spent": spent | {"cost": 0.25}}]
    for name, lines in (("host-9-99", dead), ("host-1-100", after)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    kept = Memory(tmp_path)
    assert sorted(kept.open_elsewhere()) == [(3, 4), (20, 200)]
    assert (kept.spent.requests, kept.spent.cost) == (3, 1.25)
    assert kept.recall("a") == 1 and kept.recall("b") is None


def test_files_belong_to_one_process_each(tmp_path: Path) -> None:
    one, two = Memory(tmp_path), Memory(tmp_path)
    assert list(tmp_path.iterdir()) == []  # who only reads leaves nothing
    one.keep("a", 1), two.keep("b", 2)
    assert len(list(tmp_path.iterdir())) == 2
    assert {f"-{os.getpid()}-" in path.name for path in tmp_path.iterdir()} == {True}
    one.close(), two.close()
