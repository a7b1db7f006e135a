"""Log-probability of every token of chat samples or token lists under a model.

MODEL is a Megatron checkpoint (the folder of one step) or a Hugging Face folder, read directly.
Runs alone or under torchrun, on any layout typed as key.path=value:

\b
    python tools/score.py runs/sft/checkpoints/step-00000500 --input chat.jsonl --output out.jsonl
    torchrun --nproc-per-node 4 tools/score.py Ling-lite --input ids.jsonl --output scores.jsonl \\
        parallel.tp=2 parallel.ep=4

A line of the input holds {"messages": [...]} (or "prompt" and "response") or {"tokens": [...]}; a
line of the output, in the same order, {"logprobs": [...]}: entry i belongs to token i + 1, natural
logarithm, all tokens before it given. Chat samples add their "tokens" and which were "targets".
"""

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import typer
from rich.progress import track

from megatron_ring import parallel, step
from megatron_ring.config import Config, ConfigError
from megatron_ring.data.chat import SampleError, encode_chat
from megatron_ring.data.packing import best_fit
from megatron_ring.data.rows import make_row
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ring.model import frozen
from megatron_ring.model.ling import LingModel

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Sample(NamedTuple):
    tokens: np.ndarray  # int32
    extra: dict[str, Any]  # what the output line says beside the log-probabilities


@app.command(help=__doc__)
def main(
    model: Annotated[
        str,
        typer.Argument(help="Megatron checkpoint, run folder (its newest) or Hugging Face folder"),
    ],
    input: Annotated[Path, typer.Option(help="JSONL file")],
    output: Annotated[Path, typer.Option(help="JSONL file to write")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value …")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="for chat samples; default: the model's own")
    ] = None,
    row_tokens: Annotated[
        int, typer.Option(help="samples are packed into rows of this many tokens, or the longest")
    ] = 4096,
) -> None:
    try:
        if not output.parent.is_dir():  # known before the work, not after
            raise ConfigError(f"--output {output}: there is no folder {output.parent}")
        config = frozen.configure(model, overrides or [])
        samples = read(input, config, tokenizer or str(frozen.tokenizer_folder(model)))
        longest = max((len(sample.tokens) for sample in samples), default=1)
        multiple = parallel.row_multiple(config.parallel)
        row_tokens = -(-max(row_tokens, longest) // multiple) * multiple
        with frozen.opened(model, config) as stages:
            lines = score(stages, samples, row_tokens, config)
            if dist.get_rank() == 0:
                write(output, samples, lines)
    except (ConfigError, SampleError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def read(file: Path, config: Config, tokenizer_path: str) -> list[Sample]:
    """The samples of a JSONL file; SampleError names file and line of one that is none."""
    samples: list[Sample] = []
    tokenizer: Tokenizer | None = None
    # Not splitlines: JSON may hold characters inside a string that it takes for line ends.
    whole = read_text(file).removesuffix("\n")
    for number, text in enumerate(whole.split("\n") if whole else [], 1):
        at = f"{file}:{number}"
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise SampleError(f"{at}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise SampleError(f"{at}: not a JSON object but {record!r:.40}")
        if "tokens" in record:
            samples.append(Sample(checked(record["tokens"], config.model.vocab_size, at), {}))
        else:
            tokenizer = tokenizer or load_tokenizer(tokenizer_path)
            sample = encode(record, tokenizer, at)
            checked(sample.tokens.tolist(), config.model.vocab_size, at)
            samples.append(sample)
    return samples


def read_text(file: Path) -> str:
    """The file's text; SampleError when there is none."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"cannot read {file}: {error}") from None


def checked(tokens: Any, vocab_size: int, at: str) -> np.ndarray:
    """Token ids as int32; SampleError when they are none, or none of this vocabulary."""
    if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
        raise SampleError(f'{at}: "tokens" must be a list of whole numbers')
    if not tokens:
        raise SampleError(f"{at}: no tokens")
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise SampleError(
                f"{at}: token id {token} is outside the model's vocab_size={vocab_size}"
            )
    return np.asarray(tokens, dtype=np.int32)


def encode(record: dict[str, Any], tokenizer: Tokenizer, at: str) -> Sample:
    """A chat sample as tokens, with its tokens and targets for the output."""
    if "prompt" in record and "response" in record:
        record = {
            "messages": [
                {"role": "user", "content": record["prompt"]},
                {"role": "assistant", "content": record["response"]},
            ]
        }
    if "messages" not in record:
        raise SampleError(f'{at}: has neither "tokens", "messages" nor "prompt" and "response"')
    try:
        tokens, targets = encode_chat(record["messages"], tokenizer, record.get("tools"))
    except SampleError as error:
        raise SampleError(f"{at}: {error}") from None
    return Sample(tokens, {"tokens": tokens.tolist(), "targets": targets.astype(int).tolist()})


def score(
    stages: list[LingModel], samples: list[Sample], row_tokens: int, config: Config
) -> list[list[float]]:
    """Log-probabilities of every sample, in their order, complete on rank 0."""
    rank, size = parallel.data_rank(), parallel.data_size()
    plan = best_fit([len(sample.tokens) for sample in samples], row_tokens)
    # Every rank runs as many rows at a time as its pipeline has stages, padding where rows run out.
    width = size * config.parallel.pp
    plan += [[] for _ in range(-len(plan) % width)]
    scored: dict[int, list[float]] = {}
    starts = range(0, len(plan), width)
    for start in track(starts, "scoring", disable=dist.get_rank() != 0):
        mine = plan[start + rank : start + width : size]
        rows = [
            make_row([(samples[i].tokens, all_targets(samples[i])) for i in row], row_tokens, 0)
            for row in mine
        ]
        for row, logp_S in zip(mine, step.score(stages, rows), strict=False):
            lengths = [len(samples[i].tokens) for i in row]
            parts = logp_S.cpu()[: sum(lengths)].split(lengths)
            for i, part in zip(row, parts, strict=True):
                scored[i] = part[:-1].tolist()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, scored)
    whole = {i: logprobs for part in everyone for i, logprobs in part.items()}
    return [whole[i] for i in range(len(samples))]


def all_targets(sample: Sample) -> np.ndarray:
    return np.ones(len(sample.tokens), dtype=bool)


def write(output: Path, samples: list[Sample], lines: list[list[float]]) -> None:
    """One JSON line a sample; the file appears when it is complete."""
    temporary = output.with_name(f"{output.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for sample, logprobs in zip(samples, lines, strict=True):
            file.write(json.dumps({"logprobs": logprobs} | sample.extra) + "\n")
    temporary.replace(output)
    print(f"wrote {len(samples)} lines to {output}")


if __name__ == "__main__":
    torch.set_num_threads(max(1, torch.get_num_threads() // parallel.world_size()))
    app()
