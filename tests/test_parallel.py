"""Which layouts are refused, in which words; and what the groups of one that is accepted say."""

import pytest
import torch

from megatron_ring import config, parallel, platform
from megatron_ring.config import Config, ConfigError, ParallelConfig
from tests import ranks
from tests.model.layouts import GOLDEN

TINY = f"model.hf_config={GOLDEN / 'ling_lite_tiny'}"  # 2 KV heads, 8 experts, 3 layers, V = 384


def load(*overrides):
    return config.load(Config, [], [TINY, *overrides])


@pytest.mark.parametrize(
    ("world_size", "overrides", "dp"),
    [
        (1, [], 1),
        (8, [], 8),
        (8, ["parallel.tp=2"], 4),
        (8, ["parallel.tp=2", "parallel.pp=2", "parallel.ep=4"], 2),  # ep over tp × dp
        (4, ["parallel.pp=2", "parallel.vpp=2"], 2),  # 4 chunks of 3 layers: the last, the head
        (8, ["parallel.ep=8"], 8),
        (8, ["parallel.cp=4", "parallel.ep=8"], 2),  # ep over cp × dp
        (16, ["parallel.tp=2", "parallel.cp=2", "parallel.pp=2", "parallel.ep=8"], 2),
    ],
)
def test_the_data_parallel_size_is_what_is_left(world_size, overrides, dp):
    assert parallel.check_layout(load(*overrides), world_size, row_tokens=128) == dp


@pytest.mark.parametrize(
    ("world_size", "overrides", "message"),
    [
        (
            6,
            ["parallel.tp=2", "parallel.pp=2"],
            "world size 6 is not a multiple of parallel.tp × pp × cp = 2 × 2 × 1 = 4; launch 4 "
            "ranks or lower one",
        ),
        (
            1,
            ["parallel.tp=2"],
            "world size 1 is not a multiple of parallel.tp × pp × cp = 2 × 1 × 1 = 2; launch 2 "
            "ranks or lower one",
        ),
        (
            2,
            ["parallel.cp=2"],
            "rows of 129 tokens cannot be split over parallel.cp=2 (two chunks a rank); pack with "
            "a row_tokens that is a multiple of 4",
        ),
        (
            4,
            ["parallel.cp=2", "parallel.tp=2"],
            "rows of 129 tokens cannot be split over parallel.tp=2 (sequence parallelism) and "
            "parallel.cp=2 (two chunks a rank); pack with a row_tokens that is a multiple of 8",
        ),
        (
            1,
            ["parallel.offload=true"],
            "parallel.offload=true moves the inputs of recomputed layers to host memory; set "
            "parallel.recompute=full with it",
        ),
        (
            8,
            ["parallel.pp=2", "parallel.ep=8"],
            "parallel.ep=8 does not divide the 4 ranks of a pipeline stage (world size 8 / pp 2); "
            "experts are spread over tp × cp × dp and never split",
        ),
        (
            3,
            ["parallel.ep=3", "data.rows_per_step=3"],
            "model.num_experts=8 is not a multiple of parallel.ep=3",
        ),
        (4, ["parallel.tp=4"], "model.num_key_value_heads=2 is not a multiple of parallel.tp=4"),
        (
            2,
            ["parallel.tp=2", "model.vocab_size=385"],
            "model.vocab_size=385 is not a multiple of parallel.tp=2",
        ),
        (
            2,
            ["parallel.tp=2", "model.num_shared_experts=1", "model.moe_intermediate_size=47"],
            "model.num_shared_experts × moe_intermediate_size=47 is not a multiple of "
            "parallel.tp=2",
        ),
        (
            2,
            ["parallel.tp=2", "model.first_k_dense_replace=1", "model.intermediate_size=97"],
            "model.intermediate_size=97 is not a multiple of parallel.tp=2",
        ),
        (
            3,
            [],
            "data.rows_per_step=8 is not a multiple of the data-parallel size 3 (world size 3 / "
            "1); try 9",
        ),
        (
            16,
            ["parallel.pp=2", "data.rows_per_step=3"],
            "data.rows_per_step=3 is not a multiple of the data-parallel size 8 (world size 16 / "
            "2); try 8",
        ),
        (
            8,
            ["parallel.pp=2", "parallel.vpp=2", "data.rows_per_step=12"],
            "parallel.vpp=2 needs the rows of a rank and step, 3, to be a multiple of "
            "parallel.pp=2; change data.rows_per_step=12",
        ),
        (
            1,
            ["parallel.vpp=2"],
            "parallel.vpp=2 interleaves pipeline stages; it needs pp > 1",
        ),
        (
            6,
            ["parallel.pp=6"],
            "model.num_hidden_layers=3 are too few for parallel.pp × vpp = 6 × 1 = 6 model chunks",
        ),
        (
            4,
            ["parallel.pp=2", "parallel.vpp=3"],
            "model.num_hidden_layers=3 are too few for parallel.pp × vpp = 2 × 3 = 6 model chunks",
        ),
        (
            2,
            ["parallel.tp=2"],
            "rows of 129 tokens cannot be split over parallel.tp=2 (sequence parallelism); pack "
            "with a row_tokens that is a multiple of 2",
        ),
    ],
)
def test_contradictions_are_named_with_both_numbers(world_size, overrides, message):
    with pytest.raises(ConfigError) as error:
        parallel.check_layout(load(*overrides), world_size, row_tokens=129)
    assert str(error.value) == message


def test_a_width_that_no_layer_has_is_not_checked():
    """intermediate_size without dense layers; row_tokens before any row is known."""
    layout = ["parallel.tp=2", "model.intermediate_size=97"]
    assert parallel.check_layout(load(*layout), 2) == 1


def test_world_size_comes_from_the_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("RANK", "1")
    assert (parallel.world_size(), parallel.is_first_rank()) == (6, False)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert (parallel.world_size(), parallel.is_first_rank()) == (1, True)


def who_and_sums(layout):
    """What this rank is, and the sums of 10^rank over each kind of group."""
    with parallel.process_groups(layout, platform.prepare(), seed=7):
        own = 10.0 ** torch.distributed.get_rank()
        return {
            "data": (parallel.data_rank(), parallel.data_size()),
            "replicas": parallel.replicas(),
            "last": parallel.is_last_stage(),
            "over_data": parallel.sum_over_data([own, 2.0]),
            "over_stages": parallel.sum_over_stages_and_data(torch.tensor([own])).tolist(),
            "over_all": parallel.sum_over_model_and_data(torch.tensor([own])).tolist(),
            "words": parallel.describe(),
            "random": torch.rand(1).item(),
        }


def test_groups_of_tp2_pp2(tmp_path):
    """megatron-core's order: tensor fastest, then data, then pipeline; dp is 1 here."""
    got = ranks.run(4, who_and_sums, ParallelConfig(tp=2, pp=2, ep=2), folder=tmp_path)
    for rank, r in enumerate(got):
        assert r["data"] == (0, 1)
        assert r["last"] == (rank >= 2)
        assert r["over_data"] == [10.0**rank, 2.0]
        assert r["over_stages"] == [10.0 ** (rank % 2) + 10.0 ** (2 + rank % 2)]
        assert r["over_all"] == [1111.0]
        assert r["words"] == "tp 2 pp 2 cp 1 ep 2 dp 1"
        assert r["random"] == got[0]["random"]


def test_groups_of_tp2_dp2(tmp_path):
    got = ranks.run(4, who_and_sums, ParallelConfig(tp=2, ep=4), folder=tmp_path)
    for rank, r in enumerate(got):
        assert r["data"] == (rank // 2, 2)
        assert r["last"]
        assert r["over_data"] == [10.0 ** (rank % 2) + 10.0 ** (rank % 2 + 2), 4.0]
        assert r["over_stages"] == [10.0 ** (rank % 2) + 10.0 ** (rank % 2 + 2)]
        assert r["words"] == "tp 2 pp 1 cp 1 ep 4 dp 2"


def test_groups_of_cp2_dp2(tmp_path):
    """megatron-core's order: tensor, context, data. What is summed over data is equal on cp."""
    got = ranks.run(4, who_and_sums, ParallelConfig(cp=2, ep=4), folder=tmp_path)
    for rank, r in enumerate(got):
        assert r["data"] == (rank // 2, 2)
        assert r["replicas"] == 4
        assert r["over_data"] == [10.0 ** (rank % 2) + 10.0 ** (rank % 2 + 2), 4.0]
        assert r["over_all"] == [1111.0]
        assert r["words"] == "tp 1 pp 1 cp 2 ep 4 dp 2"


def test_one_process_needs_no_launcher_and_leaves_no_group():
    got = who_and_sums(ParallelConfig())
    assert got["words"] == "tp 1 pp 1 cp 1 ep 1 dp 1"
    assert (got["over_data"], got["over_stages"], got["over_all"]) == ([1.0, 2.0], [1.0], [1.0])
    assert not torch.distributed.is_initialized()
    again = who_and_sums(ParallelConfig())
    assert again["random"] == got["random"]
