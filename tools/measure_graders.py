"""Whether graders of benchmarks say right to gold answers, and to nothing else.

    python tools/measure_graders.py DATA

DATA holds gsm8k/test.jsonl, math500/math500.jsonl, aime24/aime24.jsonl and
gaokao2023en/gaokao2023en.jsonl; those that are there are measured. Each gold answer is put behind a
thought as a worked answer, with another answer boxed in the thought; then changed answers
(megatron_ring/curation/collect/changed.py) are, with the gold one in the thought. All go through
the grader as a model's answers do. Exceptions are printed; exit status 1 when there are any.
"""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.config.evaluation import GradingConfig, TaskConfig
from megatron_ring.curation.collect.changed import changes, words_of
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Grade, Item, Task
from megatron_ring.evaluation.tasks import make

FILES = {
    "gsm8k": "gsm8k/test.jsonl",
    "math500": "math500/math500.jsonl",
    "aime24": "aime24/aime24.jsonl",
    "gaokao2023en": "gaokao2023en/gaokao2023en.jsonl",
}


def worked(answer: str, thought: str) -> str:
    """As a model answers: the thought holds another answer, which it gives up."""
    return (
        f"<think>\nIs it $\\boxed{{{thought}}}$? No, that is not it.\n</think>\n\n"
        f"We go through it step by step.\n\nThe final answer is $\\boxed{{{answer}}}$."
    )


def cases_of(items: list[Item]) -> list[tuple[str, Item, str]]:
    """(kind: itself, or how it was changed; item; text of an answer)."""
    golds = [bare(item.gold["answer"]) for item in items]
    words, left_out, cases = words_of(golds), Counter[str](), []
    for item, gold in zip(items, golds, strict=True):
        cases.append(("itself", item, worked(gold, "-12345")))
        cases += [
            (kind, item, worked(text, gold)) for kind, text in changes(gold, words, "0", left_out)
        ]
    return cases


def bare(gold: str) -> str:
    """Without the dollars around it; the box is within others."""
    inside = gold.strip()
    whole = inside.startswith("$") and inside.endswith("$") and inside.count("$") == 2
    return inside.strip("$") if whole else inside


def measure(task: Task, items: list[Item], workers: int) -> bool:
    """Prints counts and exceptions; whether there are none."""
    cases, began = cases_of(items), time.monotonic()

    def one(case: tuple[str, Item, str]) -> Grade:
        return task.grade(case[1], case[2])

    with ThreadPoolExecutor(workers) as threads:
        grades = list(threads.map(one, cases))
    took = time.monotonic() - began
    counts: dict[str, Counter[str]] = {"gold": Counter(), "changed": Counter()}
    for (kind, *_), found in zip(cases, grades, strict=True):
        counts["gold" if kind == "itself" else "changed"][found.verdict] += 1
    print(f"{task.title}: {len(items)} items, {took:.0f} s")
    for name, count in counts.items():
        right = 100 * count["right"] / max(count.total(), 1)
        print(f"  {name}: {count.total()} answers, {right:.2f} % right, {dict(count)}")
    good = True
    for (kind, item, _), found in zip(cases, grades, strict=True):
        if (found.verdict == "right") != (kind == "itself"):
            gold = item.gold["answer"]
            print(f"  ! {item.id}, {kind}: {found.extracted!r} for {gold!r}: {found.verdict}")
            good = False
    return good


def main(
    data: Annotated[Path, typer.Argument(help="folder of the data sets")],
    workers: Annotated[int, typer.Option(help="answers at a time")] = 2,
    seconds: Annotated[float, typer.Option(help="time of one comparison")] = 30.0,
    only: Annotated[str, typer.Option(help=f"one of {', '.join(FILES)}")] = "",
) -> None:
    """Grade gold and changed answers."""
    there = {name: data / file for name, file in FILES.items() if (data / file).is_file()}
    if not there:
        raise typer.BadParameter(f"{data} holds none of {', '.join(FILES.values())}")
    good = []
    with Means(GradingConfig(workers=workers, equality_seconds=seconds)) as means:
        for name, file in there.items():
            if name in (only or name):
                task = make(name, TaskConfig(file=file), means)
                good.append(measure(task, task.items(), workers))
    if not all(good):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
