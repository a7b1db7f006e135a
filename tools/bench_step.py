"""Speed of a training step on packed rows, with MFU, beside other ways to compute the same model.

\b
    python tools/bench_step.py --threads 1                  # CPU: the tiny Ling, rows of 2,048
    python tools/bench_step.py --json benchmarks/step.json  # GPU: Ling-Lite cut to 4 layers, 16K
    python tools/bench_step.py --init-from Ling-lite --packed packed/sft   # its weights, real rows
    python tools/bench_step.py --candidates step --profile loss.chunk_tokens=2048

Candidates, with the same weights and routing; a step is of one row, rows in turn:

\b
- ours: forward and backward of this program's model as configured (experts.backend=auto)
- recompute: the same with parallel.recompute=full
- torch, loop, triton: the same with that experts.backend
- step: ours with gradient norm, clipping and AdamW, its learning rate 0 so that weights stay
- megatron-core: its SequentialMLP (a Python loop of MLPs), attention with a dense [S, S] mask and
  cross-entropy over all logits: what it has without TransformerEngine
- transformers: Hugging Face's ERNIE 4.5 MoE at these sizes, experts_implementation="grouped_mm":
  the architecture there that computes the same function (NormHead is folded into its head). It has
  our attention, as flash-attn may be missing, logits of supervised tokens only, no router losses.

Without --candidates: all that differ here, but not megatron-core on rows above 4,096 tokens (its
mask), nor step on a GPU (12 bytes a parameter more). All run under megatron-core's DDP with float32
gradients. The router decides, nothing is forced to balance: load is the fullest expert's tokens in
a layer and row over the mean. Fresh weights route more evenly than trained ones (--init-from).
Times are medians; held, GiB of weights, gradients and Adam; peak, with what a run adds (GPUs only).
"""

import itertools
import json
import re
import sys
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_ring import config as configuration
from megatron_ring import losses, metrics, optim, parallel, platform, step, train
from megatron_ring.config import Config, ConfigError, ModelConfig
from megatron_ring.data.rows import Row, Rows, make_row
from megatron_ring.kernels.attention import Segments, choose_backend, packed_attention
from megatron_ring.kernels.linear_logprob import column_norm
from megatron_ring.model import experts, weights
from megatron_ring.model.experts import RoutedExperts
from megatron_ring.model.ling import LingModel, build_stages, transformer_config
from megatron_ring.platform.timing import machine, make_room_for, side_by_side

app = typer.Typer(add_completion=False, rich_markup_mode=None)
BACKENDS = ("torch", "loop", "triton")
OURS = ("ours", "recompute", *BACKENDS, "step")
NAMES = (*OURS, "megatron-core", "transformers")
GOAL = 0.35  # MFU of ours
CONVENTION = (
    "FLOPs: 6 a token and active weight; attention's causal half, from documents' length²; the "
    "head on supervised tokens; recomputation, router losses and optimizer not counted"
)
FORMATS = {"seconds": ".4f", "fastest": ".4f", "tokens_per_second": ",.0f", "tflops": ".4g"}
FORMATS |= {"mfu": ".1%", "load": ".2f", "held_gib": ".3g", "peak_gib": ".3g", "loss": ".5f"}
ERNIE = {  # its names, by regular expression -> megatron-core's
    "^model.layers": "decoder.layers",
    "^model.embed_tokens": "embedding.word_embeddings",
    "^model.norm": "decoder.final_layernorm",
    "^lm_head": "output_layer",
    r"self_attn\.[qkv]_proj": "self_attention.linear_qkv",
    "self_attn.o_proj": "self_attention.linear_proj",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "mlp.gate.weight": "mlp.router.weight",
    "experts.gate_up_proj": "experts.w1",
    r"\.experts.down_proj": ".experts.w2",
    r"\.(gate|up)_proj": ".linear_fc1",
    r"\.down_proj": ".linear_fc2",
}


@app.command(help=__doc__)
def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value …")] = None,
    model: Annotated[str, typer.Option(help="YAML; default: Ling-Lite, on a CPU tiny")] = "",
    layers: Annotated[int, typer.Option(min=0, help="how many; 0: 4, on a CPU all")] = 0,
    row_tokens: Annotated[int, typer.Option(min=0, help="S; 0: 16384, on a CPU 2048")] = 0,
    document_tokens: Annotated[int, typer.Option(min=0, help="mean; 0: 2048, on a CPU 256")] = 0,
    supervised: Annotated[float, typer.Option(min=0.01, max=1, help="share of targets")] = 0.6,
    rows: Annotated[int, typer.Option(min=1, help="different rows, used in turn")] = 4,
    packed: Annotated[str, typer.Option(help="real rows, from tools/pack.py")] = "",
    init_from: Annotated[str, typer.Option(help="real weights, as run.init_from")] = "",
    candidates: Annotated[str, typer.Option(help=f"of {','.join(NAMES)}")] = "",
    peak_tflops: Annotated[float, typer.Option(min=0, help="for MFU; 0: if it is known")] = 0,
    repeats: Annotated[int, typer.Option(min=0, help="timed runs; 0: 20, on a CPU 5")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="0: torch's default")] = 0,
    profile: Annotated[bool, typer.Option("--profile", help="ours by operation")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all of it here")] = None,
) -> None:
    make_room_for(json_file)
    device, gpu = platform.prepare(), torch.cuda.is_available()
    torch.set_num_threads(threads or torch.get_num_threads())
    file = model or f"configs/model/ling_{'lite' if gpu else 'tiny'}.yaml"
    try:
        if packed and row_tokens:
            raise ConfigError(f"--row-tokens {row_tokens}: --packed {packed} has its own")
        S = Rows.open(packed).row_tokens if packed else row_tokens or (16384 if gpu else 2048)
        keys = {
            "model.num_hidden_layers": layers or 4 * gpu,
            "model.max_position_embeddings": S,
            "run.init_from": init_from,
            "data.train": packed,
            "log.peak_tflops": peak_tflops,
        }
        options = [f"{key}={value}" for key, value in keys.items() if value]
        config = configuration.load(Config, [file], [*options, *(overrides or [])])
        parallel.check_layout(config, 1, S)
        names = choose(candidates, S, config.model, gpu)
        random = (document_tokens or (2048 if gpu else 256), supervised, config.model.vocab_size)
        batch = real_rows(config, rows) if packed else random_rows(rows, S, *random)
        with parallel.process_groups(config.parallel, device, config.run.seed):
            bench = Bench(config, batch, names, device)
            about = {"argv": sys.argv[1:], "machine": machine(device), "case": bench.case()}
            about["results"] = bench.measure(repeats or (20 if gpu else 5))
            report(about)
            if json_file:
                json_file.write_text(json.dumps(about, indent=1) + "\n")
            if profile:
                with torch.profiler.profile() as profiler:  # of a GPU too, where there is one
                    bench.run(names[0], 0)
                by = f"self_{device.type}_time_total"
                print(profiler.key_averages().table(sort_by=by, row_limit=25))
    except (ConfigError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def choose(asked: str, row_tokens: int, model: ModelConfig, gpu: bool) -> list[str]:
    """The candidates; ConfigError for one that is none or has no such model."""
    usual = ["ours", "recompute", *(["torch"] if gpu else ["loop", "step"])]  # CPU: auto is torch
    usual += [*["megatron-core"] * (row_tokens <= 4096), "transformers"]
    for name in (names := [name.strip() for name in asked.split(",")] if asked else usual):
        if name not in NAMES:
            raise ConfigError(f"--candidates {name}: none of {', '.join(NAMES)}")
        odd = model.first_k_dense_replace or not model.norm_topk_prob or model.rope_scaling
        if name not in OURS and odd:
            wanted = "norm_topk_prob=true, first_k_dense_replace=0, no rope_scaling"
            raise ConfigError(f"--candidates {name} takes models of {wanted}; leave it out")
    return names


def random_rows(number: int, S: int, average: int, supervised: float, vocab: int) -> list[Row]:
    """Full rows of random documents; lengths log-normal (σ of the logarithm 1) around the mean."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(number):
        documents, left = [], S
        while left > 0:
            length = min(left, 1 + int(rng.lognormal(np.log(average) - 0.5, 1.0)))
            tokens = rng.integers(0, vocab, length).astype(np.int32)
            documents.append((tokens, rng.random(length) < supervised))
            left -= length
        rows.append(make_row(documents, S, 0))
    return rows


def real_rows(config: Config, number: int) -> list[Row]:
    rows = train.open_rows(config)
    if number > rows.num_rows:
        raise ConfigError(f"--rows {number}: {rows.folder} has {rows.num_rows}; give no more")
    return [rows.row(n) for n in range(number)]


class Bench:
    """The models, each built once, and runs of them over the same rows."""

    def __init__(
        self, config: Config, rows: list[Row], names: list[str], device: torch.device
    ) -> None:
        self.config, self.rows, self.dtype = config, rows, platform.dtype(config.run.dtype)
        here = (config.model, device, self.dtype)
        asked = {name: name if name in BACKENDS else config.experts.backend for name in names}
        self.backends = {n: experts.choose_backend(asked[n], *here) for n in names}
        sources = 1 + max(int(row.sources.max(initial=0)) for row in rows)
        self.head = losses.head(config.loss, [str(source) for source in range(sources)])
        self.counts = [step.Counts.of([row], self.head) for row in rows]
        self.flop = [metrics.train_flops(config.model, counts) for counts in self.counts]
        [self.stage] = build_stages(config, self.dtype, device)
        core = self.stage.config  # `run` says when to recompute, this is how
        core.recompute_method, core.recompute_num_layers = "uniform", 1
        weights.load_first(config, [self.stage])
        [ours] = optim.wrap([self.stage], config.parallel)
        self.models = dict.fromkeys(names, ours)  # with weights and gradients in common
        for name in set(names) - set(OURS):
            other = {"megatron-core": MegatronCore, "transformers": Transformers}[name]
            [self.models[name]] = optim.wrap([other(config, self.stage)], config.parallel)
        if "step" in names:
            self.optimizer = optim.build_optimizer([ours], config.optim, self.dtype)

    def run(self, name: str, number: int) -> float:
        """A step on one row; its mean nll."""
        model, row, tokens = self.models[name], [self.rows[number]], self.counts[number].tokens
        # megatron-core reads it in every forward, as the experts do their backend.
        full = name == "recompute" or self.config.parallel.recompute == "full"
        self.stage.config.recompute_granularity = "full" if full else None
        for module in self.stage.modules():
            if isinstance(module, RoutedExperts):
                module.backend = self.backends[name]
        if name == "step":
            _, table, _ = step.train_step([model], self.optimizer, row, 0.0, self.head)
        else:
            model.zero_grad_buffer()
            self.stage.router_loss.per_token = 1 / tokens
            table = step.accumulate([model], row, self.head, self.counts[number])
        return self.head.report(table)["loss"]

    def measure(self, repeats: int) -> list[dict[str, Any]]:
        """What is known without a clock, a candidate at a time; then times, turn by turn."""
        checked = [self._check(name) for name in self.models]
        numbers = {name: itertools.cycle(range(len(self.rows))) for name in self.models}
        runs = {name: lambda name=name: self.run(name, next(numbers[name])) for name in numbers}
        seconds = side_by_side(runs, repeats)
        return [one | self._figures(seconds[one["name"]]) for one in checked]

    def _check(self, name: str) -> dict[str, Any]:
        """All rows once, so that all shapes have been seen when time counts."""
        nll, loads = [], []
        self.run(name, 0)  # Adam makes its state
        before = torch.cuda.memory_allocated()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        metrics.router_table([self.stage], self.config.model)  # starts afresh
        for number in range(len(self.rows)):
            nll.append(self.run(name, number))
            table = metrics.router_table([self.stage], self.config.model)
            loads.append(metrics.expert_metrics(table, self.config.model, 1)["load_max_over_mean"])
        trained = [p for p in self.models[name].parameters() if p.requires_grad]
        more = torch.cuda.max_memory_allocated() - before
        adam = (name == "step") * (12 if self.dtype == torch.bfloat16 else 8)  # bytes a parameter
        held = sum(p.nbytes + p.main_grad.nbytes + adam * p.numel() for p in trained)
        return {
            "name": name,
            "parameters": sum(p.numel() for p in trained),
            "loss": mean(nll),
            "gradient_norm": torch.stack([p.main_grad.norm() for p in trained]).norm().item(),
            "load": mean(loads),
            "held_gib": held / 2**30,
            "peak_gib": (held + more) / 2**30 if before else 0.0,
        }

    def _figures(self, times: list[float]) -> dict[str, Any]:
        work = [(n % len(self.rows), time) for n, time in enumerate(times, 1)]  # 0: the warm-up
        tflops = median(self.flop[n] / time / 1e12 for n, time in work)
        peak = metrics.peak_tflops(self.config)
        return {
            "seconds": median(times),
            "fastest": min(times),
            "tokens_per_second": median(self.counts[n].tokens / time for n, time in work),
            "tflops": tflops,
            "mfu": tflops / peak if peak else 0.0,
        }

    def case(self) -> dict[str, Any]:
        return {
            "threads": torch.get_num_threads(),
            "lengths": [np.diff(r.cu_seqlens[: r.num_documents + 1]).tolist() for r in self.rows],
            "supervised": [counts.supervised for counts in self.counts],
            "flop": self.flop,
            "convention": CONVENTION,
            "config": self.config.model_dump(),
        }


def plain_weights(stage: LingModel) -> dict[str, Tensor]:
    """Our weights by name, NormHead's divisor folded into the head."""
    own = {name: weight.detach() for name, weight in stage.named_parameters()}
    head_VD = own["output_layer.weight"]
    scale_D = column_norm(head_VD) if stage.arch.norm_head else 1
    return own | {"output_layer.weight": head_VD / scale_D}


class Other(MegatronModule):
    """Another implementation under LingModel's signature: a row -> logp_S."""

    model_type = ModelType.encoder_or_decoder

    def set_input_tensor(self, hidden: Tensor | None) -> None:
        """Called by megatron-core's schedule; there is no pipeline here."""


class MegatronCore(Other):
    """A GPTModel from megatron-core's own local layer spec."""

    def __init__(self, config: Config, stage: LingModel) -> None:
        from megatron.core.models.gpt import GPTModel, gpt_layer_specs
        from megatron.core.transformer import torch_norm, transformer_block

        dtype, device = stage.config.params_dtype, stage.output_layer.weight.device
        super().__init__(transformer_config(config.model, config.parallel, dtype))
        core, own, c = self.config, plain_weights(stage), config.model
        core.moe_router_load_balancing_type, core.moe_router_pre_softmax = "aux_loss", False
        core.moe_aux_loss_coeff = config.loss.aux_coeff
        spec = gpt_layer_specs.get_gpt_layer_local_spec(c.num_experts, normalization="RMSNorm")
        block = transformer_block.TransformerBlockSubmodules(
            layer_specs=[spec] * c.num_hidden_layers, layer_norm=torch_norm.WrappedTorchNorm
        )
        sizes, theta = (c.vocab_size, c.max_position_embeddings), int(c.rope_theta)
        options = {"position_embedding_type": "rope", "rotary_base": theta}
        self.model = GPTModel(core, block, *sizes, **options).to(device, dtype)
        for name, weight in self.model.named_parameters():
            one = re.fullmatch(r"(.*experts\.)local_experts\.(\d+)\.linear_fc(\d)\.weight", name)
            weight.data.copy_(own[f"{one[1]}w{one[3]}"][int(one[2])] if one else own[name])

    def forward(self, tokens_S: Tensor, labels_S: Tensor, mask_S: Tensor, **row: Any) -> Tensor:
        at_S = torch.arange(len(tokens_S), device=tokens_S.device)
        document_S = torch.bucketize(at_S, row["cu_seqlens"], right=True)
        hidden = (document_S[:, None] != document_S) | (at_S[:, None] < at_S)
        nll = self.model(tokens_S[None], None, hidden[None, None], labels=labels_S[None])
        return -nll[0] * mask_S.to(nll.device)


class Transformers(Other):
    """Ernie4_5_MoeForCausalLM of Hugging Face transformers."""

    def __init__(self, config: Config, stage: LingModel) -> None:
        from transformers import AttentionInterface, Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

        dtype, device = stage.config.params_dtype, stage.output_layer.weight.device
        super().__init__(transformer_config(config.model, config.parallel, dtype))
        own, c = plain_weights(stage), config.model
        backend = choose_backend(config.attention.backend, device, dtype).backend

        def by_document(_: Any, *qkv: Tensor, segments: Any, **__: Any) -> tuple[Tensor, None]:
            qkv_SHR = (x[0].transpose(0, 1) for x in qkv[:3])  # from [1, H, S, R]
            return packed_attention(*qkv_SHR, segments, backend)[None], None

        AttentionInterface.register("by_document", by_document)
        same = c.model_dump(exclude={"rope_theta", "rope_scaling", "num_shared_experts"})
        ernie = Ernie4_5_MoeConfig(
            **same | {"head_dim": c.head_size},
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            moe_num_shared_experts=c.num_shared_experts,
            moe_layer_start_index=0,
            tie_word_embeddings=False,
            pad_token_id=None,  # its embedding would not be trained
        )
        how = {"attn_implementation": "by_document", "experts_implementation": "grouped_mm"}
        with device:
            self.model = Ernie4_5_MoeForCausalLM._from_config(ernie, dtype=dtype, **how)
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                weight.data.copy_(ernie_weight(name, own, c))

    def forward(self, tokens_S: Tensor, labels_S: Tensor, mask_S: Tensor, **row: Any) -> Tensor:
        at_N = mask_S.nonzero()[:, 0].to(tokens_S.device)
        logits_NV = self.model(
            input_ids=tokens_S[None],
            position_ids=row["positions_S"][None].long(),
            use_cache=False,
            logits_to_keep=at_N,
            segments=Segments.of_row(row["cu_seqlens"], row["lengths"]),
        ).logits[0]
        nll_N = F.cross_entropy(logits_NV.float(), labels_S[at_N], reduction="none")
        return torch.zeros(len(mask_S), device=at_N.device).index_put((at_N,), -nll_N)


def ernie_weight(name: str, own: dict[str, Tensor], c: ModelConfig) -> Tensor:
    """Of our weights, the one with ERNIE's name; channels 2i, 2i + 1 of its q and k are a pair."""
    key, R = name, c.head_size
    for theirs, ours in ERNIE.items():
        key = re.sub(theirs, ours, key)
    weight = own[key]
    if part := re.search(r"([qkv])_proj", name):
        qkv = weight.view(c.num_key_value_heads, -1, R, c.hidden_size)
        rows = {"q": qkv[:, :-2], "k": qkv[:, -2:-1], "v": qkv[:, -1:]}[part[1]]
        if part[1] != "v":
            rows = rows.unflatten(2, (2, R // 2)).transpose(2, 3)
        return rows.reshape(-1, c.hidden_size)
    return weight.chunk(2)["up_proj" in name] if "linear_fc1" in key else weight


def report(about: dict[str, Any]) -> None:
    case, results = about["case"], about["results"]
    model, lengths = case["config"]["model"], case["lengths"]
    print(
        f"{model['num_hidden_layers']} layers, {len(lengths)} rows, {sum(map(sum, lengths)):,} "
        f"tokens in {sum(map(len, lengths))} documents, {case['threads']} threads; "
        + ", ".join(f"{key} {value}" for key, value in about["machine"].items())
    )
    print(CONVENTION)
    print(" " * 13, *(f"{key.split('_')[0]:>9}" for key in FORMATS))
    for row in results:
        shown = (format(row[key], how) if row[key] else "" for key, how in FORMATS.items())
        print(f"{row['name']:13}", *(f"{text:>9}" for text in shown))
    if mfu := next((row["mfu"] for row in results if row["name"] == "ours"), None):
        met = "met" if mfu >= GOAL else "not met"
        print(f"goal, ours at {GOAL:.0%} MFU or more: {met} ({mfu:.1%})")


if __name__ == "__main__":
    app()
