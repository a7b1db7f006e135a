"""Coins and plans: balance, pairs, aliases, records, and what is refused."""

import shlex
import subprocess
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring import config as configuration
from megatron_ring.config import ConfigError
from megatron_ring.config.effects import PlanConfig
from megatron_ring.effects import plan as plans


def recipe(folder: Path, *names: str, **more: Any) -> PlanConfig:
    tree = {
        "name": "ablation",
        "output": str(folder),
        "seed": 7,
        "num_seeds": 4,
        "interventions": {name: {} for name in names or ("worked",)},
        "overrides": {"run.dir": "runs/{run}", "run.seed": "{seed}"},
        "command": "train {overrides}",
        **more,
    }
    return configuration.build(PlanConfig, tree)


def by_seed(plan: plans.Plan) -> dict[int, list[tuple[int, ...]]]:
    found: dict[int, list[tuple[int, ...]]] = {}
    for run in plan.runs:
        found.setdefault(run.seed, []).append(tuple(run.arms.values()))
    return found


@pytest.mark.parametrize(
    ("design", "names", "runs"),
    [
        ("pairs", "a", 2),
        ("pairs", "abc", 2),
        ("full", "ab", 4),
        ("full", "abc", 8),
        ("fraction", "a", 2),
        ("fraction", "abc", 4),
        ("fraction", "abcd", 8),
        ("fraction", "abcdefg", 8),
    ],
)
def test_every_seed_gives_both_arms_of_everything_as_many_runs(
    tmp_path: Path, design: str, names: str, runs: int
) -> None:
    plan = plans.make(recipe(tmp_path, *names, design=design, num_seeds=5))
    assert list(by_seed(plan)) == [1, 2, 3, 4, 5]
    for vectors in by_seed(plan).values():
        assert len(vectors) == len(set(vectors)) == runs
        assert all(sum(column) == runs / 2 for column in zip(*vectors, strict=True))
        if design != "pairs":  # and apart from each other: each two in all four combinations
            for one, other in combinations(zip(*vectors, strict=True), 2):
                assert set(Counter(zip(one, other, strict=True)).values()) == {runs / 4}
        else:
            assert [1 - arm for arm in vectors[0]] == list(vectors[1])


def test_over_seeds_no_effect_stays_that_of_two_others_together(tmp_path: Path) -> None:
    plan = plans.make(recipe(tmp_path, *"abc", design="fraction", num_seeds=12))
    signs = [
        {vector[0] ^ vector[1] ^ vector[2] for vector in vectors}
        for vectors in by_seed(plan).values()
    ]
    assert all(len(one) == 1 for one in signs)  # within a seed c is a x b, up to its sign,
    assert {next(iter(one)) for one in signs} == {0, 1}  # which is not the same in all


def test_coins_are_fair_and_chances_are_kept(tmp_path: Path) -> None:
    fair = plans.make(recipe(tmp_path, "a", "b", design="coin", num_seeds=2000))
    for name in "ab":
        assert abs(sum(run.arms[name] for run in fair.runs) - 1000) < 4 * 22.4  # sd of 2000 coins
    both = sum(run.arms["a"] == run.arms["b"] for run in fair.runs)
    assert abs(both - 1000) < 4 * 22.4
    told = {"setting": "optim.steps", "chances": [0.1, 0.8]}
    settings = {"optim.steps": [40, 160]}
    history = plans.make(
        recipe(tmp_path, design="coin", num_seeds=2000, settings=settings, chance=told)
    )
    assert fair.randomized and not history.randomized
    for steps, chance in ((40, 0.1), (160, 0.8)):
        own = [run.arms["worked"] for run in history.runs if run.overrides["optim.steps"] == steps]
        assert abs(len(own) - 1000) < 4 * 22.4
        assert abs(sum(own) / len(own) - chance) < 0.05


def test_what_is_drawn_once_a_seed_is_the_same_for_all_its_runs(tmp_path: Path) -> None:
    settings = {"optim.lr": [1, 2, 3, 4, 5]}
    plan = plans.make(recipe(tmp_path, "a", "b", design="full", num_seeds=20, settings=settings))
    drawn: dict[int, set[int]] = {}
    for run in plan.runs:
        drawn.setdefault(run.seed, set()).add(run.overrides["optim.lr"])
        assert run.overrides["run.seed"] == str(run.seed)
    assert all(len(values) == 1 for values in drawn.values())
    assert len(set.union(*drawn.values())) == 5


def test_commands_are_words_of_a_shell(tmp_path: Path) -> None:
    told = {
        "interventions": {
            "worked": {"present": {"data.train": "a b"}, "absent": {"data.train": "it's"}},
            "facts": {"present": {"loss.on": True}},
        },
        "overrides": {"run.dir": "runs/{run}", "list": [1, "x{facts}"], "none": None},
        "command": "printf '%s\\n' {run} {seed} {worked} {overrides}",
    }
    plan = plans.make(recipe(tmp_path, design="full", num_seeds=2, **told))
    commands = plans.write(plan)
    assert commands == tmp_path / "commands.txt"
    for line, run in zip(commands.read_text().splitlines(), plan.runs, strict=True):
        said = subprocess.run(["sh", "-c", line], capture_output=True, text=True).stdout
        worked, facts = run.arms["worked"], run.arms["facts"]
        assert said.splitlines() == [
            run.run,
            str(run.seed),
            str(worked),
            f"run.dir=runs/{run.run}",
            f"list=[1, x{facts}]",
            "none=null",
            f"data.train={'a b' if worked else chr(39).join(('it', 's'))}",
            *["loss.on=true"] * facts,
        ]
        assert shlex.split(line)[0] == "printf"


def test_a_plan_is_written_once_and_read_as_it_was_tossed(tmp_path: Path) -> None:
    plan = plans.make(recipe(tmp_path))
    plans.write(plan)
    before = (tmp_path / "plan.yaml").read_bytes()
    plans.write(plan)  # again the same
    assert (tmp_path / "plan.yaml").read_bytes() == before
    assert plans.read(tmp_path) == plans.read(tmp_path / "plan.yaml") == plan
    with pytest.raises(ConfigError) as told:
        plans.write(plans.make(recipe(tmp_path, seed=8)))
    assert str(told.value) == (
        f"{tmp_path}/plan.yaml is another plan than this recipe makes; its coins are tossed, and "
        "choosing between plans is choosing results: give `output` another folder"
    )
    assert (tmp_path / "plan.yaml").read_bytes() == before


def test_a_plan_that_was_altered_is_told(tmp_path: Path) -> None:
    plans.write(plans.make(recipe(tmp_path)))
    path = tmp_path / "plan.yaml"
    told = yaml.safe_load(path.read_text())
    line = told["runs"][2]
    line["arms"]["worked"] ^= 1
    path.write_text(yaml.safe_dump(told))
    with pytest.raises(ConfigError) as error:
        plans.read(path)
    assert str(error.value) == (
        f"{path}: ablation-002 is not as its coin {line['coin']} decided; it was altered after the "
        "toss, and is no randomized run any more"
    )
    line["arms"]["worked"] ^= 1
    path.write_text(yaml.safe_dump(told | {"runs": told["runs"][:-1]}))
    with pytest.raises(ConfigError) as error:
        plans.read(path)
    assert str(error.value).startswith(f"{path} lists 7 runs, its coins made 8: restore what was")
    path.write_text("runs: 3")
    with pytest.raises(ConfigError, match="is no plan that tools/effects.py plan wrote: 'recipe'"):
        plans.read(path)
    with pytest.raises(ConfigError, match="cannot read the plan .*nothing: No such file"):
        plans.read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"num_seeds": 2},
            "worked: 2 runs with it and 2 without; 3 of each are the least from which an effect "
            "has an interval: raise num_seeds",
        ),
        (
            {"design": "coin", "num_seeds": 3},
            "raise num_seeds, or take design=pairs, which gives both arms as many",
        ),
        (
            {"interventions": dict.fromkeys("abcdefg", {}), "design": "full"},
            "design=full with 7 interventions is 128 runs a seed; 6 are the most: design=fraction "
            "or pairs needs far fewer",
        ),
        (
            {"interventions": {"seed": {}}},
            "an intervention cannot be called seed: {seed} means another",
        ),
        ({"settings": {"optim.lr": []}}, "settings.optim.lr has no values to draw from"),
        (
            {"chance": {"setting": "optim.lr", "chances": []}},
            "chance goes with design=coin, not pairs: the others give every intervention to half "
            "of the runs",
        ),
        (
            {"design": "coin", "chance": {"setting": "optim.lr", "chances": []}},
            "chance.setting=optim.lr is no setting; there are: none",
        ),
        (
            {
                "design": "coin",
                "settings": {"optim.lr": [1, 2]},
                "chance": {"setting": "optim.lr", "chances": [1]},
            },
            "chance.chances has 1 chances, settings.optim.lr 2 values; give one for each",
        ),
        (
            {"command": "sbatch my.sh"},
            "command='sbatch my.sh' is the same for ablation-000 and ablation-001: write {run} or "
            "{overrides} into it, and {worked} where `overrides` do not tell them",
        ),
        (
            {"overrides": {"run.dir": "{name}"}},
            "overrides.run.dir='{name}' cannot be filled in ('name'); known: {run}, {seed}, "
            "{worked}",
        ),
        (
            {
                "interventions": {
                    "a": {"present": {"data.train": "x"}},
                    "b": {"present": {"data.train": "y"}},
                }
            },
            "interventions.b sets data.train, and so does interventions.a; put it into "
            "`overrides`, with {b} in its text",
        ),
        (
            {
                "interventions": {"a": {"present": {"optim.lr": 1}}},
                "settings": {"optim.lr": [1, 2]},
            },
            "interventions.a sets optim.lr, and so does settings; put it into `overrides`, with "
            "{a} in its text",
        ),
    ],
)
def test_what_is_no_plan(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        plans.make(recipe(tmp_path, **more))
    assert told in str(error.value)


@pytest.mark.parametrize("name", ["ablation", "truth", "history"])
def test_the_shipped_plans(tmp_path: Path, name: str) -> None:
    """From their files: YAML has words of its own."""
    file = Path(__file__).parents[2] / f"configs/effects/{name}.yaml"
    config = configuration.load(PlanConfig, [str(file)], [f"output={tmp_path}"])
    plan = plans.make(config)
    plans.write(plan)
    assert plans.read(tmp_path) == plan
    assert len(plan.runs) == {"ablation": 12, "truth": 24, "history": 32}[name]
    assert plan.randomized == (name != "history")
    for arm in ("arithmetic", "facts"):
        share = sum(run.arms[arm] for run in plan.runs) / len(plan.runs)
        assert share == 0.5 if plan.randomized else 0.3 < share < 0.7
