"""The reference policy of preference training: its scores, made once, and the check at the start.

Letters: S tokens in a row · A answers in a row · L layers · K experts a token · T tokens of a rank.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from megatron_ring import parallel, step
from megatron_ring.config import Config, ConfigError
from megatron_ring.data.reference import About, Partial, Reference
from megatron_ring.data.rows import Row, Rows
from megatron_ring.losses import Preference, sum_documents
from megatron_ring.model import weights
from megatron_ring.model.ling import LingModel
from megatron_ring.platform import dtype_name

Choices = dict[int, list[Tensor]]  # layer (from 1) -> for each row, the experts chosen [T, K]


def score_rows(
    models: list[Any], stages: list[LingModel], rows: list[Row]
) -> tuple[list[Tensor], Choices]:
    """Σ logp of every answer ([A, 2] a row; none before the last stage), and this rank's routing.

    `models` are the stages, or DDP around them; they run as they are, in train or eval mode.
    """
    record: Choices = {}
    for stage in stages:
        stage.router_loss.record = record
    sums = [
        sum_documents(logp_S, step.documents_of(row, logp_S.device))
        for row, logp_S in zip(rows, step.score(models, rows), strict=False)
    ]
    for stage in stages:
        stage.router_loss.record = None
    return sums, record


def describe(
    config: Config, stages: list[LingModel], rows: Rows, model: str, routing_rows: int
) -> About:
    """What scores of `rows` by these weights are to be known by."""
    m = config.model
    kept = min(routing_rows, rows.num_rows)
    return About(
        weights=weights.fingerprint(stages),
        model=model,
        dtype=dtype_name(config.run.dtype),
        packed=rows.fingerprint,
        routing=(kept, m.num_hidden_layers, rows.row_tokens, m.num_experts_per_tok),
    )


def make(
    stages: list[LingModel],
    rows: Rows,
    about: About,
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda steps, total: steps,
) -> None:
    """Score every answer that the plan shows, once, and put the scores beside the rows.

    Runs on every rank; rank 0 writes. `progress` wraps the steps.
    """
    rank, size = parallel.data_rank(), parallel.data_size()
    plan: list[Any] = [None]
    partial = None
    if dist.get_rank() == 0:
        partial = Partial(rows, about)
        plan = [partial.missing()]
    dist.broadcast_object_list(plan, src=0)
    [numbers] = plan
    # Every rank runs as many rows at a time as the pipeline has stages.
    width = size * parallel.pipeline_size()
    starts = range(0, len(numbers), width)
    for start in progress(starts, len(starts)):
        batch = numbers[start : start + width]
        batch = batch + [None] * (width - len(batch))
        mine = [(n, rows.empty_row() if n is None else rows.row(n)) for n in batch[rank::size]]
        sums, choices = score_rows(stages, stages, [row for _, row in mine])
        own = _pieces([n for n, _ in mine], sums, choices, stages, about)
        everyone: list[Any] = [None] * dist.get_world_size() if partial else None
        dist.gather_object(own, everyone, dst=0)
        if partial is not None:
            _keep(partial, everyone)
    if partial is not None:
        partial.finish()


def _pieces(
    numbers: list[int | None],
    sums: list[Tensor],
    choices: Choices,
    stages: list[LingModel],
    about: About,
) -> tuple[dict, list]:
    """What this rank knows: scores by row, and routing as (row, layer, places, experts)."""
    scores = {n: s.cpu().numpy() for n, s in zip(numbers, sums, strict=False) if n is not None}
    routing_rows, _, row_tokens, _ = about.routing
    routing = [
        (n, layer - 1, _places(stages, row_tokens), experts_TK.cpu().numpy().astype(np.uint16))
        for layer, of_rows in choices.items()
        for n, experts_TK in zip(numbers, of_rows, strict=True)
        if n is not None and n < routing_rows
    ]
    return scores, routing


def _places(stages: list[LingModel], row_tokens: int) -> np.ndarray:
    """Where in a row this rank's tokens lie, in their order here: the rest are on other ranks."""
    return stages[0].own_tokens(torch.arange(row_tokens)).numpy()


def _keep(partial: Partial, everyone: list[tuple[dict, list]]) -> None:
    routing: dict[int, np.ndarray] = {}
    for _, pieces in everyone:
        for row, layer, places, experts_TK in pieces:
            whole = routing.setdefault(row, np.zeros(partial.about.routing[1:], np.uint16))
            whole[layer, places] = experts_TK
    scores = {row: found for known, _ in everyone for row, found in known.items()}
    for row, found in scores.items():
        partial.add(row, found, routing.get(row))


@dataclass(frozen=True)
class AtStart:
    """How the policy compares with the reference before the first update."""

    loss: float  # mean of -log σ(β m) over the pairs of the first step
    largest_margin: float  # |β m|, nats
    pairs: int
    flip_rate: float | None  # share of the experts chosen that the reference did not choose

    def __str__(self) -> str:
        flips = "unknown" if self.flip_rate is None else f"{self.flip_rate:.3%} of expert choices"
        return (
            f"policy against reference on the first {self.pairs} pairs: loss {self.loss:.6f} "
            f"(ln 2 = {math.log(2):.6f}), largest margin {self.largest_margin:.2g}, "
            f"routing flips {flips}"
        )


def check(
    config: Config, models: list[Any], stages: list[LingModel], rows: Rows, head: Preference
) -> AtStart:
    """Before the first update: are these the weights that made the scores, and do they give them?

    ConfigError, with the likely causes, when not.
    """
    reference = Reference.open(Rows.open(rows.folder))
    check_weights(config, stages, reference)
    return compare(config, models, stages, rows, head, reference)


def check_dtype(config: Config, about: About) -> None:
    """ConfigError when the run computes in another number format than the scores were made in."""
    here = dtype_name(config.run.dtype)
    if about.dtype != here:
        raise ConfigError(
            f"the reference scores were made in {about.dtype}, this run computes in {here}; score "
            f"again with run.dtype={here}"
        )


def check_weights(config: Config, stages: list[LingModel], reference: Reference) -> None:
    """ConfigError when the weights loaded are not those that made the scores."""
    about = reference.about
    check_dtype(config, about)
    own = weights.fingerprint(stages)
    if own != about.weights:
        raise ConfigError(
            f"the reference scores were made by {about.model} (weights {about.weights}), but "
            f"run.init_from={config.run.init_from} has weights {own}; start from the former, or "
            f"score again: tools/score_reference.py {config.run.init_from} {config.data.train}"
        )


def compare(
    config: Config,
    models: list[Any],
    stages: list[LingModel],
    rows: Rows,
    head: Preference,
    reference: Reference,
) -> AtStart:
    """Compare policy and reference on the rows of step 0, as they will be trained on.

    ConfigError with the likely causes when the loss is not ln 2 within loss.reference_tolerance.
    """
    rank, size = parallel.data_rank(), parallel.data_size()
    mine = rows.at_step(0, config.data.rows_per_step, rank, size)
    sums, choices = score_rows(models, stages, mine)
    total, largest, pairs = 0.0, 0.0, 0
    for row, logp_A2 in zip(mine, sums, strict=False):
        margins_P = head.margins(logp_A2, step.documents_of(row, logp_A2.device))
        total += float(-F.logsigmoid(margins_P).sum())
        pairs += len(margins_P)
        largest = max([largest, *margins_P.abs().tolist()])
    numbers = [rank + i * size for i in range(len(mine))]
    flips, chosen = _flips(numbers, mine, choices, reference.routing, stages)
    table = torch.tensor([[total, pairs]], device=torch.cuda.current_device(), dtype=torch.float64)
    [[total, pairs]] = parallel.sum_over_stages_and_data(table).tolist()
    flips, chosen = parallel.sum_over_all([flips, chosen])
    found = AtStart(
        loss=total / max(pairs, 1),
        largest_margin=parallel.largest(largest),
        pairs=int(pairs),
        flip_rate=flips / chosen if chosen else None,
    )
    # Not "difference > tolerance": a loss that is no number must not pass.
    if pairs and not abs(found.loss - math.log(2)) <= config.loss.reference_tolerance:
        raise ConfigError(_explain(found, config, reference.about))
    return found


def _flips(
    numbers: list[int],
    rows: list[Row],
    choices: Choices,
    routing: np.ndarray,
    stages: list[LingModel],
) -> tuple[int, int]:
    """Expert choices of this rank's real tokens: those the reference did not make, and all."""
    flips = chosen = 0
    for layer, of_rows in choices.items():
        for number, row, experts_TK in zip(numbers, rows, of_rows, strict=True):
            if number >= len(routing):
                continue
            places = _places(stages, len(row.tokens_S))
            real = places < row.num_tokens
            ours = experts_TK.cpu().numpy()[real]
            theirs = routing[number, layer - 1, places[real]]
            shared = (ours[:, :, None] == theirs[:, None, :]).any(axis=2).sum()
            flips += ours.size - int(shared)
            chosen += ours.size
    return flips, chosen


def _explain(found: AtStart, config: Config, about: About) -> str:
    return (
        f"the policy is not the reference: {found}.\n"
        f"|loss - ln 2| = {abs(found.loss - math.log(2)):.2g} is more than "
        f"loss.reference_tolerance={config.loss.reference_tolerance:g}, although weights, rows and "
        f"dtype ({about.dtype}) are the ones that were scored. What is left:\n"
        "- routing flips (above): another layout, kernel or device rounds differently and sends "
        "tokens to other experts; score again on the layout and hardware that train\n"
        "- dropout or another random part that is on in training and off in scoring\n"
        "- another version of this program, whose model computes something else\n"
        "- damaged scores: remove the folder `reference` beside the rows and score again\n"
        "If the flips are the cause and are few, raise loss.reference_tolerance."
    )
