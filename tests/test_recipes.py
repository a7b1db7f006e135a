"""The recipes of the three stages load on every model and layout, with the reports' numbers."""

from pathlib import Path

import pytest

from megatron_ring import config
from megatron_ring.config import Config, PackConfig

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = ("sft_stage1", "sft_stage2", "dpo")
PACKED = {"sft_stage1": "sft_stage1", "sft_stage2": "sft_stage2", "dpo": "preference"}
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
LAYOUTS = [None, *sorted(path.stem for path in (CONFIGS / "parallel").glob("*.yaml"))]


def load(stage: str, model: str = "ling_lite", layout: str | None = None) -> Config:
    files = [f"model/{model}", stage, *([f"parallel/{layout}"] if layout else [])]
    return config.load(Config, [str(CONFIGS / f"{name}.yaml") for name in files], [])


def pack(stage: str) -> PackConfig:
    return config.load(PackConfig, [str(CONFIGS / "data" / f"{PACKED[stage]}.yaml")], [])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_layout_changes_nothing_of_the_recipe(stage: str, model: str, layout: str | None) -> None:
    with_layout, alone = load(stage, model, layout), load(stage, model)
    for part in ("model", "data", "loss", "optim", "run"):
        assert getattr(with_layout, part) == getattr(alone, part)


@pytest.mark.parametrize(
    ("stage", "lr", "batch", "epochs", "warmup"),
    [
        ("sft_stage1", 4e-5, 256, None, 100),  # epochs: not stated
        ("sft_stage2", 1e-5, 128, 2, 100),
        ("dpo", 3e-7, None, 2, None),  # batch: pairs there, rows here
    ],
)
def test_the_numbers_of_the_reports(
    stage: str, lr: float, batch: int | None, epochs: int | None, warmup: int | None
) -> None:
    """Ring-Lite-Distill; what it leaves open from Ling-Coder-Lite and the Ling report."""
    recipe, packing = load(stage), pack(stage)
    assert recipe.optim.lr == lr
    assert recipe.optim.schedule == "cosine"
    assert (recipe.optim.beta1, recipe.optim.beta2) == (0.9, 0.95)
    assert (recipe.optim.weight_decay, recipe.optim.clip_norm) == (0.1, 1.0)
    assert batch in (None, recipe.data.rows_per_step)
    assert warmup in (None, recipe.optim.warmup_steps)
    assert epochs in (None, packing.epochs)
    assert recipe.spikes.action == "skip"
    assert packing.row_tokens == 16_384 <= recipe.model.max_position_embeddings


def test_preference_of_the_reports() -> None:
    loss = load("dpo").loss
    assert (loss.head, loss.preference.kind) == ("dpo", "sigmoid")
    assert (loss.preference.beta, loss.preference.nll_coeff) == (0.1, 0.05)
    assert not loss.preference.format_only and loss.sources["structure"].format_only
    assert loss.sources["structure"].nll_coeff == 0.05


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_on_what_was_packed_for_it(stage: str) -> None:
    recipe, packing = load(stage), pack(stage)
    assert recipe.data.train == packing.output
    assert (recipe.loss.head == "dpo") == (packing.kind == "pairs")
    assert set(recipe.loss.sources) <= {source.name for source in packing.sources}


def test_each_stage_starts_from_the_one_before_it() -> None:
    before = ["checkpoints/ling-lite", *(load(stage).run.dir for stage in STAGES)]
    assert [load(stage).run.init_from for stage in STAGES] == before[:-1]
