"""Whether the rules for written tests fit tests that people wrote: the tasks of MBPP.

    python tools/measure_mutants.py DATA --tasks 200

Each task is read as a model's reply would be, its reference solution run twice, then broken
variants of it: what share of them the task's own tests notice says what may be asked of others
(domain.min_mutants_killed of configs/curate/synthesis/code.yaml). DATA holds mbpp/mbpp.jsonl.
"""

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_ring.config.curation.code import CodeConfig
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.generate import Client
from megatron_ring.curation.record import Rejection
from megatron_ring.curation.sandbox import SandboxError
from megatron_ring.curation.synthesis.code_answers import Runner
from megatron_ring.curation.synthesis.code_replies import read_reply
from megatron_ring.curation.synthesis.mutants import mutants, stub

SHARES = (0.5, 0.6, 0.7, 0.75, 0.8, 1.0)


@dataclass(frozen=True)
class Outcome:
    """What became of a task; `broken` has kind and verdict of each variant."""

    task: Any
    fault: str = ""  # of the static rules, or how the reference fails
    broken: tuple[tuple[str, str], ...] = ()


def as_reply(row: dict[str, Any]) -> str:
    """A task as a model would write it down."""
    tests = "\n".join([row["test_setup_code"], *row["test_list"]]).strip()
    parts = {"Solution": row["code"], "Tests": tests}
    blocks = (
        f"## {name}\n```python\n{text.replace(chr(13), '')}\n```" for name, text in parts.items()
    )
    return "\n\n".join([f"## Problem\n{row['text']}", *blocks])


async def measure(row: dict[str, Any], options: CodeConfig, runner: Runner) -> Outcome:
    """The rules of options.domain=code, one after the other."""
    parts = read_reply(as_reply(row), False, options)
    if isinstance(parts, Rejection):
        return Outcome(row["task_id"], parts.reason)
    if not (await runner.run(parts.solution, parts.tests)).passed:
        return Outcome(row["task_id"], "solution_fails")
    if not (await runner.run(parts.solution, parts.tests, reordered=True)).passed:
        return Outcome(row["task_id"], "unstable")
    if (await runner.run(stub(parts.solution), parts.tests)).passed:
        return Outcome(row["task_id"], "tests_pass_nothing")
    made = mutants(parts.solution, options.max_mutants, parts.solution)
    ran = await asyncio.gather(*(runner.run(one.program, parts.tests) for one in made))
    broken = ((m.kind, one.verdict.value) for m, one in zip(made, ran, strict=True))
    return Outcome(row["task_id"], broken=tuple(broken))


def main(
    data: Annotated[Path, typer.Argument(help="folder of the data sets")],
    tasks: Annotated[int, typer.Option(help="drawn at random", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="of the draw")] = 5,
) -> None:
    """Print what the rules make of the tasks."""
    rows = [json.loads(line) for line in (data / "mbpp/mbpp.jsonl").open(encoding="utf-8")]
    rows = random.Random(seed).sample(rows, min(tasks, len(rows)))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        nobody = GeneratorConfig(endpoint="http://localhost", model="", replies=Path(folder))
        options = CodeConfig(solver=nobody, solutions=0, min_tests=3)  # MBPP has three a task
        client = Client(nobody)
        runner = Runner(client, options.limits)
        try:
            found = client.gather([measure(row, options, runner) for row in rows])
        except SandboxError as error:
            raise SystemExit(f"not isolated: {error}") from None
        finally:
            client.close()
    faults = Counter(one.fault for one in found if one.fault)
    print(f"{len(rows)} tasks in {time.monotonic() - begun:.0f} s: {dict(faults)} do not pass")
    shares = [
        sum(v != "passed" for _, v in one.broken) / len(one.broken) for one in found if one.broken
    ]
    print(f"{len(shares)} have variants; noticed on average {sum(shares) / len(shares):.2f}")
    for least in SHARES:
        part = sum(share >= least for share in shares) / len(shares)
        print(f"  at least {least:.0%} noticed: {part:.1%} of the tasks")
    every = [one for task in found for one in task.broken]
    for kind, number in sorted(Counter(kind for kind, _ in every).items()):
        noticed = sum(k == kind and verdict != "passed" for k, verdict in every)
        print(f"  {kind}: {noticed} of {number} noticed")


if __name__ == "__main__":
    typer.run(main)
