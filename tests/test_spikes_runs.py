"""Spikes injected into one rank: nothing is lost, all ranks agree, a kill changes nothing."""

import json
import math
import os
import signal

import pytest
import torch

from megatron_ring import losses, metrics, optim, parallel, platform, spikes, step, train
from megatron_ring.convert.folder import read_ring
from megatron_ring.data.rows import Rows, make_row
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages
from tests import ranks, test_reference
from tests.model.layouts import random_documents
from tests.runs import GOLDEN, same_tensors
from tests.runs import lines as lines_of
from tests.test_checkpoint import options
from tests.test_metrics import HEAD, load

PLAN = 10  # steps
ON = ["spikes.action=skip", "checkpoint.save_every=1", "checkpoint.keep_last=99"]
# What a kill leaves is then known beforehand.
ON += [f"optim.steps={PLAN}", "optim.warmup_steps=3", "checkpoint.async_save=false"]


def main_with(arguments, poison, kill_at=None, order=None):
    """train.main; {step from 0: factor} multiplies a gradient on the last rank only.

    With `kill_at` that rank is killed when it begins that step; `order` are the plan's batches.
    """
    now = []
    judged, accumulate = spikes.Guard.batch, step.accumulate

    def batch(guard, number):
        if guard.total > number:
            now.append(number)
        if number == kill_at and parallel.world_size() == 1 + torch.distributed.get_rank():
            os.kill(os.getpid(), signal.SIGKILL)
        return order[number] if order else judged(guard, number)

    def poisoned(models, *more):
        last = models[-1].module
        if now[-1] not in poison or parallel.world_size() != 1 + torch.distributed.get_rank():
            return accumulate(models, *more)
        # Not the head's weight: its gradient goes straight to the buffer, past any hook.
        weight = last.decoder.final_layernorm.weight
        hook = weight.register_hook(lambda grad: grad * poison[now[-1]])
        table = accumulate(models, *more)
        hook.remove()
        return table

    spikes.Guard.batch, step.accumulate = batch, poisoned
    try:
        train.main(arguments)
    finally:
        spikes.Guard.batch, step.accumulate = judged, accumulate


def run(world_size, arguments, folder, poison=None, **more):
    ranks.run(world_size, _call, arguments, poison or {}, more, folder=folder)


def _call(arguments, poison, more):
    main_with(arguments, poison, **more)


def read(file):
    return [json.loads(text) for text in file.read_text().splitlines()]


def at(run_dir, number):
    return run_dir / f"checkpoints/step-{number:08d}"


LAYOUTS = {"dp2": [], "pp2": ["parallel.pp=2"], "tp2": ["parallel.tp=2"], "cp2": ["parallel.cp=2"]}


@pytest.mark.parametrize("layout", ["dp2", "pp2", "ep2"])
def test_nan_in_one_ranks_gradient_loses_nothing(layout, packed, tmp_path, capfd):
    """Step 3 is poisoned. The oracle is a run that is handed the batches in the resulting order."""
    extra = (LAYOUTS | {"ep2": ["parallel.ep=2"]})[layout] + ON
    run(2, options(packed, tmp_path / "run", *extra), tmp_path / "ranks", {3: math.nan})
    said = capfd.readouterr().out
    same_tensors(at(tmp_path / "run", 3), at(tmp_path / "run", 4))  # weights and Adam's state

    first, second = read(tmp_path / "run/spikes.jsonl")
    assert (first["step"], first["batch"], first["verdict"]) == (4, 3, "kept")
    assert first["grad_norm"] == "nan" and 1 < first["loss"] < 7
    assert first["rows"] == [12, 13, 14, 15] and first["sources"] == Rows.open(packed).sources
    assert (second["batch"], second["verdict"]) == (3, "trained")
    again = second["step"]
    assert again == first["again_at"] > 4
    assert (
        f"step 4: loss {first['loss']:.4}, gradient norm nan. A spike, no update; rows 12" in said
    )
    assert f"15 come again at step {again}" in said
    assert f"step {again}: loss" in said and "Retry 1 of rows 12 to 15 went well" in said

    order = [0, 1, 2, *range(4, PLAN)]
    order.insert(again - 2, 3)
    stop = [*extra, "spikes.action=stop"]
    run(2, options(packed, tmp_path / "calm", *stop), tmp_path / "ranks-calm", order=order)
    same_tensors(at(tmp_path / "run", PLAN + 1), at(tmp_path / "calm", PLAN))
    calm = lines_of(tmp_path / "calm")
    lines = [line for line in read(tmp_path / "run/metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, *range(5, PLAN + 2)]
    for number, line in enumerate(lines, 1):
        for key in ("loss", "grad_norm", "lr", "aux_loss", "tokens", "load_max_over_mean"):
            assert line[key] == calm[number][key], (number, key)
    assert [line["skipped"] for line in lines] == [0] * 3 + [1] * 7 + [1] * (len(lines) - 10)
    counted = [line for line in read(tmp_path / "run/metrics.jsonl") if line["step"] == 4]
    assert [(line["skipped"], line["queued"], line["dropped"]) for line in counted] == [(1, 1, 0)]
    ring, other = (read_ring(at(tmp_path / name, n))[1] for name, n in (("run", 11), ("calm", 10)))
    for key in ("tokens", "supervised"):
        assert ring["progress"][key] == other["progress"][key]


@pytest.mark.parametrize(
    ("kill_at", "save_every"),
    [(5, 2), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((1, 1), (8, 4)))],
)
def test_killed_among_spikes_and_resumed_is_the_undisturbed_run(
    kill_at, save_every, packed, tmp_path
):
    """NaN at the very first step, an infinite norm, and wide norms once three steps are known."""
    poison = {0: math.nan, 3: math.inf, 6: 1e4, 8: 1e4}
    more = [*ON, "parallel.ep=2", "spikes.window=6", "spikes.warmup=3", "spikes.lower_after=2"]
    more += ["spikes.stop_after=6", f"checkpoint.save_every={save_every}"]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    run(2, options(packed, calm, *more), tmp_path / "ranks", poison)
    with pytest.raises(RuntimeError, match="died: exit codes"):
        run(2, options(packed, killed, *more), tmp_path / "ranks-1", poison, kill_at=kill_at)
    newest = max(path.name for path in (killed / "checkpoints").glob("step-*[0-9]"))
    assert newest == f"step-{kill_at // save_every * save_every:08d}"
    run(2, options(packed, killed, *more), tmp_path / "ranks-2", poison)

    assert read(killed / "spikes.jsonl") == read(calm / "spikes.jsonl")
    verdicts = [line["verdict"] for line in read(calm / "spikes.jsonl")]
    assert verdicts.count("kept") >= 3 and verdicts.count("trained") >= 3
    last = max(line["step"] for line in read(calm / "metrics.jsonl"))
    same_tensors(at(calm, last), at(killed, last))
    rings = [read_ring(at(folder, last))[1] for folder in (calm, killed)]
    assert rings[0]["progress"] == rings[1]["progress"]
    assert rings[0]["progress"]["spikes"]["skipped"] == verdicts.count("kept")
    rates = []
    for one, two in zip(*(read(f / "metrics.jsonl") for f in (calm, killed)), strict=True):
        for key in ("step", "loss", "grad_norm", "lr", "skipped", "queued", "spike_loss"):
            assert one.get(key) == two.get(key), (one["step"], key)
        rates += [one["lr"]] if "lr" in one else []
    made = load(*options(packed, calm, *more)[1:])
    scheduled = [optim.lr_at(n, PLAN, made.optim) for n in range(len(rates))]
    assert len(rates) == PLAN and rates != scheduled
    assert all(rate <= whole for rate, whole in zip(rates, scheduled, strict=True))


def test_too_many_spikes_end_the_run_with_everything_saved(packed, tmp_path):
    more = [*ON, "checkpoint.save_every=99", "spikes.stop_after=3", "spikes.max_retries=9"]
    here = tmp_path / "run"
    poison = dict.fromkeys(range(4, 20), math.nan)
    with pytest.raises(RuntimeError) as error:
        run(2, options(packed, here, *more), tmp_path / "ranks", poison)
    assert "SystemExit: error: 3 of the last 128 steps were spikes" in str(error.value)
    assert [path.name for path in (here / "checkpoints").iterdir()] == ["step-00000007"]
    run(2, options(packed, here, *more), tmp_path / "ranks-again")
    order = {line["step"]: line["batch"] for line in read(here / "spikes.jsonl")}
    assert len({order[n] for n in (5, 6, 7)}) >= 1
    progress = read_ring(max((here / "checkpoints").iterdir()))[1]["progress"]
    assert progress["step"] - progress["spikes"]["skipped"] == PLAN, "nothing was lost"
    calm = tmp_path / "calm"
    run(1, options(packed, calm, f"optim.steps={PLAN}"), tmp_path / "ranks-calm")
    tokens = read_ring(max((calm / "checkpoints").iterdir()))[1]["progress"]["tokens"]
    assert progress["tokens"] == tokens


def test_without_it_a_run_stops_as_before(packed, tmp_path):
    """A bad gradient ends the run; the last checkpoint stays."""
    more = [*ON, "spikes.action=stop"]
    with pytest.raises(RuntimeError, match="SystemExit: error: the gradient norm is nan; the weig"):
        run(2, options(packed, tmp_path / "run", *more), tmp_path / "ranks", {4: math.nan})
    assert max(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == "step-00000004"
    assert not (tmp_path / "run/spikes.jsonl").exists()
    assert "skipped" not in read(tmp_path / "run/metrics.jsonl")[0]


def test_preference_training_is_watched_too(packed, tmp_path):
    """DPO: one weight's gradient is 10,000 times its size; the loss is the one that is logged."""
    pairs = test_reference.pack_pairs(tmp_path, packed / "tokenizer", "pairs", range(2, 8))
    test_reference.score(pairs)
    more = ["spikes.action=skip", "spikes.warmup=3", "optim.steps=6"]
    here = tmp_path / "run"
    run(1, test_reference.options(pairs, here, *more), tmp_path / "ranks", {4: 1e4})
    kept, trained = read(here / "spikes.jsonl")
    assert (kept["step"], kept["verdict"], trained["verdict"]) == (5, "kept", "trained")
    assert kept["grad_norm"] > 10 * kept["grad_norm_limit"] and kept["loss"] < kept["loss_limit"]
    assert set(kept["sources"]) <= {"general", "tags"}
    lines = lines_of(here)
    assert sorted(lines) == [1, 2, 3, 4, 6, 7]
    assert lines[trained["step"]]["loss"] == pytest.approx(trained["loss"], rel=1e-12)


def agreed_of(norms):
    """What a rank believes about one batch, and what its log line would say of it."""
    made = load(f"run.init_from={GOLDEN}", *LAYOUTS[norms.pop("layout")])
    with parallel.process_groups(made.parallel, platform.prepare(), seed=1):
        stages = build_stages(made, torch.float32, torch.device("cpu"))
        weights.load_first(made, stages)
        models = optim.wrap(stages, made.parallel)
        optimizer = optim.build_optimizer(models, made.optim, torch.float32)
        rows = [make_row(random_documents(3, 384, seed=n), 128, pad_id=0) for n in range(4)]
        mine = rows[parallel.data_rank() :: parallel.data_size()]
        _, table, norm = step.gradient(models, optimizer, mine, losses.SFT(["all"]))
        own = norms.get(torch.distributed.get_rank(), norm)
        believed = step.agreed(table, own, HEAD)
        logged = HEAD.report(parallel.sum_over_stages_and_data(table))
        return {"believed": believed, "norm": norm, "loss": logged["loss"]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_judge_the_same_numbers(layout, tmp_path):
    """Also where they had different ones; the loss is that of the log line."""
    for case, (norms, expected) in enumerate(
        [({}, None), ({0: 3.0, 1: 5.0}, 3.0), ({1: math.nan}, math.nan), ({0: math.inf}, math.inf)]
    ):
        got = ranks.run(2, agreed_of, norms | {"layout": layout}, folder=tmp_path / str(case))
        believed = [torch.tensor(one["believed"], dtype=torch.float64) for one in got]
        assert torch.equal(believed[0].view(torch.int64), believed[1].view(torch.int64))
        loss, norm = got[0]["believed"]
        assert loss == pytest.approx(got[0]["loss"], rel=1e-12)
        wanted = got[0]["norm"] if expected is None else expected
        assert norm == pytest.approx(wanted, nan_ok=True)


def test_what_a_skipped_step_routed_is_forgotten():
    """Two steps skipped in a row, between two that count: as if they had not been."""
    made = load(f"run.init_from={GOLDEN}")
    with parallel.process_groups(made.parallel, platform.prepare(), seed=1):
        stages = build_stages(made, torch.float32, torch.device("cpu"))
        weights.load_first(made, stages)
        models = optim.wrap(stages, made.parallel)
        optimizer = optim.build_optimizer(models, made.optim, torch.float32)
        rows = [[make_row(random_documents(3, 384, seed=n), 128, pad_id=0)] for n in range(4)]
        lines = []
        for batches in ((0, 3), (0, -1, -2, 3), (-1, -2, 0, 3), (0, 1, 2, 3)):  # below 0: skipped
            meter = metrics.Meter(made, stages, HEAD)
            for number in batches:
                counts, table, _ = step.gradient(models, optimizer, rows[abs(number)], HEAD)
                if number < 0:
                    meter.skip()
                else:
                    meter.add(counts, table)
            lines.append(meter.read({"forward_backward": float(len(batches))}))
        for line in lines[1:3]:
            for key in ("loss", "tokens", "aux_loss", "z_loss", "load_max_over_mean"):
                assert line[key] == lines[0][key], key
            assert line["step_seconds"] == 1.0
            assert line["tokens_per_second"] == lines[0]["tokens_per_second"] / 2
        assert lines[3]["aux_loss"] != lines[0]["aux_loss"]
