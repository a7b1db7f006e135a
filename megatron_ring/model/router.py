"""The router: fp32 softmax top-k, load balancing that ignores padding, and exact loss weights.

Letters: T tokens on this rank (S / (cp · tp) under context and sequence parallelism) · D hidden ·
E experts · K experts a token.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_ring.kernels.device import fused_backend
from megatron_ring.kernels.router import Routed, route
from megatron_ring.model import context


@dataclass
class RouterStats:
    """Sums over the real (unpadded) tokens this rank has routed since the last `reset`."""

    counts_E: Tensor | None = None  # int64 [E]: visits to each expert
    aux: Tensor | float = 0.0  # Σ over rows of row tokens × load-balancing loss
    z: Tensor | float = 0.0  # Σ over tokens of logsumexp²
    entropy: Tensor | float = 0.0  # Σ over tokens of the entropy of the softmax, in nats

    def add(self, counts_E: Tensor, aux: Tensor, z: Tensor, entropy: Tensor) -> None:
        self.counts_E = counts_E if self.counts_E is None else self.counts_E + counts_E
        self.aux, self.z, self.entropy = self.aux + aux, self.z + z, self.entropy + entropy

    def reset(self) -> None:
        self.counts_E, self.aux, self.z, self.entropy = None, 0.0, 0.0, 0.0


@dataclass
class RouterLoss:
    """How much a token's aux and z loss weigh in this step; one object for all layers.

    The step sets `per_token` = dp · cp / real tokens of the global batch (megatron-core's DDP
    divides gradients by dp · cp), so the loss is nll + aux_coeff · aux + z_coeff · z with each a
    mean over real tokens, whatever is supervised and however rows fall to ranks. megatron-core's
    own scale divides by micro-batches, or multiplies by tokens it later expects to be divided by.
    """

    aux_coeff: float
    z_coeff: float
    per_token: float = 0.0
    pinned: dict[int, Tensor] = field(default_factory=dict)  # layer (from 1) -> experts [S, K]
    # When a dict, each forward appends its layer's choices, [T, K].
    record: dict[int, list[Tensor]] | None = None


class _AddGradient(torch.autograd.Function):
    """Returns its first argument; in the backward the second, a scalar loss, gets gradient 1."""

    @staticmethod
    def forward(ctx: Any, through: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss.detach()
        return through.view_as(through)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.ones_like(ctx.like)


class LingRouter(TopKRouter):
    """softmax → top-K → renormalise, with losses and statistics over real tokens only.

    Same function as Hugging Face's gate of `bailing_moe`; the balance loss is Switch Transformer's
    (arXiv 2101.03961, eq. 4): E/K · Σ_e f_e P_e with f over one row, as in megatron-core.
    """

    loss: RouterLoss  # set by the model after construction
    stats: RouterStats
    normalise: bool

    def choose(self, hidden: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[T, 1, D], padding [T, 1] -> float32 probabilities and int64 experts, [T, K]."""
        return self._route(self.gating(hidden), padding_mask)

    def routing(
        self, logits: Tensor, padding_mask: Tensor | None = None, **_: object
    ) -> tuple[Tensor, Tensor]:
        """[T, 1, E] logits, padding [T, 1] (True = padding) -> probabilities and map, [T, E].

        What megatron-core's dispatchers ask for. DeepEP's takes the largest probabilities instead
        of the map: padding, all zeros, then goes wherever ties are broken.
        """
        prob_TK, experts_TK = self._route(logits, padding_mask)
        none_TE = prob_TK.new_zeros(len(prob_TK), self.num_experts)
        map_TE = none_TE.bool().scatter_(1, experts_TK, True)
        return none_TE.scatter(1, experts_TK, prob_TK), map_TE

    def _route(self, logits: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        logits_TE = logits.view(-1, self.num_experts).float()
        padding_T = (
            padding_mask.reshape(-1)
            if padding_mask is not None
            else torch.zeros(len(logits_TE), dtype=torch.bool, device=logits.device)
        )
        how = (self.topk, self.normalise, self._pinned(logits.device))
        routed = route(logits_TE, padding_T, *how, fused_backend(logits.device))
        if self.loss.record is not None:
            self.loss.record.setdefault(self.layer_number, []).append(routed.experts_TK)
        prob_TK = routed.prob_TK
        if self.training and torch.is_grad_enabled():  # once, also when layers are recomputed
            prob_TK = self._add_losses(routed, padding_T)
        return prob_TK, routed.experts_TK

    def _pinned(self, device: torch.device) -> Tensor | None:
        if self.layer_number not in self.loss.pinned:
            return None
        experts_TK = self.loss.pinned[self.layer_number].to(device)
        experts_TK = context.own(experts_TK, self.cp_group)
        return experts_TK.chunk(self.tp_group.size())[self.tp_group.rank()]

    def _add_losses(self, routed: Routed, padding_T: Tensor) -> Tensor:
        tokens = (~padding_T).float().sum()
        row = torch.cat([routed.counts_E, tokens[None]])
        if self.tp_cp_group.size() > 1:  # a row's tokens are split over them
            dist.all_reduce(row, group=self.tp_cp_group)
        # Row tokens × E/K Σ_e f_e P_e, this rank's tokens of it: P_e is a mean over the row, so
        # multiplied by the row's tokens it is a sum and needs no differentiable reduction.
        share_E = row[:-1] / (row[-1].clamp(min=1) * self.topk)
        aux = self.num_experts * (share_E * routed.scores_E).sum()
        sums = (aux.detach(), routed.z.detach(), routed.entropy)
        self.stats.add(routed.counts_E.long(), *sums)
        weighted = self.loss.aux_coeff * aux + self.loss.z_coeff * routed.z
        return _AddGradient.apply(routed.prob_TK, weighted * self.loss.per_token)
