"""Let a model answer prompts: a plain sampler to look at a run, in one process.

\b
    python tools/sample.py runs/quickstart/dpo/checkpoints/step-00000040 --prompt "What is 3 + 4?"
    python tools/sample.py Ling-lite --prompt "Hello" --prompt "Why?" --temperature 0.6
    python tools/sample.py Ling-lite --input chats.jsonl --limit 50 --output answers.jsonl

MODEL is a Megatron checkpoint (the folder of one step) or a Hugging Face folder. --input has chat
samples: the turns before the last assistant turn of each are a prompt. All prompts are answered
together, each new token of all in one forward pass; keys and values are kept.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from megatron_ring import step
from megatron_ring.config import ConfigError
from megatron_ring.data.rows import make_row
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ring.kernels.attention import Attend, Segments
from megatron_ring.model import frozen
from megatron_ring.model.attention import PackedSelfAttention
from megatron_ring.model.ling import LingModel

Turns = list[dict[str, str]]  # of one conversation, each with role and content
MEMORY_BLOCK = 64  # tokens that the memory of keys and values grows by

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False, soft_wrap=True)


@app.command(help=__doc__)
def main(
    model: Annotated[str, typer.Argument(help="Megatron checkpoint or Hugging Face folder")],
    prompt: Annotated[list[str] | None, typer.Option(help="a user's question; repeatable")] = None,
    input: Annotated[Path | None, typer.Option(help="chat samples, JSONL")] = None,
    limit: Annotated[int | None, typer.Option(help="only the first so many samples", min=1)] = None,
    max_tokens: Annotated[int, typer.Option(help="longest answer", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="of the random draws")] = 0,
    tokenizer: Annotated[str | None, typer.Option(help="default: the model's own")] = None,
    output: Annotated[Path | None, typer.Option(help="also write JSONL here")] = None,
    samples: Annotated[int, typer.Option(help="answers to each prompt", min=1)] = 1,
) -> None:
    try:
        if output is not None and not output.parent.is_dir():
            raise ConfigError(f"--output {output}: there is no folder {output.parent}")
        prompts = [[{"role": "user", "content": text}] for text in prompt or []]
        prompts += list(islice(read_prompts(input), limit)) if input is not None else []
        prompts = [turns for turns in prompts for _ in range(samples)]
        if not prompts:
            raise ConfigError("there is nothing to answer: give --prompt TEXT or --input FILE")
        config = frozen.configure(model, [])
        words = load_tokenizer(tokenizer or str(frozen.tokenizer_folder(model)))
        with frozen.opened(model, config) as [stage]:
            answers = answer(stage, words, prompts, max_tokens, temperature, seed)
    except (ConfigError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    questions = [turns[-1]["content"] for turns in prompts]
    for question, text in zip(questions[: samples * len(prompt or [])], answers, strict=False):
        console.print(f"[bold cyan]{question}[/]", markup=True)
        console.print(text, markup=False)
        console.print()
    if output is not None:
        lines = [
            json.dumps({"prompt": q, "answer": a}) for q, a in zip(questions, answers, strict=True)
        ]
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")
        console.print(f"{output}: {len(lines)} answers", markup=False)


def read_prompts(file: Path) -> Iterator[Turns]:
    """The turns before the last assistant turn of each sample; ValueError names file and line."""
    if not file.is_file():
        raise ConfigError(f"--input {file}: there is no such file")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                messages = json.loads(line)["messages"]
                last = max(i for i, turn in enumerate(messages) if turn["role"] == "assistant")
                turns = [{"role": t["role"], "content": t["content"]} for t in messages[:last]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{file}:{number}: not a line of {{"messages": [{{"role", "content"}}]}} with '
                    f"an assistant turn: {type(error).__name__} {error}"
                ) from None
            if not turns:
                raise ValueError(f"{file}:{number}: no turn comes before the assistant turn")
            yield turns


def answer(
    stage: LingModel,
    tokenizer: Tokenizer,
    prompts: list[Turns],
    max_tokens: int,
    temperature: float,
    seed: int,
) -> list[str]:
    """One answer a prompt (the turns before it), without the end token.

    Cut at `max_tokens` or at the model's length.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = [tokenizer.render(prompt, add_generation_prompt=True) for prompt in prompts]
    tokens = [tokenizer.encode(text) for text in texts]
    longest = stage.arch.longest
    for prompt, of_prompt in zip(prompts, tokens, strict=True):
        if len(of_prompt) >= longest:
            raise ConfigError(
                f"the prompt {prompt[-1]['content'][:40]!r} takes {len(of_prompt)} tokens, the "
                f"model's {longest} positions leave no room for an answer"
            )
    starts, going = [len(t) for t in tokens], list(range(len(prompts)))
    with remembering(stage) as memories:
        logits_NV = first_logits(stage, tokens)
        for count in track(range(max_tokens), "answering", transient=True):
            # A model may have more rows than its tokenizer has tokens: those stand for no text.
            chosen = draw(logits_NV[:, : tokenizer.size], temperature, generator)
            for i, token in zip(going, chosen, strict=True):
                tokens[i] += [token] * (token != tokenizer.eos_id)
            goes_on = [
                token != tokenizer.eos_id and len(tokens[i]) < longest
                for i, token in zip(going, chosen, strict=True)
            ]
            going = [i for i, on in zip(going, goes_on, strict=True) if on]
            if not going or count == max_tokens - 1:
                break
            for memory in memories:
                memory.keep(goes_on)
            logits_NV = next_logits(stage, [tokens[i] for i in going])
    return [tokenizer.decode(t[start:]) for t, start in zip(tokens, starts, strict=True)]


def draw(logits_NV: Tensor, temperature: float, generator: torch.Generator) -> list[int]:
    if temperature == 0:
        return logits_NV.argmax(-1).tolist()
    probabilities = (logits_NV.float().cpu() / temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].tolist()


class Memory:
    """Attention that keeps the keys and values of N documents, so that a token costs one token.

    The first call has whole documents, later ones the next token of each.
    """

    def __init__(self, attend: Attend) -> None:
        self.attend = attend
        self.keys_NGLR = self.values_NGLR = torch.empty(0)  # zeros behind a document's end
        self.lengths_N = torch.empty(0)

    def __call__(self, q_SHR: Tensor, k_SGR: Tensor, v_SGR: Tensor, segments: Segments) -> Tensor:
        if not len(self.lengths_N):
            self.lengths_N = torch.tensor(segments.q_lengths, device=k_SGR.device)
            self.keys_NGLR, self.values_NGLR = (
                pad_sequence(x.split(segments.q_lengths), batch_first=True).transpose(1, 2)
                for x in (k_SGR, v_SGR)
            )
            return self.attend(q_SHR, k_SGR, v_SGR, segments)
        N, L = len(self.lengths_N), self.keys_NGLR.shape[2]
        if int(self.lengths_N.max()) == L:
            self.keys_NGLR, self.values_NGLR = (
                F.pad(x, (0, 0, 0, MEMORY_BLOCK)) for x in (self.keys_NGLR, self.values_NGLR)
            )
        each = torch.arange(N, device=k_SGR.device)
        self.keys_NGLR[each, :, self.lengths_N] = k_SGR
        self.values_NGLR[each, :, self.lengths_N] = v_SGR
        self.lengths_N = self.lengths_N + 1
        known_NL = (
            torch.arange(self.keys_NGLR.shape[2], device=k_SGR.device) < self.lengths_N[:, None]
        )
        # The query heads that share a key/value head stand where a row's tokens would.
        q_NGQR = q_SHR.view(N, k_SGR.shape[1], -1, q_SHR.shape[2])
        out_NGQR = F.scaled_dot_product_attention(
            q_NGQR, self.keys_NGLR, self.values_NGLR, attn_mask=known_NL[:, None, None]
        )
        return out_NGQR.reshape(q_SHR.shape)

    def keep(self, which: list[bool]) -> None:
        """Forget the documents that are not to go on."""
        kept = torch.tensor(which, device=self.lengths_N.device)
        self.keys_NGLR, self.values_NGLR = self.keys_NGLR[kept], self.values_NGLR[kept]
        self.lengths_N = self.lengths_N[kept]


@contextmanager
def remembering(stage: LingModel) -> Iterator[list[Memory]]:
    """The attentions of all layers with a memory each, inside."""
    layers = [m for m in stage.modules() if isinstance(m, PackedSelfAttention)]
    memories = [Memory(layer.attend) for layer in layers]
    for layer, memory in zip(layers, memories, strict=True):
        layer.attend = memory
    try:
        yield memories
    finally:
        for layer, memory in zip(layers, memories, strict=True):
            layer.attend = memory.attend


@torch.no_grad()
def first_logits(stage: LingModel, documents: list[list[int]]) -> Tensor:
    """Logits of the token after each document, [N, V]."""
    rows = [(np.asarray(d, np.int32), np.zeros(len(d), bool)) for d in documents]
    lengths = [len(d) for d in documents]
    batch = step.to_device(make_row(rows, sum(lengths), 0), stage.output_layer.weight.device)
    last_S = torch.zeros(sum(lengths), dtype=torch.bool)
    last_S[np.cumsum(lengths) - 1] = True
    del batch["labels_S"]
    return stage(**(batch | {"mask_S": last_S.to(batch["mask_S"].device)}))


@torch.no_grad()
def next_logits(stage: LingModel, documents: list[list[int]]) -> Tensor:
    """The same, where all but the last token of each document is remembered."""
    N, device = len(documents), stage.output_layer.weight.device
    return stage(
        tokens_S=torch.tensor([d[-1] for d in documents], device=device),
        positions_S=torch.tensor([len(d) - 1 for d in documents], device=device),
        padding_S=torch.zeros(N, dtype=torch.bool, device=device),
        cu_seqlens=torch.arange(N + 1, dtype=torch.int32, device=device),
        lengths=[1] * N,
    )


if __name__ == "__main__":
    app()
