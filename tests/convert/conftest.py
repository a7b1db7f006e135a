"""Small Hugging Face folders to convert."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_ring.config import ModelConfig
from megatron_ring.convert.synthetic import write_random_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=["ling_lite_tiny", "ling_lite_1_5_tiny"])
def golden(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


@pytest.fixture
def ling_lite_tiny() -> Path:
    return GOLDEN / "ling_lite_tiny"


@pytest.fixture
def make_config() -> Callable[..., ModelConfig]:
    def make(**changes: object) -> ModelConfig:
        small = dict(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=20,
            moe_intermediate_size=6,
            num_experts=4,
            num_experts_per_tok=2,
            num_shared_experts=1,
            norm_topk_prob=True,
            norm_head=True,
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            max_position_embeddings=64,
            initializer_range=0.1,
        )
        return ModelConfig(**(small | changes))

    return make


@pytest.fixture
def make_folder(tmp_path: Path, make_config: Callable[..., ModelConfig]) -> Callable[..., Path]:
    def make(dtype: torch.dtype = torch.float32, **changes: object) -> Path:
        folder = tmp_path / "hf"
        write_random_model(folder, make_config(**changes), dtype)
        return folder

    return make
