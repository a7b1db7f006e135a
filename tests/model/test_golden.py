"""Parity with the authors' own implementation (tests/golden/SOURCE.txt) on every layout."""

import pytest
import torch
from safetensors.torch import load_file

from megatron_ring import config as configuration
from megatron_ring.convert import ling
from megatron_ring.convert.ops import inverse
from tests.model.layouts import GOLDEN, measure

LAYOUTS = {
    "alone": (1, []),
    "alone, recompute": (1, ["parallel.recompute=full"]),
    "alone, loop": (1, ["experts.backend=loop"]),
    "alone, triton": (1, ["experts.backend=triton"]),  # in its interpreter
    "tp2": (2, ["parallel.tp=2"]),
    "ep2": (2, ["parallel.ep=2"]),
    "ep2, triton": (2, ["parallel.ep=2", "experts.backend=triton"]),
    "ep2, allgather": (2, ["parallel.ep=2", "experts.dispatcher=allgather"]),
    "ep2, allgather, triton": (
        2,
        ["parallel.ep=2", "experts.dispatcher=allgather", "experts.backend=triton"],
    ),
    "ep2 tp2, allgather": (
        2,
        ["parallel.ep=2", "parallel.tp=2", "experts.dispatcher=allgather"],
    ),
    "pp2": (2, ["parallel.pp=2"]),
    "pp2, interleaved, recompute": (
        2,
        ["parallel.pp=2", "parallel.vpp=2", "parallel.recompute=full"],
    ),
    "ep2 pp2": (4, ["parallel.ep=2", "parallel.pp=2"]),
    "ep2 tp2": (2, ["parallel.ep=2", "parallel.tp=2"]),
    "ep2 tp2, recompute": (2, ["parallel.ep=2", "parallel.tp=2", "parallel.recompute=full"]),
    "tp2 dp2": (4, ["parallel.tp=2", "parallel.ep=2"]),
    "tp2 pp2": (4, ["parallel.tp=2", "parallel.pp=2"]),
    "tp2 ep2 pp2, interleaved, recompute": (
        4,
        [f"parallel.{key}=2" for key in ("tp", "ep", "pp", "vpp")] + ["parallel.recompute=full"],
    ),
}


@pytest.mark.parametrize("name", ["ling_lite_tiny", "ling_lite_1_5_tiny"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_loss_and_gradients_are_the_authors(name, layout, tmp_path):
    world_size, overrides = LAYOUTS[layout]
    if "triton" in layout:
        pytest.importorskip("triton")
    reference = load_file(GOLDEN / name / "reference.safetensors")
    documents = [
        (tokens.int().numpy(), (labels != -100).numpy())
        for tokens, labels in zip(reference["input_ids"], reference["labels"], strict=True)
    ]
    start = [f"model.hf_config={GOLDEN / name}", f"run.init_from={GOLDEN / name}"]
    plain = ["loss.aux_coeff=0", "loss.z_coeff=0"]
    ours = measure(
        world_size, start + plain + overrides, [[d] for d in documents], 64, tmp_path / "ranks"
    )

    length = reference["input_ids"].shape[1]
    for i in range(2):
        logits = ours["logits"][i][:length]
        torch.testing.assert_close(logits, reference["logits"][i], atol=1e-4, rtol=0)
        nll = -ours["logp"][i][: length - 1]
        torch.testing.assert_close(nll, reference["token_nll"][i], atol=1e-4, rtol=0)
    assert abs(ours["nll"] - reference["loss"].item()) < 1e-5
    assert ours["grad_norm"] == pytest.approx(reference["grad_norm"].item(), rel=1e-4)
    for hf_name, gradient in hf_gradients(name, ours["gradients"]).items():
        if f"grad.{hf_name}" in reference:
            expected = reference[f"grad.{hf_name}"]
            error = (gradient - expected).norm() / expected.norm()
            assert error < 1e-3, f"{hf_name}: relative error {error:.2e}"


def hf_gradients(name, gradients):
    """Our global gradients under Hugging Face names; gradients convert as weights do."""
    rules = ling.rules(configuration.read_hf_config(GOLDEN / name))
    out = {}
    for hf_name, (shape, pieces) in inverse(rules).items():
        out[hf_name] = torch.zeros(shape)
        for piece in pieces:
            rows = gradients[piece.key].reshape(-1, *gradients[piece.key].shape[-1:])
            if len(shape) == 1:
                rows = gradients[piece.key]
            out[hf_name][piece.hf_row : piece.hf_row + piece.rows] = rows[
                piece.row : piece.row + piece.rows
            ]
    return out
