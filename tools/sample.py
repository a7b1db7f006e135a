"""Let a model answer prompts: a plain sampler to look at a run, in one process.

\b
    python tools/sample.py runs/quickstart/run/checkpoints/step-00000400 --prompt "What is 3 + 4?"
    python tools/sample.py Ling-lite --prompt "Hello" --prompt "Why?" --temperature 0.6

MODEL is a Megatron checkpoint (the folder of one step) or a Hugging Face folder. All prompts are
answered together as the documents of one packed row; every new token costs a forward pass over the
row, so this is for tiny models and short answers.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from megatron_ring import step
from megatron_ring.config import ConfigError
from megatron_ring.data.rows import make_row
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ring.model import frozen
from megatron_ring.model.ling import LingModel

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False, soft_wrap=True)


@app.command(help=__doc__)
def main(
    model: Annotated[str, typer.Argument(help="Megatron checkpoint or Hugging Face folder")],
    prompt: Annotated[list[str], typer.Option(help="a user's question; may be repeated")],
    max_tokens: Annotated[int, typer.Option(help="longest answer", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="of the random draws")] = 0,
    tokenizer: Annotated[str | None, typer.Option(help="default: the model's own")] = None,
    output: Annotated[Path | None, typer.Option(help="also write JSONL here")] = None,
) -> None:
    try:
        if output is not None and not output.parent.is_dir():
            raise ConfigError(f"--output {output}: there is no folder {output.parent}")
        config = frozen.configure(model, [])
        words = load_tokenizer(tokenizer or str(frozen.tokenizer_folder(model)))
        with frozen.opened(model, config) as [stage]:
            answers = answer(stage, words, prompt, max_tokens, temperature, seed)
    except (ConfigError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    for question, text in zip(prompt, answers, strict=True):
        console.print(f"[bold cyan]{question}[/]", markup=True)
        console.print(text, markup=False)
        console.print()
    if output is not None:
        lines = [
            json.dumps({"prompt": q, "answer": a}) for q, a in zip(prompt, answers, strict=True)
        ]
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def answer(
    stage: LingModel,
    tokenizer: Tokenizer,
    prompts: list[str],
    max_tokens: int,
    temperature: float,
    seed: int,
) -> list[str]:
    """One answer a prompt, without the end token; cut at `max_tokens` or at the model's length."""
    generator = torch.Generator().manual_seed(seed)
    texts = [
        tokenizer.render([{"role": "user", "content": p}], add_generation_prompt=True)
        for p in prompts
    ]
    tokens = [tokenizer.encode(text) for text in texts]
    longest = stage.arch.max_position_embeddings
    for prompt, of_prompt in zip(prompts, tokens, strict=True):
        if len(of_prompt) >= longest:
            raise ConfigError(
                f"the prompt {prompt[:40]!r} takes {len(of_prompt)} tokens, the model's "
                f"max_position_embeddings={longest} leave no room for an answer"
            )
    starts, open_ = [len(t) for t in tokens], set(range(len(prompts)))
    for _ in track(range(max_tokens), "answering", transient=True):
        going = sorted(i for i in open_ if len(tokens[i]) < longest)
        if not going:
            break
        # A model may have more rows than its tokenizer has tokens: those stand for no text.
        logits_NV = next_logits(stage, [tokens[i] for i in going])[:, : tokenizer.size]
        if temperature > 0:
            probabilities = (logits_NV.float().cpu() / temperature).softmax(-1)
            chosen = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        else:
            chosen = logits_NV.argmax(-1)
        for i, token in zip(going, chosen.tolist(), strict=True):
            if token == tokenizer.eos_id:
                open_.discard(i)
            else:
                tokens[i].append(token)
    return [tokenizer.decode(t[start:]) for t, start in zip(tokens, starts, strict=True)]


@torch.no_grad()
def next_logits(stage: LingModel, documents: list[list[int]]) -> torch.Tensor:
    """Logits of the token after each document, [N, V]."""
    rows = [(np.asarray(d, np.int32), np.zeros(len(d), bool)) for d in documents]
    lengths = [len(d) for d in documents]
    batch = step.to_device(make_row(rows, sum(lengths), 0), stage.output_layer.weight.device)
    last_S = torch.zeros(sum(lengths), dtype=torch.bool)
    last_S[np.cumsum(lengths) - 1] = True
    del batch["labels_S"]
    return stage(**(batch | {"mask_S": last_S.to(batch["mask_S"].device)}))


if __name__ == "__main__":
    app()
