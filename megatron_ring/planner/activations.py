"""What a layer keeps for the backward, in bytes: an estimate, tensor by tensor.

Each entry is a tensor that autograd saves, found by listing them on a CPU and checked against that
list. A GPU's kernels keep less: its fused RMSNorm only its input, its attention no repeated keys
and values, its experts no activation. Experts are taken to get equally many tokens, times
`imbalance`.

Letters: S tokens in a row · D hidden · F expert width · K experts a token · V vocabulary rows.
"""

from dataclasses import dataclass

from megatron_ring.config import Config

# Rows that an expert's last block may leave empty: 127 of 128 (kernels/experts_fused.py).
EMPTY_ROWS = 127


@dataclass(frozen=True)
class Widths:
    """What the formulas need of configuration, row and device."""

    config: Config
    row_tokens: int  # S
    bytes_each: int  # of a number: 2 in bf16, 4 in fp32
    on_gpu: bool
    fused_experts: bool  # experts.backend=triton
    imbalance: float = 1.0  # tokens of the fullest rank's experts / mean

    @property
    def cp_tokens(self) -> int:
        """Tokens of a row on one context-parallel rank."""
        return self.row_tokens // self.config.parallel.cp

    @property
    def own_tokens(self) -> int:
        """Of those, tokens on one tensor-parallel rank, between the split matrices."""
        return self.cp_tokens // self.config.parallel.tp


def residual(w: Widths) -> int:
    """The hidden states between two layers, of one row."""
    return w.own_tokens * w.config.model.hidden_size * w.bytes_each


def norm(w: Widths) -> int:
    """RMSNorm: its input and a number a token; unfused, in fp32, with the normalised input."""
    D = w.config.model.hidden_size
    kept = D * w.bytes_each if w.on_gpu else 2 * D * 4
    return w.own_tokens * (kept + 4)


def attention(w: Widths) -> dict[str, int]:
    """Norm, fused projection, rotary, attention by document, output projection."""
    m, p = w.config.model, w.config.parallel
    head = m.head_size * w.bytes_each
    heads, groups = m.num_attention_heads // p.tp, m.num_key_value_heads // p.tp
    q, kv = w.cp_tokens * heads * head, w.cp_tokens * groups * head
    repeated = not w.on_gpu and groups < heads
    if p.cp > 1:
        # Of long documents, the first chunk sees up to half the row, the second up to all of it:
        # together a chunk more than the row.
        chunk = w.cp_tokens // 2
        seen = w.row_tokens + chunk
        gathered = 2 * seen * heads * head if repeated else 3 * w.row_tokens * groups * head
        products = {"q, keys and values of the row": q + gathered}
        if not w.on_gpu:
            products["masks"] = chunk * seen * w.bytes_each
    elif repeated:
        products = {"q, keys and values once for each query head": 3 * q}
    elif w.on_gpu:
        products = {"q, k and v": q + 2 * kv}
    else:
        # Values are a view of the fused projection, and keep all of it.
        products = {"qkv": q + 2 * kv, "q and k, rotated": q + kv}
    outputs = q if w.on_gpu else 2 * q  # by document, then joined
    return {
        "input norm": norm(w),
        "input of qkv": residual(w),
        **products,
        "attention output": outputs,
        "log-sum-exp": w.cp_tokens * heads * 4,
    }


def gated_mlp(w: Widths, width: int) -> dict[str, int]:
    """A dense MLP or the shared experts; silu(gate) is made again in the backward."""
    each = w.cp_tokens * width // w.config.parallel.tp * w.bytes_each
    return {"gate and up": 2 * each, "input of down": each}


def routed(w: Widths) -> dict[str, int]:
    """Router, permutation, the routed experts."""
    m, b, ep = w.config.model, w.bytes_each, w.config.parallel.ep
    E, K, F = m.num_experts, m.num_experts_per_tok, m.moe_intermediate_size
    tokens = round(w.own_tokens * K * w.imbalance)
    # Scores twice (probabilities, balance loss), choices, probabilities; where tokens are sent, the
    # map of the permutation as bool and fp32, and its indices.
    router = w.own_tokens * (8 * E + 8 * K + 4 * K + 13) + w.own_tokens * (5 * E + 8 * K)
    if w.fused_experts:
        rows = tokens + E // ep * EMPTY_ROWS
        # Without a dispatcher the experts read the MLP's input itself.
        sent = {"input of the experts": tokens * m.hidden_size * b} if ep > 1 else {}
        return {
            "router and order of rows": router + 8 * rows,
            **sent,
            "gate and up of the experts": rows * 2 * F * b,
        }
    return {
        "router and permutation": router,
        "input of the experts": tokens * m.hidden_size * b,
        "gate and up of the experts": tokens * 2 * F * b,
        "silu, product, times probability": tokens * (3 * F + 1) * b,
    }


def layer(w: Widths, is_moe: bool) -> dict[str, int]:
    """All that one layer keeps of one row."""
    kept = attention(w) | {"norm before the MLP": norm(w), "input of the MLP": residual(w)}
    if not is_moe:
        return kept | gated_mlp(w, w.config.model.intermediate_size)
    if w.config.model.num_shared_experts:
        kept |= {
            f"shared: {name}": size
            for name, size in gated_mlp(w, w.config.model.shared_intermediate_size).items()
        }
    return kept | routed(w)


def kept_by_layers(w: Widths, is_moe: list[bool]) -> int:
    """What some layers keep of one row from forward to backward, recomputation considered."""
    if w.config.parallel.offload:
        return 0
    if w.config.parallel.recompute == "full":
        return len(is_moe) * residual(w)
    rotary = w.cp_tokens * 2 * w.config.model.head_size * 4  # cos and sin, once for all layers
    return rotary + sum(sum(layer(w, moe).values()) for moe in is_moe)


def kept_on_host(w: Widths, num_layers: int) -> int:
    """Layer inputs of one row that wait in host memory."""
    return num_layers * residual(w) if w.config.parallel.offload else 0


def kept_by_head(w: Widths, supervised: float) -> int:
    """Last norm (on the host, if layers' inputs are), scored hidden states, labels and results."""
    scored = round(w.cp_tokens * supervised)
    last_norm = 0 if w.config.parallel.offload else norm(w)
    return last_norm + scored * (w.config.model.hidden_size * w.bytes_each + 20)


def working(w: Widths, is_moe: list[bool]) -> int:
    """What exists for a moment while one layer is run back.

    Recomputed, a whole layer's activations; in any case the gradients of its widest tensors.
    """
    widest = max((layer(w, moe) for moe in set(is_moe)), key=lambda kept: sum(kept.values()))
    largest = sorted(widest.values())[-2:]
    again = sum(widest.values()) if w.config.parallel.recompute == "full" else 0
    return again + sum(largest)


def head_working(w: Widths, vocab_rows: int) -> int:
    """Logits of a chunk of tokens, overwritten by their gradient, and the weight's."""
    chunk = min(w.config.loss.chunk_tokens, w.cp_tokens)
    return vocab_rows * chunk * w.bytes_each + head_gradient(w, vocab_rows)


def head_gradient(w: Widths, vocab_rows: int) -> int:
    """The fp32 gradient of the head that SFT makes in the forward and keeps until the backward
    (kernels/linear_logprob.py); DPO adds to the optimizer's buffer."""
    return 4 * vocab_rows * w.config.model.hidden_size if w.config.loss.head == "sft" else 0


def communication(w: Widths) -> int:
    """Buffers of a layer's collectives: tokens sent to and received from experts, there and back;
    the row gathered before a split matrix; what pipeline stages hand on."""
    m, p = w.config.model, w.config.parallel
    sent = round(w.own_tokens * m.num_experts_per_tok * w.imbalance) * m.hidden_size * w.bytes_each
    routed_bytes = 4 * sent if p.ep > 1 else 0
    gathered = 2 * w.cp_tokens * m.hidden_size * w.bytes_each if p.tp > 1 else 0
    return routed_bytes + gathered + (4 * residual(w) if p.pp > 1 else 0)
