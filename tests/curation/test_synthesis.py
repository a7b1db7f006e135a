"""Rounds of synthesis against a real endpoint: counts, resumption, lineage, files."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from random import Random

import pytest

from megatron_ring.config import ConfigError, build, load
from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.curation.synthesis import SynthesisConfig
from megatron_ring.curation import run as curation
from megatron_ring.curation.generate import BudgetError, NoAnswerError
from megatron_ring.curation.shards import read_lines
from megatron_ring.curation.synthesis import rounds
from megatron_ring.curation.synthesis.making import Teller
from tests.curation import scripted, synthetic

SCRIPT = "tests.curation.synthetic:writes_and_solves"


class Listening(Teller):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def run(folder, url="http://127.0.0.1:9/v1", teller=None, **keys):
    config = build(SynthesisConfig, synthetic.recipe(folder, url, **keys))
    return rounds.run(config, teller)


def lines(folder, name):
    return [line for path in sorted(folder.glob(f"rounds/*/{name}")) for line in read_lines(path)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run of two rounds, with the ledger of what it asked. It wants more than it gets."""
    folder = tmp_path_factory.mktemp("done")
    with scripted.serve(folder, script=SCRIPT) as server:
        report = run(folder, server.url, total=24, rounds=2)
        yield folder, report, server.ledger


def truth(ledger):
    """What the script said to each problem: answers by count, "-" where it gave none."""
    said = {}
    for line in ledger.lines:
        text = line["body"]["messages"][-1]["content"]
        if line["charged"] and "<problem>" not in text:
            reply = synthetic.writes_and_solves(
                line["body"]["messages"], line["body"], Random(f"1 {line['identity']} ")
            )
            found = re.search(r"boxed\{(\d+)\}", reply)
            counts = said.setdefault(text.partition("\n\nReason")[0], Counter())
            counts[found[1] if found else "-"] += 1
    return said


def test_agreement_is_counted_as_the_script_tells(done):
    folder, _, ledger = done
    said = truth(ledger)
    kept = list(read_lines(folder / "out/kept.jsonl"))
    rejected = [r for r in lines(folder / "out", "rejected.jsonl") if r["stage"] == "verify"]
    assert len(kept) > 8 and len(rejected) > 3 and len(said) == len(kept) + len(rejected)
    for record in kept:
        counts = said[record["messages"][0]["content"]]
        without = counts.pop("-", 0)
        agreement = record["extra"]["agreement"]
        assert agreement["answers"][0] == [record["answer"], max(counts.values())]
        assert dict(agreement["answers"]) == counts and counts[record["answer"]] >= 3
        assert agreement["without"] == without and agreement["asked"] == 4
        assert len(record["extra"]["candidates"]) == agreement["votes"] == max(counts.values())
    for line in rejected:
        counts = said[line["record"]["messages"][0]["content"]]
        without = counts.pop("-", 0)
        assert max(counts.values(), default=0) < 3
        for answer, number in counts.items():
            assert f"{number} x '{answer}'" in line["evidence"]
        assert f"; {without} without one" in line["evidence"]


def test_every_draft_has_one_fate_and_the_report_counts_them(done):
    folder, report, ledger = done
    kept, rejected = lines(folder / "out", "kept.jsonl"), lines(folder / "out", "rejected.jsonl")
    stages = Counter(line["stage"] for line in rejected)
    total = report["total"]
    assert len({one["id"] for one in kept + rejected}) == len(kept) + len(rejected)
    assert total["drafts"] == len(kept) + stages["verify"] + stages["novelty"]
    assert total["kept"] == len(kept) and total["new"] == len(kept) + stages["verify"]
    assert sum(total["unparsable"].values()) == stages["parse"] > 0
    assert sum(total["known"].values()) == stages["novelty"] > 0
    assert total["rejected"] == {"no_agreement": stages["verify"]}
    assert total["requests"] == total["replies"] == len(ledger.of("Write one new problem"))
    assert report["used"]["write"]["requests"] == total["requests"]
    assert report["used"]["solve"]["requests"] == 4 * total["new"]
    tokens = [
        sum(one[key] for one in report["used"].values())
        for key in ("input_tokens", "output_tokens")
    ]
    assert tuple(tokens) == ledger.tokens()
    by_cell = Counter(line["cell"] for line in rejected if line["stage"] == "verify")
    for name, cell in report["cells"].items():
        assert cell["rejected"].get("no_agreement", 0) == by_cell[name]
        assert cell["kept"] == sum(one["extra"]["cell"] == name for one in kept)
        assert cell["wanted"] == 4 and cell["supply"] == 2
    assert sum(one["kept"] for one in report["rounds"]) == total["kept"]


def test_kept_records_have_lineage_labels_and_card(done):
    folder, _, _ = done
    kept = {one["id"]: one for one in read_lines(folder / "out/kept.jsonl")}
    seeds = {f"own/{n}" for n in range(1, 13)}
    ours = set()
    for id, record in kept.items():
        name, number, domain, level, topic, last = id.split("/")
        topic, difficulty = topic.split(":")
        assert (name, record["source"]) == ("synthetic", "synthetic")
        assert record["extra"]["difficulty"] == difficulty and last.replace(".", "").isdigit()
        assert [record[key] for key in ("domain", "level", "topic")] == [domain, level, topic]
        assert len(set(record["seed_ids"])) == 3
        assert set(record["seed_ids"]) <= (seeds if number == "1" else seeds | set(kept))
        ours |= set(record["seed_ids"]) - seeds
        assert record["card"]["model"] == "scripted" and record["card"]["temperature"] == 1.0
    assert ours and all(id.startswith("synthetic/1/") for id in ours)  # seeds of the second round


def test_curation_reads_what_was_kept(done):
    folder, report, _ = done
    source = folder / "out/source.yaml"
    config = load(
        CurateConfig,
        [str(source)],
        ["stages=[{stage: select_answer}]", f"output={folder / 'curated'}"],
    )
    result = curation.run(config)
    assert result.counts["select_answer"].kept == report["total"]["kept"]
    (path,) = (folder / "curated/kept").iterdir()
    kept = {one["id"]: one for one in read_lines(folder / "out/kept.jsonl")}
    for record in read_lines(path):
        before = kept.pop(record["id"])
        for key in ("answer", "seed_ids", "domain", "level", "topic"):
            assert record[key] == before[key]
        assert record["messages"][0] == before["messages"][0]
        assert f"\\boxed{{{record['answer']}}}" in record["messages"][1]["content"]
        assert record["extra"]["kind"] == "reasoning"
    assert not kept


def test_a_finished_run_asks_nothing_and_changes_nothing(done):
    folder, report, ledger = done
    before = synthetic.files(folder / "out")
    teller = Listening()
    assert run(folder, total=24, rounds=2, teller=teller) == report  # nobody is at that address
    assert synthetic.files(folder / "out") == before
    assert re.fullmatch(r"round 1: \d+ kept of \d+ requests, finished before", teller.lines[0])
    assert len(ledger) == len(ledger.of(""))


def test_more_rounds_go_on_as_if_there_had_been_no_end(done, tmp_path):
    folder, _, _ = done
    shutil.copytree(folder / "replies", tmp_path / "replies")
    run(tmp_path, total=24, rounds=1)  # nobody is at that address; all replies are there
    teller = Listening()
    run(tmp_path, total=24, rounds=2, teller=teller)
    assert teller.lines[0] == ("another recipe from here on (rounds: 1 -> 2); finished rounds stay")
    assert recipeless(tmp_path / "out") == recipeless(folder / "out")


def recipeless(output):
    """Files but for the fingerprint of the recipe that a round was made by."""
    return {
        name: re.sub(rb'"recipe": "\w+"', b"", one) for name, one in synthetic.files(output).items()
    }


def test_more_problems_are_asked_for_behind_finished_rounds(done, tmp_path):
    folder, before, _ = done
    for name in ("replies", "out"):
        shutil.copytree(folder / name, tmp_path / name)
    recorded = tmp_path / "out" / "work" / "recipe.json"  # the sources' paths are another's
    recorded.write_text(recorded.read_text().replace(str(folder), str(tmp_path)))
    teller = Listening()
    with scripted.serve(tmp_path, script=SCRIPT) as server:
        report = run(tmp_path, server.url, teller, total=42, rounds=3)
    assert teller.lines[0] == (
        "another recipe from here on (total: 24 -> 42; rounds: 2 -> 3); finished rounds stay"
    )
    assert [one["kept"] for one in report["rounds"][:2]] == [
        one["kept"] for one in before["rounds"]
    ]
    assert report["rounds"][2]["kept"] > 0 and report["wanted"] == 42
    kept = lines(tmp_path / "out", "kept.jsonl")
    texts = [one["messages"][0]["content"] for one in kept]
    assert len(set(texts)) == len(texts)  # new against those of rounds that were only read
    known = [x for x in lines(tmp_path / "out", "rejected.jsonl") if x["stage"] == "novelty"]
    assert any("synthetic/3/" in x["id"] and "synthetic/1/" in x["evidence"] for x in known)


def test_a_recipe_that_made_other_rounds_is_refused(done, tmp_path):
    folder, _, ledger = done
    before = synthetic.files(folder / "out")
    keys = {"total": 24, "rounds": 2}
    with pytest.raises(
        ConfigError,
        match=r"its rounds were made by another recipe \(seed: 1234 -> 5\)\. Choose another "
        r"output, or remove .*/out/rounds: replies are kept apart",
    ):
        run(folder, **keys, seed=5)
    tree = synthetic.recipe(folder)
    tree["domain"]["solver"] = {**tree["domain"]["solver"], "model": "other", "concurrency": 3}
    with pytest.raises(ConfigError, match=r'\(domain.solver.model: "scripted" -> "other"\)\.'):
        run(folder, **keys, domain=tree["domain"])
    (folder / "seeds.jsonl").write_text((folder / "seeds.jsonl").read_text() + "\n")
    try:
        with pytest.raises(ConfigError, match=r"\(seeds: .*/seeds.jsonl: \"\w{32,}.* -> "):
            tree = synthetic.recipe(folder)  # writes them as they were
            (folder / "seeds.jsonl").write_text('{"question": "What?", "topic": "functions"}\n')
            rounds.run(build(SynthesisConfig, {**tree, **keys}))
    finally:
        synthetic.seeds_file(folder)
    assert synthetic.files(folder / "out") == before


def test_two_runs_do_not_share_a_folder(done):
    folder, _, _ = done
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder / "out" / "work" / "lock")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another run is at work there"):
            run(folder, total=24, rounds=2)
    finally:
        holder.kill()
        holder.wait()


def test_killed_and_resumed_ends_with_the_bytes_of_an_undisturbed_run(tmp_path):
    """kill -9 at random moments, against an endpoint with faults; nothing is paid twice."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    served = {"script": SCRIPT, "rates": synthetic.FAULTS, "latency_s": 0.02}
    keys = {"total": 10, "rounds": 2}
    rng = random.Random(7)
    with scripted.serve(one, **served) as server:
        tree = synthetic.recipe(one, server.url, **keys)
        (one / "recipe.yaml").write_text(json.dumps(tree))
        command = [sys.executable, "-m", "tools.synthesize", "run", str(one / "recipe.yaml")]
        deaths = 0
        for moment in sorted(rng.sample(range(2, 90), 3)):
            process = subprocess.Popen(command, cwd=scripted.ROOT, stdout=subprocess.DEVNULL)
            while process.poll() is None and len(server.ledger) < moment:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            deaths += process.wait() == -signal.SIGKILL
        assert deaths == 3
        run(one, server.url, **keys)
        asked = len(server.ledger)
        shutil.copytree(one / "out", one / "resumed")
        shutil.rmtree(one / "out")
        run(one, server.url, **keys)  # from replies alone
        assert len(server.ledger) == asked and server.ledger.twice() == []
        assert len(server.ledger.did()) > 3
    with scripted.serve(other, **served) as server:
        run(other, server.url, **keys)
    assert synthetic.files(one / "out") == synthetic.files(one / "resumed")
    ours = synthetic.undated(synthetic.files(one / "out"))
    theirs = synthetic.undated(synthetic.files(other / "out"))
    assert recipeless_of(ours, one) == recipeless_of(theirs, other)
    assert not list(one.glob("out/**/.*"))


def recipeless_of(files, folder):
    """Without what names the folder of a run."""
    return {name: re.sub(rb'"recipe": "\w+"', b"", one) for name, one in files.items()}


def test_a_budget_ends_a_round_and_a_higher_one_goes_on(tmp_path):
    with scripted.serve(tmp_path, script=SCRIPT) as server:
        tree = synthetic.recipe(tmp_path, server.url, total=6, rounds=1)
        for model in (tree["writer"], tree["domain"]["solver"]):
            model["budget"] = {"requests": 20}
        with pytest.raises(BudgetError, match="budget.requests=20: 20 spent"):
            rounds.run(build(SynthesisConfig, tree))
        assert len(server.ledger) == 20
        assert not (tmp_path / "out/rounds/01/done.json").exists()
        for model in (tree["writer"], tree["domain"]["solver"]):
            model["budget"] = {"requests": 500}
        report = rounds.run(build(SynthesisConfig, tree))
        assert report["total"]["kept"] > 0 and server.ledger.twice() == []
        assert len(server.ledger) == sum(one["requests"] for one in report["used"].values())


def test_an_endpoint_that_is_down_loses_nothing(tmp_path):
    tree = synthetic.recipe(tmp_path, total=3, rounds=1)
    tree["writer"]["retries"] = 1
    with pytest.raises(NoAnswerError, match="no answer after 2 attempts"):
        rounds.run(build(SynthesisConfig, tree))
    assert not (tmp_path / "out/kept.jsonl").exists()
    with scripted.serve(tmp_path, script=SCRIPT) as server:
        tree["writer"]["endpoint"] = tree["domain"]["solver"]["endpoint"] = server.url
        assert rounds.run(build(SynthesisConfig, tree))["total"]["replies"] > 0


def test_requests_that_are_refused_are_told(tmp_path):
    """Problems refused by the writer have no draft; a solution that is refused has no vote."""
    rates = {"http_400": 0.3}
    served = {"script": SCRIPT, "rates": rates, "faults_at_most": 99}
    with scripted.serve(tmp_path, **served) as server:
        report = run(tmp_path, server.url, total=6, rounds=1)
    refused = [x for x in lines(tmp_path / "out", "rejected.jsonl") if x["stage"] == "write"]
    total = report["total"]
    assert total["requests"] - total["replies"] == len(refused) > 0
    assert {x["reason"] for x in refused} == {"refused"} and "HTTP 400" in refused[0]["evidence"]
    solved = 4 * total["new"] - report["used"]["solve"]["requests"]
    assert server.ledger.did()["http_400"] == len(refused) + solved and solved > 0


def test_seeds_without_labels_of_the_domain_are_an_error(tmp_path):
    tree = synthetic.recipe(tmp_path)
    tree["seeds"]["own"]["constants"] = {"domain": "physics"}
    with pytest.raises(
        ConfigError,
        match=r"seeds: none of 12 records has a label below math: .*'of no topic of the domain': "
        r"12.*Label them first .*seeds_per_request=0 goes without seeds",
    ):
        rounds.run(build(SynthesisConfig, tree))


def test_a_pool_counts_as_supply_and_its_texts_are_known(tmp_path):
    pool = tmp_path / "pool.jsonl"
    text = "What is 5 plus 7, in all?"
    pool.write_text(json.dumps({"q": text, "topic": "sequences"}) + "\n")
    tree = synthetic.recipe(tmp_path)
    tree["pool"] = {
        "more": {
            **tree["seeds"]["own"],
            "path": str(pool),
            "columns": {"prompt": "q", "topic": "topic"},
        }
    }
    config = build(SynthesisConfig, tree)
    found = rounds.look_ahead(config)
    supply = {quota.cell.name: quota.supply for quota in found.quotas}
    assert supply["math/high_school/sequences:easy"] == 2.5  # 4 seeds and this one, over two
    assert supply["math/high_school/functions:hard"] == 2.0
    assert found.material["pool"] == {
        "read": 1,
        "unreadable": 0,
        "of no topic of the domain": 0,
    }
    made = rounds.Rounds(config, rounds.find_input(config), rounds.Models(), Teller())
    why = made.maker.novelty.why_known(text)
    assert why.reason == "same_text" and "more/1" in why.evidence
