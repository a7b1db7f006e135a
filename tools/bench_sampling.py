"""Seconds to sample with keys and values kept and without, from one run, and their ratio.

\b
    python tools/bench_sampling.py runs/sft --prompts 8 --prompt-tokens 64 --max-tokens 128
    torchrun --nproc-per-node 2 tools/bench_sampling.py Ling-lite parallel.ep=2

Prompts are random tokens; the likeliest token is taken and no end token heeded, so that both ways
do the same work and their answers can be compared.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.distributed as dist
import typer

from megatron_ring import parallel
from megatron_ring.config import ConfigError
from megatron_ring.model import frozen
from megatron_ring.sampling.draw import How
from megatron_ring.sampling.sampler import Answer, Sampler

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class NoWords:
    """In a tokenizer's place: every token of the model, none of which ends an answer."""

    size: int
    eos_id: int = -1

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))


@app.command(help=__doc__)
def main(
    model: Annotated[str, typer.Argument(help="Megatron checkpoint or Hugging Face folder")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value …")] = None,
    prompts: Annotated[int, typer.Option(help="how many, on all ranks together", min=1)] = 8,
    prompt_tokens: Annotated[int, typer.Option(help="tokens of each", min=1)] = 64,
    max_tokens: Annotated[int, typer.Option(help="tokens of each answer", min=1)] = 128,
) -> None:
    try:
        config = frozen.configure(model, overrides or [])
        vocabulary, longest = config.model.vocab_size, config.model.longest
        if prompt_tokens + max_tokens > longest:
            raise ConfigError(
                f"--prompt-tokens {prompt_tokens} and --max-tokens {max_tokens} are more than the "
                f"model's {longest} positions; lower one"
            )
        rng = np.random.default_rng(0)
        given = rng.integers(0, vocabulary, (prompts, prompt_tokens)).tolist()
        with frozen.opened(model, config) as stages:
            how, words = How(max_tokens), NoWords(vocabulary)
            kept, again = (
                timed(Sampler(stages, words, how, remember=remember), given)
                for remember in (True, False)
            )
            where = parallel.describe()
            first = dist.get_rank() == 0
    except (ConfigError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    if first:
        report(kept, again, prompts * max_tokens, where)


def timed(sampler: Sampler, prompts: list[list[int]]) -> tuple[float, list[Answer]]:
    """Seconds to answer, after two tokens of warm-up; and the answers."""
    warm = Sampler(sampler.stages, sampler.tokenizer, How(max_tokens=2), remember=sampler.remember)
    warm.answers(prompts)
    start = time.perf_counter()  # tokens reach the host, so nothing runs on when the clock is read
    answers = sampler.answers(prompts)
    return time.perf_counter() - start, answers


def report(
    kept: tuple[float, list[Answer]], again: tuple[float, list[Answer]], tokens: int, where: str
) -> None:
    same = sum(a.tokens == b.tokens for a, b in zip(kept[1], again[1], strict=True))
    print(f"{where}; {len(kept[1])} answers, {tokens} tokens in all")
    for name, (seconds, _) in (("kept", kept), ("read again", again)):
        print(f"{name:11} {seconds:8.2f} s  {tokens / seconds:10.1f} tokens/s")
    print(f"ratio       {again[0] / kept[0]:8.1f}    {same} of {len(kept[1])} answers equal")


if __name__ == "__main__":
    torch.set_num_threads(max(1, torch.get_num_threads() // parallel.world_size()))
    app()
