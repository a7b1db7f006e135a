"""A comparison on a console: the same tables, drawn by rich."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_ring.evaluation.compare import words


def show(console: Console, told: dict[str, Any]) -> None:
    """Print Tables 2 and 3 and what was won and lost; topics are in the files."""
    _draw(console, told, "Table 2: scores, in per cent", told["table2"])
    if told["table3"]["rows"]:
        _draw(console, told, "Table 3: think-tag errors, in per cent", told["table3"])
    for pair in told["items"]["pairs"]:
        table = Table("benchmark", "won", "lost", "both right", "neither", "p")
        table.title, table.title_justify = f"From {pair['one']} to {pair['other']}", "left"
        for one in pair["tasks"]:
            counts = (len(one["won"]), len(one["lost"]), one["both"], one["neither"])
            figures = [f"{count:,}" for count in counts]
            table.add_row(Text(one["title"]), *figures, words.p_text(one["p"]))
        console.print(table)
    for note in told["notes"]:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def _draw(console: Console, told: dict[str, Any], title: str, made: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for head in words.heads(told):
        table.add_column(Text(head))
    for row in made["rows"]:
        style = "bold" if row["kind"] == "mean" else ""
        cells = [_cell(cell, better=made is told["table2"]) for cell in row["cells"]]
        table.add_row(Text(row["title"], style=style), *cells)
    console.print(table)
    console.print(Text(made["caption"], style="dim"))


def _cell(cell: dict[str, Any] | None, better: bool) -> Text:
    """Value and difference, their intervals below; `better`: more of it is."""
    if cell is None:
        return Text(words.NOTHING)
    made, below = Text(words.percent(cell["value"]), style="bold"), [words.interval(cell)]
    delta = cell["delta"]
    if delta is not None:
        good = (delta["value"] > 0) == better
        style = ("green" if good else "red") if delta["sure"] else "not bold dim"
        made.append(f"  {words.signed(delta['value'])}{words.mark(delta)}", style=style)
        below.append(f"{words.signed(delta['low'])} to {words.signed(delta['high'])}")
    below += [words.spread_text(cell), words.tokens_text(cell) or words.count_text(cell)]
    return made.append("".join(f"\n{line}" for line in below if line), style="not bold dim")
