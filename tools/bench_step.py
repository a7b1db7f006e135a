"""Speed of a training step of the tiny Ling, beside megatron-core's own experts and attention.

\b
    python tools/bench_step.py                      # tokens/s of each, interleaved repeats
    python tools/bench_step.py --profile            # and where our step spends its time
    python tools/bench_step.py --row-tokens 4096 --document-tokens 512

"ours" is this program's model: routed experts as grouped GEMMs over stacked weights, attention by
document, a chunked head over supervised tokens. "megatron-core" swaps in SequentialMLP (a Python
loop of MLPs) and DotProductAttention with a dense [S, S] mask that keeps documents apart, and the
vocabulary-parallel cross-entropy over all logits: what megatron-core has without
TransformerEngine. Same weights, same rows, one process, forward and backward.
"""

import statistics
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from megatron_ring import config as configuration
from megatron_ring import parallel, platform, step
from megatron_ring.config import Config
from megatron_ring.data.rows import Row, make_row
from megatron_ring.platform.timing import side_by_side

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False)


@app.command(help=__doc__)
def main(
    model: Annotated[str, typer.Option(help="YAML with the architecture")] = (
        "configs/model/ling_tiny.yaml"
    ),
    row_tokens: Annotated[int, typer.Option(help="S: tokens in a row")] = 2048,
    document_tokens: Annotated[int, typer.Option(help="mean length of a document")] = 256,
    supervised: Annotated[float, typer.Option(help="share of tokens that are targets")] = 0.6,
    repeats: Annotated[int, typer.Option(help="timed steps of each")] = 5,
    threads: Annotated[int, typer.Option(help="0: torch's default")] = 0,
    profile: Annotated[bool, typer.Option("--profile", help="table of operations")] = False,
) -> None:
    device = platform.prepare()
    if threads:
        torch.set_num_threads(threads)
    files, longest = [model], f"model.max_position_embeddings={row_tokens}"
    config = configuration.load(Config, files, [longest])
    row = random_row(row_tokens, document_tokens, supervised, config.model.vocab_size)
    with parallel.process_groups(config.parallel, device, seed=0):
        candidates = {
            "ours": ours(config, row, device),
            "megatron-core": megatron_core(config, row, device),
        }
        seconds = side_by_side(candidates, repeats)
        report(seconds, row, config)
        if profile:
            print_profile(candidates["ours"])


def random_row(row_tokens: int, document_tokens: int, supervised: float, vocab: int) -> Row:
    """A full row of random documents, lengths exponential around the mean."""
    rng, documents, left = np.random.default_rng(0), [], row_tokens
    while left > 0:
        length = min(left, 1 + int(rng.exponential(document_tokens)))
        tokens = rng.integers(0, vocab, length).astype(np.int32)
        documents.append((tokens, rng.random(length) < supervised))
        left -= length
    return make_row(documents, row_tokens, 0)


def ours(config: Config, row: Row, device: torch.device) -> Callable[[], float]:
    """A forward and backward of our model; returns the loss."""
    from megatron_ring.model import weights
    from megatron_ring.model.ling import build_stages

    [stage] = build_stages(config, platform.dtype(config.run.dtype), device)
    weights.load_first(config, [stage])

    def run() -> float:
        stage.zero_grad(set_to_none=True)
        loss = -stage(**step.to_device(row, device)).sum() / row.num_supervised
        loss.backward()
        return loss.item()

    return run


def megatron_core(config: Config, row: Row, device: torch.device) -> Callable[[], float]:
    """The same of a GPTModel from megatron-core's own local layer spec."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    from megatron_ring.model.ling import transformer_config

    c = config.model
    core = transformer_config(c, config.parallel, platform.dtype(config.run.dtype))
    core.moe_router_load_balancing_type, core.moe_aux_loss_coeff = "aux_loss", 0.015
    core.moe_router_pre_softmax = False
    spec = get_gpt_layer_local_spec(
        num_experts=c.num_experts, moe_grouped_gemm=False, normalization="RMSNorm"
    )
    block = TransformerBlockSubmodules(
        layer_specs=[spec] * c.num_hidden_layers, layer_norm=WrappedTorchNorm
    )
    model = GPTModel(
        core,
        block,
        vocab_size=c.vocab_size,
        max_sequence_length=c.max_position_embeddings,
        position_embedding_type="rope",
        rotary_base=int(c.rope_theta),
    ).to(device)
    batch = step.to_device(row, device)
    document_S = torch.from_numpy(
        np.repeat(np.arange(len(row.cu_seqlens) - 1), np.diff(row.cu_seqlens))
    ).to(device)
    S = len(document_S)
    future = torch.ones(S, S, dtype=torch.bool, device=device).triu(1)
    mask = (document_S[:, None] != document_S[None]) | future  # True: not seen
    mask_S = batch["mask_S"].float()

    def run() -> float:
        model.zero_grad(set_to_none=True)
        nll_S = model(
            input_ids=batch["tokens_S"][None],
            position_ids=batch["positions_S"][None].long(),
            attention_mask=mask[None, None],
            labels=batch["labels_S"][None],
        )[0]
        loss = (nll_S * mask_S).sum() / row.num_supervised
        loss.backward()
        return loss.item()

    return run


def report(seconds: dict[str, list[float]], row: Row, config: Config) -> None:
    table = Table("model", "s / step (median)", "min", "tokens/s", "ratio", box=None)
    slowest = statistics.median(seconds["megatron-core"])
    for name, times in seconds.items():
        median = statistics.median(times)
        table.add_row(
            name,
            f"{median:.3f}",
            f"{min(times):.3f}",
            f"{row.num_tokens / median:,.0f}",
            f"{slowest / median:.2f}",
        )
    threads, kind = torch.get_num_threads(), "GPU" if torch.cuda.is_available() else "CPU"
    console.print(
        f"{len(row.tokens_S)} tokens in {row.num_documents} documents, {row.num_supervised} "
        f"supervised; torch {torch.__version__}, {kind}, {threads} threads"
    )
    console.print(table)


def print_profile(run: Callable[[], float]) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    app()
