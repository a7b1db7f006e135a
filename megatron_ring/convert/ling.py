"""Ling-Lite: our GPTModel <-> Hugging Face `bailing_moe`.

Names and shapes of the Hugging Face side: inclusionAI/Ling at 5ccaeae, modeling_bailing_moe.py.
"""

from megatron_ring.config import ModelConfig
from megatron_ring.convert.ops import Rule, concat, copy, group_qkv, stack


def rules(c: ModelConfig) -> list[Rule]:
    """One rule for each Megatron tensor of the model, in the order of the forward pass."""
    table = [copy("embedding.word_embeddings.weight", (c.vocab_size, c.hidden_size), EMBEDDING)]
    for l in range(c.num_hidden_layers):  # noqa: E741  (l is the layer, as in the names)
        table += _attention(c, f"decoder.layers.{l}.", f"model.layers.{l}.")
        mlp = _dense_mlp if l < c.first_k_dense_replace else _moe_mlp
        table += mlp(c, f"decoder.layers.{l}.mlp.", f"model.layers.{l}.mlp.")
    table += [
        copy("decoder.final_layernorm.weight", (c.hidden_size,), "model.norm.weight"),
        copy("output_layer.weight", (c.vocab_size, c.hidden_size), HEAD),
    ]
    return table


EMBEDDING = "model.word_embeddings.weight"
HEAD = "lm_head.weight"

# What a bailing_moe config.json says besides the keys of ModelConfig, for a model that was not
# imported from one. All of it is implied by our implementation (see config.HF_ONLY).
HF_CONFIG = {
    "architectures": ["BailingMoeForCausalLM"],
    "model_type": "bailing_moe",
    "auto_map": {
        "AutoConfig": "configuration_bailing_moe.BailingMoeConfig",
        "AutoModelForCausalLM": "modeling_bailing_moe.BailingMoeForCausalLM",
    },
    "hidden_act": "silu",
    "use_bias": False,
    "use_qkv_bias": False,
    "tie_word_embeddings": False,
    "norm_softmax": False,
    "rope_scaling": None,
    "use_sliding_window": False,
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "output_dropout": 0.0,
    "torch_dtype": "bfloat16",
}


def _attention(c: ModelConfig, mcore: str, hf: str) -> list[Rule]:
    D, H, G, d = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_size
    qkv, proj = f"{mcore}self_attention.linear_qkv.weight", f"{mcore}self_attention.linear_proj"
    return [
        copy(f"{mcore}input_layernorm.weight", (D,), f"{hf}input_layernorm.weight"),
        group_qkv(qkv, f"{hf}attention.query_key_value.weight", H, G, d, D),
        copy(f"{proj}.weight", (D, H * d), f"{hf}attention.dense.weight"),
        copy(f"{mcore}pre_mlp_layernorm.weight", (D,), f"{hf}post_attention_layernorm.weight"),
    ]


def _gated_mlp(c: ModelConfig, width: int, mcore: str, hf: str) -> list[Rule]:
    gate_over_up = [(f"{hf}gate_proj.weight", width), (f"{hf}up_proj.weight", width)]
    fc2 = copy(f"{mcore}linear_fc2.weight", (c.hidden_size, width), f"{hf}down_proj.weight")
    return [concat(f"{mcore}linear_fc1.weight", c.hidden_size, gate_over_up), fc2]


def _dense_mlp(c: ModelConfig, mcore: str, hf: str) -> list[Rule]:
    return _gated_mlp(c, c.intermediate_size, mcore, hf)


def _moe_mlp(c: ModelConfig, mcore: str, hf: str) -> list[Rule]:
    E, F, D = c.num_experts, c.moe_intermediate_size, c.hidden_size
    experts = [f"{hf}experts.{e}." for e in range(E)]
    w1 = [[(f"{e}gate_proj.weight", F), (f"{e}up_proj.weight", F)] for e in experts]
    w2 = [[(f"{e}down_proj.weight", D)] for e in experts]
    table = [
        copy(f"{mcore}router.weight", (E, D), f"{hf}gate.weight"),
        stack(f"{mcore}experts.w1", D, w1),
        stack(f"{mcore}experts.w2", F, w2),
    ]
    if c.num_shared_experts:
        shared = (f"{mcore}shared_experts.", f"{hf}shared_experts.")
        table += _gated_mlp(c, c.shared_intermediate_size, *shared)
    return table
