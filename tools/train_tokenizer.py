"""A SentencePiece tokenizer for a small model, from chat samples.

    python tools/train_tokenizer.py runs/quickstart/corpus/stage1.jsonl runs/quickstart/ring.model
    python tools/train_tokenizer.py a.jsonl b.jsonl small.model --vocab-size 4096

Byte-pair encoding with the symbols of Ling's chat format. Text comes back as it went in: nothing is
normalized, digits and newlines are tokens of their own, unseen characters fall back to bytes.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.data.chat import check_turns, written_out
from megatron_ring.data.tokenizer import load_tokenizer, train_sentencepiece

# One token each. Ling marks turns with the first two; thinking is plain text there, but a small
# model should not spend its capacity on spelling these.
SYMBOLS = ["<role>", "</role>", "<think>", "</think>"]
ROLES = {"user": "HUMAN"}  # the others are written in capitals; as Ling's chat template does


def texts(files: list[Path]) -> Iterator[str]:
    """Each turn of each sample, as the chat template writes it; ValueError names file and line."""
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    sample = json.loads(line)
                    turns = check_turns(sample["messages"])
                    for turn in written_out(turns, sample.get("tools")):
                        role = ROLES.get(turn["role"], turn["role"].upper())
                        yield f"<role>{role}</role>{turn['content']}"
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f'{file}:{number}: not a line of {{"messages": [{{"role", "content"}}]}}: '
                        f"{type(error).__name__} {error}"
                    ) from None


def train(files: list[Path], vocab_size: int, output: Path) -> None:
    """Write the .model. ValueError if the samples cannot give a vocabulary of that size."""
    sentences = list(texts(files))  # an error must not surface inside the C++ trainer
    try:
        train_sentencepiece(sentences, output, vocab_size, SYMBOLS)
    except RuntimeError as error:
        output.unlink()
        raise ValueError(f"--vocab-size {vocab_size} does not fit these samples: {error}") from None


def main(
    files: Annotated[list[Path], typer.Argument(help="JSONL of chat samples, then the .model")],
    vocab_size: Annotated[int, typer.Option(help="entries, bytes and symbols included")] = 2048,
) -> None:
    """Train a SentencePiece tokenizer: FILES are JSONL samples and, last, the .model to write.

    Example: python tools/train_tokenizer.py corpus/stage1.jsonl ring.model --vocab-size 2048
    """
    *sources, output = files
    if not sources or output.suffix != ".model":
        sys.exit(f"the last file is the tokenizer to write and must end in .model, not {output}")
    missing = [str(source) for source in sources if not source.is_file()]
    if missing:
        sys.exit(f"there is no {', '.join(missing)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        train(sources, vocab_size, output)
    except ValueError as error:
        sys.exit(str(error))
    tokenizer, sentences = load_tokenizer(output), list(texts(sources))
    num_tokens = sum(len(tokenizer.encode(text)) for text in sentences)
    num_chars = sum(map(len, sentences))
    print(
        f"{output}: {tokenizer.size} tokens; the samples are {num_tokens:,} tokens, "
        f"{num_chars / num_tokens:.2f} characters each"
    )


if __name__ == "__main__":
    typer.run(main)
