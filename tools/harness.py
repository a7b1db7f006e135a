"""lm-evaluation-harness asks what a run asked: does another program find the same score?

Usage:
    python tools/harness.py export OUT --output FOLDER [--task TASK]
    python tools/harness.py compare OUT FOLDER [--task TASK] [-n NUMBER]

Examples:
    python tools/harness.py export runs/gsm8k --output runs/gsm8k-harness
    python tools/harness.py compare runs/gsm8k runs/gsm8k-harness

OUT is what `tools/evaluate.py run` wrote, FOLDER a folder of files for the harness:
    TASK.jsonl         the items of OUT: prompt, right answer
    ring_TASK.yaml     a task of the harness that asks them with the sampling of OUT
    answers/           what the harness wrote; `export` prints the command by which it does

The harness needs an environment of its own (pip install "lm-eval[api]") and the endpoint of OUT; a
key goes into OPENAI_API_KEY. It asks each item once. At temperature 0 its answers should be those
of OUT, where the server gives a text for a prompt whatever else it answers at the time.

`compare` reads both and asks nobody. The harness takes the last \\boxed{} (boxed) or the last
number (flexible-extract) and compares texts, which suits numbers and letters: a formula that is
written in another way is wrong to it. So its answers are also graded by our rules, and the items
are shown on which it says something else than OUT.
"""

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from megatron_ring.config import ConfigError
from megatron_ring.curation.console import cut, one_folder, run_command, take_options
from megatron_ring.evaluation import harness, statistics
from megatron_ring.evaluation.harness import Pair

MAKER = "evaluate.py"  # wrote OUT


def main(arguments: list[str]) -> int:
    """Exit status; errors of the user are printed, not raised."""
    return run_command(Console(), {"export": export, "compare": compare}, arguments, __doc__)


def export(console: Console, arguments: list[str]) -> int:
    """Write the files, and say how the harness reads them."""
    wanted, left = take_options(arguments, {"--output": "", "--task": ""})
    output = one_folder(left, MAKER)
    if not wanted["--output"]:
        raise ConfigError("export needs --output FOLDER, for the files of the harness")
    for one in harness.export(output, Path(wanted["--output"]), wanted["--task"]):
        console.print(f"{one.name}: {one.items:,} items; ask them with", highlight=False)
        line = Text("    " + shlex.join(one.command))
        console.print(line, soft_wrap=True)
    return 0


def compare(console: Console, arguments: list[str]) -> int:
    """Print scores, and items on which they differ."""
    wanted, left = take_options(arguments, {"--task": "", "-n": "20"})
    if len(left) != 2:
        raise ConfigError("give two folders, OUT and the one that `export` wrote")
    output = one_folder(left[:1], MAKER)
    for name in [wanted["--task"]] if wanted["--task"] else harness.names_of(output):
        print_pairs(console, name, harness.compare(output, Path(left[1]), name), int(wanted["-n"]))
    return 0


def print_pairs(console: Console, name: str, pairs: list[Pair], most: int) -> None:
    """A table of scores, and up to `most` items with different ones."""
    columns = {
        f"{MAKER}: its answers, our rules": [pair.grades[0].score for pair in pairs],
        "lm_eval: its answers, our rules": [pair.grades[1].score for pair in pairs],
    }
    for kind in pairs[0].scores:
        columns[f"lm_eval: {kind}"] = [pair.scores[kind] for pair in pairs]
    ours = columns[f"{MAKER}: its answers, our rules"]
    table = Table(f"{name}, {len(pairs):,} items", "right", "score", "95 %", "items that differ")
    for title, scores in columns.items():
        found = statistics.avg_at_k([[score] for score in scores])
        differ = sum(one != other for one, other in zip(scores, ours, strict=True))
        table.add_row(
            escape(title),
            f"{sum(scores):g}",
            f"{100 * found.value:.1f}",
            f"{100 * found.low:.1f} to {100 * found.high:.1f}",
            str(differ),
        )
    console.print(table)
    same = sum(pair.is_same for pair in pairs)
    console.print(f"{same:,} of {len(pairs):,} replies are the same text", highlight=False)
    different = [pair for pair in pairs if _scores(pair) != {pair.grades[0].score}]
    for pair in different[:most]:
        console.print(Text(_told(pair)), soft_wrap=True)
    if different:
        console.rule(f"{min(most, len(different)):,} of {len(different):,} items", align="left")


def _scores(pair: Pair) -> set[float]:
    return {*pair.scores.values(), pair.grades[1].score}


def _told(pair: Pair) -> str:
    ours, theirs = pair.grades
    told = [f"{pair.id}: right is {pair.gold}; {MAKER} {ours.verdict} ({_cut(ours.extracted)})"]
    if not pair.is_same:
        told.append(f"another text, by our rules {theirs.verdict} ({_cut(theirs.extracted)})")
    for kind, score in pair.scores.items():
        told.append(f"{kind} {score:g} ({_cut(pair.taken[kind])})")
    return "; ".join(told)


def _cut(text: str | None) -> str:
    return "nothing" if text is None else cut(" ".join(text.split()), 60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
