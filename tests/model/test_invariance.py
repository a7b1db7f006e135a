"""What must not matter does not: packing, micro-batches, ranks, padding, crowded experts."""

import numpy as np
import pytest
import torch

from megatron_ring.gradient_norms import part_of
from tests.model.layouts import GOLDEN, assert_same_gradients, measure, random_documents

TINY = [f"model.hf_config={GOLDEN / 'ling_lite_tiny'}", "model.initializer_range=0.05"]
NO_AUX = [
    "loss.aux_coeff=0",
    "loss.z_coeff=0.01",
]  # z is a mean over tokens: packing is nothing to it
DOCUMENTS = random_documents(16, vocab=384, seed=3)


def in_rows(documents, sizes):
    """Consecutive documents, sizes[i] of them in row i."""
    starts = np.cumsum([0, *sizes])
    assert starts[-1] == len(documents)
    return [documents[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """One process, one document a row."""
    rows = in_rows(DOCUMENTS, [1] * 16)
    return measure(1, TINY + NO_AUX, rows, 64, tmp_path_factory.mktemp("oracle"))


@pytest.mark.parametrize(
    ("world_size", "sizes", "row_tokens", "layout"),
    [
        (1, [16], 512, []),
        (1, [5, 3, 1, 7], 256, []),
        (2, [4, 4, 4, 4], 192, []),
        (2, [9, 7], 320, ["parallel.ep=2"]),
        (4, [4, 4, 4, 4], 192, []),
        (2, [4, 4, 4, 4], 192, ["parallel.ep=2", "parallel.overlap=true"]),
        (4, [1, 9, 2, 4], 320, ["parallel.ep=2", "parallel.tp=2"]),
        (4, [3, 5, 4, 4], 192, ["parallel.pp=2", "parallel.vpp=2", "parallel.ep=2"]),
        (2, [2] * 8, 128, ["parallel.pp=2", "parallel.vpp=2"]),  # more rows than stages
        (2, [2] * 8, 128, ["parallel.pp=2"]),
    ],
)
def test_gradients_do_not_depend_on_packing_micro_batches_or_ranks(
    world_size, sizes, row_tokens, layout, oracle, tmp_path
):
    rows = in_rows(DOCUMENTS, sizes)
    ours = measure(world_size, TINY + NO_AUX + layout, rows, row_tokens, tmp_path)
    assert ours["nll"] == pytest.approx(oracle["nll"], abs=1e-5)
    assert ours["grad_norm"] == pytest.approx(oracle["grad_norm"], rel=1e-5)
    assert_same_gradients(ours["gradients"], oracle["gradients"])
    squares = {}
    for name, gradient in oracle["gradients"].items():
        key = f"grad_norm/{part_of(name)}"
        squares[key] = squares.get(key, 0.0) + float(gradient.double().square().sum())
    said = {key: norm for key, norm in ours["norms"].items() if "/" in key}
    assert said == pytest.approx({key: square**0.5 for key, square in squares.items()}, rel=1e-5)
    assert len(said) == 7  # all but dense MLPs


def test_aux_loss_has_its_true_weight_on_every_layout(tmp_path):
    """The balance loss belongs to a row: rows stay, where they run and what is supervised varies.

    Oracle: the gradient is linear in aux_coeff, whatever share of the tokens is supervised.
    """
    rows = in_rows(DOCUMENTS, [4, 4, 4, 4])
    few = [
        [(t, np.arange(len(t)) == len(t) - 1 if i == 0 else np.zeros(len(t), bool)) for t, _ in row]
        for i, row in enumerate(rows)
    ]
    aux = {}
    for name, batch in (("many", rows), ("few", few)):
        with_aux, without = (
            measure(
                1, [*TINY, f"loss.aux_coeff={c}", "loss.z_coeff=0"], batch, 192, tmp_path / name / c
            )
            for c in ("0.5", "0")
        )
        aux[name] = {
            k: with_aux["gradients"][k] - without["gradients"][k] for k in with_aux["gradients"]
        }
    assert aux["many"]["decoder.layers.0.mlp.router.weight"].norm() > 1e-3
    assert_same_gradients(aux["many"], aux["few"], tolerance=1e-3)  # differences of larger numbers

    alone = measure(1, [*TINY, "loss.aux_coeff=0.5"], rows, 192, tmp_path / "alone")
    for world_size, layout in ((4, []), (4, ["parallel.tp=2", "parallel.ep=2"])):
        spread = measure(
            world_size, [*TINY, "loss.aux_coeff=0.5", *layout], rows, 192, tmp_path / str(layout)
        )
        assert_same_gradients(spread["gradients"], alone["gradients"])
        torch.testing.assert_close(spread["router"], alone["router"], rtol=1e-6, atol=1e-6)


def test_a_rank_without_targets_is_no_nan(tmp_path):
    rows = in_rows(DOCUMENTS[:8], [4, 4])
    rows[1] = [(tokens, np.zeros(len(tokens), bool)) for tokens, _ in rows[1]]
    alone = measure(1, TINY + NO_AUX, rows, 192, tmp_path / "alone")
    split = measure(2, TINY + NO_AUX, rows, 192, tmp_path / "split")
    assert split["nll"] == pytest.approx(alone["nll"], abs=1e-6)
    assert_same_gradients(split["gradients"], alone["gradients"])


def test_a_step_of_padding_alone_changes_nothing(tmp_path):
    """A whole row of padding beside a real one: same loss, gradient, balance and load."""
    rows = in_rows(DOCUMENTS[:4], [4])
    alone = measure(1, [*TINY, "loss.aux_coeff=0.5"], rows, 192, tmp_path / "alone")
    padded = measure(2, [*TINY, "loss.aux_coeff=0.5"], [*rows, []], 192, tmp_path / "padded")
    assert_same_gradients(padded["gradients"], alone["gradients"])
    torch.testing.assert_close(padded["router"], alone["router"])


def test_padding_changes_neither_balance_nor_load(tmp_path):
    rows = in_rows(DOCUMENTS, [16])
    tight, loose = (
        measure(1, [*TINY, "loss.aux_coeff=0.5"], rows, size, tmp_path / str(size))
        for size in (384, 512)
    )
    tokens = sum(len(tokens) for tokens, _ in DOCUMENTS)
    assert tight["router"][:, :-3].sum(1).tolist() == [3 * tokens] * 3  # K = 3 experts a token
    torch.testing.assert_close(tight["router"], loose["router"])
    assert_same_gradients(tight["gradients"], loose["gradients"])


def test_a_packed_document_has_the_logits_it_has_alone(oracle, tmp_path):
    packed = measure(1, TINY + NO_AUX, in_rows(DOCUMENTS, [16]), 512, tmp_path)
    start = 0
    for i, (tokens, _) in enumerate(DOCUMENTS):
        ours = packed["logits"][0][start : start + len(tokens)]
        torch.testing.assert_close(ours, oracle["logits"][i][: len(tokens)], atol=1e-5, rtol=0)
        start += len(tokens)


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_tokens_to_one_expert(world_size, tmp_path):
    """Seven of eight experts, and under ep = 2 a whole rank, have no token at all."""
    rows = in_rows(DOCUMENTS[:4], [2, 2])
    options = [*TINY, "model.num_experts_per_tok=1"]
    pinned = torch.zeros(128, 1, dtype=torch.int64)
    loop = measure(1, [*options, "experts.backend=loop"], rows, 128, tmp_path / "loop", pinned)
    ours = measure(
        world_size, [*options, f"parallel.ep={world_size}"], rows, 128, tmp_path / "ours", pinned
    )
    assert_same_gradients(ours["gradients"], loop["gradients"])
    w1 = ours["gradients"]["decoder.layers.1.mlp.experts.w1"]
    assert w1[0].norm() > 0
    assert not w1[1:].any()


def test_a_dense_leading_layer(tmp_path):
    """first_k_dense_replace: layer 0 is a plain MLP; TP and EP give one process's gradient."""
    options = [*TINY, "model.first_k_dense_replace=1"]
    rows = in_rows(DOCUMENTS[:8], [4, 4])
    alone = measure(1, options, rows, 192, tmp_path / "alone")
    assert "decoder.layers.0.mlp.linear_fc1.weight" in alone["gradients"]
    spread = measure(
        4, [*options, "parallel.tp=2", "parallel.ep=2"], rows, 192, tmp_path / "spread"
    )
    assert_same_gradients(spread["gradients"], alone["gradients"])


def test_recomputed_layers_count_their_tokens_once(tmp_path):
    rows = in_rows(DOCUMENTS[:8], [4, 4])
    kept = measure(1, TINY, rows, 192, tmp_path / "kept")
    again = ["parallel.recompute=full"]
    for name, options in (("again", again), ("host", [*again, "parallel.offload=true"])):
        ours = measure(1, [*TINY, *options], rows, 192, tmp_path / name)
        torch.testing.assert_close(ours["router"], kept["router"])
        assert_same_gradients(ours["gradients"], kept["gradients"])
