"""Rounds of code synthesis end to end: faults on the way, counts from the ledger, a second run."""

import re
from collections import Counter
from pathlib import Path
from random import Random

from megatron_ring.config.curation.synthesis import SynthesisConfig
from megatron_ring.config.loading import build, load
from megatron_ring.curation.record import prompt_of
from megatron_ring.curation.shards import read_lines
from megatron_ring.curation.synthesis import rounds
from tests.curation import coder, scripted, synthetic
from tests.curation.sandboxed import isolated
from tests.curation.scripted import Serving

RECIPE = Path(__file__).parents[2] / "configs/curate/synthesis/code.yaml"


def config(folder: Path, url: str) -> SynthesisConfig:
    model = synthetic.model(folder, url)
    domain = {"kind": "code", "difficulties": {}, "solver": model, "max_mutants": 1, "solutions": 3}
    domain |= {"max_pass_rate": 0.7, "limits": {"seconds": 60}}
    keys = {"seeds": {}, "writer": model, "domain": domain, "total": 4, "topics": {}}
    keys |= {"rounds": 2, "novelty": {"ngrams": None}, "expected_yield": 0.25}
    return build(SynthesisConfig, synthetic.recipe(folder, url, **keys))


def solved(server: Serving, problem: str) -> Counter[str]:
    """Programs that the solver gave for a problem, as the script makes them."""
    found: Counter[str] = Counter()
    for line in server.ledger.of(problem):
        if line["charged"] and line["body"]["messages"][0]["content"] == problem:
            rng = Random(f"1 {line['identity']} ")
            found[coder.writes_and_solves(line["body"]["messages"], line["body"], rng)] += 1
    return found


@isolated
def test_rounds(tmp_path: Path) -> None:
    options = {"script": "tests.curation.coder:writes_and_solves", "rates": synthetic.FAULTS}
    with scripted.serve(tmp_path, **options) as server:
        recipe = config(tmp_path, server.url)
        rounds.run(recipe)
        asked = len(server.ledger)
        assert server.ledger.twice() == []
        out = Path(recipe.output)
        kept = list(read_lines(out / "kept.jsonl"))
        rejected = [
            line
            for path in sorted(out.glob("rounds/*/rejected.jsonl"))
            for line in read_lines(path)
        ]
        assert kept
        for record in kept:
            extra = record["extra"]
            names: dict[str, object] = {}
            exec(f"{extra['solution']}\n{extra['tests']}", names)  # the script's own, above
            answers = solved(server, prompt_of(record))
            passed = sum(n for text, n in answers.items() if extra["solution"] in text)
            assert (sum(answers.values()), extra["solutions"]) == (3, 3)
            assert extra["pass_rate"] == passed / 3 and 0 < passed < 3
            assert (record["domain"], record["topic"]) == ("code", "generation")
        reasons = Counter(line["reason"] for line in rejected)
        assert {"no_tests", "solution_fails"} < set(reasons), reasons
        assert set(reasons) <= {
            "no_tests",
            "solution_fails",
            "too_easy",
            "never_solved",
            "same_text",
        }
        # Again from replies alone, and from remembered outcomes.
        first = synthetic.files(out)
        out.rename(tmp_path / "first")
        rounds.run(config(tmp_path, server.url))
        assert synthetic.files(out) == first and len(server.ledger) == asked


def test_recipe() -> None:
    found = load(SynthesisConfig, [RECIPE], ["data=d"])
    assert found.domain.kind == "code" and found.domain.roots == ("code/generation",)
    assert re.match("d/", str(found.seeds[0].path))
