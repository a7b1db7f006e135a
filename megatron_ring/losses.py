"""Loss heads: from per-token log-probabilities to sums over units.

A head returns *sums*, one for each kind of unit it counts; the step divides each once by the number
of its units in the global batch, counted before the first backward. Gradients then do not depend on
packing, micro-batches or ranks. SFT counts supervised tokens; preference counts pairs, and tokens
of chosen answers for its nll term.

Letters: S tokens in a row · A documents in a row · P pairs · U kinds of units · C columns ·
G groups: the sources, then the domains.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ring.config import LossConfig, PreferenceConfig


class Loss(NamedTuple):
    sums_U: Tensor  # differentiable; one for each entry of `units`
    table: Tensor  # float64 [G, C] without gradient: sums under the head's `columns`


@dataclass(frozen=True)
class Documents:
    """What a head needs to know of a row's documents.

    In a row of pairs, document 2p is the chosen and 2p + 1 the rejected answer of pair p.
    """

    lengths: Tensor  # int64 [segments]; tokens of each document, then of the pieces of padding
    source_A: Tensor  # int64; which source a document comes from
    domain_A: Tensor  # int64; which domain of the taxonomy it is of, -1 for none
    scored_A2: Tensor  # float64; supervised tokens: all, and those in format spans
    format_S: Tensor  # bool; the label lies in a format span
    reference_A2: Tensor | None = None  # float64; the reference's Σ logp: all, in format spans


class Head(Protocol):
    columns: tuple[str, ...]
    groups: "Groups"

    def units(self, documents: Documents) -> list[int]:
        """How many units of each kind a row holds."""

    def __call__(self, logp_S: Tensor, documents: Documents) -> Loss:
        """The sums of one row; `logp_S` (float32) is 0 where nothing is supervised."""

    def report(self, table: Tensor) -> dict[str, float]:
        """What a log line says of a table summed over rows and ranks (on the CPU)."""


@dataclass(frozen=True)
class Groups:
    """Names of what a head reports apart: every document is of a source, and may be of a domain."""

    sources: list[str]
    domains: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.sources) + len(self.domains)

    def sum(self, rows: Tensor, source: Tensor, domain: Tensor) -> Tensor:
        """Rows [n, C] of float64 numbers summed by group: [G, C]."""
        member = F.one_hot(source, len(self.sources))
        if self.domains:
            of_domain = F.one_hot(domain + 1, 1 + len(self.domains))[:, 1:]
            member = torch.cat([member, of_domain], dim=1)
        return (member.to(rows.dtype).T @ rows).detach()

    def total(self, table: Tensor) -> Tensor:
        """Sums over all documents, [C]: every one has a source."""
        return table[: len(self.sources)].sum(0)

    def apart(self, table: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """Prefix, name and row of what a report tells apart; a single source is the whole."""
        rows = list(table)
        if len(self.sources) > 1:
            yield from (("", name, row) for name, row in zip(self.sources, rows, strict=False))
        of_domains = rows[len(self.sources) :]
        yield from (("domain_", n, row) for n, row in zip(self.domains, of_domains, strict=True))


def head(loss: LossConfig, sources: list[str], domains: Sequence[str] = ()) -> Head:
    """The head that the configuration asks for; names are those of the rows."""
    given = (sources, domains)
    return SFT(*given) if loss.head == "sft" else Preference(loss, *given)


def sum_documents(logp_S: Tensor, documents: Documents) -> Tensor:
    """Σ logp of each document, of all its tokens and of those in format spans: float64 [A, 2]."""
    both_S2 = torch.stack([logp_S, logp_S * documents.format_S], dim=1).double()
    # Not index_add: its sums on a GPU change their order from run to run.
    sums = torch.segment_reduce(both_S2, "sum", lengths=documents.lengths, axis=0, unsafe=True)
    return sums[: len(documents.source_A)]


class SFT:
    """Cross-entropy. Unit: one supervised token."""

    columns = ("nll", "supervised")

    def __init__(self, sources: list[str], domains: Sequence[str] = ()) -> None:
        self.groups = Groups(sources, domains)

    def units(self, documents: Documents) -> list[int]:
        return [int(documents.scored_A2[:, 0].sum())]

    def __call__(self, logp_S: Tensor, documents: Documents) -> Loss:
        nll_A = -sum_documents(logp_S.detach(), documents)[:, 0]
        rows_AC = torch.stack([nll_A, documents.scored_A2[:, 0]], dim=1)
        table = self.groups.sum(rows_AC, documents.source_A, documents.domain_A)
        return Loss(-logp_S.sum()[None], table)

    def report(self, table: Tensor) -> dict[str, float]:
        """Mean nll of all supervised tokens; with their number, of each source and domain."""
        nll, supervised = self.groups.total(table).tolist()
        line = {"loss": nll / max(supervised, 1), "supervised": supervised}
        for prefix, name, row in self.groups.apart(table):
            own, tokens = row.tolist()
            if tokens:
                line |= {f"{prefix}loss/{name}": own / tokens, f"{prefix}tokens/{name}": tokens}
        return line


class Preference:
    """Direct preference optimization and its relatives. Units: one pair; one chosen token.

    With m = (log π/π_ref)(chosen) - (log π/π_ref)(rejected), each a sum over an answer's scored
    tokens (their mean with `length_normalised`; only those in format spans with `format_only`):

    - sigmoid: -(1 - ε) log σ(β m) - ε log σ(-β m), ε = label_smoothing. ε = 0 is Rafailov et al.
      2023 (arXiv 2305.18290, eq. 7), ε > 0 is conservative DPO (Mitchell 2023).
    - ipo: (m - 1 / 2β)², Azar et al. 2023 (arXiv 2310.12036, eq. 17).

    Added to it, nll_coeff × the mean nll of the chosen answers' scored tokens (Pang et al. 2024,
    arXiv 2404.19733), a mean over the tokens of all pairs whose nll_coeff is not 0.
    """

    columns = (
        "pairs",
        "preference",  # the pair loss above
        "accuracy",  # margin > 0; a tie counts half
        "margin",  # β m
        "reward_chosen",  # β log π/π_ref
        "reward_rejected",
        "logp_chosen",  # of all answer tokens, whatever is scored
        "logp_rejected",
        "tokens_chosen",
        "tokens_rejected",
        "log_ratio",  # Σ log π/π_ref over both answers, all tokens
        "weight",  # Σ over scored tokens of |d pair loss / d logp|
        "format_weight",  # the part of it on tokens in format spans
        "nll",  # Σ over the tokens that carry the nll term
        "nll_weighted",  # the same, times nll_coeff
        "nll_tokens",
    )

    def __init__(self, loss: LossConfig, sources: list[str], domains: Sequence[str] = ()) -> None:
        self.groups = Groups(sources, domains)
        settings = [loss.sources.get(name, loss.preference) for name in sources]
        self._settings = torch.tensor([_numbers(one) for one in settings], dtype=torch.float64)

    def units(self, documents: Documents) -> list[int]:
        at = self._of_pairs(documents)
        return [len(at.beta_P), int(at.nll_tokens_P.sum())]

    def __call__(self, logp_S: Tensor, documents: Documents) -> Loss:
        at = self._of_pairs(documents)
        logp_A2 = sum_documents(logp_S, documents)
        scored_logp_A = _choose(logp_A2, at.format_A)
        ratio_P2 = self._log_ratios(logp_A2, documents, at)
        m_P = ratio_P2[:, 0] - ratio_P2[:, 1]
        scaled_P = at.beta_P * m_P
        sigmoid_P = -(1 - at.smoothing_P) * F.logsigmoid(scaled_P) - at.smoothing_P * F.logsigmoid(
            -scaled_P
        )
        loss_P = torch.where(at.ipo_P, (m_P - 0.5 / at.beta_P).square(), sigmoid_P)
        nll_P = -scored_logp_A.view(-1, 2)[:, 0] * (at.nll_P > 0)
        sums_U = torch.stack([loss_P.sum(), (at.nll_P * nll_P).sum()])
        with torch.no_grad():
            slope_P = torch.where(
                at.ipo_P,
                2 * (m_P - 0.5 / at.beta_P),
                -at.beta_P * (torch.sigmoid(-scaled_P) - at.smoothing_P),
            )
            rows_PC = self._row(documents, at, logp_A2, ratio_P2, loss_P, slope_P, nll_P)
        of_pairs = (documents.source_A[::2], documents.domain_A[::2])
        return Loss(sums_U, self.groups.sum(rows_PC, *of_pairs))

    def margins(self, logp_A2: Tensor, documents: Documents) -> Tensor:
        """β m of every pair of a row, float64 [P], from `sum_documents`."""
        at = self._of_pairs(documents)
        ratio_P2 = self._log_ratios(logp_A2, documents, at)
        return at.beta_P * (ratio_P2[:, 0] - ratio_P2[:, 1])

    def report(self, table: Tensor) -> dict[str, float]:
        """Means over pairs (nll, kl: over tokens), of all pairs, of each source and domain.

        `kl` estimates KL(reference ‖ policy) in nats a token, from answers that stand in the data:
        minus the mean log-ratio. `format_share` is the part of the pair loss's pull, the sum of
        |gradient| over scored tokens, that is on format spans.
        """
        line = self._means(self.groups.total(table))
        for prefix, name, row in self.groups.apart(table):
            if row[0]:
                own = self._means(row).items()
                line |= {f"{prefix}{key}/{name}": value for key, value in own}
        return line

    def _means(self, row: Tensor) -> dict[str, float]:
        of = dict(zip(self.columns, row.tolist(), strict=True))
        pairs = max(of["pairs"], 1)
        preference = of["preference"] / pairs
        line = {"loss": preference + of["nll_weighted"] / max(of["nll_tokens"], 1)}
        line["preference_loss"] = preference
        line |= {name: of[name] / pairs for name in self.columns[2:10]}
        line["kl"] = -of["log_ratio"] / max(of["tokens_chosen"] + of["tokens_rejected"], 1)
        if of["nll_tokens"]:
            line["nll_chosen"] = of["nll"] / of["nll_tokens"]
        line["format_share"] = of["format_weight"] / of["weight"] if of["weight"] else 0.0
        return line | {"pairs": of["pairs"]}

    def _of_pairs(self, documents: Documents) -> "_Settings":
        settings = self._settings.to(documents.source_A.device, non_blocking=True)
        table = settings[documents.source_A[::2]]
        beta_P, ipo_P, smoothing_P, mean_P, format_P, nll_P = table.unbind(1)
        format_A = format_P.bool().repeat_interleave(2)
        scored_A = _choose(documents.scored_A2, format_A)
        divisor_A = torch.where(mean_P.bool().repeat_interleave(2), scored_A.clamp(min=1), 1.0)
        nll_tokens_P = scored_A.view(-1, 2)[:, 0] * (nll_P > 0)
        return _Settings(
            beta_P, ipo_P.bool(), smoothing_P, format_A, divisor_A, scored_A, nll_P, nll_tokens_P
        )

    @staticmethod
    def _log_ratios(logp_A2: Tensor, documents: Documents, at: "_Settings") -> Tensor:
        """log π/π_ref over the scored tokens of both answers of each pair, [P, 2]."""
        ratio_A = _choose(logp_A2 - documents.reference_A2, at.format_A) / at.divisor_A
        return ratio_A.view(-1, 2)

    @staticmethod
    def _row(
        documents: Documents,
        at: "_Settings",
        logp_A2: Tensor,
        ratio_P2: Tensor,
        loss_P: Tensor,
        slope_P: Tensor,
        nll_P: Tensor,
    ) -> Tensor:
        """One row of `columns` for each pair, [P, C]."""
        reward_P2 = at.beta_P[:, None] * ratio_P2
        margin_P = reward_P2[:, 0] - reward_P2[:, 1]
        logp_P2 = logp_A2[:, 0].view(-1, 2)
        tokens_P2 = documents.scored_A2[:, 0].view(-1, 2)
        log_ratio_P2 = (logp_A2 - documents.reference_A2)[:, 0].view(-1, 2)
        # All scored tokens of an answer are pulled equally.
        pull_A = slope_P.abs().repeat_interleave(2) / at.divisor_A
        weight_A2 = pull_A[:, None] * torch.stack([at.scored_A, documents.scored_A2[:, 1]], 1)
        columns = [
            torch.ones_like(margin_P),
            loss_P,
            (margin_P > 0) + 0.5 * (margin_P == 0),
            margin_P,
            *reward_P2.T,
            *logp_P2.T,
            *tokens_P2.T,
            log_ratio_P2.sum(1),
            *weight_A2.view(-1, 2, 2).sum(1).T,
            nll_P,
            at.nll_P * nll_P,
            at.nll_tokens_P,
        ]
        return torch.stack(columns, dim=1)


class _Settings(NamedTuple):
    """The settings of each pair, by its source."""

    beta_P: Tensor
    ipo_P: Tensor  # bool
    smoothing_P: Tensor
    format_A: Tensor  # bool: only format spans are scored
    divisor_A: Tensor  # what a log-ratio is divided by: 1, or the scored tokens
    scored_A: Tensor  # scored tokens
    nll_P: Tensor  # coefficient
    nll_tokens_P: Tensor  # tokens that carry the nll term


def _numbers(config: PreferenceConfig) -> list[float]:
    """In the order in which `_of_pairs` takes them apart."""
    return [
        config.beta,
        config.kind == "ipo",
        config.label_smoothing,
        config.length_normalised,
        config.format_only,
        config.nll_coeff,
    ]


def _choose(both_A2: Tensor, format_A: Tensor) -> Tensor:
    """The second column where `format_A`, else the first."""
    return torch.where(format_A, both_A2[:, 1], both_A2[:, 0])
