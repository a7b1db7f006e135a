"""Answers of several models to the same held-out prompts, beside the right ones.

    python tools/sample.py BEFORE --prompt "..." --output before.jsonl
    python tools/sample.py AFTER --prompt "..." --output after.jsonl
    python tools/compare_answers.py corpus/valid.jsonl before.jsonl after.jsonl

An answer is right when what follows its </think> is what follows it in the corpus.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

SHOWN = 240  # characters of an answer; an untrained model rambles


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def final(answer: str) -> str:
    """What is said after thinking; all of it where nothing was thought."""
    return answer.removesuffix("<|endoftext|>").rpartition("</think>")[2].strip()


def right_answers(corpus: Path) -> dict[str, str]:
    """Last question of each sample -> the whole turn that answers it."""
    turns = [sample["messages"][-2:] for sample in read(corpus)]
    return {question["content"]: answer["content"] for question, answer in turns}


def compare(corpus: Path, files: list[Path]) -> tuple[Table, dict[str, int]]:
    """A row a prompt, a column a model; and how many answers of each file are right.

    ValueError when a prompt is not in the corpus or the files do not hold the same prompts.
    """
    right, answers = right_answers(corpus), {}
    for file in files:
        answers[file.stem] = {line["prompt"]: line["answer"] for line in read(file)}
    prompts = list(answers[files[0].stem])
    for file in files:
        if list(answers[file.stem]) != prompts:
            raise ValueError(f"{file} answers other prompts than {files[0]}; sample both again")
    counts = dict.fromkeys(answers, 0)
    table = Table("question", *answers, "right", show_lines=True)
    for prompt in prompts:
        if prompt not in right:
            raise ValueError(f"{corpus} has no question {prompt!r}")
        cells = []
        for name, said in answers.items():
            good = final(said[prompt]) == final(right[prompt])
            counts[name] += good
            cells.append(Text(said[prompt][:SHOWN], style="green" if good else "red"))
        table.add_row(Text(prompt), *cells, Text(right[prompt]))
    return table, counts


def main(
    corpus: Annotated[Path, typer.Argument(help="JSONL of chat samples with the right answers")],
    files: Annotated[list[Path], typer.Argument(help="written by tools/sample.py --output")],
) -> None:
    """Show answers beside the right ones.

    Example: python tools/compare_answers.py corpus/valid.jsonl before.jsonl after.jsonl
    """
    try:
        table, counts = compare(corpus, files)
    except ValueError as error:
        sys.exit(str(error))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(", ".join(f"{name}: {n} of {table.row_count} right" for name, n in counts.items()))


if __name__ == "__main__":
    typer.run(main)
