"""Distillation: who is asked how often, what is kept, and that nothing is paid twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from megatron_ring import config
from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.distil import DistilConfig
from megatron_ring.curation import run, sandbox
from megatron_ring.curation.distil import Distil
from megatron_ring.curation.generate.memory import Memory
from megatron_ring.curation.record import Record, Rejection
from tests.curation import scripted
from tests.curation.killing import wait_for
from tests.curation.runs import lines, outcome, rejected, simple
from tests.curation.sandboxed import isolated
from tests.curation.scripted import ROOT, Serving, last_user


def plan(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> str | dict:
    """A script: the prompt lists what the first, second ... draw says, and a word each for more.

    Draws of one prompt differ by their seed alone, so the script counts them.
    """
    name, *plans = last_user(messages).split("\n")[0].split(" | ")
    seeds = SEEN.setdefault(name, [])
    if body["seed"] not in seeds:
        seeds.append(body["seed"])
    said = plans[min(seeds.index(body["seed"]), len(plans) - 1)]
    if said == "cut":
        return {"content": "<think>\nand so on", "finish_reason": "length"}
    if said == "bare":
        return "It is \\boxed{4}."
    if said == "chinese":
        return "<think>\n因为二加二等于四\n</think>\n\n所以是四 \\boxed{4}"
    if said.startswith("code "):
        return f"<think>\nCode.\n</think>\n\n```python\n{said[5:]}\n```"
    thought, _, answer = said.rpartition(" ")
    return f"<think>\n{thought or 'So.'}\n</think>\n\nIt is {answer}."


SEEN: dict[str, list[int]] = {}
SCRIPT = "tests.curation.test_distil:plan"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One for all tests whose prompts have names of their own."""
    with scripted.serve(tmp_path_factory.mktemp("server"), script=SCRIPT) as serving:
        yield serving


def record(prompt: str, **keys: Any) -> Record:
    return {"id": prompt.split(" ")[0], "messages": [{"role": "user", "content": prompt}], **keys}


def distil(server: Serving, replies: Path, **options: Any) -> Distil:
    generator = {"endpoint": server.url, "model": "m", "replies": replies, "retry_wait_s": 0.01}
    generator |= {"retries": 1} | options.pop("generator", {})
    return Distil(DistilConfig(generator=generator, **options))


def said(record: Record | Rejection) -> str:
    assert not isinstance(record, Rejection), record
    return record["messages"][-1]["content"]


def test_more_are_drawn_only_where_the_first_is_not_right(server: Serving, tmp_path: Path) -> None:
    given = [
        record("right | \\boxed{4}", answer="4"),
        record("wrong | \\boxed{3} | cut | \\boxed{4} | \\boxed{4}", answer="4"),
        record("unclear | \\boxed{x} | long and right \\boxed{4} | \\boxed{4}", answer="4"),
        record("unknown | \\boxed{x}", answer="4"),
        record("open | cut | \\boxed{5} | \\boxed{6}"),
        record("never | \\boxed{1} | \\boxed{2} | \\boxed{3}", answer="4"),
        record("mixed | \\boxed{1} | cut | bare | \\boxed{2}", answer="4"),
    ]
    kept = distil(server, tmp_path / "replies", draws=4, correct="prefer").apply_batch(given)
    asked = {one["id"]: len(server.ledger.of(f"{one['id']} |")) for one in given}
    # What cannot be told right from wrong is drawn once when it passes; else until it is right.
    assert asked == {
        **{"right": 1, "wrong": 3, "unclear": 2, "unknown": 4, "open": 2, "never": 4, "mixed": 4}
    }
    assert [said(one) for one in kept[:5]] == [
        *["It is \\boxed{4}."] * 3,
        "It is \\boxed{x}.",
        "It is \\boxed{5}.",
    ]
    fates = [one["extra"]["selection"] for one in kept[:5]]
    assert fates[1] == ["0: wrong_answer '3', not '4'", "1: not_finished finish=length", "2: right"]
    # Known to be right goes before unknown, though it is longer.
    assert fates[2] == ["0: unknown", "1: right"]
    assert kept[2]["messages"][-1]["reasoning_content"] == "long and right"
    assert fates[3] == ["0: unknown", "1: unknown", "2: unknown", "3: unknown"]
    assert fates[4] == ["0: not_finished finish=length", "1: unknown"]
    # By itself, what cannot be told right where the right answer is known does not stay.
    strict = distil(server, tmp_path / "replies", draws=4).apply_batch(given)
    assert strict[3] == Rejection(
        "unverified", "; ".join(f"{n}: unverified unknown" for n in range(4))
    )
    assert said(strict[2]) == said(kept[2]) and strict[4] == kept[4]
    assert kept[5].reason == "wrong_answer" and kept[5].evidence.count("not '4'") == 4
    assert kept[6].reason == "no_answer_passes"
    assert "2: think_structure no tags" in kept[6].evidence


def test_hard_prompts_get_all_draws_and_the_best_is_kept(server: Serving, tmp_path: Path) -> None:
    hard = {"extra": {"difficulty": "hard", "from": "a"}, "answer": "4"}
    plans = "| a long thought \\boxed{4} | \\boxed{4} | \\boxed{3}"
    given = [
        record(f"hard {plans}", **hard),
        record(f"easy {plans}", answer="4", extra={"difficulty": "easy", "from": "a"}),
        record(f"other {plans}", answer="4", extra={"difficulty": "hard", "from": "b"}),
    ]
    places = {"extra.difficulty": ["hard", "5"], "extra.from": ["a"]}
    kept = distil(server, tmp_path / "replies", draws=3, hard=places).apply_batch(given)
    assert [len(server.ledger.of(f"{one['id']} |")) for one in given] == [3, 1, 1]
    fates = sorted(fate[3:] for fate in kept[0]["extra"]["selection"])
    assert fates == ["right", "right", "wrong_answer '3', not '4'"]
    assert kept[0]["messages"][-1]["reasoning_content"] == "So."
    assert kept[1]["messages"][-1]["reasoning_content"] == "a long thought"


@pytest.mark.parametrize(
    ("plans", "options", "fate"),
    [
        ("cut", {}, "not_finished finish=length"),
        ("cut", {"finish": ["length"]}, "think_structure <think>"),
        ("bare", {}, "think_structure no tags"),
        ("bare", {"think": "allow"}, "right"),
        ("chinese", {}, "language 54.5% Chinese letters, more than 5.0%; none in the prompt"),
        ("\\boxed{4}", {"min_chars": 99}, "length 38 of 99 to 69000 characters"),
        ("\\boxed{3}", {}, "wrong_answer '3', not '4'"),
        ("\\boxed{3}", {"correct": "ignore"}, "unknown"),
        ("\\boxed{x}", {"correct": "require"}, "unverified unknown"),
        ("\\boxed{4.0}", {}, "right"),
        ("\\boxed{\\frac{8}{2}}", {"equality": "math_verify"}, "right"),
    ],
)
def test_each_rule(server: Serving, tmp_path: Path, plans: str, options: dict, fate: str) -> None:
    given = record(f"What is two and two? | {plans}", answer="4")
    found = distil(server, tmp_path / "replies", draws=1, **options).apply(given)
    if isinstance(found, Rejection):
        assert (found.reason, found.evidence) == (fate.split(" ")[0], f"0: {fate}")
    else:
        assert found["extra"]["selection"] == [f"0: {fate}"]


def test_who_is_asked_for_and_what_is_sent(server: Serving, tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    turns = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi!", "reasoning_content": "They greet."},
        {"role": "user", "content": "whose | \\boxed{4}"},
    ]
    answered = {"id": "b", "messages": turns[:2]}
    tools = {**record("tools | 4"), "tools": [{"type": "function"}]}
    other = record("other | 4", extra={"kind": "instruction"})
    asks = {"id": "a", "messages": [system, *turns], "answer": "4", "extra": {"kind": "reasoning"}}
    stage = distil(server, tmp_path / "replies", kinds=["reasoning"])
    assert stage.apply_batch([answered, tools, other]) == [answered, tools, other]
    assert not (tmp_path / "replies").exists()
    kept = stage.apply_batch([answered, asks, other])
    (line,) = server.ledger.of("whose |")
    assert kept[0] is answered and kept[2] is other
    assert distil(server, tmp_path / "none").apply(tools) is tools  # whatever its kind
    sent = line["body"]["messages"]
    assert sent[:3] == [system, turns[0], {"role": "assistant", "content": "Hi!"}]
    assert sent[3]["content"] == (
        "whose | \\boxed{4}\n\nReason step by step, and write the final answer in \\boxed{}."
    )
    assert kept[1]["messages"][:-1] == asks["messages"]  # what is kept is as it was
    body = line["body"]
    assert (body["temperature"], body["top_p"]) == (0.6, 0.95)


def test_the_card_is_that_of_the_answer(server: Serving, tmp_path: Path) -> None:
    given = record("card | \\boxed{3} | \\boxed{4}", answer="4", card={"model": "writer"})
    found = distil(server, tmp_path / "replies").apply(given)
    first, second = server.ledger.of("card |")
    assert not isinstance(found, Rejection)
    assert found["card"]["seed"] == second["body"]["seed"] != first["body"]["seed"]
    assert found["card"]["finish_reason"] == "stop" and found["card"]["model"] == "m"
    assert found["extra"]["prompt_card"] == {"model": "writer"}


def test_a_prompt_that_is_refused_is_not_asked_again(server: Serving, tmp_path: Path) -> None:
    given = [
        record("long | \\boxed{4} [[http_400]]", answer="4"),
        record("fine | \\boxed{4}", answer="4"),
    ]
    refused, fine = distil(server, tmp_path / "replies").apply_batch(given)
    assert len(server.ledger.of("long |")) == 1
    assert isinstance(refused, Rejection) and refused.reason == "refused"
    assert "HTTP 400" in refused.evidence and said(fine) == "It is \\boxed{4}."


@isolated
def test_programs_are_tried_by_their_tests(server: Serving, tmp_path: Path) -> None:
    tests = ["assert double(2) == 4", "assert double(0) == 0"]
    right, wrong = "code double = lambda n: 2 * n", "code double = lambda n: n + 2"
    given = [
        record(f"asserts | {wrong} | {right}", answer="not compared", extra={"tests": tests}),
        record(f"failing | {wrong}", extra={"tests": "\n".join(tests)}),
        record(
            "pairs | code print(2 * int(input()))",
            extra={"tests": [{"input": "4\n", "output": "8\n"}]},
        ),
    ]
    first, never, pairs = distil(server, tmp_path / "replies", draws=2).apply_batch(given)
    asked = server.ledger.of("asserts |")
    assert len(asked) == 2 and "boxed" not in asked[0]["body"]["messages"][-1]["content"]
    assert first["extra"]["selection"][1] == "1: right"
    assert first["extra"]["selection"][0].startswith("0: wrong_answer tests: failed")
    assert never.reason == "wrong_answer" and pairs["extra"]["selection"] == ["0: right"]


def test_nothing_is_asked_where_programs_cannot_be_tried(
    server: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise sandbox.SandboxError("install bubblewrap")

    monkeypatch.setattr(sandbox, "proven", missing)
    given = record("caged | code x = 1", extra={"tests": "assert x"})
    told = "distil: prompts with extra.tests need the sandbox: install bubblewrap, or set correct="
    with pytest.raises(ConfigError, match=told):
        distil(server, tmp_path / "replies").apply(given)
    assert server.ledger.of("caged |") == []
    kept = distil(server, tmp_path / "replies", correct="ignore").apply(given)
    assert said(kept).startswith("```python")


def test_what_math_verify_said_is_remembered(
    server: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = record("formula | \\boxed{2+2}", answer="x + 4")
    options = {"equality": "math_verify", "draws": 1, "correct": "prefer"}
    stage = distil(server, tmp_path / "replies", **options)
    assert stage._pool is not None
    monkeypatch.setattr(stage._pool, "ask", lambda given, gold: "timeout")
    first = stage.apply(given)
    again = distil(server, tmp_path / "replies", **options).apply(given)
    patient = distil(server, tmp_path / "replies", **options, timeout=30).apply(given)
    assert first == again and first["extra"]["selection"] == ["0: timeout"]
    assert patient == Rejection("wrong_answer", "0: wrong_answer '2+2', not 'x + 4'")


def recipe(output: Path, url: str, **generator: Any) -> Any:
    own = {"endpoint": url, "model": "m", "replies": str(output.parent / "replies")}
    own |= {"retry_wait_s": 0.01, "concurrency": 4} | generator
    stage = {"stage": "distil", "generator": own, "draws": 3, "instruction": ""}
    given = simple(output, output.parent / "prompts.jsonl", stages=[stage], records_per_shard=10)
    columns = {"prompt": "prompt", "answer": "answer"}
    source = given.sources[0].model_dump() | {"columns": columns}
    tree = given.model_dump(mode="json") | {"sources": [source]}
    return config.load(type(given), [], [], tree)


def write_sums(path: Path, count: int) -> None:
    rows = [{"prompt": f"{n} + {n % 7}?", "answer": str(n + n % 7)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_trial_sends_nothing_and_writes_nothing(tmp_path: Path) -> None:
    write_sums(tmp_path / "prompts.jsonl", 3)
    with scripted.serve(tmp_path, script="sums") as server:
        (tried,) = run.try_out(recipe(tmp_path / "out", server.url))
        assert len(server.ledger) == 0
    asked = '[{"role": "user", "content": "0 + 0?"}]'
    assert tried.fate == f"distil would ask m at {server.url} for 1 of at most 3 answers: {asked}"
    assert tried.before and tried.after is None and not (tmp_path / "replies").exists()


def test_a_run_that_is_killed_goes_on_and_pays_nothing_twice(tmp_path: Path) -> None:
    write_sums(tmp_path / "prompts.jsonl", 40)
    rates = {"http_500": 0.1, "drop_before": 0.1}
    with scripted.serve(tmp_path, script="sums", rates=rates, latency_s=0.02) as server:
        whole = recipe(tmp_path / "out", server.url)
        file = tmp_path / "recipe.json"
        file.write_text(whole.model_dump_json(exclude_none=True))
        for number in (8, 30):
            child = subprocess.Popen(
                [sys.executable, "tools/curate.py", "run", str(file)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
            )
            until = time.monotonic() + 60
            while len(server.ledger) < number and child.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.002)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
        result = run.run(whole)
        paid, asked = server.ledger.charged(), len(server.ledger)
        assert server.ledger.twice() == []
        # Another folder, other options of how to ask: the same answers, and no question.
        other = recipe(tmp_path / "other", server.url, concurrency=9, timeout_s=7, retries=0)
        again = run.run(other)
        assert len(server.ledger) == asked
    first, second = outcome(result.output), outcome(again.output)
    assert first.pop("report")["asked"].keys() == second.pop("report")["asked"].keys()
    assert first == second
    kept = lines(result.output / "kept/prompts.jsonl")
    gone = rejected(result.output, "distil")
    assert len(kept) + len(gone) == 40 and all(
        one["extra"]["selection"][-1].endswith(": right") for one in kept
    )
    draws = sum(len(one["extra"]["selection"]) for one in kept)
    assert sum(paid.values()) == draws + 3 * len(gone)
    (bill,) = result.report["asked"].values()
    assert bill["requests"] >= sum(paid.values()) and bill["output_tokens"] > 0


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_what_is_asked_comes_home_before_a_run_ends(tmp_path: Path, told: signal.Signals) -> None:
    """Also where the endpoint knows no request again, and two processes ask."""
    write_sums(tmp_path / "prompts.jsonl", 400)
    with scripted.serve(tmp_path, script="sums", latency_s=0.3, idempotent=False) as server:
        whole = recipe(tmp_path / "out", server.url, concurrency=4)
        whole = whole.model_copy(update={"workers": 2, "records_per_shard": 100})
        file = tmp_path / "recipe.json"
        file.write_text(whole.model_dump_json(exclude_none=True))
        child = subprocess.Popen(
            [sys.executable, "tools/curate.py", "run", str(file)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: len(server.ledger) >= 16)
        child.send_signal(told)
        said, _ = child.communicate(timeout=60)
        assert child.returncode == 130 and "stopped; the same command goes on from here" in said
        so_far = len(server.ledger)
        assert 16 <= so_far < 300, "it went on asking"
        memory = Memory(tmp_path / "replies")
        paid = [line["key"] for line in server.ledger.lines if line["charged"]]
        assert len(paid) >= 16 and all(memory.recall(key) for key in paid)
        assert server.ledger.twice() == []


def test_how_it_is_asked_makes_no_other_run(tmp_path: Path) -> None:
    write_sums(tmp_path / "prompts.jsonl", 3)
    said: list[str] = []
    teller = run.Teller()
    teller.say = said.append  # type: ignore[method-assign]
    with scripted.serve(tmp_path, script="sums") as server:
        run.run(recipe(tmp_path / "out", server.url))
        for same in ({"concurrency": 9}, {"prices": {"input": 1}}, {"budget": {"tokens": 10**9}}):
            run.run(recipe(tmp_path / "out", server.url, **same), teller)
        run.run(recipe(tmp_path / "out", "http://127.0.0.1:9/v1", timeout_s=1, retries=0), teller)
        assert set(said) == {"00-read: finished before"}
        run.run(recipe(tmp_path / "out", server.url, temperature=0.5), teller)
    (changed,) = [line for line in said if "done again" in line]
    assert '"temperature": 0.6' in changed and "concurrency" not in changed


def test_a_key_that_cannot_be_read_is_told_before_the_work(tmp_path: Path) -> None:
    write_sums(tmp_path / "prompts.jsonl", 3)
    asked = recipe(tmp_path / "out", "http://127.0.0.1:9/v1", key_file=str(tmp_path / "key"))
    with pytest.raises(ConfigError, match="key_file: cannot read"):
        run.run(asked)
