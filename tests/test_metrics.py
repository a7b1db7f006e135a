"""FLOPs by hand and against published sizes, expert load by counting, and what a log holds."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ring import config, losses, metrics, step
from megatron_ring.config import Config, ModelConfig
from megatron_ring.data.rows import make_row
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages
from megatron_ring.step import Counts
from tests.model.layouts import GOLDEN, random_documents

TINY = GOLDEN / "ling_lite_tiny"
LING_LITE = ModelConfig(
    vocab_size=126464,
    hidden_size=2048,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=4,
    intermediate_size=5632,
    moe_intermediate_size=1408,
    num_experts=64,
    num_experts_per_tok=6,
    num_shared_experts=2,
    norm_topk_prob=True,
    norm_head=True,
    rms_norm_eps=1e-6,
    rope_theta=600000,
    max_position_embeddings=16384,
)


HEAD = losses.SFT(["all"])


def load(*overrides):
    return config.load(Config, [], [f"model.hf_config={TINY}", *overrides])


def test_ling_lite_has_its_published_size():
    """2.235B active weights without embedding and head, 2.494B with the head, 2.753B with both."""
    table = 126464 * 2048
    active = metrics.active_weights(LING_LITE)
    assert round(active / 1e9, 3) == 2.235
    assert round((active + table) / 1e9, 3) == 2.494
    assert round((active + 2 * table) / 1e9, 3) == 2.753


@pytest.mark.parametrize(
    ("length", "gflops"), [(4096, 16.4), (8192, 17.8), (16384, 20.6), (32768, 26.2)]
)
def test_ling_lite_costs_its_published_flops_a_token(length, gflops):
    """One document, all of it supervised, attention's causal half counted once."""
    counts = Counts(units=(length,), supervised=length, tokens=length, square_lengths=length**2)
    per_token = metrics.train_flops(LING_LITE, counts) / length
    assert per_token / 1e9 == pytest.approx(gflops, abs=0.05)


def test_flops_of_a_packed_row_by_hand(alone):
    """Documents of 4 and 6 tokens, 3 labels supervised, 22 tokens of padding.

    A layer: q 64·64, k and v 64·32 each, output 64·64; router 64·8; three experts of 3·64·48;
    the shared MLP 3·64·96. The second layer's kind is dense: 3·64·96 of its own.
    """
    model = load("model.first_k_dense_replace=1").model  # 3 layers: one dense, two routed
    attention, routed = 12288, 512 + 3 * 9216 + 18432
    active = 3 * attention + 2 * routed + 18432
    assert metrics.active_weights(model) == active

    targets = np.array([1, 1, 0, 1, 0, 1], bool)  # the first token is never a label
    documents = [(np.arange(4), targets[:4]), (np.arange(6), targets)]
    counts = Counts.of([make_row(documents, 32, pad_id=0)], HEAD)
    assert counts == Counts((5,), supervised=2 + 3, tokens=10, square_lengths=16 + 36)
    # Scores and weighted sum: 2 products × 2 FLOPs × 64 channels × half of 52 pairs, × 3, 3 layers.
    pairs = 2 * 2 * 64 * (52 / 2) * 3 * 3
    head = 2 * 384 * 64 * 5 * 3
    assert metrics.train_flops(model, counts) == 2 * active * 10 * 3 + pairs + head


def test_expert_load_is_what_an_independent_count_says(alone):
    """The router's own record of choices, counted in numpy over real tokens only."""
    made = load("loss.aux_coeff=0.1", "model.first_k_dense_replace=1")
    (stage,) = stages = build_stages(made, torch.float32, torch.device("cpu"))
    weights.load_first(made, stages)
    expected, tokens = np.zeros((3, 8), int), 0
    for seed in (1, 2):
        row = make_row(random_documents(5, 384, seed), 256, pad_id=0)
        batch = step.to_device(row, torch.device("cpu"))
        stage.router_loss.record = {}
        stage(**batch).sum().backward()
        tokens += row.num_tokens
        for layer, [experts] in stage.router_loss.record.items():
            visits = experts.numpy()[: row.num_tokens].ravel()
            expected[layer - 1] += np.bincount(visits, minlength=8)
    table = metrics.router_table(stages, made.model)
    assert table[:, :-3].tolist() == expected.tolist()
    assert expected.sum() == 2 * 3 * tokens  # two routed layers, three experts a token
    got = metrics.expert_metrics(table, made.model, tokens)
    ratios = expected[1:].max(1) / expected[1:].mean(1)
    assert got["load_max_over_mean"] == pytest.approx(ratios.mean())
    assert got["load_worst_layer"] == pytest.approx(ratios.max())
    assert got["dead_experts"] == (expected[1:] == 0).sum()
    assert 1 - 1e-6 < got["aux_loss"] < 8
    assert not metrics.router_table(stages, made.model).any()  # read means forgotten


def test_balance_by_hand():
    """Loads (4, 0) and (1, 3): max/mean 2 and 1.5; aux, z and entropy per token and layer.

    A softmax over two experts that is sure has entropy 0, one that is not has ln 2; of the visits,
    the first layer's distribution has 0, the second's the entropy of a quarter.
    """
    sums = [[4.0, 0, 20, 2, 0], [1, 3, 10, 4, 10 * math.log(2)]]
    table = torch.tensor(sums, dtype=torch.float64)
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    model = load("model.num_hidden_layers=2", "model.num_experts=2", "model.num_experts_per_tok=1")
    assert metrics.expert_metrics(table, model.model, tokens=10) == {
        "aux_loss": 1.5,
        "z_loss": pytest.approx(0.3),
        "router_entropy": pytest.approx(0.5),
        "load_entropy": pytest.approx(quarter / 2),
        "load_max_over_mean": 1.75,
        "load_worst_layer": 2.0,
        "dead_experts": 1,
    }


def test_a_log_line_covers_all_steps_since_the_last(alone):
    """Two steps in two seconds: means weighted by supervised tokens, rates by tokens."""
    made = load("log.peak_tflops=2")
    meter = metrics.Meter(made, [], HEAD)
    first, second = Counts((10,), 10, 40, 800), Counts((30,), 30, 60, 1200)
    meter.add(first, torch.tensor([[20.0, 10.0]]))
    meter.add(second, torch.tensor([[100.0, 30.0]]))
    line = meter.read({"data": 0.25, "forward_backward": 1.5, "optimizer": 0.25, "other": 8.0})
    flops = sum(metrics.train_flops(made.model, counts) for counts in (first, second))
    assert line["loss"] == 120 / 40
    assert (line["tokens"], line["supervised"], line["step_seconds"]) == (100, 40, 1.0)
    assert line["tokens_per_second"] == line["tokens_per_second_per_device"] == 50.0
    assert (line["seconds/forward_backward"], line["seconds/other"]) == (0.75, 4.0)
    assert line["tflops_per_device"] == pytest.approx(flops / 2 / 1e12)
    assert line["mfu"] == pytest.approx(flops / 2 / 2e12)
    assert line["memory_gib"] > 0.05
    meter.add(first, torch.tensor([[5.0, 10.0]]))
    line = meter.read({"forward_backward": 0.25})
    assert (line["loss"], line["tokens"], line["step_seconds"]) == (0.5, 40, 0.25)


def test_without_a_known_peak_there_is_no_mfu(alone):
    meter = metrics.Meter(load(), [], HEAD)
    meter.add(Counts((1,), 1, 1, 1), torch.tensor([[1.0, 1.0]]))
    assert "mfu" not in meter.read({"data": 1.0})


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: a number, or a copy to the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default)
        self.count += func in waits
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_between_log_lines(alone):
    """Adding and skipping steps brings no number to the host; reading does."""
    made = load("loss.aux_coeff=0.1")
    stages = build_stages(made, torch.float32, torch.device("cpu"))
    weights.load_first(made, stages)
    row = make_row(random_documents(5, 384, 1), 256, pad_id=0)
    stages[0](**step.to_device(row, torch.device("cpu"))).sum().backward()
    meter, counts = metrics.Meter(made, stages, HEAD), Counts((1,), 1, 40, 800)
    with Waits() as waits:
        for _ in range(3):
            meter.add(counts, torch.tensor([[1.0, 1.0]]))
            meter.skip()
        assert waits.count == 0
        meter.read({"data": 1.0})
        assert waits.count > 0


def test_the_heat_map_holds_all_visits_since_the_last(alone):
    """Two log lines, then the map: multiples of a fair share of both lines' visits."""
    made = load("log.heat_map_every=2", "model.first_k_dense_replace=1")
    (stage,) = stages = build_stages(made, torch.float32, torch.device("cpu"))
    weights.load_first(made, stages)
    meter, counts = metrics.Meter(made, stages, HEAD), Counts((1,), 1, 40, 800)
    expected, maps = np.zeros((2, 8)), []
    for number in (1, 2, 3):
        row = make_row(random_documents(5, 384, number), 256, pad_id=0)
        stage.router_loss.record = {}
        stage(**step.to_device(row, torch.device("cpu"))).sum().backward()
        for layer, [experts] in stage.router_loss.record.items():
            visits = experts.numpy()[: row.num_tokens].ravel()
            expected[layer - 2] += np.bincount(visits, minlength=8) * (number < 3)
        meter.add(counts, torch.tensor([[1.0, 1.0]]))
        meter.read({"data": 1.0})
        maps.append(meter.heat_map(number, last=False))
    assert maps[0] is None and maps[2] is None
    fair = expected / expected.mean(1, keepdims=True)
    np.testing.assert_allclose(maps[1], fair, rtol=6e-3)  # three digits
    assert meter.heat_map(3, last=True) is not None


@pytest.mark.parametrize("resumed", [0, 8, 14, 20, 27, 28, 30])
def test_heat_maps_stand_at_the_same_steps_after_a_restart(resumed, alone):
    """A line every 7 steps, a map every 10: of the first lines that reach 10, 20, 30, …"""
    meter = metrics.Meter(load("log.every=7", "log.heat_map_every=10"), [], HEAD, resumed)

    def drawn(step):
        meter.visits = torch.ones(1, 2)
        return meter.heat_map(step, last=False) is not None

    maps = [step for step in range(7, 64, 7) if step > resumed and drawn(step)]
    assert maps == [step for step in (14, 21, 35, 42, 56, 63) if step > resumed]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 PCIe", None),  # 756 TFLOP/s
        ("NVIDIA H100 NVL", None),
        ("NVIDIA L40S", None),
    ],
)
def test_peaks_are_of_modules_that_are_known(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert metrics.peak_tflops(load()) == peak
    assert metrics.peak_tflops(load("log.peak_tflops=5")) == 5
