"""A comparison as tables and a summary of a wandb run."""

from pathlib import Path
from typing import Any

HEADS = (
    *("task", "title", "checkpoint", "baseline", "value", "low", "high"),
    *("delta", "delta_low", "delta_high", "sure", "tokens", "part", "whole", "seeds"),
)
CHANGES = ("baseline", "checkpoint", "task", "title", "won", "lost", "both", "neither", "p")
ANSWERS = ("baseline", "checkpoint", "task", "id", "outcome", "prompt", "before", "after")


def publish(
    told: dict[str, Any],
    shown: list[dict[str, Any]],
    project: str,
    folder: Path,
    has_login: bool,
) -> Path:
    """Log all tables to a run of `project`; returns the folder of the run's files.

    Offline without a login, or where WANDB_MODE says so: then they are under folder/wandb, and
    `wandb sync` sends them. ValueError where wandb cannot be reached.
    """
    import wandb  # slow to import, and most comparisons do without

    settings = wandb.Settings(silent=True, console="off")
    try:
        run = wandb.init(
            project=project,
            job_type="compare",
            name=" · ".join(column["name"] for column in told["columns"]),
            mode=None if has_login else "offline",
            dir=str(folder),
            config={key: told[key] for key in ("columns", "against", "unit", "confidence")},
            settings=settings,
        )
    except wandb.errors.Error as error:
        # Of its first line only: the others name the server, maybe with a password in its URL.
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"wandb: {type(error).__name__}: {reason}; the tables are in {folder}. WANDB_MODE="
            "offline keeps them for `wandb sync`"
        ) from None
    found = {
        name: wandb.Table(list(heads), rows) for name, (heads, rows) in of(told, shown).items()
    }
    run.log(found)
    run.summary.update(summary(told))
    files = Path(run.dir)
    run.finish()
    return files


def of(
    told: dict[str, Any], shown: list[dict[str, Any]]
) -> dict[str, tuple[tuple[str, ...], list[list[Any]]]]:
    """Heads and rows by name of the table: long tables, one number a line, for wandb to group."""
    tags = _long(told, told["table3"]["rows"], "all")
    for one in told["table3"]["by_task"]:
        tags += _long(told, one["rows"], one["task"])
    topics = [
        [table["title"], kind, *line]
        for table in told["topics"]["tables"]
        for kind in ("scores", "errors")
        for line in _long(told, table[kind])
    ]
    changes = [
        [pair["one"], pair["other"], one["task"], one["title"]]
        + [len(one["won"]), len(one["lost"]), one["both"], one["neither"], one["p"]]
        for pair in told["items"]["pairs"]
        for one in pair["tasks"]
    ]
    answers = [
        [*line["columns"], line["task"], line["id"], line["outcome"], line["prompt"]]
        + [line["one"]["text"], line["other"]["text"]]
        for line in shown
    ]
    return {
        "table2": (HEADS, _long(told, told["table2"]["rows"])),
        "table3": (HEADS, tags),
        "topics": (("table", "kind", *HEADS), topics),
        "won_and_lost": (CHANGES, changes),
        "answers": (ANSWERS, answers),
    }


def summary(told: dict[str, Any]) -> dict[str, float]:
    """The single numbers: score/COLUMN/TASK, tag_errors/COLUMN/KIND, 0 to 1."""
    found = {}
    for kind, rows in (("score", told["table2"]["rows"]), ("tag_errors", told["table3"]["rows"])):
        for row in rows:
            for column, cell in zip(told["columns"], row["cells"], strict=True):
                if cell is not None:
                    found[f"{kind}/{column['name']}/{row['name']}"] = cell["value"]
    return found


def _long(
    told: dict[str, Any], rows: list[dict[str, Any]], task: str | None = None
) -> list[list[Any]]:
    """A line a cell; `task`: of what the rows are, where it is no benchmark's own row."""
    lines = []
    for row in rows:
        for column, base, cell in zip(told["columns"], told["against"], row["cells"], strict=True):
            if cell is None:
                continue
            delta = cell["delta"] or dict.fromkeys(("value", "low", "high", "sure"))
            lines.append(
                [task or row["name"], row["title"], column["name"], base]
                + [cell["value"], cell["low"], cell["high"]]
                + [delta["value"], delta["low"], delta["high"], delta["sure"]]
                + [cell["tokens"], cell["part"], cell["whole"], len(column["runs"])]
            )
    return lines
