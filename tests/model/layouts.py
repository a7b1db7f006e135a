"""Loss, gradients and log-probabilities of a model on any layout, as global tensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    ShardedTensorFactory,
    apply_factories,
)

from megatron_ring import config as configuration
from megatron_ring import losses, metrics, optim, parallel, platform, reference, step
from megatron_ring.config import Config
from megatron_ring.data.rows import Document, Row, make_row
from megatron_ring.gradient_norms import GradientNorms
from megatron_ring.model import context, weights
from megatron_ring.model.ling import LingModel, build_stages
from tests import ranks

GOLDEN = Path(__file__).parents[1] / "golden"


SOURCES = ["first", "second"]


class Answer(NamedTuple):
    """One answer of a pair; a row of them alternates chosen and rejected."""

    tokens: np.ndarray
    targets: np.ndarray
    format: np.ndarray  # bool; of the targets, those in format spans
    reference: tuple[float, float]  # Σ logp of the targets, and of those in format spans
    source: int


def lay(documents: list[Document] | list[Answer], row_tokens: int) -> Row:
    """A row of documents, or of answers."""
    if not documents or not isinstance(documents[0], Answer):
        row = make_row(documents, row_tokens, pad_id=0)
        return replace(row, reference=np.zeros((0, 2))) if not documents else row
    plain = [(answer.tokens, answer.targets) for answer in documents]
    row = make_row(plain, row_tokens, pad_id=0, sources=[a.source for a in documents])
    form = make_row([(a.tokens, a.format) for a in documents], row_tokens, pad_id=0)
    reference = np.array([answer.reference for answer in documents])
    return replace(row, format_S=form.mask_S, reference=reference)


def measure(
    world_size: int,
    overrides: list[str],
    rows: list[list[Document]] | list[list[Answer]],
    row_tokens: int,
    folder: Path,
    pinned: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Train-mode forward and backward of one global batch; see `_measure` for what comes back.

    `pinned` [S, K] are the experts of every row in every layer, in place of the router's choice.
    """
    given = (overrides, rows, row_tokens, pinned)
    results = ranks.run(world_size, _measure, *given, folder=folder)
    last = [r for r in results if r["last_stage"]]
    return {
        "nll": results[0]["report"]["loss"],
        "report": results[0]["report"],
        "sums": {i: sums for r in last for i, sums in r["sums"].items()},
        "grad_norm": results[0]["norms"]["grad_norm"],
        "norms": results[0]["norms"],
        "router": results[0]["router"],
        "gradients": assemble([part for r in results for part in r["gradients"]]),
        # rows are dealt round robin to the data ranks; tensor-parallel ranks all know the same
        "logp": {i: logp for r in last for i, logp in r["logp"].items()},
        "logits": _logits(last),
    }


def assemble(parts: list[tuple]) -> dict[str, torch.Tensor]:
    """Global tensors from (key, global shape, offset, data); replicas must agree."""
    whole, seen = {}, {}
    for key, shape, offset, data in parts:
        if key not in whole:
            whole[key] = torch.zeros(shape)
            seen[key] = torch.zeros(shape, dtype=torch.bool)
        box = tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=True))
        if seen[key][box].any():
            torch.testing.assert_close(whole[key][box], data, atol=1e-6, rtol=1e-4, msg=key)
        whole[key][box], seen[key][box] = data, True
    assert all(mask.all() for mask in seen.values()), "a part of a tensor is on no rank"
    return whole


def _logits(last: list[dict[str, Any]]) -> dict[int, torch.Tensor]:
    """Of each row: vocabulary slices of tensor-parallel ranks, tokens of context-parallel ones."""
    found: dict[int, torch.Tensor] = {}
    slices = 1 + max(r["tp_rank"] for r in last)
    for r in last:
        for i, logits in r["logits"].items():
            rows, width = len(r["places"]) * r["cp_size"], logits.shape[1]
            whole = found.setdefault(i, torch.full((rows, width * slices), torch.nan))
            first = width * r["tp_rank"]
            whole[r["places"], first : first + width] = logits
    assert not any(whole.isnan().any() for whole in found.values()), "a logit is on no rank"
    return found


def _measure(
    overrides: list[str], rows: list, row_tokens: int, pinned: torch.Tensor | None
) -> dict[str, Any]:
    config = configuration.load(Config, [], [f"data.rows_per_step={len(rows)}", *overrides])
    parallel.check_layout(config, parallel.world_size(), row_tokens)
    device = platform.prepare()
    with parallel.process_groups(config.parallel, device, seed=1):
        stages = build_stages(config, torch.float32, device)
        weights.load_first(config, stages)
        rank, size = parallel.data_rank(), parallel.data_size()
        own = [lay(documents, row_tokens) for documents in rows[rank::size]]
        head = losses.head(config.loss, SOURCES)
        counts = step.Counts.of(own, head)
        models = optim.wrap(stages, config.parallel, shard=False)
        for stage in stages:
            stage.router_loss.per_token = parallel.replicas() / max(counts.tokens, 1)
            if pinned is not None:
                stage.router_loss.pinned = dict.fromkeys(stage.routers, pinned)
        table = step.accumulate(models, own, head, counts)
        router = metrics.router_table(stages, config.model)
        report = head.report(parallel.sum_over_stages_and_data(table))
        for stage in stages:
            stage.eval()
        scored = step.score(stages, own)
        answers = reference.score_rows(stages, stages, own)[0]
        sums = {rank + size * i: found for i, found in enumerate(answers)}
        logits = _score_logits(stages, own)
        return {
            "report": report,
            "sums": sums,
            "norms": _norms(config, overrides, rows, row_tokens, device),
            "router": router,
            "gradients": gradients(stages),
            "last_stage": parallel.is_last_stage(),
            "tp_rank": stages[0].pg_collection.tp.rank(),
            "cp_size": stages[0].pg_collection.cp.size(),
            "places": context.own(torch.arange(row_tokens), stages[0].pg_collection.cp),
            "logp": {rank + size * i: logp for i, logp in enumerate(scored)},
            "logits": {rank + size * i: x for i, x in enumerate(logits)},
        }


def _norms(
    config: Config, overrides: list, rows: list, row_tokens: int, device: Any
) -> dict[str, float]:
    """The norms that the real step computes, of all and by part, from a model of its own."""
    stages = build_stages(config, torch.float32, device)
    weights.load_first(config, stages)
    models = optim.wrap(stages, config.parallel)
    optimizer = optim.build_optimizer(models, config.optim, torch.float32)
    rank, size = parallel.data_rank(), parallel.data_size()
    own = [lay(documents, row_tokens) for documents in rows[rank::size]]
    head = losses.head(config.loss, SOURCES)
    _, _, norm = step.gradient(models, optimizer, own, head)
    return {"grad_norm": norm} | GradientNorms(models, optimizer).read()


def _score_logits(stages: list[LingModel], rows: list) -> list[torch.Tensor]:
    def forward(batches: Any, model: LingModel) -> Any:
        batch = {k: v for k, v in next(batches).items() if k not in ("labels_S", "mask_S")}
        return model(**batch), lambda logits: (torch.zeros(()), {"logits": logits})

    batches = [step.to_device(row, torch.device("cpu")) for row in rows]
    iterators = [iter(batches) for _ in stages]
    with torch.no_grad():
        kept = step.get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterators if len(stages) > 1 else iterators[0],
            model=stages if len(stages) > 1 else stages[0],
            num_microbatches=len(rows),
            seq_length=len(rows[0].tokens_S),
            micro_batch_size=1,
            forward_only=True,
        )
    return [row["logits"] for row in kept]


def gradients(stages: list[LingModel]) -> list[tuple]:
    """(key, global shape, offset, gradient) of every local tensor."""
    parts = []
    for stage in stages:
        state = stage.sharded_state_dict(metadata=weights.metadata())
        for value in nested_values(state):
            if isinstance(value, ShardedTensor | ShardedTensorFactory):
                value.data = value.data.main_grad
        apply_factories(state)
        tensors = [v for v in nested_values(state) if isinstance(v, ShardedTensor)]
        parts += [
            (t.key, tuple(t.global_shape), tuple(t.global_offset), t.data.clone()) for t in tensors
        ]
    return parts


def assert_same_gradients(ours: dict, oracle: dict, tolerance: float = 1e-5) -> None:
    """Every tensor within `tolerance` of the oracle's, relative to the larger of it and 1e-3."""
    assert ours.keys() == oracle.keys()
    for key, gradient in ours.items():
        error = (gradient - oracle[key]).norm() / oracle[key].norm().clamp(min=1e-3)
        assert error < tolerance, f"{key}: relative error {error:.1e}"


def random_documents(count: int, vocab: int, seed: int, longest: int = 40) -> list[Document]:
    """Documents of 1 to `longest` random tokens, a random half of them targets."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    return [(rng.integers(0, vocab, n).astype(np.int32), rng.random(n) < 0.5) for n in lengths]


def random_pairs(count: int, seed: int) -> list[list[Answer]]:
    """Lists of two answers of 3 to 30 tokens; the reference is some nats off the policy."""
    rng = np.random.default_rng(seed)
    pairs = []
    for p in range(count):
        pair = []
        for _ in range(2):
            length = int(rng.integers(3, 31))
            targets = rng.random(length) < 0.6
            targets[1:3] = True
            form = targets & (rng.random(length) < 0.3)
            form[1] = True
            scale = -np.log(384)
            scored, in_form = targets[1:].sum() * scale, form[1:].sum() * scale
            reference = (scored + rng.normal(), in_form + rng.normal())
            tokens = rng.integers(0, 384, length).astype(np.int32)
            pair.append(Answer(tokens, targets, form, reference, source=p % 2))
        pairs.append(pair)
    return pairs
