"""The sources whose effects launch/effects.sh measures, and what they are measured by.

    python tools/make_effects_corpus.py runs/effects/raw

From megatron_ring/small_corpus, without thoughts. Writes
    base.jsonl          a little of all, for the model that all runs begin from
    general.jsonl       something to say in a shape, calls of tools: what every run has
    arithmetic.jsonl    single sums with their results: the first source that is added
    facts.jsonl         the facts of facts.yaml again and again: the second one
    test.jsonl          items of all four topics; no prompt of it is in any other file, but for the
                        facts, which are learnt by heart

The same seed gives the same bytes.
"""

import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_ring.small_corpus import general

Sample = dict[str, Any]
KINDS: dict[str, Callable[[random.Random], Iterator[Sample]]] = {
    "arithmetic": general.arithmetic,
    "calls": general.calls,
    "facts": general.facts,
    "instructions": general.instructions,
}
SIZES = {  # samples by file and kind
    "base": {"arithmetic": 2400, "facts": 1800, "instructions": 1200, "calls": 400},
    "general": {"instructions": 1600, "calls": 200},
    "arithmetic": {"arithmetic": 6000},
    "facts": {"facts": 4500},
}


def prompt_of(sample: Sample) -> str:
    """All that is asked, as one text."""
    return "\n".join(turn["content"] for turn in sample["messages"][:-1])


def thoughtless(sample: Sample) -> Sample:
    """Without what is thought."""
    *before, last = sample["messages"]
    kept = {key: value for key, value in last.items() if key != "reasoning_content"}
    return {**sample, "messages": [*before, kept]}


def held_out(number: int) -> list[Sample]:
    """So many different items of each kind; the same for all seeds."""
    found = []
    for kind, make in KINDS.items():
        by_prompt: dict[str, Sample] = {}
        for sample in make(random.Random(f"test {kind}")):
            by_prompt.setdefault(prompt_of(sample), sample)
            if len(by_prompt) == number:
                break
        own = [thoughtless(one) for one in by_prompt.values()]
        found += [{"id": f"{kind}-{n}", **one} for n, one in enumerate(own)]
    return found


def main(
    output: Annotated[Path, typer.Argument(help="folder for the files")],
    items: Annotated[int, typer.Option(help="of each topic of the test", min=1, max=500)] = 60,
    shrink: Annotated[int, typer.Option(help="so many times fewer samples, to try", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="the same seed gives the same files", min=0)] = 0,
) -> None:
    """Make all files."""
    output.mkdir(parents=True, exist_ok=True)
    test = held_out(items)
    seen = {prompt_of(one) for one in test if one["topic"] != "facts"}
    files = {"test": test}
    for name, kinds in SIZES.items():
        rng = random.Random(f"{name} {seed}")
        rows = []
        for kind, number in kinds.items():
            fresh = (one for one in KINDS[kind](rng) if prompt_of(one) not in seen)
            rows += map(thoughtless, islice(fresh, -(-number // shrink)))
        rng.shuffle(rows)
        files[name] = rows
    for name, rows in files.items():
        path = output / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows):,} samples")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=__doc__)(main)
    app()
