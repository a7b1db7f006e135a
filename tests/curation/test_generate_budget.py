"""What the generation client says it spent, against the ledger of who charged for it."""

from pathlib import Path

import pytest

from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.generate import BudgetError, Client, Reply
from megatron_ring.curation.generate.budget import most_tokens
from tests.curation import scripted
from tests.curation.asking import ask, client, options, request, start, texts
from tests.curation.killing import wait_for

PRICES = {"input": 2.0, "output": 8.0}
KINDS = {
    **{"http_429_bare": 0.08, "http_500": 0.08, "drop_before": 0.08, "drop_middle": 0.08},
    **{"truncated": 0.08, "broken_json": 0.08, "null_content": 0.08, "empty_content": 0.08},
    **{"no_choices": 0.08, "length": 0.1},
}


def cost(tokens: tuple[int, int]) -> float:
    return (tokens[0] * PRICES["input"] + tokens[1] * PRICES["output"]) / 1e6


@pytest.mark.parametrize("charge_lost", [False, True])
def test_what_was_spent_is_what_was_charged(tmp_path: Path, charge_lost: bool) -> None:
    """Answers that a connection lost are charged once, and their replay is what tells of it."""
    kinds = KINDS if not charge_lost else KINDS | {"length": 0.0}  # a replay says the same
    faults = {"rates": kinds, "charge_lost": charge_lost}
    with scripted.serve(tmp_path, latency_s=0.005, **faults) as server:
        asked = client(server, tmp_path / "replies", prices=PRICES, concurrency=16)
        purposes = ("thoughts", "problems")
        found = ask(
            asked, *[request(f"what is {n} ?", n, purpose=purposes[n % 2]) for n in range(120)]
        )
        assert all(isinstance(one, Reply) for one in found)
        did, spent, tokens = server.ledger.did(), asked.spent, server.ledger.tokens()
        assert all(did[kind] for kind, rate in kinds.items() if rate), did
        assert spent.requests == len(server.ledger) > 150
        assert (spent.input_tokens, spent.output_tokens) == tokens
        assert spent.cost == pytest.approx(cost(tokens), rel=1e-9)
        assert server.ledger.twice() == [] and (server.ledger.replays() > 5) == charge_lost
        one, two = (spent.by_purpose[name] for name in purposes)
        assert one["requests"] + two["requests"] == spent.requests
        assert one["input_tokens"] + two["input_tokens"] == tokens[0]
        ours = [
            x for x in server.ledger.lines if int(x["body"]["messages"][0]["content"][8:-2]) % 2
        ]
        assert two["requests"] == len(ours)
        assert two["output_tokens"] == sum(line["output_tokens"] for line in ours)
        cards = [one.card for one in found if isinstance(one, Reply)]
        kept = [x["output_tokens"] for x in server.ledger.lines if x["kept"] and x["charged"]]
        assert sum(card["output_tokens"] for card in cards) == sum(kept)
        asked.close()


@pytest.mark.parametrize("name", ["requests", "tokens", "cost"])
def test_a_budget_stops_before_it_is_overspent(tmp_path: Path, name: str) -> None:
    """`long` writes as much as it may: 20 tokens, for a prompt of 2 tokens or 16 at most."""
    prompts = [f"tell {number:03}" for number in range(60)]
    worst = {"requests": 1, "tokens": 8 + 8 + 20, "cost": cost((8 + 8, 20))}
    limit = {"requests": 30, "tokens": 30 * 22, "cost": 30 * cost((2, 20))}[name]
    told = rf"budget.{name}=.*: .* spent, and what is on its way .*replies=.*; raise it and run"
    with scripted.serve(tmp_path, script="long", latency_s=0.02, rates={"http_500": 0.2}) as server:
        kept = {"max_tokens": 20, "concurrency": 8, "prices": PRICES}
        asked = client(server, tmp_path / "r", budget={name: limit}, **kept)
        with pytest.raises(BudgetError, match=told):
            ask(asked, *prompts)
        tokens, requests = server.ledger.tokens(), len(server.ledger)
        charged = {"requests": requests, "tokens": sum(tokens), "cost": cost(tokens)}[name]
        assert charged <= limit * (1 + 1e-9) and charged + worst[name] > limit
        with pytest.raises(BudgetError, match=told):
            ask(asked, *prompts)
        assert len(server.ledger) == requests
        asked.close()
        more = client(server, tmp_path / "r", budget={name: limit * 4}, **kept)
        assert len(texts(ask(more, *prompts))) == 60
        assert server.ledger.twice() == []
        more.close()


def test_worst_cases_of_what_is_on_its_way_are_kept_free(tmp_path: Path) -> None:
    """Room for three worst cases and a bit: never more than three at a time."""
    with scripted.serve(tmp_path, latency_s=0.05) as server:
        worst = most_tokens([{"content": "a prompt 00"}]) + 1000
        budget = {"tokens": 3 * worst + 300}
        asked = client(server, tmp_path / "r", max_tokens=1000, budget=budget)
        found = texts(ask(asked, *[f"a prompt {number:02}" for number in range(12)]))
        assert len(set(found)) == 12 and server.ledger.most_at_once() == 3
        asked.close()


def test_what_a_dead_process_had_sent_counts(tmp_path: Path) -> None:
    """Five requests on their way, killed: they may have been charged, and were sent."""
    replies = tmp_path / "replies"
    with scripted.serve(tmp_path, latency_s=0.6) as server:
        given = options(server, replies, concurrency=5, max_tokens=1000)
        prompts = [f"prompt {number}" for number in range(8)]
        child = start({"options": given, "prompts": prompts, "samples": 1, "out": "never"})
        file = wait_for(lambda: next(iter(replies.glob("*.jsonl")), None))
        wait_for(lambda: file.read_bytes().count(b'"sent"') == 5)
        child.kill(), child.communicate()
        assert file.read_bytes().count(b"spent") == 0, "the machine was too slow for this test"
        tight = Client(GeneratorConfig(**given | {"budget": {"requests": 7}}))
        with pytest.raises(BudgetError, match="budget.requests=7: 2 spent, .* take 6 more"):
            ask(tight, *prompts[:3])
        tight.close()
        # Now two of the five are known: their second answers tell what the first ones took. Three
        # and the next one are at their worst.
        tokens = 2 * 5 + 2 * 5 + 4 * (8 + 8 + 1000)
        for limit in (tokens - 1, tokens):
            tight = Client(GeneratorConfig(**given | {"budget": {"tokens": limit}}))
            if limit < tokens:
                with pytest.raises(BudgetError, match=r"10 spent, .* take 4,074 more"):
                    ask(tight, prompts[2])
            else:
                assert isinstance(ask(tight, prompts[2])[0], Reply)
            tight.close()
