"""Answers beside the right ones: who is right, and whose think tags are wrong.

    python tools/sample.py STEP --input corpus/valid.jsonl --output before.jsonl
    python tools/sample.py LATER --input corpus/valid.jsonl --output after.jsonl
    python tools/compare_answers.py corpus/valid.jsonl before.jsonl after.jsonl

An answer is right when what follows its thought is what follows it in the corpus. Think tags are
judged, as megatron_ring/think.py says, where the right answer has some. Lines may hold more keys:
"finish_reason": "length" for an answer that was cut, which is counted apart, and "primed": true for
one whose prompt ended in <think>.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_ring import think
from megatron_ring.curation.record import response_of
from megatron_ring.evaluation.tag_report import CUT, TITLES, TagCounts

END = "<|endoftext|>"
SHOWN = 240  # characters of an answer; an untrained model rambles


@dataclass
class Score:
    """Counts over one file."""

    answers: int = 0
    right: int = 0
    tags: TagCounts = field(default_factory=TagCounts)  # of answers that should think
    stray_tags: int = 0  # answers with tags that should have none

    def add(self, said: str, expected: str, truncated: bool = False) -> None:
        self.answers += 1
        self.right += final(said) == final(expected)
        if think.tags(expected):
            self.tags.add(said.removesuffix(END), truncated=truncated)
        else:
            self.stray_tags += bool(think.tags(said))

    def cells(self) -> list[str]:
        return [
            share(self.right, self.answers),
            share(self.tags.wrong, self.tags.finished),
            *(str(self.tags.errors[error]) for error in TITLES),
            str(self.tags.truncated),
            share(self.stray_tags, self.answers - self.tags.answers),
        ]


def share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f", {part / whole:.1%}" if whole else "")


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def final(answer: str) -> str:
    """What is said after thinking; all of it where nothing was thought."""
    return think.answer_of(answer.removesuffix(END)).strip()


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
            if lines[i].get("primed"):
                answer = think.OPEN + answer
            scores[name].add(answer, expected, lines[i].get("finish_reason") == CUT)
            good = final(answer) == final(expected)
            cells.append(Text(answer[:SHOWN], style="green" if good else "red"))
        if i < shown:
            table.add_row(Text(prompt), *cells, Text(right[prompt]))
    return table, scores


def summary(scores: dict[str, Score]) -> Table:
    """A row a file: right answers, wrong think tags, and which errors."""
    head = ("right", "think tags wrong", *TITLES.values(), "truncated", "tags where none belong")
    table = Table("", *head)
    for column in table.columns[:3]:
        column.no_wrap = True  # names and shares stay on one line; 120 columns hold the rest
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
