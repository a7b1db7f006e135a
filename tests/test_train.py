"""The program as it is called: what it refuses before anything starts, and that it learns."""

import json
import math

import pytest
import torch
import yaml

from megatron_ring import config as configuration
from megatron_ring import losses, optim, parallel, platform, step, train
from megatron_ring.config import Config, PackConfig, SourceConfig
from megatron_ring.data.build import pack
from megatron_ring.data.rows import Rows, make_row
from megatron_ring.data.tokenizer import load_tokenizer
from megatron_ring.model import frozen, weights
from megatron_ring.model.ling import build_stages
from tests import ranks
from tests.model.layouts import GOLDEN, random_documents

TINY = GOLDEN / "ling_lite_tiny"
HF = f"model.hf_config={TINY}"


def refused(*arguments):
    """The message with which the program ends."""
    with pytest.raises(SystemExit) as end:
        train.main([HF, *map(str, arguments)])
    return end.value.code


@pytest.mark.parametrize("arguments", [[], ["-h"], ["a.yaml", "--help"]])
def test_help(arguments, capsys):
    train.main(arguments)
    said = capsys.readouterr().out
    assert "python -m megatron_ring.train configs/model/ling_tiny.yaml" in said
    assert "--dry-run" in said


def test_schema(capsys):
    train.main(["--schema"])
    assert capsys.readouterr().out == configuration.json_schema(Config)


def test_dry_run_prints_what_would_run_and_writes_nothing(packed, tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("optim: {lr: 1e-3, steps: 3}\ndata: {rows_per_step: 5}")
    run_dir = tmp_path / "run"
    more = [HF, f"data.train={packed}", f"run.dir={run_dir}", "optim.steps=4", "--dry-run"]
    train.main([str(file), *more])
    said = capsys.readouterr().out
    resolved = configuration.build(Config, yaml.safe_load(said))
    assert resolved == configuration.load(Config, [str(file)], more[:-1])
    assert said.splitlines()[-1] == f"# {Rows.open(packed).num_rows} rows, 4 steps"
    assert not run_dir.exists()


def test_a_run_never_goes_beyond_the_plan(packed):
    rows = Rows.open(packed)
    options = [HF, "data.rows_per_step=8"]
    whole = math.ceil(rows.num_rows / 8)
    for steps, expected in (("null", whole), ("3", 3), ("1000", whole)):
        made = configuration.load(Config, [], [*options, f"optim.steps={steps}"])
        assert train.total_steps(made, rows) == expected


def test_refusals_of_the_configuration(tmp_path, monkeypatch, packed):
    data = f"data.train={packed}"
    assert refused("optim.lrr=1") == ("error: unknown config key optim.lrr; did you mean optim.lr?")
    assert refused("nowhere.yaml") == "error: there is no config file nowhere.yaml"
    assert refused() == ("error: missing config key data.train: a folder written by tools/pack.py")
    assert refused(f"data.train={tmp_path}") == (
        f"error: {tmp_path} is not a packed folder: there is no {tmp_path}/manifest.json; make one "
        "with tools/pack.py"
    )
    assert refused(data, "model.vocab_size=200") == (
        f"error: model.vocab_size=200, but {packed} holds token ids up to 289; use the model's own "
        "tokenizer, or model.vocab_size=290"
    )
    assert refused(data, f"data.valid={packed}", "model.max_position_embeddings=100") == (
        f"error: {packed} has rows of 128 tokens, more than model.max_position_embeddings=100"
    )
    yarn = "{type: yarn, factor: 2.0, original_max_position_embeddings: 60}"
    assert refused(data, "model.max_position_embeddings=100", f"model.rope_scaling={yarn}") == (
        f"error: {packed} has rows of 128 tokens, more than model.max_position_embeddings=100 and "
        "the 120 that model.rope_scaling makes of it"
    )
    assert refused(data, "attention.backend=te", f"run.dir={tmp_path / 'run'}") == (
        "error: attention.backend=te is not offered: TransformerEngine's packed attention has not "
        "been run with this program; use attention.backend=auto"
    )
    assert refused(data, f"run.init_from={tmp_path}", f"run.dir={tmp_path / 'run'}") == (
        f"error: {tmp_path} is neither a Megatron checkpoint (no ring.json) nor a Hugging Face "
        "folder (no config.json), nor a run's folder with a complete checkpoint in it"
    )
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert refused(data, "parallel.tp=2") == (
        "error: world size 3 is not a multiple of parallel.tp × pp × cp = 2 × 1 × 1 = 2; launch 2 "
        "ranks or lower one"
    )
    assert not (tmp_path / "run").exists(), "refused before anything was written"


def test_held_out_rows_are_checked_like_training_rows(packed, tmp_path, monkeypatch):
    """Held-out rows of 127 tokens, when training rows have 128: tensor parallelism halves both."""
    odd = pack_again(packed, tmp_path / "odd", row_tokens=127)
    data = [f"data.train={packed}", f"data.valid={odd}"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refused(*data, "parallel.tp=2") == (
        "error: rows of 127 tokens cannot be split over parallel.tp=2 (sequence parallelism); pack "
        "with a row_tokens that is a multiple of 2"
    )
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert refused(data[0], f"data.valid={odd}", "model.vocab_size=289").startswith(
        f"error: model.vocab_size=289, but {packed} holds token ids up to 289"
    )


def pack_again(packed, output, **changes):
    """The samples of the `packed` fixture, packed another way."""
    samples = SourceConfig(path=str(packed.parent / "train.jsonl"))
    tokenizer = str(packed.parent / "small.model")
    settings = {"row_tokens": 128} | changes
    pack(PackConfig(tokenizer=tokenizer, output=str(output), sources=[samples], **settings))
    return output


@pytest.fixture(scope="module")
def trained(packed, packed_other, tmp_path_factory):
    """A run over 80 steps of additions, with other additions held out."""
    folder = tmp_path_factory.mktemp("trained")
    data = pack_again(packed, folder / "data", epochs=8)
    options = [HF, "model.initializer_range=0.1", "model.norm_head=false"]
    options += [f"data.train={data}", f"data.valid={packed_other}", "data.rows_per_step=4"]
    options += ["optim.steps=80", "optim.lr=1e-2", "log.valid_every=40", "log.wandb=disabled"]
    options += [f"run.dir={folder / 'run'}", "data.valid_rows=7"]
    train.main(options)
    return folder / "run", options


def lines(run_dir):
    return [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_it_learns(trained, packed_other):
    """Far below a uniform guess over 290 tokens, ln 290 = 5.7; held-out rows too."""
    run, options = trained
    curve = [line["loss"] for line in lines(run) if "loss" in line]
    assert len(curve) == 80
    assert curve[0] > 5.5
    assert sum(curve[-10:]) / 10 < 1.0
    valid = [line for line in lines(run) if "valid_loss" in line]
    rows = Rows.open(packed_other)
    tokens = sum(rows.row(i).num_supervised for i in range(7))
    assert [(line["step"], line["valid_supervised"]) for line in valid] == [
        (0, tokens),
        (40, tokens),
        (80, tokens),
    ]
    assert valid[-1]["valid_loss"] < 0.4 * valid[0]["valid_loss"]
    assert configuration.load(Config, [str(run / "config.yaml")], []) == configuration.load(
        Config, [], options
    )


def test_the_end_token_is_learnt_although_it_is_the_padding(trained, packed):
    """Oracle: in the data every answer ends with it, and nothing else is followed by it."""
    run, _ = trained
    tokenizer = load_tokenizer(packed / "tokenizer")
    assert tokenizer.pad_id == tokenizer.eos_id
    checkpoint = run / "checkpoints" / "step-00000080"
    made = frozen.configure(checkpoint, [])
    row = Rows.open(packed).row(0)
    with frozen.opened(checkpoint, made) as [stage], torch.no_grad():
        batch = step.to_device(row, torch.device("cpu"))
        del batch["labels_S"], batch["mask_S"]
        ends_S = stage(**batch).softmax(-1)[:, tokenizer.eos_id]
    is_end_S = torch.from_numpy((row.labels_S == tokenizer.eos_id) & row.mask_S)
    supervised_S = torch.from_numpy(row.mask_S)
    assert is_end_S.sum() == row.num_documents >= 2
    assert ends_S[is_end_S].min() > 0.9
    assert ends_S[supervised_S & ~is_end_S].max() < 0.1


def validated(overrides):
    """Held-out nll and tokens on this layout, of weights that are the same on every one."""
    made = configuration.load(Config, [], overrides)
    device = platform.prepare()
    with parallel.process_groups(made.parallel, device, seed=1):
        stages = build_stages(made, torch.float32, device)
        weights.load_first(made, stages)
        models = optim.wrap(stages, made.parallel)
        rows, judge = train.held_out_rows(made)
        return judge.report(step.evaluate(models, rows, judge))


def test_validation_is_the_same_on_every_layout(packed, tmp_path):
    """Five rows divide by neither four data ranks nor two of two interleaved stages."""
    options = [HF, f"data.valid={packed}", "data.valid_rows=5", f"run.init_from={TINY}"]
    said = validated(options)
    rows = Rows.open(packed)
    assert said["supervised"] == sum(rows.row(i).num_supervised for i in range(5))
    for name, layout in (("dp4", []), ("pp2", ["parallel.pp=2", "parallel.vpp=2"])):
        for got in ranks.run(4, validated, options + layout, folder=tmp_path / name):
            assert got == {"loss": pytest.approx(said["loss"], abs=1e-6)} | {
                "supervised": said["supervised"]
            }


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(poison):
    made = configuration.load(Config, [], [HF, f"run.init_from={TINY}"])
    device = platform.prepare()
    with parallel.process_groups(made.parallel, device, seed=1):
        stages = build_stages(made, torch.float32, device)
        weights.load_first(made, stages)
        models = optim.wrap(stages, made.parallel)
        optimizer = optim.build_optimizer(models, made.optim, torch.float32)
        rows = [make_row(random_documents(3, 384, seed=1), 128, pad_id=0)]
        _, _, norm = step.train_step(models, optimizer, rows, 1e-3, losses.SFT(["all"]))
        assert math.isfinite(norm)
        before = [p.detach().clone() for p in stages[0].parameters()]
        # Not the head's weight: its gradient goes straight to the buffer, past any hook.
        norm_weight = stages[0].decoder.final_layernorm.weight
        hook = norm_weight.register_hook(lambda grad: grad * poison)
        with pytest.raises(FloatingPointError) as error:
            step.train_step(models, optimizer, rows, 1e-3, losses.SFT(["all"]))
        assert str(error.value) == (
            f"the gradient norm is {poison}; the weights are untouched. Resume from the last "
            "checkpoint with a lower optim.lr, or look at the rows of this step with "
            "tools/show_rows.py; spikes.action=skip goes on without the step"
        )
        for p, was in zip(stages[0].parameters(), before, strict=True):
            assert torch.equal(p, was)
        hook.remove()
        _, _, norm = step.train_step(models, optimizer, rows, 1e-3, losses.SFT(["all"]))
        assert math.isfinite(norm), "the bad gradient is forgotten"
