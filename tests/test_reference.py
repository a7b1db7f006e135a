"""Reference scores and the run they serve: made once, checked, refused, trained on."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from megatron_ring import step, train
from megatron_ring.config import PackConfig, SourceConfig, read_hf_config
from megatron_ring.convert.synthetic import write_random_model
from megatron_ring.data.build import pack
from megatron_ring.data.reference import About, Partial, Reference
from megatron_ring.data.rows import Rows, make_row
from megatron_ring.model import frozen
from tests import ranks
from tools import score_reference

TINY = Path(__file__).parent / "golden" / "ling_lite_tiny"


def pack_pairs(folder, tokenizer, name, numbers, epochs=1):
    """Sums, right against wrong ("general") and in think tags, whole against broken ("tags")."""
    general, tags = folder / f"{name}-general.jsonl", folder / f"{name}-tags.jsonl"
    with general.open("w") as one, tags.open("w") as other:
        for a in numbers:
            for b in numbers:
                prompt = f"What is {a} + {b}?"
                pair = {"chosen": f"It is {a + b}.", "rejected": f"It is {a + b + 1}, it is."}
                one.write(json.dumps({"prompt": prompt} | pair) + "\n")
                whole = f"<think>{a} + {b}</think>It is {a + b}."
                pair = {"chosen": whole, "rejected": whole.replace("</think>", "")}
                other.write(json.dumps({"prompt": prompt} | pair) + "\n")
    config = PackConfig(
        kind="pairs",
        tokenizer=str(tokenizer),
        output=str(folder / name),
        sources=[
            SourceConfig(path=str(general), name="general"),
            SourceConfig(path=str(tags), name="tags"),
        ],
        row_tokens=256,
        epochs=epochs,
    )
    pack(config)
    return folder / name


@pytest.fixture(scope="module")
def unscored(packed, tmp_path_factory):
    """Packed pairs, a folder that tests copy."""
    folder = tmp_path_factory.mktemp("pairs")
    return pack_pairs(folder, packed / "tokenizer", "pairs", range(2, 8))


@pytest.fixture(scope="module")
def scored(unscored, tmp_path_factory):
    """The same with the scores of the golden checkpoint."""
    return score(copy(unscored, tmp_path_factory.mktemp("scored")))


def copy(folder, parent):
    return Path(shutil.copytree(folder, parent / "pairs"))


def score(folder, *more, model=TINY):
    done = CliRunner().invoke(score_reference.app, [str(model), str(folder), *more])
    assert done.exit_code == 0, done.output
    return folder


def refused_score(folder, *more, model=TINY):
    done = CliRunner().invoke(score_reference.app, [str(model), str(folder), *more])
    assert done.exit_code == 1
    return str(done.exception if done.exception.args[0] != 1 else done.output).strip()


def options(packed, run_dir, *more):
    return [
        f"model.hf_config={TINY}",
        f"run.init_from={TINY}",
        "loss.head=dpo",
        f"data.train={packed}",
        "data.rows_per_step=2",
        f"run.dir={run_dir}",
        "optim.steps=4",
        "optim.lr=1e-4",
        "checkpoint.save_every=2",
        "log.wandb=disabled",
        *more,
    ]


def refused(arguments):
    with pytest.raises(SystemExit) as end:
        train.main(arguments)
    return end.value.code


def lines(run_dir):
    text = (Path(run_dir) / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "expert_load" not in line]


def test_scores_are_sums_over_each_answer_alone(scored):
    """Oracle: every answer in a row of its own, its targets added up here."""
    rows = Rows.open(scored)
    reference = Reference.open(rows)
    config = frozen.configure(TINY, [])
    with frozen.opened(TINY, config) as stages:
        for index in range(0, len(rows.documents), 7):
            document = rows.documents[index]
            tokens = np.array(document["tokens"], np.int32)
            targets = np.array(document["targets"])
            row = make_row([(tokens, targets)], 128, 0)
            [logp_S] = step.score(stages, [row])
            logp = logp_S.double().numpy()[: len(tokens) - 1]
            form = np.array(document["format"])[1:]
            expected = [logp.sum(), logp[form].sum()]
            assert reference.scores[index] == pytest.approx(expected, abs=1e-4)
    assert not np.isnan(reference.scores).any()
    assert (reference.scores[:, 0] < -1).all()


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (2, []),
        (2, ["parallel.ep=2"]),
        (4, ["parallel.tp=2", "parallel.pp=2"]),
        (4, ["parallel.cp=2", "parallel.tp=2"]),
    ],
)
def test_scores_are_the_same_on_every_layout(world_size, layout, scored, unscored, tmp_path):
    folder = copy(unscored, tmp_path)
    ranks.run(world_size, score_on, folder, layout, folder=tmp_path / "ranks")
    rows = Rows.open(folder)
    ours, alone = Reference.open(rows), Reference.open(rows := Rows.open(scored))
    assert ours.about.weights == alone.about.weights
    assert ours.scores == pytest.approx(alone.scores, abs=1e-4)
    row = rows.row(0)
    assert (ours.routing[0, :, : row.num_tokens] == alone.routing[0, :, : row.num_tokens]).all()
    assert len(np.unique(ours.routing[0, 0, : row.num_tokens])) > 4


def score_on(folder, layout):
    score_reference.main(str(TINY), folder, layout)


def test_a_killed_scoring_goes_on_where_it_was(scored, unscored, tmp_path):
    """SIGKILL in the middle. What had been scored is marked, and the marks are still there."""
    folder = copy(unscored, tmp_path)
    command = [sys.executable, "tools/score_reference.py", str(TINY), str(folder)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    partial = folder / "reference.partial"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (partial / "reference.json").exists() and not np.isnan(
            np.load(partial / "scores.npy", mmap_mode="r")
        ).all():
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = np.load(partial / "scores.npy", mmap_mode="r+")
    done = ~np.isnan(found).any(axis=1)
    assert 0 < done.sum() < len(done), "the kill came too late to show anything"
    found[done] -= 1000
    found.flush()
    score(folder)
    again, whole = (Reference.open(Rows.open(f)).scores for f in (folder, scored))
    assert again[done] == pytest.approx(whole[done] - 1000, abs=1e-4)
    assert again[~done] == pytest.approx(whole[~done], abs=1e-4)
    assert not partial.exists()


def test_rows_that_repeat_have_their_routing_too(packed, tmp_path, capsys):
    """Three epochs of one row: answers are scored once, the routing of every row is kept."""
    folder = pack_pairs(tmp_path, packed / "tokenizer", "again", range(2, 4), epochs=3)
    score(folder)
    rows = Rows.open(folder)
    routing = Reference.open(rows).routing
    assert len(routing) == 8 > rows.num_rows // 3  # the kept rows reach into the next epoch
    assert all(kept.any() for kept in routing)
    train.main(options(folder, tmp_path / "run", "data.rows_per_step=8", "optim.steps=1"))
    assert "routing flips 0.000% of expert choices" in capsys.readouterr().out


def test_a_partial_of_other_weights_is_thrown_away(unscored, tmp_path):
    rows = Rows.open(copy(unscored, tmp_path))
    about = About("a", "model", "fp32", rows.fingerprint, (1, 1, 256, 1))
    first = Partial(rows, about)
    documents = rows.documents_of(0)
    first.add(0, np.ones((len(documents), 2)), np.ones((1, 256, 1), np.uint16))
    assert 0 not in Partial(rows, about).missing()
    other = About("b", "model", "fp32", rows.fingerprint, (1, 1, 256, 1))
    assert Partial(rows, other).missing() == list(range(rows.num_rows))


def test_scoring_again_does_nothing_and_others_scores_are_not_overwritten(
    unscored, tmp_path, monkeypatch
):
    folder = score(copy(unscored, tmp_path))
    before = (folder / "reference" / "scores.npy").stat().st_mtime_ns
    again = CliRunner().invoke(score_reference.app, [str(TINY), str(folder)])
    assert "holds these scores already" in again.output
    assert (folder / "reference" / "scores.npy").stat().st_mtime_ns == before
    write_random_model(tmp_path / "other", read_hf_config(TINY), seed=5)
    said = refused_score(folder, model=tmp_path / "other")
    assert "holds the scores of" in said
    assert "--overwrite replaces them" in said
    score(folder, "--overwrite", model=tmp_path / "other")
    assert Reference.open(Rows.open(folder)).about.model == str(tmp_path / "other")


def test_chats_and_foreign_tokens_are_not_scored(packed, unscored, tmp_path):
    said = refused_score(packed)
    assert said == f"error: {packed} was packed with kind=chat; pack it with kind=pairs"
    small = read_hf_config(TINY).model_copy(update={"vocab_size": 128})
    write_random_model(tmp_path / "small", small)
    said = refused_score(unscored, model=tmp_path / "small")
    assert "vocab_size=128; pack with the model's own tokenizer" in said


def test_training_starts_at_ln_2_and_raises_the_margin(scored, tmp_path, capsys):
    run = tmp_path / "run"
    more = ["optim.steps=12", "optim.lr=1e-3", "loss.sources.tags.format_only=true"]
    train.main(options(scored, run, f"data.valid={scored}", "log.valid_every=12", *more))
    said = capsys.readouterr().out
    assert "policy against reference on the first" in said
    assert "routing flips 0.000% of expert choices" in said
    logged = lines(run)
    first = next(line for line in logged if line["step"] == 1)
    assert first["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    before, after = (line for line in logged if "valid_loss" in line)
    assert before["valid_preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    for source in ("", "/general", "/tags"):
        assert after[f"valid_margin{source}"] > 0.3
        assert after[f"valid_accuracy{source}"] > 0.9
    assert after["valid_pairs"] == 72
    assert after["valid_format_share/tags"] == 1.0
    assert after["valid_format_share/general"] == 0.0
    chosen, rejected = (after[f"valid_tokens_{side}/general"] for side in ("chosen", "rejected"))
    assert 0 < chosen < rejected


def test_a_resumed_run_is_bitwise_the_undisturbed_one(scored, tmp_path):
    """Two ranks, experts over both; the second run has only the checkpoint of step 2."""
    layout = ["parallel.ep=2"]
    calm, resumed = tmp_path / "calm", tmp_path / "resumed"
    ranks.run(2, train.main, options(scored, calm, *layout), folder=tmp_path / "a")
    name = "checkpoints/step-00000002"
    shutil.copytree(calm / name, resumed / name)
    ranks.run(2, train.main, options(scored, resumed, *layout), folder=tmp_path / "b")
    for a, b in zip(lines(calm)[2:], lines(resumed), strict=True):
        assert a["step"] == b["step"]
        for key in ("loss", "margin", "grad_norm", "kl/tags"):
            assert a[key] == b[key], key
    # Other scores are other data.
    rescored = copy(scored, tmp_path / "rescored")
    shutil.rmtree(rescored / "reference")
    write_random_model(tmp_path / "other", read_hf_config(TINY), seed=5)
    score(rescored, model=tmp_path / "other")
    said = refused(options(rescored, resumed))
    assert "was trained on data with fingerprint" in said


def test_what_does_not_belong_together_is_refused(packed, unscored, scored, tmp_path):
    run = tmp_path / "run"
    assert refused(options(unscored, run)).startswith(
        f"error: {unscored} has no reference scores; make them with tools/score_reference.py"
    )
    assert "loss.head=dpo trains on rows packed with kind=pairs" in refused(options(packed, run))
    said = refused(options(scored, run, "loss.head=sft"))
    assert "loss.head=sft trains on rows packed with kind=chat" in said
    without = [o for o in options(scored, run) if not o.startswith("run.init_from")]
    assert "set run.init_from to that checkpoint" in refused(without)
    said = refused(options(scored, run, "loss.sources.tag.beta=1"))
    assert said == f"error: loss.sources.tag: {scored} has no such source; it has general, tags"
    said = refused(options(scored, run, "loss.preference.format_only=true"))
    assert "format_only is set for source general, but in" in said
    assert "36 of its 36 pairs have an answer without" in said
    assert not (run / "metrics.jsonl").exists()


def test_scores_of_other_weights_dtype_or_rows_are_refused(scored, unscored, tmp_path):
    run = tmp_path / "run"
    write_random_model(tmp_path / "other", read_hf_config(TINY), seed=5)
    said = refused(options(scored, run, f"run.init_from={tmp_path / 'other'}"))
    assert f"the reference scores were made by {TINY} (weights " in said
    assert f"run.init_from={tmp_path / 'other'} has weights " in said
    said = refused(options(scored, run, "run.dtype=bf16"))
    assert "were made in fp32, this run computes in bf16" in said
    mixed = copy(unscored, tmp_path)
    shutil.copytree(scored / "reference", mixed / "reference")
    about = json.loads((mixed / "reference" / "reference.json").read_text())
    about["packed"] = "0123"
    (mixed / "reference" / "reference.json").write_text(json.dumps(about))
    assert "holds scores of other rows or another tokenizer (0123" in refused(options(mixed, run))


def tampered(scored, folder, scores=None, routing=None):
    """A copy with other scores or routing under the same name."""
    folder = copy(scored, folder)
    for name, change in (("scores.npy", scores), ("routing.npy", routing)):
        if change is not None:
            kept = np.load(folder / "reference" / name)
            change(kept)
            np.save(folder / "reference" / name, kept)
    return folder


def test_a_policy_that_is_not_the_reference_is_stopped_with_the_causes(scored, tmp_path):
    """A hundredth of a nat on every chosen answer: the loss is off by β · 0.01 / 2 = 5e-4."""

    def nudge(scores):
        scores[::2] -= 0.01

    said = refused(options(tampered(scored, tmp_path, nudge), tmp_path / "run"))
    assert f"loss {math.log(2) - 0.0005:.6f} (ln 2 = 0.693147), largest margin 0.001" in said
    assert "|loss - ln 2| = 0.0005 is more than loss.reference_tolerance=0.0001" in said
    for cause in ("routing flips", "dropout", "another version", "damaged scores"):
        assert cause in said
    assert not lines(tmp_path / "run")
    more = "loss.reference_tolerance=1e-3"
    train.main(options(tmp_path / "pairs", tmp_path / "run", more, "optim.steps=1"))


def test_scores_that_are_no_numbers_do_not_pass(scored, tmp_path):
    folder = tampered(scored, tmp_path, lambda scores: scores.fill(np.inf))
    assert "the policy is not the reference" in refused(options(folder, tmp_path / "run"))


def test_routing_flips_are_counted(scored, tmp_path, capsys):
    """One choice of three in one layer of three is another expert: a ninth of the first row's."""

    def flip(routing):
        routing[:, 0, :, 0] = 999

    folder = tampered(scored, tmp_path, routing=flip)
    train.main(options(folder, tmp_path / "run", "optim.steps=1"))
    assert f"routing flips {1 / 9:.3%} of expert choices" in capsys.readouterr().out
