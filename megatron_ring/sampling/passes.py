"""One row through the model as it lies on its ranks: logits for all, and what all agree on.

A pass is a collective: every rank makes it, with a row of the same number of tokens. One that has
nothing to say brings padding.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ring import step
from megatron_ring.config import ConfigError
from megatron_ring.data.rows import make_row
from megatron_ring.model.ling import LingModel


def check(stages: list[LingModel]) -> None:
    """ConfigError on a layout that answers cannot be drawn on."""
    if (cp := stages[0].pg_collection.cp.size()) > 1:
        raise ConfigError(
            f"parallel.cp={cp} cuts documents over ranks; to sample, use parallel.cp=1, and tp, ep "
            "or pp to share the model"
        )


def device_of(stages: list[LingModel]) -> torch.device:
    return next(stages[0].parameters()).device


def agreed(stages: list[LingModel], counts: list[int]) -> list[int]:
    """The largest of each count over the data ranks; multiples of tp, so that rows can be split."""
    group, tp = stages[0].pg_collection.dp, stages[0].pg_collection.tp.size()
    if group.size() > 1:
        table = torch.tensor(counts, device=device_of(stages))
        dist.all_reduce(table, op=dist.ReduceOp.MAX, group=group)
        counts = table.tolist()
    return [-(-count // tp) * tp for count in counts]


def whole_documents(
    documents: list[list[int]], row_tokens: int, device: torch.device
) -> dict[str, Any]:
    """A row of them, as arguments of LingModel.forward; logits are asked for behind each."""
    rows = [(np.asarray(d, np.int32), np.zeros(len(d), bool)) for d in documents]
    batch = step.to_device(make_row(rows, row_tokens, 0), device)
    del batch["labels_S"]
    ends = np.cumsum([len(d) for d in documents], dtype=np.int64) - 1
    batch["mask_S"][ends] = True
    return batch


def next_tokens(
    documents: list[list[int]], row_tokens: int, device: torch.device
) -> dict[str, Any]:
    """A row of the last token of each, all before it being remembered; segments of one token."""
    padding = row_tokens - len(documents)
    tokens = [d[-1] for d in documents] + [0] * padding
    positions = [len(d) - 1 for d in documents] + [0] * padding
    mask_S = torch.arange(row_tokens) < len(documents)
    return {
        "tokens_S": torch.tensor(tokens, device=device),
        "positions_S": torch.tensor(positions, dtype=torch.int32, device=device),
        "padding_S": ~mask_S.to(device),
        "cu_seqlens": torch.arange(row_tokens + 1, dtype=torch.int32, device=device),
        "lengths": [1] * row_tokens,
        "mask_S": mask_S,
    }


@torch.no_grad()
def logits(stages: list[LingModel], batch: dict[str, Any]) -> Tensor | None:
    """Logits over the whole vocabulary where `mask_S`, [N, V]; None before the last stage.

    The row visits the pipeline's model chunks one after the other: the next token of a document is
    not known before the last has seen this one.
    """
    pp, tp = stages[0].pg_collection.pp, stages[0].pg_collection.tp
    before, after = (dist.get_global_rank(pp, (pp.rank() + to) % pp.size()) for to in (-1, 1))
    out = None
    for stage in stages:
        if not stage.pre_process:
            shape = (len(batch["tokens_S"]) // tp.size(), 1, stage.arch.hidden_size)
            like = next(stage.parameters())
            hidden = torch.empty(shape, dtype=stage.config.pipeline_dtype, device=like.device)
            dist.recv(hidden, src=before, group=pp)
            stage.set_input_tensor(hidden)
        out = stage(**batch)
        if not stage.post_process:
            dist.send(out.contiguous(), dst=after, group=pp)
            out = None
    return out if out is None or tp.size() == 1 else _whole_vocabulary(out, tp)


def _whole_vocabulary(own_NV: Tensor, tp: dist.ProcessGroup) -> Tensor:
    gathered = [torch.empty_like(own_NV) for _ in range(tp.size())]
    if len(own_NV):
        dist.all_gather(gathered, own_NV.contiguous(), group=tp)
    return torch.cat(gathered, dim=1)


def told(stages: list[LingModel], tokens: list[int], count: int) -> list[int]:
    """The last stage's first tensor rank's `count` tokens, on all ranks that share its documents.

    `tokens` are what this rank knows, and are not looked at on any other.
    """
    pp, tp = stages[0].pg_collection.pp, stages[0].pg_collection.tp
    if not count or pp.size() * tp.size() == 1:
        return tokens
    if len(tokens) != count:
        tokens = [0] * count
    table = torch.tensor(tokens, device=device_of(stages))
    if tp.size() > 1 and pp.rank() == pp.size() - 1:
        dist.broadcast(table, dist.get_global_rank(tp, 0), group=tp)
    if pp.size() > 1:
        dist.broadcast(table, dist.get_global_rank(pp, pp.size() - 1), group=pp)
    return table.tolist()
