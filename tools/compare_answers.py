"""Answers beside the right ones: who is right, and whose think tags are wrong.

    python tools/sample.py STEP --input corpus/valid.jsonl --output before.jsonl
    python tools/sample.py LATER --input corpus/valid.jsonl --output after.jsonl
    python tools/compare_answers.py corpus/valid.jsonl before.jsonl after.jsonl

An answer is right when what follows its </think> is what follows it in the corpus. Think tags are
judged where the right answer has some; megatron_ring/evaluation/think_tags.py says how.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_ring.curation.record import response_of
from megatron_ring.evaluation.think_tags import ERRORS, tag_errors

SHOWN = 240  # characters of an answer; an untrained model rambles


@dataclass
class Score:
    """Counts over one file."""

    answers: int = 0
    right: int = 0
    thinking: int = 0  # answers that should think
    wrong_tags: int = 0  # of those; one can have several of the errors
    errors: Counter[str] = field(default_factory=Counter)
    stray_tags: int = 0  # answers with tags that should have none

    def add(self, said: str, expected: str) -> None:
        self.answers += 1
        self.right += final(said) == final(expected)
        if "</think>" in expected:
            wrong = tag_errors(said.removesuffix("<|endoftext|>"))
            self.thinking += 1
            self.wrong_tags += bool(wrong)
            self.errors.update(wrong)
        else:
            self.stray_tags += "think>" in said

    def cells(self) -> list[str]:
        return [
            share(self.right, self.answers),
            share(self.wrong_tags, self.thinking),
            *(str(self.errors[error]) for error in ERRORS),
            share(self.stray_tags, self.answers - self.thinking),
        ]


def share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f", {part / whole:.1%}" if whole else "")


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def final(answer: str) -> str:
    """What is said after thinking; all of it where nothing was thought."""
    return answer.removesuffix("<|endoftext|>").rpartition("</think>")[2].strip()


def right_answers(corpus: Path) -> dict[str, str]:
    """Last question of each sample -> the whole turn that answers it, its thought as well."""
    samples = read(corpus)
    return {one["messages"][-2]["content"]: response_of(one) or "" for one in samples}


def compare(corpus: Path, files: list[Path], shown: int) -> tuple[Table, dict[str, Score]]:
    """A row for each of the first `shown` prompts, a column a model; and the scores by file.

    ValueError when a prompt is not in the corpus or the files do not hold the same prompts.
    """
    right, said = right_answers(corpus), {file.stem: read(file) for file in files}
    prompts = [line["prompt"] for line in said[files[0].stem]]
    for file in files:
        if [line["prompt"] for line in said[file.stem]] != prompts:
            raise ValueError(f"{file} answers other prompts than {files[0]}; sample both again")
    scores = {name: Score() for name in said}
    table = Table("question", *said, "right", show_lines=True)
    for i, prompt in enumerate(prompts):
        if prompt not in right:
            raise ValueError(f"{corpus} has no question {prompt!r}")
        cells = []
        for name, lines in said.items():
            answer, expected = lines[i]["answer"], right[prompt]
            scores[name].add(answer, expected)
            good = final(answer) == final(expected)
            cells.append(Text(answer[:SHOWN], style="green" if good else "red"))
        if i < shown:
            table.add_row(Text(prompt), *cells, Text(right[prompt]))
    return table, scores


def summary(scores: dict[str, Score]) -> Table:
    """A row a file: right answers, wrong think tags, and which errors."""
    errors = [error.replace("_", " ") for error in ERRORS]
    table = Table("", "right", "think tags wrong", *errors, "tags where none belong")
    for name, score in scores.items():
        table.add_row(name, *score.cells())
    return table


def main(
    corpus: Annotated[Path, typer.Argument(help="JSONL of chat samples with the right answers")],
    files: Annotated[list[Path], typer.Argument(help="written by tools/sample.py --output")],
    show: Annotated[int, typer.Option(help="so many answers are shown, all are counted")] = 20,
) -> None:
    """Show answers beside the right ones, and count right answers and wrong think tags.

    Example: python tools/compare_answers.py corpus/valid.jsonl before.jsonl after.jsonl --show 5
    """
    try:
        table, scores = compare(corpus, files, show)
    except ValueError as error:
        sys.exit(str(error))
    console = Console(width=None if sys.stdout.isatty() else 120)
    if show:
        console.print(table)
    console.print(summary(scores))


if __name__ == "__main__":
    typer.run(main)
