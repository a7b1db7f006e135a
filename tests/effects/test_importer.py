"""Results of three programs, plans and rules -> tables."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_ring import config as configuration
from megatron_ring.config import ConfigError
from megatron_ring.config.effects import PlanConfig
from megatron_ring.effects import importer, plan, sources, tables
from megatron_ring.effects.importer import Options, Rule
from tests.effects.making import write_chats, write_run, write_scores
from tests.evaluation.comparing import make_runs

WORKED = Rule("worked", "source", "sums")


def scored(folder: Path, **more: Any) -> Options:
    return Options(reading=sources.Options(items=folder / "chats.jsonl"), **more)


def a_plan(folder: Path, **more: Any) -> plan.Plan:
    tree = {
        "name": "try",
        "output": str(folder / "plan"),
        "seed": 1,
        "num_seeds": 3,
        "interventions": {"worked": {}},
        "overrides": {"run.dir": f"{folder}/runs/{{run}}", "optim.steps": 10},
        "command": "train {run}",
        **more,
    }
    return plan.make(configuration.build(PlanConfig, tree))


def planned_runs(folder: Path, made: plan.Plan) -> list[str]:
    """Trained as planned, and scored."""
    write_chats(folder / "chats.jsonl", ["facts", "sums"])
    given = []
    for run in made.runs:
        arm = run.arms["worked"]
        home = Path(run.overrides["run.dir"])
        write_run(home, folder / "packed" / run.run, {"web": 3.0} | ({"sums": 1.0} if arm else {}))
        write_scores(home / "scores.jsonl", [[0.5, 0.125], [0.2 + 0.1 * arm]])
        given.append(f"{home}={home}/scores.jsonl")
    return given


def test_runs_of_a_plan_with_their_coins_recipes_and_scores(tmp_path: Path) -> None:
    made = a_plan(tmp_path)
    given = planned_runs(tmp_path, made)
    found = importer.load(given, scored(tmp_path, plans=[made], rules=[WORKED], topic="kind"))
    for run, row in zip(made.runs, found.runs, strict=True):
        assert (row.run_id, row.randomized, row.assign_seed) == (run.run, True, run.coin)
        assert row.interventions == run.arms
        arm = run.arms["worked"]
        assert row.recipe == ({"web": 0.75, "sums": 0.25} if arm else {"web": 1.0})
        assert row.tokens == 10 * 2 * 512 and row.date == "1970-01-02T00:00:00+00:00"
        assert (row.scale, row.parent_ckpt) == ("2 layers of 96", "runs/base")
    hashes = {(row.interventions["worked"], row.config_hash) for row in found.runs}
    assert len(hashes) == 2  # the same but for names and folders, or not
    assert [(item.item_id, item.tax_l1, item.tax_l2) for item in found.items] == [
        ("facts/item-0", "a", "a"),
        ("sums/item-1", "b", "b"),
    ]
    assert [item.n_tok for item in found.items] == [2, 1]
    for one in found.evals:
        arm = made.runs[int(one.run_id[-3:])].arms["worked"]
        right = math.sqrt(0.5 * 0.125) if one.item_id[0] == "f" else 0.2 + 0.1 * arm
        assert one.score == pytest.approx(right)
    tables.write(found, tmp_path / "tables")
    assert tables.read(tmp_path / "tables") == found


def test_a_made_up_history_is_not_randomized(tmp_path: Path) -> None:
    more = {
        "design": "coin",
        "settings": {"optim.lr": [1]},
        "chance": {"setting": "optim.lr", "chances": [0.5]},
    }
    made = a_plan(tmp_path, **more)
    for run in made.runs:
        run.overrides.pop("optim.lr")  # which the folder below does not have
    found = importer.load(planned_runs(tmp_path, made), scored(tmp_path, plans=[made]))
    assert [run.randomized for run in found.runs] == [False] * 3
    assert [run.interventions for run in found.runs] == [run.arms for run in made.runs]


def test_runs_without_a_plan_tell_their_arms_by_rules(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", ["facts"])
    scores = write_scores(tmp_path / "s.jsonl", [[0.5]])
    write_run(tmp_path / "one/final", tmp_path / "p1", {"web": 1.0, "sums": 2.0})
    write_run(tmp_path / "two/final", tmp_path / "p2", {"web": 1.0}, optim={"lr": 0.5})
    write_run(tmp_path / "base", tmp_path / "p2", {"web": 1.0})
    earlier = write_scores(tmp_path / "e.jsonl", [[0.25]])
    given = [f"{tmp_path}/{name}/final={scores}" for name in ("one", "two")]
    rules = [WORKED, importer.parse_rule("fast=optim.lr:0.5")]
    options = scored(tmp_path, rules=rules, earlier=[f"{tmp_path}/base={earlier}"])
    found = importer.load(given, options)
    assert [run.interventions for run in found.runs] == [
        {"worked": 1, "fast": 0},
        {"worked": 0, "fast": 1},
    ]
    assert [run.run_id for run in found.runs] == [f"{tmp_path}/{n}/final" for n in ("one", "two")]
    assert not any(run.randomized for run in found.runs)
    assert found.items[0].difficulty == pytest.approx(0.75)


def test_graded_answers_of_our_own_evaluation(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "evaluations")
    home = write_run(tmp_path / "sft", tmp_path / "packed", {"sums": 1.0})
    found = importer.load([f"{home}={runs / 'sft'}"], Options(rules=[WORKED]))
    told = json.loads((runs / "sft/results.json").read_text())["tasks"]
    for task, one in told.items():
        own = [row.score for row in found.evals if row.item_id.startswith(f"{task}/")]
        assert len(own) == one["items"]
        assert sum(own) / len(own) == pytest.approx(one["score"]["value"])
    assert {item.benchmark for item in found.items} == set(told)
    assert {row.n_samples for row in found.evals} == {one["samples"] for one in told.values()}
    with pytest.raises(ConfigError) as error:
        importer.load([str(runs / "sft")], Options(rules=[WORKED]))
    assert str(error.value) == (
        f"{runs}/sft was answered by a model behind an endpoint; say of which run: RUN={runs}/sft"
    )
    recipe = runs / "sft/recipe.yaml"
    recipe.write_text(f"sampler: {{model: {home}}}")
    assert importer.load([str(runs / "sft")], Options(rules=[WORKED])) == found
    recipe.unlink()
    with pytest.raises(ConfigError, match=f"^{recipe} cannot be read"):
        importer.load([str(runs / "sft")], Options(rules=[WORKED]))


def harness(folder: Path) -> Path:
    """What lm_eval 0.4.13 --log_samples writes, as far as it is read."""
    (folder / "m").mkdir(parents=True)
    lines = [
        {
            "doc_id": n,
            "doc": {"question": f"what is {n}", "level": n},
            "filter": name,
            "metrics": ["exact_match", "f1"],
            "exact_match": float(n == 1) if name == "strict" else 1.0,
            "f1": 0.25 * n,
            "doc_hash": f"{n}d" * 32,
            "prompt_hash": f"{n}p" * 32,
            "target_hash": f"{n}t" * 32,
        }
        for n in range(2)
        for name in ("strict", "flexible")
    ]
    text = "".join(json.dumps(one) + "\n" for one in lines)
    old, new = (f"samples_gsm8k_2026-01-0{day}T00-00-00.000001.jsonl" for day in (1, 2))
    (folder / "m" / old).write_text("{}\n")
    (folder / "m" / new).write_text(text)
    told = json.dumps({"lm_eval_version": "0.4.13"})
    (folder / "m/results_2026-01-02T00-00-00.000001.json").write_text(told)
    return folder


def test_samples_of_the_harness(tmp_path: Path) -> None:
    home = write_run(tmp_path / "run", tmp_path / "packed", {"sums": 1.0})
    given = [f"{home}={harness(tmp_path / 'out')}"]
    found = importer.load(given, Options(rules=[WORKED], subtopic="level"))
    assert [one.score for one in found.evals] == [0.0, 1.0]
    assert found.evals[0].harness_version == "lm-eval 0.4.13"
    assert found.evals[0].grader_version == "exact_match of strict"
    assert [item.item_id for item in found.items] == ["gsm8k/" + f"{n}d" * 8 for n in range(2)]
    assert [(item.tax_l1, item.tax_l2) for item in found.items] == [("gsm8k", "0"), ("gsm8k", "1")]
    other = sources.Options(metric="f1", filter="flexible")
    found = importer.load(given, Options(rules=[WORKED], reading=other))
    assert [one.score for one in found.evals] == [0.0, 0.25]
    for options, told in (
        (sources.Options(metric="bleu"), "has no metric bleu; known: exact_match, f1"),
        (sources.Options(filter="loose"), "has no filter loose; there are: strict, flexible"),
    ):
        with pytest.raises(ConfigError, match=told):
            importer.load(given, Options(rules=[WORKED], reading=options))


def test_a_run_that_did_not_follow_its_coin(tmp_path: Path) -> None:
    made = a_plan(tmp_path)
    given = planned_runs(tmp_path, made)
    home = Path(made.runs[4].overrides["run.dir"])
    text = (home / "config.yaml").read_text()
    (home / "config.yaml").write_text(text.replace("steps: 10", "steps: 11"))
    with pytest.raises(ConfigError) as error:
        importer.load(given, scored(tmp_path, plans=[made]))
    assert str(error.value) == (
        f"{home}: optim.steps is 11, but the plan of try-004 says 10; a run that did not follow "
        "its coin is no randomized run: train it again"
    )
    (home / "config.yaml").write_text(text)
    arm = made.runs[4].arms["worked"]
    path = tmp_path / "packed/try-004/manifest.json"
    shown = json.loads(path.read_text())["sources"][0]
    names = ["web"] if arm else ["web", "sums"]
    told = {"sources": [shown | {"name": name} for name in names], "row_tokens": 512}
    path.write_text(json.dumps(told))
    importer.load(given, scored(tmp_path, plans=[made]))  # the plan alone cannot know
    with pytest.raises(ConfigError) as error:
        importer.load(given, scored(tmp_path, plans=[made], rules=[WORKED]))
    assert str(error.value) == (
        f"{home}: by --intervention it has worked={1 - arm}, by its plan {arm}; a run that did not "
        "follow its coin is no randomized run: train it again"
    )


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    made = a_plan(tmp_path)
    given = planned_runs(tmp_path, made)
    home, file = given[0].split("=")
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = write_scores(tmp_path / "bare.jsonl", [[0.5]])
    chats, planned = scored(tmp_path), scored(tmp_path, plans=[made])
    cases: list[tuple[list[str], Options, str]] = [
        ([file], chats, f"{file} does not say which run it is of; write RUN={file}"),
        ([f"{home}=no"], chats, f"{home}=no: there is no no"),
        ([f"{home}={empty}"], chats, f"{empty} has neither results.json (tools/evaluate.py run)"),
        ([f"{empty}={file}"], planned, f"{empty} has no config.yaml: it is no folder of a"),
        ([given[0], given[0]], planned, f"{home} has two results; give one"),
        ([given[0]], Options(), f"{file} holds log-probabilities; give the chats they are of by"),
        (
            [given[0]],
            chats,
            f"{home} is in no plan, and no rule tells its arms; give --plan PLAN, or "
            "--intervention NAME=source:SOURCE",
        ),
        ([f"{home}={bare}"], chats, f"{bare} has 1 lines and {tmp_path}/chats.jsonl 2: it was"),
        (
            [given[0]],
            scored(tmp_path, plans=[made], earlier=[given[0]]),
            f"--earlier {given[0]}: {home} is one of the runs; how hard an item is must not",
        ),
        (
            [given[0]],
            scored(tmp_path, plans=[made], subtopic="field"),
            "item facts/item-0 has no fact field; it has: id, topic, kind",
        ),
        (
            given,
            scored(tmp_path, plans=[a_plan(tmp_path, overrides={})]),
            "the plan try sets no run.dir, by which its runs are found; add run.dir: FOLDER/{run} "
            "to its overrides",
        ),
    ]
    nothing = tmp_path / "nothing.jsonl"
    nothing.touch()
    unread = Options(reading=sources.Options(items=nothing))
    cases.append(([f"{home}={nothing}"], unread, f"{nothing} has no items"))
    for arguments, options, told in cases:
        with pytest.raises(ConfigError) as error:
            importer.load(arguments, options)
        assert told in str(error.value)
    write_scores(tmp_path / "tokens.jsonl", [[0.5], [0.5]])
    text = (tmp_path / "tokens.jsonl").read_text()
    for old, new, told in (
        ('"targets"', '"other"', "line 1 has no targets: --items holds no chats"),
        ("[0, 0, 1]", "[0, 0, 0]", "line 1 has no answer to score"),
    ):
        (tmp_path / "tokens.jsonl").write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=told):
            importer.load([f"{home}={tmp_path}/tokens.jsonl"], chats)


@pytest.mark.parametrize("text", ["worked", "worked=source", "=source:a", "worked=:a", "w=source:"])
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        importer.parse_rule(text)
    assert str(error.value) == (
        f"--intervention {text!r} is none; write NAME=source:SOURCE (its data have this source) or "
        "NAME=KEY:VALUE (its configuration has this value)"
    )
