"""Loss heads against a plain float64 implementation from logits, and by hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from megatron_ring.config import LossConfig
from megatron_ring.losses import SFT, Documents, Preference, head, sum_documents

VOCAB = 11
LENGTHS = [5, 7, 3, 6, 8, 4]  # three pairs, then two pieces of padding
PADDING = [2, 3]
SOURCES = ["general", "structure"]
SOURCE_OF_PAIR = [0, 1, 0]


def random_row(seed=0):
    """Logits [S, V], labels, supervised and format flags, and the reference's log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(LENGTHS) + sum(PADDING)
    logits = torch.randn(size, VOCAB, dtype=torch.float64, generator=generator)
    reference = torch.randn(size, VOCAB, dtype=torch.float64, generator=generator)
    labels = torch.randint(VOCAB, (size,), generator=generator)
    mask = torch.rand(size, generator=generator) < 0.7
    mask[sum(LENGTHS) :] = False
    for start in starts():
        mask[start : start + 2] = True
    form = mask & (torch.rand(size, generator=generator) < 0.4)
    for start in starts():
        form[start] = True
    return logits, reference, labels, mask, form


def starts():
    return [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]


def logp_of(logits, labels, mask):
    return logits.log_softmax(-1).gather(1, labels[:, None])[:, 0] * mask


def documents(mask, form, reference_logp, sources=SOURCE_OF_PAIR, domains=(-1, -1, -1)):
    spans = [slice(s, s + n) for s, n in zip(starts(), LENGTHS, strict=True)]
    both = torch.stack([mask, form], 1).double()
    reference = torch.stack([reference_logp, reference_logp * form], 1)
    return Documents(
        lengths=torch.tensor(LENGTHS + PADDING),
        source_A=torch.tensor(sources).repeat_interleave(2),
        domain_A=torch.tensor(domains).repeat_interleave(2),
        scored_A2=torch.stack([both[span].sum(0) for span in spans]),
        format_S=form,
        reference_A2=torch.stack([reference[span].sum(0) for span in spans]),
    )


def plain(logits, reference, labels, mask, form, settings_of_pair):
    """Σ pair losses and Σ weighted nll, written answer by answer, and the numbers of units."""
    pair_sum, nll_sum, nll_tokens = 0.0, 0.0, 0
    for p, s in enumerate(settings_of_pair):
        ratios = []
        for a in (2 * p, 2 * p + 1):
            span = slice(starts()[a], starts()[a] + LENGTHS[a])
            keep = (form if s.format_only else mask)[span]
            ours = logits[span].log_softmax(-1).gather(1, labels[span, None])[:, 0][keep]
            theirs = reference[span].log_softmax(-1).gather(1, labels[span, None])[:, 0][keep]
            ratio = ours.sum() - theirs.sum()
            ratios.append(ratio / keep.sum() if s.length_normalised else ratio)
            if a % 2 == 0 and s.nll_coeff:
                nll_sum = nll_sum - s.nll_coeff * ours.sum()
                nll_tokens += int(keep.sum())
        margin = ratios[0] - ratios[1]
        if s.kind == "ipo":
            pair_sum = pair_sum + (margin - 1 / (2 * s.beta)) ** 2
        else:
            right, wrong = torch.sigmoid(s.beta * margin), torch.sigmoid(-s.beta * margin)
            e = s.label_smoothing
            pair_sum = pair_sum - (1 - e) * right.log() - e * wrong.log()
    return pair_sum, nll_sum, [len(settings_of_pair), nll_tokens]


@pytest.mark.parametrize(
    "loss",
    [
        {"preference": {"nll_coeff": 0.0}},
        {"preference": {"beta": 0.5}},
        {"preference": {"label_smoothing": 0.2, "beta": 0.3}},
        {"preference": {"kind": "ipo", "beta": 0.7, "nll_coeff": 0.3}},
        {"preference": {"length_normalised": True, "beta": 2.0}},
        {"preference": {"format_only": True, "nll_coeff": 0.1}},
        {"preference": {"kind": "ipo", "length_normalised": True, "format_only": True}},
        {
            "preference": {"beta": 0.2},
            "sources": {"structure": {"format_only": True, "beta": 0.9, "nll_coeff": 0.0}},
        },
        {
            "preference": {"kind": "ipo", "nll_coeff": 0.0},
            "sources": {"structure": {"kind": "sigmoid", "label_smoothing": 0.1, "nll_coeff": 1}},
        },
    ],
    ids=lambda loss: str(loss).replace("'", "")[1:-1],
)
def test_preference_losses_and_gradients_equal_a_plain_implementation(loss):
    """Oracle: float64 PyTorch from the logits, one answer at a time."""
    config = LossConfig(head="dpo", **loss)
    logits, reference, labels, mask, form = random_row()
    logits.requires_grad_()
    settings = [config.sources.get(SOURCES[s], config.preference) for s in SOURCE_OF_PAIR]
    ours = Preference(config, SOURCES)
    row = documents(mask, form, logp_of(reference, labels, mask))

    sums = ours(logp_of(logits, labels, mask), row).sums_U
    pair_sum, nll_sum, units = plain(logits, reference, labels, mask, form, settings)

    assert ours.units(row) == units
    torch.testing.assert_close(sums[0], pair_sum)
    torch.testing.assert_close(sums[1], torch.as_tensor(nll_sum, dtype=torch.float64))
    whole = sums[0] / units[0] + sums[1] / max(units[1], 1)
    oracle = pair_sum / units[0] + nll_sum / max(units[1], 1)
    (gradient,) = torch.autograd.grad(whole, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(oracle, logits)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().max() > 1e-3


def by_hand():
    """Two pairs, tokens of log-probability -1 but for the chosen answers'; reference -1 a token.

    Pair 0: chosen 3 tokens (1 in a format span) at -0.5, rejected 2 (1 in a span). Pair 1: chosen 2
    tokens (1 in a span) at -1.5, rejected 1 (in a span).
    """
    lengths = [3, 2, 2, 1]
    logp = torch.tensor([-0.5] * 3 + [-1.0] * 2 + [-1.5] * 2 + [-1.0])
    form = torch.tensor([1, 0, 0, 0, 1, 1, 0, 1]).bool()
    scored = torch.tensor([[3.0, 1], [2, 1], [2, 1], [1, 1]], dtype=torch.float64)
    return logp, Documents(
        lengths=torch.tensor(lengths),
        source_A=torch.tensor([0, 0, 1, 1]),
        domain_A=torch.tensor([-1] * 4),
        scored_A2=scored,
        format_S=form,
        reference_A2=-scored,
    )


def test_preference_by_hand():
    """Log-ratios: +1.5 and 0, -1 and 0 over all tokens; +0.5 and 0, -0.5 and 0 in format spans."""
    logp, row = by_hand()
    loss = LossConfig(preference={"beta": 2.0}, sources={"structure": {"format_only": True}})
    ours = Preference(loss, SOURCES)
    sums, table = ours(logp, row)
    # margins: 2 · 1.5 = 3 and 2 · -0.5 = -1
    assert ours.margins(sum_documents(logp, row), row).tolist() == [3.0, -1.0]
    assert float(sums[0]) == pytest.approx(math.log1p(math.exp(-3)) + math.log1p(math.exp(1)))
    # nll of the chosen: 3 tokens of 0.5, and of the second only the one in a span, 1.5
    assert ours.units(row) == [2, 4]
    assert float(sums[1]) == pytest.approx(0.05 * (1.5 + 1.5))
    said = ours.report(table)
    assert said["pairs"] == 2
    assert said["accuracy"] == 0.5
    assert (said["margin"], said["margin/general"], said["margin/structure"]) == (1.0, 3.0, -1.0)
    assert (said["reward_chosen/general"], said["reward_rejected/general"]) == (3.0, 0.0)
    assert said["reward_chosen/structure"] == -1.0
    assert (said["logp_chosen/general"], said["logp_rejected/structure"]) == (-1.5, -1.0)
    assert (said["tokens_chosen"], said["tokens_rejected"]) == (2.5, 1.5)
    assert said["kl"] == pytest.approx(-(1.5 - 1.0) / 8)
    assert said["nll_chosen"] == pytest.approx(3.0 / 4)
    # pull of a token: β σ(-margin); pair 0 has 2 of 5 tokens in spans, pair 1 scores only spans
    first, second = 2 / (1 + math.exp(3)), 2 / (1 + math.exp(-1))
    assert said["format_share/general"] == pytest.approx(2 / 5)
    assert said["format_share/structure"] == 1.0
    share = (2 * first + 2 * second) / (5 * first + 2 * second)
    assert said["format_share"] == pytest.approx(share)
    assert said["loss"] == pytest.approx(float(sums[0]) / 2 + float(sums[1]) / 4)


def test_answers_without_the_nll_term_are_not_in_its_mean():
    """Only pair 0 carries it: three chosen tokens of 0.5 nats."""
    logp, row = by_hand()
    loss = LossConfig(sources={"structure": {"nll_coeff": 0}})
    ours = Preference(loss, SOURCES)
    assert ours.units(row) == [2, 3]
    assert ours.report(ours(logp, row).table)["nll_chosen"] == pytest.approx(0.5)


def test_the_pull_is_the_gradient():
    """Oracle: autograd's gradient of the pair loss on every token's log-probability."""
    logits, reference, labels, mask, form = random_row()
    row = documents(mask, form, logp_of(reference, labels, mask))
    for settings in ({"label_smoothing": 0.1}, {"kind": "ipo", "length_normalised": True}):
        ours = Preference(LossConfig(preference=settings), SOURCES)
        logp = logp_of(logits, labels, mask).requires_grad_()
        sums, table = ours(logp, row)
        (pull,) = torch.autograd.grad(sums[0], logp)
        pull = pull.abs() * mask
        share = float((pull * form).sum() / pull.sum())
        assert ours.report(table)["format_share"] == pytest.approx(share)


def test_policy_equal_to_reference_costs_ln_2():
    logits, _, labels, mask, form = random_row()
    logp = logp_of(logits, labels, mask)
    ours = Preference(LossConfig(preference={"nll_coeff": 0.0}), SOURCES)
    said = ours.report(ours(logp, documents(mask, form, logp)).table)
    assert said["loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert (said["margin"], said["kl"]) == (pytest.approx(0, abs=1e-12),) * 2


def test_a_row_without_pairs_is_nothing_and_can_still_be_differentiated():
    """A rank whose rows are all padding takes part in the backward."""
    logp = torch.zeros(6, requires_grad=True)
    empty = Documents(
        lengths=torch.tensor([4, 2]),
        source_A=torch.zeros(0, dtype=torch.int64),
        domain_A=torch.zeros(0, dtype=torch.int64),
        scored_A2=torch.zeros(0, 2, dtype=torch.float64),
        format_S=torch.zeros(6, dtype=torch.bool),
        reference_A2=torch.zeros(0, 2, dtype=torch.float64),
    )
    for ours in (Preference(LossConfig(), SOURCES), SFT(SOURCES)):
        assert not any(ours.units(empty))
        sums, table = ours(logp, empty)
        torch.autograd.grad(sums.sum(), logp)
        assert sums.abs().sum() == table.abs().sum() == 0
        assert all(math.isfinite(value) for value in ours.report(table).values())


def test_sft_is_cross_entropy_on_supervised_tokens_and_knows_the_sources():
    """Oracle: torch's cross-entropy over the supervised positions, of all and of each source."""
    logits, _, labels, mask, form = random_row()
    row = documents(mask, form, torch.zeros(len(mask)))
    ours = head(LossConfig(), SOURCES)
    sums, table = ours(logp_of(logits, labels, mask), row)
    assert ours.units(row) == [int(mask.sum())]
    torch.testing.assert_close(
        sums[0], F.cross_entropy(logits[mask], labels[mask], reduction="sum")
    )
    said = ours.report(table)
    for name, pairs in (("loss/general", [0, 2]), ("loss/structure", [1])):
        own = torch.zeros_like(mask)
        for p in pairs:
            start = starts()[2 * p]
            own[start : start + LENGTHS[2 * p] + LENGTHS[2 * p + 1]] = True
        expected = F.cross_entropy(logits[mask & own], labels[mask & own])
        assert said[name] == pytest.approx(float(expected))


def test_one_source_is_not_listed_twice():
    logp, row = by_hand()
    row = replace(row, source_A=row.source_A * 0)
    for ours in (SFT(["only"]), Preference(LossConfig(), ["only"])):
        assert not any("/" in name for name in ours.report(ours(logp, row).table))


def test_domains_are_reported_beside_the_sources():
    """Pairs of (0, maths), (1, code), (0, none); oracle: sums over the tokens chosen here."""
    logits, reference, labels, mask, form = random_row()
    row = documents(mask, form, torch.zeros(len(mask)), domains=[0, 1, -1])
    logp = logp_of(logits, labels, mask)
    ours = SFT(SOURCES, ["maths", "code", "physics"])
    said = ours.report(ours(logp, row).table)
    spans = [
        slice(starts()[2 * p], starts()[2 * p] + sum(LENGTHS[2 * p : 2 * p + 2])) for p in (0, 1)
    ]
    for name, span in zip(("maths", "code"), spans, strict=True):
        tokens = int(mask[span].sum())
        assert said[f"domain_tokens/{name}"] == tokens
        assert said[f"domain_loss/{name}"] == pytest.approx(float(-logp[span].sum() / tokens))
    assert said["tokens/structure"] == said["domain_tokens/code"]
    assert not any("physics" in key for key in said)  # nothing of it in the batch
    assert (
        said["supervised"] == int(mask.sum()) == said["tokens/general"] + said["tokens/structure"]
    )
    assert said["loss"] == pytest.approx(float(-logp.sum() / mask.sum()))

    pairs = Preference(LossConfig(), SOURCES, ["maths", "code", "physics"])
    told = pairs.report(pairs(logp, row).table)
    assert told["domain_pairs/maths"] == 1 and told["pairs"] == 3
    assert told["domain_loss/code"] == pytest.approx(told["loss/structure"])
