"""What context parallelism sends: bytes that one rank receives for one row."""

from megatron_ring.planner.activations import Widths


def of_context(w: Widths, num_layers: int, last_stage: bool) -> int:
    """Keys and values of the row in the forward, their gradients in the backward; on the last
    pipeline stage the log-probabilities. Exact (model/context.py), but for some hundred bytes of
    router statistics a layer."""
    m, p = w.config.model, w.config.parallel
    groups = m.num_key_value_heads // p.tp
    half = w.row_tokens // 2 * 2 * groups * m.head_size * w.bytes_each
    times = 3 if p.recompute == "full" else 2  # forward, forward again, backward
    per_layer = times * 2 * _received(half, p.cp)
    return num_layers * per_layer + _received(4 * w.row_tokens, p.cp) * last_stage


def _received(gathered: int, ranks: int) -> int:
    """Bytes a rank gets of others' parts of what is gathered (or summed and scattered)."""
    return gathered // ranks * (ranks - 1)
