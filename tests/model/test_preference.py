"""Preference: packing, micro-batches and ranks do not matter, and sums are the authors'."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.model.layouts import GOLDEN, Answer, assert_same_gradients, measure, random_pairs

DPO = [
    f"model.hf_config={GOLDEN / 'ling_lite_tiny'}",
    "model.initializer_range=0.05",
    "loss.head=dpo",
    "loss.preference.beta=0.5",
    "loss.sources.second={format_only: true, kind: ipo, nll_coeff: 0.5}",
    "loss.aux_coeff=0",
    "loss.z_coeff=0.01",  # a mean over tokens: packing and the number of pairs are nothing to it
]


PAIRS = random_pairs(8, seed=5)


def in_rows(sizes):
    """Consecutive pairs, sizes[i] of them in row i."""
    starts = np.cumsum([0, *sizes])
    assert starts[-1] == len(PAIRS)
    return [sum(PAIRS[a:b], []) for a, b in zip(starts[:-1], starts[1:], strict=True)]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """One process, one pair a row."""
    return measure(1, DPO, in_rows([1] * 8), 64, tmp_path_factory.mktemp("oracle"))


@pytest.mark.parametrize(
    ("world_size", "sizes", "row_tokens", "layout"),
    [
        (1, [8], 512, []),
        (1, [1, 4, 3], 256, []),
        (2, [5, 3], 256, []),
        (2, [8, 0], 320, []),  # a rank without pairs
        (2, [2, 2, 2, 2], 128, ["parallel.ep=2"]),
        (2, [3, 5], 256, ["parallel.tp=2"]),
        (2, [2, 3, 2, 1], 192, ["parallel.pp=2"]),
        (4, [2, 2, 3, 1], 192, ["parallel.ep=2", "parallel.tp=2"]),
        (4, [2, 2, 0, 4], 256, ["parallel.pp=2", "parallel.vpp=2", "parallel.ep=2"]),
    ],
)
def test_losses_and_gradients_do_not_depend_on_packing_micro_batches_or_ranks(
    world_size, sizes, row_tokens, layout, oracle, tmp_path
):
    ours = measure(world_size, DPO + layout, in_rows(sizes), row_tokens, tmp_path)
    assert ours["report"] == pytest.approx(oracle["report"], abs=2e-5, rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(oracle["grad_norm"], rel=1e-5)
    assert_same_gradients(ours["gradients"], oracle["gradients"])
    packed = torch.cat([ours["sums"][row] for row in sorted(ours["sums"])])
    apart = torch.cat([oracle["sums"][row] for row in range(8)])
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=0)


def test_the_oracle_is_dpo(oracle):
    """By hand in float64, from the logits of each pair alone."""
    pair_sum = nll_sum = nll_tokens = 0.0
    for row, pair in enumerate(PAIRS):
        logp_S = oracle["logits"][row].double().log_softmax(-1)
        ratio, at = [], 0
        for side, answer in enumerate(pair):
            keep = answer.format if answer.source else answer.targets
            places = [t for t in range(1, len(keep)) if keep[t]]
            own = sum(float(logp_S[at + t - 1, answer.tokens[t]]) for t in places)
            ratio.append(own - answer.reference[answer.source])
            if side == 0:
                nll_sum -= own * (0.5 if answer.source else 0.05)
                nll_tokens += len(places)
            at += len(answer.tokens)
        margin = ratio[0] - ratio[1]
        is_ipo = pair[0].source == 1
        pair_sum += (margin - 1) ** 2 if is_ipo else np.log1p(np.exp(-0.5 * margin))
    assert oracle["nll"] == pytest.approx(pair_sum / 8 + nll_sum / nll_tokens, abs=2e-5)


@pytest.mark.parametrize("name", ["ling_lite_tiny", "ling_lite_1_5_tiny"])
@pytest.mark.parametrize(("world_size", "layout"), [(1, []), (2, ["parallel.tp=2"])])
def test_answers_have_the_authors_log_probabilities(name, world_size, layout, tmp_path):
    """Oracle: token losses of the authors' implementation, both documents packed as one pair."""
    golden = load_file(GOLDEN / name / "reference.safetensors")
    pair, halves = [], []
    for tokens, labels, nll in zip(
        golden["input_ids"], golden["labels"], golden["token_nll"], strict=True
    ):
        targets = (labels != -100).numpy()
        form = targets & (np.arange(len(targets)) % 3 == 0)
        pair.append(Answer(tokens.int().numpy(), targets, form, (0.0, 0.0), 0))
        halves.append([-float(nll.sum()), -float(nll[torch.from_numpy(form[1:])].sum())])
    start = [f"model.hf_config={GOLDEN / name}", f"run.init_from={GOLDEN / name}"]
    row_tokens = -(-sum(len(answer.tokens) for answer in pair) // 8) * 8
    ours = measure(world_size, [*start, "loss.head=dpo", *layout], [pair], row_tokens, tmp_path)
    torch.testing.assert_close(ours["sums"][0].tolist(), halves, atol=2e-4, rtol=0)
    assert min(abs(x) for both in halves for x in both) > 1


def test_aux_loss_has_its_true_weight_whatever_the_number_of_pairs(tmp_path):
    """Oracle: what aux_coeff adds to the gradient of SFT over the same rows."""
    rows = in_rows([3, 5])
    settings = {
        "dpo": DPO,
        "one source": [*DPO, "loss.preference.nll_coeff=0"],
        "sft": [option for option in DPO if not option.startswith("loss.")],
    }
    added = {}
    for name, options in settings.items():
        with_aux, without = (
            measure(1, [*options, f"loss.aux_coeff={c}", "loss.z_coeff=0"], rows, 256, tmp_path / c)
            for c in ("0.5", "0")
        )
        # The norm is of the real step, which sets the weight itself.
        whole = torch.cat([g.double().flatten() for g in with_aux["gradients"].values()]).norm()
        assert with_aux["grad_norm"] == pytest.approx(float(whole), rel=1e-5)
        added[name] = {
            key: gradient - without["gradients"][key]
            for key, gradient in with_aux["gradients"].items()
        }
    assert added["sft"]["decoder.layers.0.mlp.router.weight"].norm() > 1e-3
    for name in ("dpo", "one source"):
        assert_same_gradients(added[name], added["sft"], tolerance=1e-3)
