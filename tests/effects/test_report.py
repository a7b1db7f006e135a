"""Effects by topic on runs whose truth is known: logs that mislead, refusals, words."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from megatron_ring.config import ConfigError
from megatron_ring.effects import design as designs
from megatron_ring.effects import markdown, report, tables
from megatron_ring.effects.report import ALL, BOTH, COINS, LOGS, NAIVE, TRUTH, Options
from megatron_ring.effects.tables import Tables, chosen
from tests.effects.making import TOPICS, eval_row, misleading, run_row
from tools import effects as tool

TRUE = dict(zip(TOPICS, (0.1, -0.1, 0.0), strict=True))
QUICK = Options(bootstraps=6)


def without(found: Tables, keep: Any) -> Tables:
    return chosen(found, keep)


def cells_of(part: dict[str, Any], columns: list[str]) -> dict[str, dict[str, Any]]:
    return {row["title"]: dict(zip(columns, row["cells"], strict=True)) for row in part["rows"]}


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    truth = misleading(randomized=12, history=0, seed=9, name="truth")
    return report.build(misleading(), [], QUICK, truth)


def test_the_logs_mislead_and_cio_does_not(told: dict[str, Any]) -> None:
    (part,) = told["interventions"]
    assert told["columns"] == [LOGS, NAIVE, COINS, BOTH, TRUTH]
    assert part["runs"]["randomized"] == [6, 6] and sum(part["runs"]["historical"]) == 30
    assert part["runs"]["truth"] == [12, 12] and part["items"] == 60
    cells = cells_of(part, told["columns"])
    assert list(cells) == [*TOPICS, ALL]
    for topic, effect in TRUE.items():
        row = cells[topic]
        assert row[LOGS]["value"] > effect + 0.05  # 0.2 x (share of longer runs: 0.8 - 0.2)
        assert row[LOGS]["off"] and not row[BOTH]["off"]
        for method in (BOTH, COINS, TRUTH):
            assert row[method]["value"] == pytest.approx(effect, abs=0.04)
            assert row[method]["low"] <= row[method]["value"] <= row[method]["high"]
    assert cells["name"][BOTH]["sure"] and cells["name"][BOTH]["high"] < 0
    assert cells[ALL][BOTH]["value"] == pytest.approx(
        np.mean([cells[topic][BOTH]["value"] for topic in TOPICS])
    )
    assert any(line.startswith("name: the logs say ") for line in part["findings"])
    for by_arm in part["bias"].values():  # longer runs: 0.2 x share of them in the arm
        assert 0.1 < by_arm["1"] < 0.22 and -0.02 < by_arm["0"] < 0.12
    assert len(part["points"]) == 42 + 24


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_topic_is_not_drawn_to_noisier_ones(seed: int) -> None:
    """A small sure effect beside two topics of noise: a balanced experiment's own difference."""
    random, found = np.random.default_rng(seed), misleading(history=0)
    arms = {run.run_id: run.interventions["worked"] for run in found.runs}
    evals = []
    for one in found.evals:
        sure = one.item_id.startswith("add/")
        score = 0.3 + 0.05 * arms[one.run_id] * sure + random.normal(0, 0.01 if sure else 0.3)
        evals.append(eval_row(one.run_id, one.item_id, score))
    made = designs.make(replace(found, evals=evals), "worked")
    means = made.means("add")
    apart = means[made.arms == 1].mean() - means[made.arms == 0].mean()
    own = made.topic == "add"
    for name in (COINS, BOTH):
        fitted = report.estimators(QUICK)[name]
        report._fit(fitted, made)
        assert fitted.effect(made.x[own]).mean() == pytest.approx(apart, abs=0.002), name


def test_what_to_be_wary_of(told: dict[str, Any]) -> None:
    warnings = told["interventions"][0]["warnings"]
    assert "n is runs, not scores: 12 randomized runs decide, whatever the 2,520 scores" in warnings
    tokens = [run for run in misleading().runs if not run.randomized]
    off, on = (
        np.mean([run.tokens for run in tokens if run.interventions["worked"] == arm])
        for arm in (0, 1)
    )
    assert (
        f"in history, runs with it trained on {on:,.0f} tokens on average, those without on "
        f"{off:,.0f}: longer training looks like the change (--adjust takes what is logged of it "
        "off)"
    ) in warnings
    found = misleading()
    runs = [
        run.model_copy(update={"interventions": run.interventions | {"also": (n // 2 + n) % 2}})
        if run.randomized
        else run.model_copy(
            update={"interventions": {"worked": n % 2, "also": n % 2 if n > 20 else 0}}
        )
        for n, run in enumerate(found.runs)
    ]
    made = designs.make(replace(found, runs=runs), "worked")
    along = [line for line in report._warnings("worked", made, QUICK) if "goes along" in line]
    past = [run.interventions for run in runs if not run.randomized]
    r = np.corrcoef([one["worked"] for one in past], [one["also"] for one in past])[0, 1]
    assert along == [
        f"in history it goes along with also (correlation {r:.2f}): what also did there is taken "
        "off as far as the two can be told apart"
    ]


def test_scores_of_several_graders_are_told() -> None:
    found = misleading(history=6)
    first = found.evals[0].model_copy(update={"grader_version": "2"})
    notes = report._notes(replace(found, evals=[first, *found.evals[1:]]))
    assert notes == [
        "add: scores of several graders (1, 2); between history and randomized runs that is part "
        "of the bias, within randomized runs an error"
    ]


def test_what_is_logged_can_be_taken_off() -> None:
    """Scores that are an effect and a slope along log tokens: what is left is the effect."""
    runs, evals = [], []
    for n in range(12):
        tokens = (1000, 4000, 16000)[n % 3]
        runs.append(run_row(f"r{n}", n // 3 % 2, n >= 6, tokens=tokens))
        score = 0.2 + 0.1 * (n // 3 % 2) + 0.03 * np.log(tokens) + 0.5 * (n < 6)
        evals.append(eval_row(f"r{n}", "i", score))
    items = [tables.ItemRow(item_id="i", benchmark="b", tax_l1="t", tax_l2="t", n_tok=1)]
    made = designs.adjusted(designs.make(Tables(runs, items, evals), "worked"))
    middle = 0.2 + 0.03 * np.log(4000)
    right = [middle + 0.1 * (n // 3 % 2) + 0.5 * (n < 6) for n in range(12)]
    np.testing.assert_allclose(made.y, right)
    runs[3] = runs[3].model_copy(update={"tokens": None})
    with pytest.raises(ConfigError) as error:
        designs.adjusted(designs.make(Tables(runs, items, evals), "worked"))
    assert str(error.value) == (
        "r3 does not tell its tokens (1 of 12 runs do not); leave --adjust out"
    )


def test_rows_are_items_of_all_runs_and_features_are_of_items_alone() -> None:
    found = misleading(randomized=3, history=4, items=3)
    gone = [one for one in found.evals if (one.run_id, one.item_id) != ("run-05", "say/1")]
    made = designs.make(replace(found, evals=gone), "worked")
    assert len(made.items) == 8 and len(made.y) == 8 * 10
    scores = {(one.run_id, one.item_id): one.score for one in gone}
    for row in range(80):
        run, item = made.runs[row // 8], made.items[row % 8]
        assert made.y[row] == scores[run.run_id, item.item_id]
        assert made.t[row] == run.interventions["worked"] and made.group[row] == row // 8
        assert made.s[row] == run.randomized and made.topic[row] == item.tax_l1
        assert made.x[row, TOPICS.index(item.tax_l1)] == 1 and made.x[row, :3].sum() == 1
        assert made.x[row, 6] == pytest.approx(np.log1p(item.n_tok))
    assert made.bias_features == [0, 1, 2, 3, 4, 5]
    assert made.columns[3] == "difficulty, is add" and made.columns[6] == "log length"
    np.testing.assert_allclose(made.means("say"), made.y.reshape(10, 8)[:, 6:].mean(axis=1))


def test_the_truth_is_a_difference_of_runs() -> None:
    made = designs.make(misleading(randomized=5, history=0), "worked")
    cell = report.true_effect(made, "add", 0.1)
    means = made.means("add")
    found = stats.ttest_ind(means[made.arms == 1], means[made.arms == 0], equal_var=False)
    low, high = found.confidence_interval(0.9)
    assert (cell["low"], cell["high"]) == pytest.approx((low, high))
    assert cell["value"] == pytest.approx(
        means[made.arms == 1].mean() - means[made.arms == 0].mean()
    )


def test_the_truth_of_few_runs_and_many_other_changes_is_a_number() -> None:
    """Three runs against nine and three other changes: Welch's degrees are fewer than those."""
    found = misleading(randomized=6, history=0)
    runs = []
    for n, run in enumerate(found.runs):
        arms = {"worked": int(n < 3), "one": n & 1, "two": n >> 1 & 1, "three": n >> 2 & 1}
        runs.append(run.model_copy(update={"interventions": arms}))
    made = designs.make(replace(found, runs=runs), "worked")
    cell = report.true_effect(made, None, 0.1)
    assert -1 < cell["low"] < cell["value"] < cell["high"] < 1


@pytest.mark.slow
def test_a_history_of_one_arm_and_none() -> None:
    found = misleading(randomized=4, history=12)
    treated = without(found, lambda run: run.randomized or run.interventions["worked"] == 1)
    told = report.build(treated, ["worked"], QUICK)
    (part,) = told["interventions"]
    cells = cells_of(part, told["columns"])
    assert cells["add"][LOGS] is None and cells["add"][BOTH] is not None
    assert part["completeness"] == "treated_only" and list(part["bias"]["add"]) == ["1"]
    assert any(line.startswith("logs only: ObservationalOnly needs") for line in part["warnings"])
    alone = report.build(without(found, lambda run: run.randomized), ["worked"], QUICK)
    (part,) = alone["interventions"]
    cells = cells_of(part, alone["columns"])
    assert cells["add"][NAIVE] is None and cells["add"][COINS] is not None
    assert part["completeness"] == "none" and part["bias"]["add"] == {}
    assert markdown.markdown(alone).count("—") == 2 * 4


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (
            lambda t: without(t, lambda run: not run.randomized),
            {},
            "worked: none of 30 runs is randomized, so all there is to tell is correlational only: "
            "what else these runs had cannot be told from the change. Plan a few randomized runs "
            "(tools/effects.py plan), run them, import them with --plan",
        ),
        (
            lambda t: without(t, lambda run: not run.randomized or run.run_id < "run-05"),
            {},
            "worked: 2 randomized runs with it and 3 without; 3 of each are the least from which "
            "an effect has an interval. The number of items does not replace runs: plan more "
            "(tools/effects.py plan)",
        ),
        (
            lambda t: replace(t, runs=[t.runs[0].model_copy(update={"scale": "x"}), *t.runs[1:]]),
            {},
            "runs of 2 scales: 2 layers of 96, x; an effect at one is none at another: choose with "
            "--scale",
        ),
        (lambda t: t, {"scale": "big"}, "--scale 'big': no run has it; there are: 2 layers of 96"),
        (
            lambda t: replace(t, evals=[one for one in t.evals if one.run_id != "run-00"]),
            {},
            "no item was asked of all 42 runs: evaluate them on the same items",
        ),
        (
            lambda t: replace(
                t, runs=[run.model_copy(update={"interventions": {"x": 0}}) for run in t.runs]
            ),
            {},
            "no run knows its arm of 'worked'; known: x",
        ),
    ],
)
def test_what_is_refused(change: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        report.build(change(misleading()), ["worked"], replace(QUICK, **options))
    assert str(error.value) == told


def test_truth_and_interventions_that_are_none() -> None:
    with pytest.raises(ConfigError) as error:
        report.build(misleading(), ["worked"], QUICK, misleading(history=8))
    assert str(error.value) == ("the truth of worked has runs that no coin decided; leave them out")
    with pytest.raises(ConfigError) as error:
        report.build(misleading(), ["worked"], QUICK, misleading(history=0))
    assert str(error.value) == (
        "the truth has 12 runs that are estimated from as well (run-00): no estimate can be judged "
        "by its own runs; give others"
    )
    with pytest.raises(ConfigError) as error:
        further = misleading(history=0, items=19, name="truth")
        report.build(misleading(), ["worked"], QUICK, further)
    assert str(error.value) == (
        "the truth of worked and the estimates share 57 items, and 3 (add/19) are of one of them "
        "alone: evaluate all runs on the same items"
    )
    with pytest.raises(ConfigError, match="no intervention is known of all runs; name one by"):
        report.build(Tables([], [], []), [], QUICK)


def test_markdown_has_all_numbers_in_words(told: dict[str, Any]) -> None:
    text = markdown.markdown(told)
    cell = cells_of(told["interventions"][0], told["columns"])["name"][BOTH]
    value, low, high = (100 * cell[key] for key in ("value", "low", "high"))
    assert f"| **{value:+.1f}** ▼ ({low:+.1f} to {high:+.1f}) |" in text
    logs = cells_of(told["interventions"][0], told["columns"])["name"][LOGS]
    assert f"**{100 * logs['value']:+.1f}**" in text and " ✗" in text
    assert "6 randomized runs with it and 6 without" in text
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_the_commands(tmp_path: Path) -> None:
    tables.write(misleading(randomized=3, history=8, items=4), tmp_path / "tables")
    runner = CliRunner(env={"COLUMNS": "200"})
    out = str(tmp_path / "report")
    arguments = ["report", str(tmp_path / "tables"), "--output", out, "--bootstraps", "4"]
    ended = runner.invoke(tool.app, arguments)
    assert ended.exit_code == 0, ended.output
    assert "3 randomized runs with it and 3 without" in ended.output
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "effects.json",
        "effects.md",
        "report.html",
    ]
    ended = runner.invoke(tool.app, [*arguments, "--by", "colour"])
    assert ended.exit_code == 1
    assert "error: --by 'colour' is none of benchmark, tax_l1, tax_l2" in ended.output
    for option, told in (
        ("--alpha=1.5", "error: --alpha 1.5 is not between 0 and 1"),
        ("--jobs=0", "error: --jobs 0: give the number of processes"),
    ):
        ended = runner.invoke(tool.app, [*arguments, option])
        assert ended.exit_code == 1 and told in ended.output
    recipe = str(Path(__file__).parents[2] / "configs/effects/ablation.yaml")
    plan = ["plan", recipe, f"output={tmp_path}/plan"]
    ended = runner.invoke(tool.app, [*plan, "--dry-run"])
    assert ended.exit_code == 0 and "ablation-011" in ended.output
    assert not (tmp_path / "plan").exists()
    assert runner.invoke(tool.app, plan).exit_code == 0
    assert len((tmp_path / "plan/commands.txt").read_text().splitlines()) == 12
    assert "is another plan" in runner.invoke(tool.app, [*plan, "seed=1"]).output.replace("\n", " ")
    ended = runner.invoke(tool.app, ["import", "nothing", "--output", str(tmp_path / "new")])
    assert ended.exit_code == 1 and "error: nothing: there is no nothing" in ended.output
