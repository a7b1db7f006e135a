"""Benchmarks -> answers of a model, grades, scores with intervals.

Usage:
    python tools/evaluate.py run FILE.yaml... [key.path=value ...] [--dry-run]
    python tools/evaluate.py grade OUT
    python tools/evaluate.py show OUT [--task TASK] [--verdict VERDICT] [-n NUMBER]
    python tools/evaluate.py compare COLUMN=OUT[,OUT...]... --output FOLDER [--baseline COLUMN]
        [--taxonomy] [--wandb PROJECT] [-n NUMBER]
    python tools/evaluate.py tasks
    python tools/evaluate.py schema > configs/evaluate/schema.json

Examples:
    python tools/evaluate.py run configs/evaluate/gsm8k.yaml tasks.gsm8k.file=test.jsonl \\
        generator.endpoint=http://localhost:8000/v1 generator.model=ring output=runs/gsm8k
    python tools/evaluate.py show runs/gsm8k --verdict no_answer -n 3
    torchrun --nproc-per-node 8 tools/evaluate.py run configs/evaluate/gsm8k.yaml generator=null \\
        sampler.model=runs/stage1 sampler.parallel.ep=8 output=runs/evaluate/stage1
    python tools/evaluate.py compare base=runs/base sft=runs/sft dpo=runs/dpo --output runs/tables
    python tools/evaluate.py compare base=runs/b1,runs/b2 sft=runs/s1,runs/s2 --output runs/tables

A recipe has either `generator`, a model behind an endpoint, or `sampler`, a checkpoint that answers
in this process or on the ranks of torchrun. What follows an answer is the same.

What is in OUT afterwards:
    results.json           scores, other accuracies, intervals, pass@k, verdicts, by benchmark
    samples/TASK.jsonl     every answer with its prompt and the card that says how it was made
    grades/TASK.jsonl      what each is worth, and why
    items/TASK.jsonl       what was asked, and what a right answer is
    recipe.yaml            all keys

Every reply is kept in a folder, OUT/replies for a checkpoint. A run that was killed, or stopped for
its budget or an endpoint that is down, is started again with the same command: it asks for what is
missing alone.
`grade` reads OUT alone and asks nobody: for new rules, or another time limit in OUT/recipe.yaml.

`compare` puts checkpoints beside each other: a column each, several OUT of one are its seeds. Each
is compared with the column before it; --baseline first, or the name of one, says otherwise.
--taxonomy labels the prompts and counts by topic, --wandb logs the tables, and NUMBER is how many
won and lost answers of each benchmark the page shows. What is in FOLDER afterwards:
    tables.md              Tables 2 and 3, by topic, won and lost: for a README
    report.html            the same with plots and answers, in one page that needs no network
    tables.json            all numbers
    changed.jsonl          every item that was won or lost, with its prompt and both answers

--dry-run shows the keys, how much would be asked, and the first prompt of each benchmark; it sends
nothing and writes nothing.
"""

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from megatron_ring import config as configuration
from megatron_ring.config import ConfigError
from megatron_ring.config.evaluation import EvaluationConfig, GradingConfig, TaskConfig
from megatron_ring.curation.console import (
    Watch,
    cut,
    load_recipe,
    one_folder,
    run_command,
    take_options,
)
from megatron_ring.curation.shards import read_json, read_lines
from megatron_ring.evaluation import accuracies
from megatron_ring.evaluation import run as evaluation
from megatron_ring.evaluation.compare import reading, tables, writing
from megatron_ring.evaluation.compare.cells import Frame
from megatron_ring.evaluation.compare.console import show as show_tables
from megatron_ring.evaluation.compare.wandb_tables import publish
from megatron_ring.evaluation.door import EndpointDoor
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.tasks import TASKS, items_of, make
from megatron_ring.report import comparison
from megatron_ring.trackers import has_wandb_login

TOOL = "evaluate.py"


def main(arguments: list[str]) -> int:
    """Exit status; errors of the user are printed, not raised."""
    # All ranks of a launch read the recipe; the first speaks.
    console = Console(quiet=os.environ.get("RANK", "0") != "0")
    commands = {"run": run, "grade": grade, "show": show, "compare": compare, "tasks": tasks}
    commands["schema"] = schema
    return run_command(console, commands, arguments, __doc__)


def run(console: Console, arguments: list[str]) -> int:
    """Ask and grade, or with --dry-run show what would be asked."""
    config, is_dry = load_recipe(EvaluationConfig, arguments)
    if is_dry:
        show_plan(console, config)
        return 0
    if config.sampler is not None:
        found = run_sampler(console, config)
    else:
        found = run_endpoint(console, config)
    if found is None:  # a rank that helped
        return 0
    results, told = found
    print_results(console, results)
    console.print(told, highlight=False)
    console.print(f"wrote {config.output}; look at answers with", highlight=False, markup=False)
    console.print(f"    python tools/{TOOL} show {config.output}", highlight=False, soft_wrap=True)
    return 0


def run_endpoint(console: Console, config: EvaluationConfig) -> tuple[dict[str, Any], str]:
    """Results of a model behind an endpoint, and what was sent for them."""
    door = EndpointDoor(config.generator)
    try:
        results = evaluation.run(config, door, ConsoleTeller(console))
    finally:
        door.close()
    return results, f"{door.num_sent:,} requests were sent by this run"


def run_sampler(console: Console, config: EvaluationConfig) -> tuple[dict[str, Any], str] | None:
    """Results of a checkpoint, and what was drawn for them; None on ranks but the first."""
    import torch

    from megatron_ring import parallel
    from megatron_ring.sampling import door as sampling

    torch.set_num_threads(max(1, torch.get_num_threads() // parallel.world_size()))
    with sampling.opened(config.sampler, config.output) as door:
        results = door.lead(lambda: evaluation.run(config, door, ConsoleTeller(console)))
        return results and (results, f"{door.num_drawn:,} answers were drawn by this run")


def show_plan(console: Console, config: EvaluationConfig) -> None:
    """Resolved keys, how much would be asked, the first prompts."""
    console.print_json(config.model_dump_json(exclude_none=True))
    with Means(config.grading) as means:
        for name, options in config.tasks.items():
            task = make(name, options, means)
            asks = evaluation.asks_of(config, task, items_of(task, options))
            items = len({item for item, _ in asks})
            told = f"{task.title}: {items:,} items, {len(asks):,} answers; the first item:"
            console.rule(escape(told), align="left")
            for turn in asks[0][1].messages:
                line = Text.assemble((f"{turn['role']}: ", "cyan"), str(turn["content"]))
                console.print(line, soft_wrap=True)


def grade(console: Console, arguments: list[str]) -> int:
    """Grade again what was sampled."""
    print_results(console, evaluation.grade(one_folder(arguments, TOOL), ConsoleTeller(console)))
    return 0


def show(console: Console, arguments: list[str]) -> int:
    """Print answers with their grades."""
    wanted, left = take_options(arguments, {"--task": "", "--verdict": "", "-n": "5"})
    folder = one_folder(left, TOOL)
    there = sorted(path.stem for path in folder.glob("grades/*.jsonl"))
    if not there:
        raise ConfigError(f"{folder}: nothing was graded yet; finish the run first")
    if wanted["--task"] not in ("", *there):
        known = ", ".join(there) or "none"
        raise ConfigError(f"no grades of the task {wanted['--task']!r}; there are: {known}")
    shown = total = 0
    verdicts = set()
    for name in there if not wanted["--task"] else [wanted["--task"]]:
        samples, grades = (
            list(read_lines(folder / kind / f"{name}.jsonl")) for kind in ("samples", "grades")
        )
        if len(samples) != len(grades):
            raise ConfigError(
                f"{folder}: {name} has {len(samples):,} samples and {len(grades):,} grades; grade "
                "it again"
            )
        for sample, line in zip(samples, grades, strict=True):
            verdicts.add(line["verdict"])
            if wanted["--verdict"] not in ("", line["verdict"]):
                continue
            total += 1
            if shown < int(wanted["-n"]):
                shown += 1
                print_answer(console, sample, line)
    if wanted["--verdict"] not in ("", *verdicts):
        known = ", ".join(sorted(verdicts)) or "none"
        raise ConfigError(f"no answer with verdict {wanted['--verdict']!r}; there are: {known}")
    console.rule(f"{shown:,} of {total:,} answers", align="left")
    results = read_json(folder / evaluation.RESULTS) or {"tasks": {}}
    for name, one in results["tasks"].items():
        if wanted["--task"] in ("", name):
            print_accuracies(console, one, every=bool(wanted["--task"]))
    return 0


def print_answer(console: Console, sample: dict[str, Any], line: dict[str, Any]) -> None:
    """One answer and what became of it."""
    told = f"{line['task']} {line['id']} sample {line['sample']}: {line['verdict']}"
    console.rule(escape(told), align="left")
    turns = [*sample["messages"], {"role": "assistant", "content": sample["text"]}]
    for turn in turns:
        text = cut(str(turn["content"]), 2000)
        console.print(Text.assemble((f"{turn['role']}: ", "cyan"), text), soft_wrap=True)
    told = f"taken for the answer: {line['extracted']}; {line['detail']}"
    console.print(Text(told, style="yellow"), soft_wrap=True)


def compare(console: Console, arguments: list[str]) -> int:
    """Tables of several checkpoints."""
    options = {"--output": "", "--baseline": "previous", "--wandb": "", "-n": "5"}
    wanted, left = take_options(arguments, options)
    folders = reading.parse([one for one in left if one != "--taxonomy"])
    if not wanted["--output"]:
        raise ConfigError("--output is missing: the folder of the tables")
    if Path(wanted["--output"]).is_file():
        raise ConfigError(f"--output {wanted['--output']} is a file; tables want a folder")
    against = reading.baselines(list(folders), wanted["--baseline"])
    teller, output = ConsoleTeller(console), Path(wanted["--output"])
    frame = Frame(reading.read(folders, teller), against)
    told = tables.build(frame, teller, with_taxonomy="--taxonomy" in left)
    shown = writing.write(frame, told, output, int(wanted["-n"]))
    title = " · ".join(folders)
    page = comparison.render(told, shown, title)
    (output / "report.html").write_text(page, encoding="utf-8")
    show_tables(console, told)
    teller.say(
        f"wrote {output}: {writing.TABLES}, report.html, {writing.NUMBERS}, {writing.CHANGED}"
    )
    if wanted["--wandb"]:
        files = publish(told, shown, wanted["--wandb"], output, has_wandb_login())
        teller.say(f"wandb: {files}")
    return 0


def tasks(console: Console, arguments: list[str]) -> int:
    """Print all benchmarks."""
    nothing_more(arguments)
    table = Table("name", "title", "samples", "version")
    with Means(GradingConfig()) as means:
        for name in TASKS:
            task = make(name, TaskConfig(), means)
            table.add_row(name, task.title, str(task.samples), task.version)
    console.print(table)
    return 0


def schema(console: Console, arguments: list[str]) -> int:
    """Print the JSON schema of recipes, for editors."""
    nothing_more(arguments)
    sys.stdout.write(configuration.json_schema(EvaluationConfig))
    return 0


def nothing_more(arguments: list[str]) -> None:
    """ConfigError for arguments of a command that has none."""
    if arguments:
        raise ConfigError(f"{arguments[0]!r}: this command takes no argument")


def print_results(console: Console, results: dict[str, Any]) -> None:
    """Scores in per cent with their intervals, and verdicts."""
    table = Table("benchmark", "items", "answers each", "score", "95 %", "verdicts")
    for one in results["tasks"].values():
        score = one["score"]
        table.add_row(
            escape(one["title"]),
            f"{one['items']:,}",
            f"{one['samples']:,}",
            f"{100 * score['value']:.1f}",
            f"{100 * score['low']:.1f} to {100 * score['high']:.1f}",
            ", ".join(f"{number:,} {verdict}" for verdict, number in one["verdicts"].items()),
        )
    console.print(table)
    for one in results["tasks"].values():
        if one["pass_at"]:
            told = ", ".join(
                f"pass@{k} {100 * found['value']:.1f}" for k, found in one["pass_at"].items()
            )
            console.print(f"{one['title']}: {told}", highlight=False, markup=False)
        print_accuracies(console, one)


def print_accuracies(console: Console, result: dict[str, Any], every: bool = False) -> None:
    """Other numbers of a benchmark; of long families the lowest and highest, unless `every`."""
    for line in accuracies.told(result["title"], result["accuracies"], every):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


class ConsoleTeller(evaluation.Teller):
    """What a run says on a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.watch: Watch | None = None
        self.done = 0

    def say(self, line: str) -> None:
        """One line for the user."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def begin(self, name: str, total: int) -> None:
        """Count answers."""
        self.done = 0
        self.watch = Watch(
            self.console, name, total, lambda: self.done, lambda _, took: f"{took:,.0f} s"
        )

    def step(self) -> None:
        """Count; two threads at once may lose one, which only the bar sees."""
        self.done += 1

    def end(self) -> None:
        """Draw for the last time."""
        if self.watch is not None:
            self.watch.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
