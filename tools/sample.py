"""Let a model answer prompts, on any layout.

\b
    python tools/sample.py runs/quickstart/dpo/checkpoints/step-00000040 --prompt "What is 3 + 4?"
    python tools/sample.py Ling-lite --prompt "Hello" --prompt "Why?" --temperature 0.6
    python tools/sample.py Ling-lite --input chats.jsonl --limit 50 --output answers.jsonl
    torchrun --nproc-per-node 8 tools/sample.py Ling-lite parallel.ep=8 --input chats.jsonl \\
        --samples 4 --temperature 0.6 --top-p 0.95 --output answers.jsonl

MODEL is a Megatron checkpoint (the folder of one step) or a Hugging Face folder. --input has chat
samples: the turns before the last assistant turn of each are a prompt. Prompts are answered
together, each new token of all in one forward pass; keys and values are kept. The seed decides
what is drawn, also on another layout, as far as its logits round alike.

A line of --output has prompt, answer, ended (end, stop or length), finish_reason (stop, or length
where it was cut) and primed (true where the chat template ended the prompt with <think>, which the
answer does not repeat): what tools/compare_answers.py and the report on think tags want to know.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.progress import Progress

from megatron_ring import parallel, think
from megatron_ring.config import ConfigError
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ring.model import frozen
from megatron_ring.sampling.draw import How
from megatron_ring.sampling.sampler import Answer, Sampler, Turns, encode

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False, soft_wrap=True, emoji=False)


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
    top_p: Annotated[
        float, typer.Option(help="draw from the likeliest tokens that have this probability")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="end an answer before this text; repeatable")
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="answers in work at a time on a data rank", min=1)
    ] = 64,
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value …")] = None,
) -> None:
    try:
        if output is not None and not output.parent.is_dir():
            raise ConfigError(f"--output {output}: there is no folder {output.parent}")
        prompts = [[{"role": "user", "content": text}] for text in prompt or []]
        prompts += list(islice(read_prompts(input), limit)) if input is not None else []
        if not prompts:
            raise ConfigError("there is nothing to answer: give --prompt TEXT or --input FILE")
        how = How(max_tokens, temperature, top_p, seed, tuple(stop or ()))
        config = frozen.configure(model, overrides or [])
        words = load_tokenizer(tokenizer or str(frozen.tokenizer_folder(model)))
        tokens = encode(words, prompts, config.model.longest)
        with frozen.opened(model, config) as stages:
            answers = answered(Sampler(stages, words, how, max_batch), tokens, samples)
    except (ConfigError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    if parallel.is_first_rank():
        questions = [turns[-1]["content"] for turns in prompts]
        show(questions, answers, len(prompt or []))
        if output is not None:
            write(output, questions, answers, [is_primed(words, turns) for turns in prompts])


def answered(sampler: Sampler, prompts: list[list[int]], samples: int) -> list[Answer]:
    """All answers, on every rank; the first shows how far its own are."""
    with Progress(transient=True, console=console, disable=dist.get_rank() > 0) as bar:
        task = bar.add_task("answering", total=len(prompts[:: parallel.data_size()]) * samples)
        own = []
        for step in sampler.steps(prompts, samples):
            own += [sampler.answer(document) for document in step if document.ended]
            bar.update(task, completed=len(own))
    return sampler.gathered(own)


def show(questions: list[str], answers: list[Answer], typed: int) -> None:
    """Print the answers to the first `typed` questions."""
    for answer in answers:
        if answer.prompt < typed:
            console.print(f"[bold cyan]{questions[answer.prompt]}[/]", markup=True)
            console.print(answer.text, markup=False)
            console.print()


def is_primed(words: Tokenizer, turns: Turns) -> bool:
    """Does the chat template end the prompt with an opening <think>?"""
    return words.render(turns, add_generation_prompt=True).rstrip().endswith(think.OPEN)


def write(output: Path, questions: list[str], answers: list[Answer], primed: list[bool]) -> None:
    """A line an answer, with the keys that the module names."""
    lines = [
        json.dumps(
            {
                "prompt": questions[a.prompt],
                "answer": a.text,
                "ended": a.ended,
                "finish_reason": "length" if a.ended == "length" else "stop",
                "primed": primed[a.prompt],
            }
        )
        for a in answers
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


if __name__ == "__main__":
    torch.set_num_threads(max(1, torch.get_num_threads() // parallel.world_size()))
    app()
