"""Bytes that context parallelism sends, against those of real collectives."""

import pytest
import torch

from megatron_ring import config as configuration
from megatron_ring import losses, optim, parallel, platform, step
from megatron_ring.config import Config
from megatron_ring.model import context, weights
from megatron_ring.model.ling import build_stages
from megatron_ring.planner import traffic
from megatron_ring.planner.activations import Widths
from tests import ranks
from tests.model.layouts import GOLDEN, lay, random_documents

TOKENS = 128


def load(*overrides):
    tiny = f"model.hf_config={GOLDEN / 'ling_lite_tiny'}"
    return configuration.load(Config, [], [tiny, *overrides])


class Counted:
    """torch.distributed with a count of what this rank receives."""

    def __init__(self, real):
        self.real, self.received = real, 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def all_gather_into_tensor(self, output, own, group, **options):
        self.received += (output.numel() - own.numel()) * own.element_size()
        return self.real.all_gather_into_tensor(output, own, group=group, **options)

    def reduce_scatter_tensor(self, own, summed, group, **options):
        self.received += (summed.numel() - own.numel()) * own.element_size()
        return self.real.reduce_scatter_tensor(own, summed, group=group, **options)


def count(overrides, dtype):
    """Layers of this rank, whether it is a last stage, bytes a row of a real step."""
    config = load(*overrides, "data.rows_per_step=2")
    device = platform.prepare()
    with parallel.process_groups(config.parallel, device, seed=1):
        stages = build_stages(config, dtype, device)
        weights.load_first(config, stages)
        models = optim.wrap(stages, config.parallel)
        rows = [lay(random_documents(3, 384, seed=s), TOKENS) for s in range(2)]
        head = losses.SFT(["all"])
        context.dist = Counted(context.dist)
        step.accumulate(models, rows, head, step.Counts.of(rows, head))
        layers = sum(len(stage.decoder.layers) for stage in stages)
        return layers, parallel.is_last_stage(), context.dist.received / len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (2, ["parallel.cp=2"]),
        (4, ["parallel.cp=4"]),
        (2, ["parallel.cp=2", "parallel.recompute=full"]),
        (4, ["parallel.cp=2", "parallel.tp=2"]),
        (4, ["parallel.cp=2", "parallel.pp=2"]),
    ],
)
def test_bytes_are_those_of_the_collectives(world_size, overrides, dtype, tmp_path):
    w = Widths(load(*overrides), TOKENS, dtype.itemsize, on_gpu=False, fused_experts=False)
    counted = ranks.run(world_size, count, overrides, dtype, folder=tmp_path)
    for layers, last, received in counted:
        assert traffic.of_context(w, layers, last) == received > 0


def test_one_rank_receives_nothing():
    w = Widths(load(), TOKENS, 4, on_gpu=False, fused_experts=False)
    assert traffic.of_context(w, 28, True) == 0


def test_ling_lite_by_hand():
    """128K tokens on 8 ranks: keys and values of 4 heads of 128 in bf16 are 2 KiB a token."""
    lite = configuration.load(
        Config, ["configs/model/ling_lite.yaml"], ["parallel.cp=8", "parallel.recompute=full"]
    )
    w = Widths(lite, 131072, 2, on_gpu=True, fused_experts=True)
    assert traffic.of_context(w, 28, False) == 28 * 3 * (131072 * 2048) * 7 // 8
