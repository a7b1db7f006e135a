"""Score packed pairs with the reference policy, once, before preference training.

MODEL is the checkpoint that training starts from: a Megatron checkpoint (the folder of one step) or
a Hugging Face folder. PACKED is a folder that tools/pack.py wrote with kind=pairs. The summed
log-probabilities of every answer go to PACKED/reference, with the fingerprint of the weights;
training refuses scores of other weights or rows. A run that was stopped goes on where it was
(told to stop it exits with status 75).
Runs alone or under torchrun, on any layout typed as key.path=value:

\b
    python tools/score_reference.py runs/stage2/checkpoints/step-00000500 packed/pairs
    torchrun --nproc-per-node 8 tools/score_reference.py Ling-lite-sft packed/pairs parallel.ep=8

Training on the same layout and hardware rounds in the same way; on another, tokens near a tie may
go to other experts. Training reports how many did, from the routing kept here.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from rich.progress import track

from megatron_ring import parallel, reference, signals
from megatron_ring.config import ConfigError
from megatron_ring.data.reference import Reference, folder_of
from megatron_ring.data.rows import Rows
from megatron_ring.model import frozen

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(help=__doc__)
def main(
    model: Annotated[
        str,
        typer.Argument(help="Megatron checkpoint, run folder (its newest) or Hugging Face folder"),
    ],
    packed: Annotated[Path, typer.Argument(help="folder of packed pairs")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value …")] = None,
    routing_rows: Annotated[
        int, typer.Option(min=0, help="rows whose expert choices are kept, to report flips")
    ] = 8,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the scores of other weights or rows")
    ] = False,
) -> None:
    try:
        rows = Rows.open(packed)
        if rows.kind != "pairs":
            raise ConfigError(f"{packed} was packed with kind={rows.kind}; pack it with kind=pairs")
        config = frozen.configure(model, overrides or [], rows.row_tokens)
        if rows.tokenizer_size > config.model.vocab_size:
            raise ConfigError(
                f"{packed} holds token ids up to {rows.tokenizer_size - 1}, {model} has "
                f"vocab_size={config.model.vocab_size}; pack with the model's own tokenizer"
            )
        # Told to stop it leaves at once: what is scored has been written.
        with signals.caught(), frozen.opened(model, config) as stages:
            about = reference.describe(config, stages, rows, model, routing_rows)
            if wanted(rows, about, overwrite):
                reference.make(stages, rows, about, progress)
                say(f"wrote {folder_of(rows)}: weights {about.weights}, {about.dtype}")
            else:
                say(f"{folder_of(rows)} holds these scores already; nothing to do")
    except (ConfigError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def wanted(rows: Rows, about: reference.About, overwrite: bool) -> bool:
    """Are the scores still to be made? ConfigError when others are in their place."""
    if not folder_of(rows).is_dir():
        return True
    try:
        there = Reference.open(rows).about
    except ValueError as error:
        if overwrite:
            return True
        raise ConfigError(f"{error}, with --overwrite") from None
    if (there.weights, there.dtype) == (about.weights, about.dtype):
        return False
    if overwrite:
        return True
    raise ConfigError(
        f"{folder_of(rows)} holds the scores of {there.model} (weights {there.weights}, "
        f"{there.dtype}), {about.model} has weights {about.weights}, {about.dtype}; "
        "--overwrite replaces them"
    )


def progress(steps: Iterable[int], total: int) -> Iterable[int]:
    return track(steps, "scoring", total, disable=dist.get_rank() != 0)


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text)


if __name__ == "__main__":
    torch.set_num_threads(max(1, torch.get_num_threads() // parallel.world_size()))
    app()
