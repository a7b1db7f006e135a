"""Whether right programs pass in the sandbox: the reference solutions of MBPP and HumanEval.

    python tools/measure_sandbox.py DATA

DATA holds mbpp/mbpp.jsonl (google-research) and humaneval/HumanEval.jsonl.gz (openai/human-eval).
"""

import gzip
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.curation import sandbox
from megatron_ring.curation.sandbox import Job, Limits, SandboxError


def mbpp_job(row: dict[str, object]) -> Job:
    """A row of MBPP with its reference solution."""
    tests = row["test_list"]
    assert isinstance(tests, list), f"test_list={tests!r} is a list of assertions"
    return Job(program=f"{row['test_setup_code']}\n{row['code']}", tests="\n".join(tests))


def humaneval_job(row: dict[str, object]) -> Job:
    """A row of HumanEval with its reference solution."""
    program = f"{row['prompt']}{row['canonical_solution']}"
    return Job(program=program, tests=f"{row['test']}\ncheck({row['entry_point']})\n")


SETS = {
    "MBPP": ("mbpp/mbpp.jsonl", mbpp_job, 970),
    "HumanEval": ("humaneval/HumanEval.jsonl.gz", humaneval_job, 164),
}


def main(
    data: Annotated[Path, typer.Argument(help="folder of the data sets")],
    workers: Annotated[int, typer.Option(help="programs at a time; 0: one per core")] = 0,
    seconds: Annotated[float, typer.Option(help="wall time of a program")] = 60.0,
) -> None:
    """Count verdicts; exit status 1 where fewer pass than are right."""
    workers = workers or len(os.sched_getaffinity(0))
    too_few = False
    for name, (path, make, least) in SETS.items():
        opened = gzip.open if path.endswith(".gz") else open
        with opened(data / path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        begun = time.monotonic()
        jobs = (make(row) for row in rows)
        try:
            results = list(sandbox.run_many(jobs, workers=workers, limits=Limits(seconds=seconds)))
        except SandboxError as error:
            print(f"not isolated: {error}")
            raise typer.Exit(1) from None
        took = time.monotonic() - begun
        counts = Counter(result.verdict.value for result in results)
        print(
            f"{name}: {counts['passed']} of {len(rows)} passed, {dict(counts)}, "
            f"{took:.0f} s, {len(rows) / took:.1f}/s with {workers} at a time"
        )
        for row, result in zip(rows, results, strict=True):
            if result.verdict != "passed":
                said = result.stderr.strip().splitlines() or [""]
                print(f"  {row['task_id']}: {result.verdict}: {said[-1]}")
        too_few |= counts["passed"] < min(least, len(rows))
    if too_few:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
