"""The first step of preference training beside TRL's DPOTrainer: loss, rewards, every gradient.

    tests/parity/compare_trl.sh                      makes an environment with TRL, then runs this
    tests/parity/compare_trl.sh --pairs FILE.jsonl   on {"prompt", "chosen", "rejected"} of your own

A Ling whose layers are all dense and whose head is not normalised is a Llama, so both programs load
the same weights. Ours packs the pairs into rows; TRL pads them. Policy and reference are different
random weights: equal ones would make every margin 0.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from megatron_ring import config as configuration
from megatron_ring import losses, optim, parallel, reference, step
from megatron_ring.config import Config, ModelConfig, PackConfig, SourceConfig
from megatron_ring.convert import ling
from megatron_ring.convert.ops import inverse
from megatron_ring.convert.synthetic import write_random_model
from megatron_ring.data.build import pack
from megatron_ring.data.rows import Rows
from megatron_ring.model import frozen
from tests.model.layouts import assemble, gradients

TOLERANCE = 1e-4
MODEL = ModelConfig(
    vocab_size=258,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_experts=4,
    num_experts_per_tok=2,
    num_shared_experts=0,
    norm_topk_prob=True,
    first_k_dense_replace=2,
    norm_head=False,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    max_position_embeddings=16384,
    initializer_range=0.08,
)
TEMPLATE = (
    "{%- for m in messages -%}{{ '[' + m.role + ']' + m.content }}"
    "{%- if m.role == 'assistant' -%}{{ eos_token }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '[assistant]' }}{%- endif -%}"
)
PAIRS = [
    ("What is 2 + 2?", "2 + 2 = 4.", "It is five, I think."),
    ("Name a colour.", "Blue.", "Blue, which is the colour of the sky on a day without clouds."),
    ("Say hello.", "Hello! How can I help you today?", "No."),
    ("Think first: 3 * 3?", "<think>3 + 3 + 3</think>9", "<think>3 + 3 + 3 9"),
]
# Ours, and what TRL calls the same.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({"nll_coeff": 0, "beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}),
    "sigmoid + nll on chosen": (
        {"nll_coeff": 0.05},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.05], "beta": 0.1},
    ),
    "length-normalised": (
        {"nll_coeff": 0, "length_normalised": True, "beta": 2.0},
        {"loss_type": ["sigmoid_norm"], "beta": 2.0},
    ),
    "ipo (of means, as TRL's)": (
        {"nll_coeff": 0, "kind": "ipo", "length_normalised": True},
        {"loss_type": ["ipo"], "beta": 0.1},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, help="JSONL of prompt, chosen, rejected")
    pairs = read(parser.parse_args().pairs)
    disable_progress_bars()
    print(f"TRL {version('trl')}, torch {torch.__version__}, {len(pairs)} pairs")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_tokenizer(work / "tokenizer")
        for name, seed in (("policy", 1), ("reference", 2)):
            write_random_model(work / name, MODEL, seed=seed)
        packed = pack_pairs(work, pairs)
        for name, (settings, theirs) in CASES.items():
            ours = our_step(work, packed, settings)
            trl = trl_step(work, pairs, theirs)
            means = settings.get("length_normalised", False)
            worst = max(worst, compare(name, ours, trl, means))
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:g}")
    raise SystemExit(worst > TOLERANCE)


def read(file: Path | None) -> list[tuple[str, str, str]]:
    if file is None:
        return PAIRS
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(r["prompt"], r["chosen"], r["rejected"]) for r in records]


def write_tokenizer(folder: Path) -> None:
    """A byte a token: no merge can differ between a prompt alone and one with its answer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([*alphabet, "<end>", "<pad>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)


def pack_pairs(work: Path, pairs: list[tuple[str, str, str]]) -> Rows:
    file = work / "pairs.jsonl"
    keys = ("prompt", "chosen", "rejected")
    lines = [json.dumps(dict(zip(keys, pair, strict=True))) + "\n" for pair in pairs]
    file.write_text("".join(lines), encoding="utf-8")
    return pack(
        PackConfig(
            kind="pairs",
            tokenizer=str(work / "tokenizer"),
            output=str(work / "packed"),
            sources=[SourceConfig(path=str(file))],
            row_tokens=MODEL.max_position_embeddings,
            overlong="error",
        )
    )


def our_step(work: Path, packed: Rows, settings: dict[str, Any]) -> dict[str, Any]:
    """Loss, report and gradients (under Hugging Face names) of all rows as one batch."""
    config = configuration.build(
        Config,
        {
            "model": MODEL.model_dump(),
            "loss": {"head": "dpo", "preference": settings, "aux_coeff": 0, "z_coeff": 0},
        },
    )
    rows = [packed.row(i) for i in range(packed.num_rows)]
    with frozen.opened(work / "reference", config) as stages:
        scores = reference.score_rows(stages, stages, rows)[0]
    rows = [replace(row, reference=s.numpy()) for row, s in zip(rows, scores, strict=True)]
    with frozen.opened(work / "policy", config) as stages:
        for stage in stages:
            stage.train()
        head = losses.head(config.loss, packed.sources)
        models_ = optim.wrap(stages, config.parallel, shard=False)
        table = step.accumulate(models_, rows, head, step.Counts.of(rows, head))
        report = head.report(parallel.sum_over_stages_and_data(table))
        whole = assemble(gradients(stages))
    report["gradients"] = hugging_face_names(whole)
    return report


def hugging_face_names(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for name, (shape, pieces) in inverse(ling.rules(MODEL)).items():
        out[name] = torch.zeros(shape)
        for piece in pieces:
            source = ours[piece.key][piece.row : piece.row + piece.rows]
            out[name][piece.hf_row : piece.hf_row + piece.rows] = source
    return out


def trl_step(work: Path, pairs: list[tuple[str, str, str]], settings: dict[str, Any]) -> dict:
    """The same of DPOTrainer, all pairs in one padded batch."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    records = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in pairs
    ]
    trainer = DPOTrainer(
        model=as_llama(work / "policy"),
        ref_model=as_llama(work / "reference"),
        args=DPOConfig(
            output_dir=str(work / "trl"),
            per_device_train_batch_size=len(pairs),
            max_length=None,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
            **settings,
        ),
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    seen = {key: float(np.mean(values)) for key, values in trainer._metrics["train"].items()}
    found = dict(trainer.model.named_parameters())
    return {
        "loss": float(loss.detach()),
        "reward_chosen": seen["rewards/chosen"],
        "reward_rejected": seen["rewards/rejected"],
        "logp_chosen": seen["logps/chosen"],
        "logp_rejected": seen["logps/rejected"],
        "gradients": as_ling({name: p.grad for name, p in found.items()}),
    }


LAYER_NAMES = {  # Llama's -> Ling's, inside a layer
    "self_attn.o_proj.weight": "attention.dense.weight",
    **{f"mlp.{part}_proj.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    **{
        f"{norm}_layernorm.weight": f"{norm}_layernorm.weight"
        for norm in ("input", "post_attention")
    },
}


def renamed(name: str) -> str:
    """A Llama parameter's name in Ling's checkpoint."""
    if name.startswith("model.layers."):
        layer, inner = name.removeprefix("model.layers.").split(".", 1)
        return f"model.layers.{layer}.{LAYER_NAMES[inner]}"
    return {"model.embed_tokens.weight": "model.word_embeddings.weight"}.get(name, name)


def as_llama(folder: Path) -> LlamaForCausalLM:
    """The dense Ling of `folder` as transformers' Llama."""
    weights = load_file(folder / "model.safetensors")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=MODEL.vocab_size,
            hidden_size=MODEL.hidden_size,
            intermediate_size=MODEL.intermediate_size,
            num_hidden_layers=MODEL.num_hidden_layers,
            num_attention_heads=MODEL.num_attention_heads,
            num_key_value_heads=MODEL.num_key_value_heads,
            head_dim=MODEL.head_size,
            rms_norm_eps=MODEL.rms_norm_eps,
            rope_theta=MODEL.rope_theta,
            max_position_embeddings=MODEL.max_position_embeddings,
            attention_dropout=0.0,
            tie_word_embeddings=False,
        )
    ).float()
    state = {}
    for name in model.state_dict():
        if "_proj.weight" in name and "self_attn." in name and "o_proj" not in name:
            layer, part = name.split(".")[2], name.split(".")[4][0]
            qkv = weights[f"model.layers.{layer}.attention.query_key_value.weight"]
            state[name] = qkv.split(qkv_widths())["qkv".index(part)]
        else:
            state[name] = weights[renamed(name)]
    model.load_state_dict(state)
    return model


def qkv_widths() -> list[int]:
    kv = MODEL.num_key_value_heads * MODEL.head_size
    return [MODEL.num_attention_heads * MODEL.head_size, kv, kv]


def as_ling(llama: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Llama's tensors under Ling's names, queries, keys and values one below the other."""
    out = {}
    for name, tensor in llama.items():
        if "self_attn." in name and "o_proj" not in name:
            continue
        out[renamed(name)] = tensor
    for layer in range(MODEL.num_hidden_layers):
        parts = [llama[f"model.layers.{layer}.self_attn.{p}_proj.weight"] for p in "qkv"]
        out[f"model.layers.{layer}.attention.query_key_value.weight"] = torch.cat(parts)
    return out


def compare(name: str, ours: dict[str, Any], trl: dict[str, Any], means: bool) -> float:
    """Print both; the largest difference, of gradients relative to their norm."""
    assert ours["gradients"].keys() == trl["gradients"].keys()
    worst = 0.0
    print(f"\n{name}\n  {'':<16}{'ours':>14}{'TRL':>14}{'difference':>12}")
    for key in ("loss", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected"):
        if key.startswith("reward") and means:
            continue  # TRL's rewards are of sums, whatever its loss is of
        difference = abs(ours[key] - trl[key])
        relative = difference / max(abs(trl[key]), 1.0)
        worst = max(worst, relative)
        print(f"  {key:<16}{ours[key]:>14.6f}{trl[key]:>14.6f}{relative:>12.1e}")
    errors = {
        key: float((ours["gradients"][key] - theirs).norm() / theirs.norm())
        for key, theirs in trl["gradients"].items()
    }
    largest = max(errors, key=errors.__getitem__)
    print(f"  gradients of {len(errors)} tensors, the worst {largest}: {errors[largest]:.1e}")
    return max(worst, errors[largest])


if __name__ == "__main__":
    main()
