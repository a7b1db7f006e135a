"""Convert Ling-Lite weights: Hugging Face folder <-> Megatron checkpoint.

One process, no GPU, and little memory: the weights pass through piece by piece (128 MiB or one
expert), so 16.8B parameters (33.6 GB) convert on a small host. What was imported loads on any
layout (tp, ep, pp, dp), and what any layout saved exports.

\b
    python tools/convert_checkpoint.py import Ling-lite checkpoints/ling-lite
    python tools/convert_checkpoint.py export runs/sft/checkpoints/step-00000500 Ring-lite-sft
    python tools/convert_checkpoint.py export checkpoints/ling-lite folded --norm-head folded
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from torch import Tensor

from megatron_ring.config import Config, ConfigError, ModelConfig
from megatron_ring.convert.compare import (
    Score,
    compare,
    sample_tokens,
    score_hf_folder,
    score_megatron_checkpoint,
)
from megatron_ring.convert.folder import DTYPES, newest, read_ring
from megatron_ring.convert.ops import ConversionError
from megatron_ring.convert.transfer import (
    OnBytes,
    Summary,
    export_checkpoint,
    import_checkpoint,
)

app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
console = Console(highlight=False, soft_wrap=True)

Dtype = Annotated[
    Literal["bf16", "fp32"] | None, typer.Option(help="Cast all weights; default: keep theirs.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check source, names, shapes and disk; write nothing.")
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Then compare the logits of both sides on random tokens, experts pinned, and print "
        "how many choices of experts flip without pinning. The Hugging Face side runs in plain "
        "torch, one tensor in memory at a time, the other in Megatron-Core, in fp32.",
    ),
]
Through = Annotated[
    Literal["megatron", "reference"],
    typer.Option(
        help="What --verify runs the Megatron checkpoint in. megatron: the model that trains; it "
        "takes 4 bytes a parameter. reference: plain torch on both sides, with little memory."
    ),
]
Tokens = Annotated[int, typer.Option(help="Tokens that --verify compares.", min=1)]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="Largest difference of a logit, relative to the largest logit, that --verify lets "
        "pass. Default: 1e-5, or 2e-2 when weights were cast (bf16 keeps 8 bits)."
    ),
]


@app.command("import")
def import_(
    hf_dir: Annotated[Path, typer.Argument(help="Hugging Face folder with safetensors weights.")],
    ckpt_dir: Annotated[Path, typer.Argument(help="Megatron checkpoint to write; must be new.")],
    dtype: Dtype = None,
    dry_run: DryRun = False,
    verify: Verify = False,
    verify_in: Through = "megatron",
    verify_tokens: Tokens = 128,
    tolerance: Tolerance = None,
) -> None:
    """Hugging Face folder -> Megatron checkpoint.

    Example: python tools/convert_checkpoint.py import Ling-lite checkpoints/ling-lite --verify

    Every tensor of the folder is used once and every tensor of the model is made once, or nothing
    is written. config.json, tokenizer and generation files are kept for a later export.
    """
    with _progress("importing") as on_bytes:
        done = import_checkpoint(hf_dir, ckpt_dir, DTYPES.get(dtype or ""), on_bytes, dry_run)
    _report(done, ckpt_dir, dry_run)
    if verify and not dry_run:
        limit = _limit(tolerance, cast=dtype is not None)
        _verify(hf_dir, ckpt_dir, ckpt_dir, verify_in, verify_tokens, limit)


@app.command("export")
def export(
    ckpt_dir: Annotated[
        Path, typer.Argument(help="Megatron checkpoint, or a run's folder: its newest one.")
    ],
    hf_dir: Annotated[Path, typer.Argument(help="Hugging Face folder to write; must be new.")],
    norm_head: Annotated[
        Literal["raw", "folded"],
        typer.Option(
            help="raw: the head as trained, norm_head in config.json unchanged. folded: columns "
            "divided by their length and norm_head false, for programs that do not know NormHead."
        ),
    ] = "raw",
    max_shard: Annotated[str, typer.Option(help="Largest safetensors file: 500MB, 5GB.")] = "5GB",
    dtype: Dtype = None,
    dry_run: DryRun = False,
    verify: Verify = False,
    verify_in: Through = "megatron",
    verify_tokens: Tokens = 128,
    tolerance: Tolerance = None,
) -> None:
    """Megatron checkpoint, imported or trained on any layout -> Hugging Face folder.

    Example: python tools/convert_checkpoint.py export runs/sft sft-hf

    The optimizer's state stays behind. The folder is complete: weights, config.json, tokenizer
    and whatever came with the imported model.
    """
    ckpt_dir = newest(ckpt_dir)
    with _progress("exporting") as on_bytes:
        cast, size = DTYPES.get(dtype or ""), parse_size(max_shard)
        done = export_checkpoint(ckpt_dir, hf_dir, norm_head, size, cast, on_bytes, dry_run)
    _report(done, hf_dir, dry_run)
    if verify and not dry_run:
        # A head folded in bf16 is rounded once more.
        rounded = dtype is not None or (norm_head == "folded" and "bf16" in done.dtypes)
        limit = _limit(tolerance, rounded)
        _verify(hf_dir, ckpt_dir, hf_dir, verify_in, verify_tokens, limit)


def parse_size(text: str) -> int:
    """Bytes in a size such as 500MB or 5GB (powers of ten, as on the Hugging Face hub)."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    if unit not in units or not number.isdecimal() or int(number) == 0:
        raise ConversionError(f"--max-shard {text} is not a size such as 500MB or 5GB")
    return int(number) * units[unit]


def _limit(tolerance: float | None, cast: bool) -> float:
    return (2e-2 if cast else 1e-5) if tolerance is None else tolerance


def _verify(
    hf_dir: Path, ckpt_dir: Path, written: Path, through: str, count: int, limit: float
) -> None:
    console.print(f"comparing the logits of {count} random tokens ...")
    model, _ = read_ring(ckpt_dir)
    tokens_S = sample_tokens(model.vocab_size, count)
    if through == "reference":
        result = compare(score_hf_folder(hf_dir), score_megatron_checkpoint(ckpt_dir), tokens_S)
    else:
        with _megatron_model(ckpt_dir, model) as score:
            result = compare(score_hf_folder(hf_dir), score, tokens_S)
    console.print(
        f"largest difference, experts pinned: {result.pinned:.2e}  "
        f"(free: {result.free:.2e}; largest logit {result.largest:.2f}; "
        f"limit {limit * result.largest:.1e})\n"
        f"choices of experts that flip without pinning: {result.flip_rate:.3%}"
    )
    if not result.pinned <= limit * result.largest:  # also when it is not a number
        raise ConversionError(
            f"{written} was written, but does not compute the same function: a logit differs by "
            f"{result.pinned:.2e}, allowed are {limit * result.largest:.1e}. Do not use it"
        )


@contextlib.contextmanager
def _megatron_model(ckpt_dir: Path, model: ModelConfig) -> Iterator[Score]:
    """The checkpoint in the model that trains, in fp32, in this process alone."""
    # Here, because megatron-core takes seconds to import and converting does without it.
    from megatron_ring import parallel, platform
    from megatron_ring.model import weights
    from megatron_ring.model.ling import build_stages

    device = platform.prepare()
    config = Config(model=model)
    with parallel.process_groups(config.parallel, device, seed=0):
        [stage] = build_stages(config, torch.float32, device)
        weights.fill([stage], weights.open_weights(ckpt_dir))
        stage.eval()

        @torch.no_grad()
        def score(tokens_S: Tensor, pinned_LSK: Tensor | None) -> tuple[Tensor, Tensor]:
            length, first = len(tokens_S), model.first_k_dense_replace
            choices = stage.router_loss
            # Megatron-Core counts layers from 1.
            pinned = () if pinned_LSK is None else enumerate(pinned_LSK[first:], start=first + 1)
            choices.pinned, choices.record = dict(pinned), {}
            logits_SV = stage(
                tokens_S=tokens_S.to(device),
                positions_S=torch.arange(length, device=device),
                padding_S=torch.zeros(length, dtype=torch.bool, device=device),
                cu_seqlens=torch.tensor([0, length], dtype=torch.int32, device=device),
                lengths=[length],
            )
            routed_LSK = torch.full(
                (model.num_hidden_layers, length, model.num_experts_per_tok), -1
            )
            for layer, [experts_SK] in choices.record.items():
                routed_LSK[layer - 1] = experts_SK.cpu()
            return logits_SV.float().cpu(), routed_LSK

        yield score


class _progress:
    """A progress bar in bytes, as a context that gives the callback to report to."""

    def __init__(self, label: str) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.bar = Progress(
            "{task.description}",
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.label = label

    def __enter__(self) -> OnBytes:
        self.bar.start()
        task = self.bar.add_task(self.label, total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _report(done: Summary, target: Path, dry_run: bool) -> None:
    verb = "would write" if dry_run else "wrote"
    files = f" in {len(done.shards)} file(s)" if done.shards else ""
    console.print(
        f"{verb} {target}: {done.tensors:,} tensors, {done.bytes / 1e9:,.3f} GB, "
        f"{' + '.join(done.dtypes)}{files}"
    )
    if done.companions:
        console.print(f"copied along: {', '.join(done.companions)}")


if __name__ == "__main__":
    try:
        app()
    except (ConfigError, ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
