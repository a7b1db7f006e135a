import math
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from megatron_ring.config import ModelConfig, read_hf_config
from megatron_ring.convert.ling import rules
from megatron_ring.convert.ops import inverse


def test_names_and_shapes_are_those_of_the_authors(golden: Path) -> None:
    with safe_open(golden / "model.safetensors", "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    table = inverse(rules(read_hf_config(golden)))
    assert {name: shape for name, (shape, _) in table.items()} == found


@pytest.mark.parametrize("changes", [{}, {"num_shared_experts": 0}, {"first_k_dense_replace": 1}])
def test_every_row_of_both_sides_is_used_once(
    make_config: Callable[..., ModelConfig], changes: dict[str, int]
) -> None:
    table = rules(make_config(**changes))
    for rule in table:
        row = 0
        for block in rule.blocks:
            assert block.row == row, rule.key
            row += block.rows
        rows = rule.shape[0] if len(rule.shape) == 1 else math.prod(rule.shape[:-1])
        assert row == rows, rule.key
    for name, (_, pieces) in inverse(table).items():
        row = 0
        for piece in pieces:
            assert piece.hf_row == row, name
            row += piece.rows
    parameters = sum(math.prod(rule.shape) for rule in table)
    assert parameters == sum(math.prod(shape) for shape, _ in inverse(table).values())


def test_the_released_model_has_its_published_size(make_config: Callable[..., ModelConfig]) -> None:
    """Ling-lite: 16.8B parameters in 5,603 tensors (3 + 28 layers of 200)."""
    config = make_config(
        vocab_size=126_464,
        hidden_size=2048,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=4,
        moe_intermediate_size=1408,
        num_experts=64,
        num_experts_per_tok=6,
        num_shared_experts=2,
    )
    table = inverse(rules(config))
    assert len(table) == 5_603
    assert round(sum(math.prod(shape) for shape, _ in table.values()) / 1e9, 3) == 16.802
    assert table["model.layers.27.attention.query_key_value.weight"][0] == (3072, 2048)


def test_leading_dense_layers_and_no_shared_experts(
    make_config: Callable[..., ModelConfig],
) -> None:
    table = rules(make_config(first_k_dense_replace=1, num_shared_experts=0))
    keys = {rule.key: rule.shape for rule in table if ".mlp." in rule.key}
    assert keys == {
        "decoder.layers.0.mlp.linear_fc1.weight": (40, 16),
        "decoder.layers.0.mlp.linear_fc2.weight": (16, 20),
        "decoder.layers.1.mlp.router.weight": (4, 16),
        "decoder.layers.1.mlp.experts.w1": (4, 12, 16),
        "decoder.layers.1.mlp.experts.w2": (4, 16, 6),
    }
