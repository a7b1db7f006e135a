"""Checkpoints that training saved on several ranks export like imported ones."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_ring import checkpoint, losses, optim, parallel, platform, step
from megatron_ring import config as configuration
from megatron_ring.config import Config
from megatron_ring.convert.folder import read_hf_json
from megatron_ring.convert.sources import HFFolder
from megatron_ring.convert.torch_dist import TorchDistReader
from megatron_ring.convert.transfer import export_checkpoint
from megatron_ring.data.rows import make_row
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages
from tests import ranks


def save_after_a_step_of_length_zero(overrides: list[str]) -> None:
    """Load, make one update at learning rate 0 (Adam's state now exists), save."""
    config = configuration.load(Config, [], overrides)
    device = platform.prepare()
    with parallel.process_groups(config.parallel, device, seed=1):
        stages = build_stages(config, torch.float32, device)
        weights.load_first(config, stages)
        models = optim.wrap(stages, config.parallel)
        optimizer = optim.build_optimizer(models, config.optim, torch.float32)
        tokens = np.arange(20, dtype=np.int32)
        row = make_row([(tokens, np.ones(20, dtype=bool))], 32, pad_id=0)
        step.train_step(models, optimizer, [row], 0.0, losses.SFT(["all"]))
        rows = SimpleNamespace(fingerprint="none", folder=Path(config.run.dir) / "rows")
        (rows.folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        if parallel.is_first_rank():
            checkpoint.keep_origin(config)
        checkpoint.save(config, stages, optimizer, checkpoint.Progress(1), rows)


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (1, []),
        (2, ["parallel.tp=2", "parallel.ep=2"]),
        (2, ["parallel.pp=2"]),
    ],
    ids=["alone", "tp2 ep2", "pp2"],
)
def test_any_layout_exports_bit_for_bit(
    ling_lite_tiny: Path, tmp_path: Path, world_size: int, layout: list[str]
) -> None:
    start = [f"model.hf_config={ling_lite_tiny}", f"run.init_from={ling_lite_tiny}"]
    overrides = [*start, f"run.dir={tmp_path}", *layout]
    ranks.run(world_size, save_after_a_step_of_length_zero, overrides, folder=tmp_path / "ranks")
    saved = tmp_path / "checkpoints/step-00000001"
    keys = TorchDistReader(saved).keys()
    assert any(key.startswith("optimizer.") for key in keys), sorted(keys)[-3:]
    done = export_checkpoint(saved, tmp_path / "out")
    assert done.tensors == 99
    found, original = HFFolder(tmp_path / "out"), HFFolder(ling_lite_tiny)
    for name in original.tensors:
        assert torch.equal(found.read(name), original.read(name)), name
    expected = read_hf_json(ling_lite_tiny)
    del expected["auto_map"]  # the folder it came from has no code, so there is none to name
    assert read_hf_json(tmp_path / "out") == expected
