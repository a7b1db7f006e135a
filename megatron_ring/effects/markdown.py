"""A report of effects as Markdown, for a README or a pull request."""

from typing import Any

from megatron_ring.evaluation.compare import words
from megatron_ring.evaluation.compare.markdown import escaped

Cell = dict[str, Any]


def markdown(told: dict[str, Any]) -> str:
    """A table for each intervention, what it means, and what to be wary of."""
    parts = [f"# Effects, in points of {escaped(told['metric'])}\n"]
    for one in told["interventions"]:
        parts += [f"## {escaped(one['name'])}\n"]
        parts += [f"{escaped(one['about'])}\n"] * bool(one["about"])
        parts += [runs_in_words(one) + "\n", _table(told, one), told["caption"] + "\n"]
        for title, lines in (("Logs that mislead", "findings"), ("To be wary of", "warnings")):
            if one[lines]:
                parts += [f"### {title}\n", _list(one[lines])]
        parts += ["### How far history is off, as CIO has it\n", _bias(one)] * bool(_bias(one))
    if told["notes"]:
        parts += ["## Notes\n", _list(told["notes"])]
    return "\n".join(parts)


def runs_in_words(one: dict[str, Any]) -> str:
    """How many runs of each kind, and which estimate was chosen."""
    counts = [
        f"{on} {kind} runs with it and {off} without" for kind, (off, on) in one["runs"].items()
    ]
    return f"{'; '.join(counts)}. {one['choice']}."


def marks(cell: Cell) -> str:
    """Signs behind a value."""
    text = words.mark({"sure": cell["sure"], "value": cell["value"]})
    text += " ✗" if cell.get("off") else ""
    return text + (" ±" if cell.get("wrong_sign") else "")


def _table(told: dict[str, Any], one: dict[str, Any]) -> str:
    lines = [["topic", "of", *told["columns"]], ["---"] * (len(told["columns"]) + 2)]
    for row in one["rows"]:
        title = escaped(row["title"])
        cells = [_cell(cell) if cell is not None else words.NOTHING for cell in row["cells"]]
        lines.append([f"**{title}**" if row["kind"] == "mean" else title, row["of"], *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(cell: Cell) -> str:
    value, low, high = (words.signed(cell[key]) for key in ("value", "low", "high"))
    return f"**{value}**{marks(cell)} ({low} to {high})"


def _bias(one: dict[str, Any]) -> str:
    arms = sorted({arm for by_arm in one["bias"].values() for arm in by_arm})
    if not arms:
        return ""
    heads = ["topic", *("with it" if arm == "1" else "without" for arm in arms)]
    lines = [heads, ["---"] * len(heads)]
    for topic, by_arm in one["bias"].items():
        lines.append([escaped(topic), *(words.signed(by_arm[arm]) for arm in arms)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _list(lines: list[str]) -> str:
    return "".join(f"- {escaped(line)}\n" for line in lines)
