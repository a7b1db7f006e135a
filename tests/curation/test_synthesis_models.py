"""Several models of one process."""

import pytest

from megatron_ring.config import build
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.generate import BudgetError, Request
from megatron_ring.curation.synthesis.models import Models
from tests.curation import scripted, synthetic


def test_models_that_are_asked_at_once_keep_to_the_budget_they_share(tmp_path):
    with scripted.serve(tmp_path, latency_s=0.02) as server:
        keys = {**synthetic.model(tmp_path, server.url), "concurrency": 2}
        keys["budget"] = {"requests": 12}
        models = Models()
        clients = [models.client(build(GeneratorConfig, keys | {"model": m})) for m in "ab"]
        assert models.client(build(GeneratorConfig, keys | {"model": "a"})) is clients[0]

        def ask(number):
            turn = {"role": "user", "content": str(number)}
            return clients[number % 2].ask(Request(messages=(turn,), purpose="ab"[number % 2]))

        with pytest.raises(BudgetError, match="budget.requests=12"):
            models.gather([ask(number) for number in range(40)])
        assert 8 < len(server.ledger) <= 12  # what is on its way counts until it is home
        told = models.paid()
        models.close()
    assert len(told) == 1 and set(told[0]["by_purpose"]) == {"a", "b"}
    spent = sum(one["requests"] for one in told[0]["by_purpose"].values())
    assert spent == len(server.ledger)
