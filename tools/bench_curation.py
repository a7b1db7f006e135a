"""Records/s of each stage of curation, beside the nearest of datatrove and data-juicer.

Usage:
    python tools/bench_curation.py [--rows FILE --prompt COLUMN --response COLUMN] [--records 20000]
        [--workers 1,2] [--data-juicer PYTHON] [--json FILE]

The rows of FILE are repeated, numbered in their text so that they differ, until there are so many;
without a file they are random words. All read and write JSONL. datatrove's MinHash has 16 buckets
of 8 hashes as ours has 16 bands of 8, and is given words split at white space instead of spaCy's;
ours then checks the true similarity of pairs, which it does not. It needs orjson.

datatrove's workers print their log: 2>/dev/null hides it.

--data-juicer is the Python of an environment of its own with py-data-juicer (650 MB), and with
aiohttp, regex and scipy, which it imports without asking for them.
"""

import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megatron_ring.config import build
from megatron_ring.config.curation import CurateConfig
from megatron_ring.curation import run as curation

app = typer.Typer(add_completion=False)
Times = dict[str, float]  # name of a step -> seconds
DATATROVE = "datatrove"
JUICER = """
project_name: bench
dataset_path: {rows}
export_path: {out}/kept.jsonl
np: {workers}
text_keys: text
open_tracer: false
process:
  - document_minhash_deduplicator:
      tokenization: space
      window_size: 5
      num_permutations: 128
      jaccard_threshold: 0.8
      num_bands: 16
      num_rows_per_band: 8
"""


@app.command()
def main(
    rows: Annotated[Path | None, typer.Option(help="JSONL file; absent: random words")] = None,
    prompt: Annotated[str, typer.Option(help="its column of prompts")] = "prompt",
    response: Annotated[str, typer.Option(help="its column of answers")] = "response",
    records: Annotated[int, typer.Option(help="records to make of it")] = 20_000,
    workers: Annotated[str, typer.Option(help="numbers of processes")] = "1,2",
    data_juicer: Annotated[str | None, typer.Option(help="Python that has it")] = None,
    result: Annotated[Path | None, typer.Option("--json", help="file for the figures")] = None,
) -> None:
    """Print a table: seconds and records/s, a column a number of processes."""
    figures: dict[str, dict[str, float]] = {}
    counts = [int(number) for number in workers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        make_rows(file, rows, prompt, response, records)
        for number in counts:
            there = Path(folder) / str(number)
            for name, seconds in (
                time_ours(file, there / "ours", number)
                | time_datatrove(file, there / DATATROVE, number)
                | (time_juicer(data_juicer, file, there / "juicer", number) if data_juicer else {})
            ).items():
                figures.setdefault(name, {})[str(number)] = seconds
    table = Table("step", *(f"s, records/s: {number}" for number in counts), title="processes")
    for name, times in figures.items():
        cells = [f"{times[str(n)]:.2f}  {records / times[str(n)]:,.0f}" for n in counts]
        table.add_row(name, *cells)
    Console().print(table)
    if result is not None:
        result.write_text(json.dumps({"records": records, "seconds": figures}, indent=1) + "\n")


def make_rows(file: Path, rows: Path | None, prompt: str, response: str, records: int) -> None:
    """Write `records` lines with prompt, response and text, all different."""
    if rows is None:
        rng = random.Random(0)
        words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(3000)]
        lengths = ((45, 100) for _ in range(records))
        pairs = [[" ".join(rng.choices(words, k=k)) for k in both] for both in lengths]
    else:
        lines = map(json.loads, rows.open(encoding="utf-8"))
        pairs = [[line[prompt], line[response]] for line in lines]
    with file.open("w", encoding="utf-8") as out:
        for n in range(records):
            asked, said = pairs[n % len(pairs)]
            if n >= len(pairs):  # every word is another in each repetition
                mark = str(n // len(pairs))
                asked = " ".join(word + mark for word in asked.split())
            row = {"prompt": asked, "response": said, "text": asked, "id": str(n)}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def time_ours(file: Path, output: Path, workers: int) -> Times:
    """Seconds that passed for reading and writing alone, and what each stage adds to that."""
    source = {"path": str(file), "columns": {"prompt": "prompt", "response": "response"}}
    base: dict = {"sources": [source], "workers": workers, "records_per_shard": 1000}
    times = {}
    for stage in (None, "check_tools", "exact", "minhash"):
        tree = base | {"output": str(output / str(stage))}
        config = build(CurateConfig, tree | {"stages": [{"stage": stage}] if stage else []})
        seconds = timed(lambda config=config: curation.run(config))
        times[f"ours: read, {stage or 'nothing'}, write"] = seconds
    return times


def time_datatrove(file: Path, output: Path, workers: int) -> Times:
    """Seconds that passed for its reader and writer, and for its four steps of MinHash."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.disable(DATATROVE)
    parts = split_file(file, output / "in", 2 * workers)
    # Its default hash, xxhash, gives text to a function that since xxhash 4 takes bytes alone.
    sha1 = HashConfig(hash_fc="sha1")
    config = MinhashConfig(n_grams=5, num_buckets=16, hashes_per_bucket=8, hash_config=sha1)

    def execute(name: str, steps: list, tasks: int) -> None:
        logs = str(output / "logs" / name)
        LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=logs).run()

    def reader() -> JsonlReader:
        return JsonlReader(str(output / "in"))

    def writer(name: str) -> JsonlWriter:
        return JsonlWriter(str(output / name), compression=None)

    def minhash() -> None:
        folders = [str(output / name) for name in ("signatures", "buckets", "removed")]
        first = MinhashDedupSignature(folders[0], config, language="aze_Arab")
        first.word_tokenizer = Words()  # its own wants spaCy, for English when it is made
        execute("1", [reader(), first], parts)
        execute("2", [MinhashDedupBuckets(folders[0], folders[1], config=config)], 16)
        execute("3", [MinhashDedupCluster(folders[1], folders[2], config=config)], 1)
        execute("4", [reader(), MinhashDedupFilter(folders[2]), writer("kept")], parts)

    return {
        f"{DATATROVE}: read, nothing, write": timed(
            lambda: execute("copy", [reader(), writer("copy")], parts)
        ),
        f"{DATATROVE}: read, minhash, write": timed(minhash),
    }


def time_juicer(python: str, file: Path, output: Path, workers: int) -> Times:
    """Seconds that data-juicer's MinHash takes, with the start of its process."""
    output.mkdir(parents=True)
    recipe = output / "recipe.yaml"
    recipe.write_text(JUICER.format(rows=file, out=output, workers=workers))
    command = [str(Path(python).parent / "dj-process"), "--config", str(recipe)]

    def process() -> None:
        ended = subprocess.run(command, capture_output=True, text=True, cwd=output)
        if ended.returncode:
            raise RuntimeError(f"dj-process failed:\n{ended.stderr[-3000:]}")

    return {"data-juicer: start, read, minhash, write": timed(process)}


class Words:
    """What datatrove asks of a splitter of words."""

    def word_tokenize(self, text: str) -> list[str]:
        """Words between white space."""
        return text.split()


def split_file(file: Path, folder: Path, parts: int) -> int:
    """Cut a file's lines into `parts` files: datatrove divides work by files."""
    folder.mkdir(parents=True)
    lines = file.read_bytes().splitlines(keepends=True)
    size = -(-len(lines) // parts)
    for part in range(parts):
        own = lines[part * size : (part + 1) * size]
        (folder / f"{part:03d}.jsonl").write_bytes(b"".join(own))
    return parts


def timed(work: Callable[[], object]) -> float:
    """Seconds that passed."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    app()
