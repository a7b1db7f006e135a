"""Parity with the authors' own implementation (tests/golden/SOURCE.txt) on every layout."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

from megatron_ring import config as configuration
from megatron_ring.convert import ling, reference
from megatron_ring.convert.ops import inverse
from megatron_ring.convert.sources import HFFolder
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
    "cp2": (2, ["parallel.cp=2"]),
    "cp2 tp2 ep2, recompute": (
        4,
        [f"parallel.{key}=2" for key in ("cp", "tp", "ep")] + ["parallel.recompute=full"],
    ),
    "tp2 pp2": (4, ["parallel.tp=2", "parallel.pp=2"]),
    "tp2 ep2 pp2, interleaved, recompute": (
        4,
        [f"parallel.{key}=2" for key in ("tp", "ep", "pp", "vpp")] + ["parallel.recompute=full"],
    ),
}


NAMES = ["ling_lite_tiny", "ling_lite_1_5_tiny"]
# Triton's interpreter is slow: one model on one rank; tests/model/test_experts.py has two ranks.
FAST = ("ling_lite_1_5_tiny", "alone, triton")
CASES = [
    pytest.param(*case, marks=pytest.mark.slow if "triton" in case[1] and case != FAST else ())
    for case in itertools.product(NAMES, LAYOUTS)
]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_logits_loss_and_gradients_are_the_authors(name, layout, tmp_path):
    world_size, overrides = LAYOUTS[layout]
    if "triton" in layout:
        pytest.importorskip("triton")
    golden = load_file(GOLDEN / name / "reference.safetensors")
    documents = [
        (tokens.int().numpy(), (labels != -100).numpy())
        for tokens, labels in zip(golden["input_ids"], golden["labels"], strict=True)
    ]
    start = [f"model.hf_config={GOLDEN / name}", f"run.init_from={GOLDEN / name}"]
    plain = ["loss.aux_coeff=0", "loss.z_coeff=0"]
    ours = measure(
        world_size, start + plain + overrides, [[d] for d in documents], 64, tmp_path / "ranks"
    )

    length = golden["input_ids"].shape[1]
    for i in range(2):
        logits = ours["logits"][i][:length]
        torch.testing.assert_close(logits, golden["logits"][i], atol=1e-4, rtol=0)
        nll = -ours["logp"][i][: length - 1]
        torch.testing.assert_close(nll, golden["token_nll"][i], atol=1e-4, rtol=0)
    assert abs(ours["nll"] - golden["loss"].item()) < 1e-5
    assert ours["grad_norm"] == pytest.approx(golden["grad_norm"].item(), rel=1e-4)
    for hf_name, gradient in hf_gradients(name, ours["gradients"]).items():
        if f"grad.{hf_name}" in golden:
            expected = golden[f"grad.{hf_name}"]
            error = (gradient - expected).norm() / expected.norm()
            assert error < 1e-3, f"{hf_name}: relative error {error:.2e}"


@pytest.mark.parametrize("layout", ["alone", "tp2", "pp2"])
def test_beyond_the_original_length_yarn_is_the_references(layout, tmp_path):
    """200 tokens, where 64 are said to be all that the model has learnt from."""
    folder = GOLDEN / "ling_lite_1_5_tiny"
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    plain = configuration.read_hf_config(folder)
    c = plain.model_copy(update={"rope_scaling": configuration.RopeScaling(**scaling)})
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 380, (n,), generator=generator) for n in (200, 40)]
    row = [(tokens.int().numpy(), (tokens >= 0).numpy()) for tokens in documents]
    world_size, overrides = LAYOUTS[layout]
    start = [f"model.hf_config={folder}", f"run.init_from={folder}", "loss.aux_coeff=0"]
    text = ", ".join(f"{key}: {value}" for key, value in scaling.items())
    yarn = f"model.rope_scaling={{{text}}}"
    ours = measure(world_size, [*start, *overrides, yarn], [row, row], 240, tmp_path)

    tokens_S, read = torch.cat(documents), HFFolder(folder).read
    hidden = reference.hidden_states(read, c, tokens_S, [0, 200, 240])
    expected = reference.logits(read, c, hidden.hidden_SD)
    torch.testing.assert_close(ours["logits"][0], expected, atol=1e-4, rtol=0)
    hidden = reference.hidden_states(read, plain, tokens_S, [0, 200, 240])
    without = reference.logits(read, plain, hidden.hidden_SD)
    assert (without - expected).abs().max() > 0.1


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
