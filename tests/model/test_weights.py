"""Weights to start from: fresh ones, a checkpoint of either kind, and sources that do not fit."""

import re

import pytest
import torch

from megatron_ring import config, parallel, platform
from megatron_ring.config import Config, ConfigError
from megatron_ring.convert.folder import newest
from megatron_ring.convert.transfer import import_checkpoint
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages
from tests import ranks
from tests.model.layouts import GOLDEN, assemble

TINY = GOLDEN / "ling_lite_tiny"


def local_parts(overrides):
    """(key, global shape, offset, data) of all that this rank starts with."""
    made = config.load(Config, [], [f"model.hf_config={TINY}", *overrides])
    device = platform.prepare()
    with parallel.process_groups(made.parallel, device, seed=1):
        stages = build_stages(made, torch.float32, device)
        weights.load_first(made, stages)
        return [
            (p.key, tuple(p.global_shape), tuple(p.global_offset), p.data.detach().clone())
            for p in weights.model_tensors(stages)
        ]


@pytest.fixture(scope="module")
def fresh():
    return assemble(local_parts(["model.initializer_range=0.02"]))


def test_fresh_weights_have_their_spread_and_norms_are_one(fresh):
    for key, tensor in fresh.items():
        if key.endswith("layernorm.weight"):
            assert torch.equal(tensor, torch.ones_like(tensor)), key
            continue
        # Standard errors of mean and spread of n normal numbers, five of them allowed.
        n = tensor.numel()
        assert abs(tensor.mean()) < 5 * 0.02 / n**0.5, key
        assert tensor.std().item() == pytest.approx(0.02, rel=5 / (2 * n) ** 0.5), key
    assert sum(key.endswith("layernorm.weight") for key in fresh) == 3 * 2 + 1


def test_no_two_fresh_tensors_are_alike(fresh):
    """Neither two layers' nor two experts': that would be a broken symmetry left unbroken."""
    values = [e for w in fresh.values() if w.dim() > 1 for e in (w if w.dim() == 3 else [w])]
    firsts = [tuple(v.flatten()[:4].tolist()) for v in values]
    assert len(set(firsts)) == len(firsts)


def test_fresh_weights_follow_the_seed_and_nothing_else(fresh):
    torch.manual_seed(99)
    again = assemble(local_parts(["model.initializer_range=0.02"]))
    other = assemble(local_parts(["model.initializer_range=0.02", "run.seed=1"]))
    for key, tensor in fresh.items():
        assert torch.equal(again[key], tensor), key
        assert torch.equal(other[key], tensor) == key.endswith("layernorm.weight"), key


def test_fresh_weights_are_the_same_on_every_layout(fresh, tmp_path):
    layout = ["model.initializer_range=0.02", "parallel.tp=2", "parallel.ep=2", "parallel.pp=2"]
    parts = ranks.run(4, local_parts, layout, folder=tmp_path)
    spread = assemble([part for rank in parts for part in rank])
    assert spread.keys() == fresh.keys()
    for key, tensor in fresh.items():
        assert torch.equal(spread[key], tensor), key


def test_both_kinds_of_checkpoint_give_the_same_weights(tmp_path):
    """A Hugging Face folder, and the Megatron checkpoint imported from it: equal bit by bit."""
    import_checkpoint(TINY, tmp_path / "imported")
    direct = assemble(local_parts([f"run.init_from={TINY}"]))
    imported = assemble(local_parts([f"run.init_from={tmp_path / 'imported'}"]))
    assert direct.keys() == imported.keys()
    for key, tensor in direct.items():
        assert torch.equal(imported[key], tensor), key


def test_a_folder_that_is_no_checkpoint(tmp_path):
    message = (
        f"{tmp_path} is neither a Megatron checkpoint (no ring.json) nor a Hugging Face folder "
        "(no config.json), nor a run's folder with a complete checkpoint in it"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        weights.open_weights(tmp_path)


def test_a_run_folder_stands_for_its_newest_complete_checkpoint(tmp_path):
    for step, complete in ((9, True), (100, True), (200, False)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "ring.json").touch()
    (tmp_path / "checkpoints" / "step-00000300.tmp").mkdir()
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step-00000100"
    assert newest(str(TINY)) == TINY


class Shapes:
    """A source with the given shapes, and ones in it."""

    def __init__(self, shapes):
        self.shapes = shapes

    def keys(self):
        return self.shapes

    def read(self, key, offsets, shape):
        return torch.ones(shape)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            "decoder.layers.1.mlp.experts.w1",
            None,
            "decoder.layers.1.mlp.experts.w1 is missing from the weights to start from",
        ),
        (
            "decoder.final_layernorm.weight",
            None,
            "decoder.final_layernorm.weight is missing from the weights to start from",
        ),
        (
            "output_layer.weight",
            (400, 64),
            "output_layer.weight has shape (400, 64) in the weights to start from, but (384, 64) "
            "in the configured model",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(key, shape, message, fresh):
    shapes = {name: tuple(tensor.shape) for name, tensor in fresh.items()} | {key: shape}
    if shape is None:
        del shapes[key]
    made = config.load(Config, [], [f"model.hf_config={TINY}"])
    device = platform.prepare()
    with parallel.process_groups(made.parallel, device, seed=1):
        stages = build_stages(made, torch.float32, device)
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            weights.fill(stages, Shapes(shapes))


def fingerprint_of(overrides, change=None):
    """The checksum of this launch's weights, one number of one tensor changed beforehand."""
    made = config.load(Config, [], [f"model.hf_config={TINY}", *overrides])
    device = platform.prepare()
    with parallel.process_groups(made.parallel, device, seed=1):
        stages = build_stages(made, platform.dtype(made.run.dtype), device)
        weights.load_first(made, stages)
        if change is not None:
            change(dict(stages[0].named_parameters()))
        return weights.fingerprint(stages)


def test_a_fingerprint_is_the_same_on_every_layout_and_source(tmp_path):
    import_checkpoint(TINY, tmp_path / "imported")
    start = [f"run.init_from={TINY}"]
    alone = fingerprint_of(start)
    assert fingerprint_of([f"run.init_from={tmp_path / 'imported'}"]) == alone
    for name, layout in (
        ("all", ["parallel.tp=2", "parallel.ep=2", "parallel.pp=2"]),
        ("dp", ["parallel.pp=2", "parallel.vpp=2"]),
    ):
        for got in ranks.run(4, fingerprint_of, start + layout, folder=tmp_path / name):
            assert got == alone


def test_a_fingerprint_tells_weights_apart():
    start = [f"run.init_from={TINY}"]
    name = "decoder.layers.1.mlp.experts.w1"

    def change(edit):
        return lambda parameters: edit(parameters[name].data)

    def swap(x):
        x[0, 0, :2] = x[0, 0, :2].flip(0)

    def nudge(x):
        x[1, 2, 3] = torch.nextafter(x[1, 2, 3], torch.tensor(9.0))

    found = [
        fingerprint_of(start),
        fingerprint_of([*start, "run.dtype=bf16"]),
        fingerprint_of(start, change(swap)),
        fingerprint_of(start, change(nudge)),
        fingerprint_of(
            start,
            lambda parameters: parameters[name].data.copy_(
                parameters[name.replace("1", "2", 1)].data
            ),
        ),
    ]
    assert len(set(found)) == len(found)
