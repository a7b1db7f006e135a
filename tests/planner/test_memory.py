"""The planner's bytes against real runs, rank by rank, and its activations against autograd's."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from megatron_ring import config as configuration
from megatron_ring import optim, parallel, platform, step
from megatron_ring.config import Config, ConfigError
from megatron_ring.data.rows import make_row
from megatron_ring.losses import SFT
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages
from megatron_ring.planner import activations, memory
from megatron_ring.planner.memory import Workload, rows_in_flight
from tests import ranks
from tests.model.layouts import GOLDEN

TINY = f"model.hf_config={GOLDEN / 'ling_lite_tiny'}"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(*overrides):
    return configuration.load(Config, [], [TINY, "data.rows_per_step=8", *overrides])


def real(overrides):
    """What this rank of a real launch holds after a real step (in bf16: after the first state)."""
    config = load(*overrides)
    device, dtype = platform.prepare(), platform.dtype(config.run.dtype)
    with parallel.process_groups(config.parallel, device, seed=1):
        stages = build_stages(config, dtype, device)
        weights.load_first(config, stages)
        models = optim.wrap(stages, config.parallel)
        optimizer = optim.build_optimizer(models, config.optim, dtype)
        tokens = np.arange(40, dtype=np.int32)
        rows = [make_row([(tokens, np.ones(40, bool))], 64, 0)] * (8 // parallel.data_size())
        step.train_step(models, optimizer, rows, 0.0, SFT(["all"]))
        return dataclasses.asdict(memory.count_static(models, optimizer))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (1, []),
        (2, []),
        (2, ["parallel.tp=2"]),
        (2, ["parallel.ep=2"]),
        (2, ["parallel.pp=2"]),
        (2, ["parallel.pp=2", "parallel.vpp=2"]),
        (4, ["parallel.tp=2", "parallel.ep=2"]),
        (4, ["parallel.pp=2", "parallel.ep=2", "parallel.vpp=2"]),
    ],
)
def test_weights_gradients_and_optimizer_are_exact_on_every_rank(
    world_size, layout, dtype, tmp_path
):
    """Oracle: the storages of a real run, counted after its first step."""
    overrides = [*layout, f"run.dtype={dtype}"]
    held = ranks.run(world_size, real, overrides, folder=tmp_path)
    config, work = load(*overrides), Workload(64, dtype=DTYPES[dtype])
    for rank, expected in enumerate(held):
        found = memory.pretend(config, world_size, rank, work).static
        assert dataclasses.asdict(found) == expected, f"rank {rank}"
    shown = memory.needs(config, world_size, work)
    assert max(n.static.optimizer for n in shown) == max(h["optimizer"] for h in held)


def test_ling_lite_by_hand():
    """EP8 on 8 ranks: all dense weights and an eighth of the experts, 18 bytes each in all.

    Dense moments are spread over eight ranks, an expert's stay where it is. Oracle: the numbers of
    weights from the shapes, and 2 + 4 + (4 + 8) bytes.
    """
    config = configuration.load(
        Config, ["configs/model/ling_lite.yaml"], ["parallel.ep=8", "data.rows_per_step=8"]
    )
    routed = 28 * 64 * 3 * 2048 * 1408
    attention = 2048 * (16 + 2 * 4) * 128 + 2048 * 2048
    shared, router = 3 * 2048 * 2816, 64 * 2048
    dense = 28 * (attention + shared + router + 2 * 2048) + 2048 + 2 * 126464 * 2048
    assert dense + routed == 16_801_974_272
    [need] = memory.needs(config, 8, Workload(16384))
    held = dense + routed // 8
    assert need.static.weights == pytest.approx(2 * held, rel=1e-4)  # the rest is padding
    assert need.static.gradients == pytest.approx(4 * held, rel=1e-4)
    assert need.static.optimizer == pytest.approx(12 * (dense + routed) / 8, rel=1e-4)


def test_a_thousand_ranks_in_seconds():
    """A bound far above what it takes (0.6 s), so that nothing is ever built for real."""
    config = configuration.load(
        Config,
        ["configs/model/ling_lite.yaml"],
        ["parallel.ep=8", "parallel.pp=4", "parallel.tp=2", "data.rows_per_step=1024"],
    )
    began = time.monotonic()
    shown = memory.needs(config, 1024, Workload(16384))
    assert time.monotonic() - began < 60
    assert [need.layers for need in shown] == [7, 7, 7, 7]
    assert not torch.distributed.is_initialized()


def saved_bytes(config, dtype, row_tokens, num_documents=2):
    """Storages that autograd keeps of one row's forward, weights left out."""
    device = platform.prepare()
    with parallel.process_groups(config.parallel, device, seed=1):
        stages = build_stages(config, dtype, device)
        weights.load_first(config, stages)
        storages = {p.untyped_storage()._cdata for p in stages[0].parameters()}
        kept, total = [], 0

        def keep(tensor):
            nonlocal total
            storage = tensor.untyped_storage()
            if storage._cdata not in storages:
                storages.add(storage._cdata)
                kept.append(tensor)
                total += storage.nbytes()
            return tensor

        one = np.arange(row_tokens // num_documents, dtype=np.int32) % 384
        documents = [(one, np.ones(len(one), bool))] * num_documents
        row = make_row(documents, row_tokens, 0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            stages[0](**step.to_device(row, device))
        return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.num_hidden_layers=5"],
        ["model.hidden_size=128", "model.num_key_value_heads=4"],
        ["model.moe_intermediate_size=96", "model.num_experts_per_tok=5"],
        ["model.first_k_dense_replace=2", "model.num_experts=16"],
        ["model.num_shared_experts=0"],
        ["parallel.recompute=full"],
    ],
    ids=str,
)
def test_kept_activations_are_what_autograd_keeps(overrides, dtype):
    """Within two parts in a hundred: small vectors are left out of the formulas."""
    config, tokens = load(*overrides), 512
    bytes_each = 4 if dtype == "fp32" else 2
    w = activations.Widths(config, tokens, bytes_each, on_gpu=False, fused_experts=False)
    m = config.model
    is_moe = [i >= m.first_k_dense_replace for i in range(m.num_hidden_layers)]
    ours = activations.kept_by_layers(w, is_moe) + activations.kept_by_head(w, 1.0) + tokens * 8
    ours += activations.head_gradient(w, m.vocab_size)
    assert ours == pytest.approx(saved_bytes(config, DTYPES[dtype], tokens), rel=0.02)


def saved_under_context(overrides, dtype, row_tokens):
    """The same, of one long document, on a rank of several."""
    return saved_bytes(load(*overrides), dtype, row_tokens, num_documents=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (2, ["parallel.cp=2"]),
        (4, ["parallel.cp=4"]),
        (2, ["parallel.cp=2", "model.num_key_value_heads=4"]),
        (2, ["parallel.cp=2", "parallel.recompute=full"]),
        (2, ["parallel.cp=2", "parallel.recompute=full", "parallel.offload=true"]),
    ],
    ids=str,
)
def test_kept_under_context_parallelism(world_size, overrides, dtype, tmp_path):
    """The last rank, whose chunks see the most keys; the others keep less."""
    tokens = 512
    kept = ranks.run(
        world_size, saved_under_context, overrides, DTYPES[dtype], tokens, folder=tmp_path
    )
    config = load(*overrides)
    bytes_each = DTYPES[dtype].itemsize
    w = activations.Widths(config, tokens, bytes_each, on_gpu=False, fused_experts=False)
    ours = activations.kept_by_layers(w, [True] * 3) + activations.kept_by_head(w, 1.0)
    ours += w.cp_tokens * 8 + activations.head_gradient(w, config.model.vocab_size)
    assert ours == pytest.approx(kept[-1], rel=0.02, abs=4096)
    assert max(kept) == kept[-1]


def test_offloaded_inputs_are_counted_on_the_host():
    """Of a row, each layer's input, [S, D] in fp32."""
    config = load("parallel.recompute=full", "parallel.offload=true")
    w = activations.Widths(config, 512, 4, on_gpu=False, fused_experts=False)
    assert activations.kept_on_host(w, 3) == 3 * 512 * 64 * 4
    assert activations.kept_on_host(activations.Widths(load(), 512, 4, False, False), 3) == 0
    [need] = memory.needs(config, 1, Workload(512, dtype=torch.float32))
    assert need.host == 3 * 512 * 64 * 4


def test_fused_experts_keep_what_the_planner_says(monkeypatch):
    """The kernels through Triton's interpreter, whose blocks are of 64 rows."""
    pytest.importorskip("triton")
    monkeypatch.setattr(activations, "EMPTY_ROWS", 63)
    config, tokens = load("experts.backend=triton", "model.num_hidden_layers=1"), 256
    w = activations.Widths(config, tokens, 4, on_gpu=False, fused_experts=True)
    ours = activations.kept_by_layers(w, [True]) + activations.kept_by_head(w, 1.0) + tokens * 8
    ours += activations.head_gradient(w, config.model.vocab_size)
    assert ours == pytest.approx(saved_bytes(config, torch.float32, tokens), rel=0.05)


@pytest.mark.parametrize(
    ("pp", "vpp", "stage", "rows", "expected"),
    [
        (1, 1, 0, 32, 1),
        (4, 1, 0, 32, 4),
        (4, 1, 3, 32, 1),
        (4, 1, 0, 2, 2),  # no more rows than there are
        (4, 2, 0, 32, 5.5),  # 6 + 4 + 1 chunks of half a stage
        (4, 2, 3, 32, 2.5),
        (2, 2, 0, 2, 2),
    ],
)
def test_rows_in_flight_by_hand(pp, vpp, stage, rows, expected):
    assert rows_in_flight(pp, vpp, stage, rows) == expected


def test_impossible_layouts_are_refused():
    with pytest.raises(ConfigError, match="world size 3 is not a multiple of parallel.tp"):
        memory.needs(load("parallel.tp=2"), 3, Workload(64))
