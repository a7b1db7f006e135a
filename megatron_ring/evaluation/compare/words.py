"""Cells of a table in words: per cent, intervals, signs and marks."""

from typing import Any

NOTHING = "—"


def percent(value: float) -> str:
    """61.2"""
    return f"{100 * value:.1f}"


def interval(cell: dict[str, Any]) -> str:
    """58.1 to 64.3"""
    return f"{percent(cell['low'])} to {percent(cell['high'])}"


def signed(value: float) -> str:
    """+3.1, -0.4, 0.0"""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def mark(delta: dict[str, Any]) -> str:
    """▲ or ▼ where the interval does not hold 0."""
    if not delta["sure"]:
        return ""
    return " ▲" if delta["value"] > 0 else " ▼"


def delta_text(delta: dict[str, Any]) -> str:
    """+3.1 (0.4 to 5.8) ▲"""
    return (
        f"{signed(delta['value'])} ({signed(delta['low'])} to {signed(delta['high'])}){mark(delta)}"
    )


def value_text(cell: dict[str, Any]) -> str:
    """61.2 (58.1 to 64.3)"""
    return f"{percent(cell['value'])} ({interval(cell)})"


def spread_text(cell: dict[str, Any]) -> str:
    """Lowest and highest of the seeds; "" of a single run."""
    seeds = cell["seeds"]
    if not seeds:
        return ""
    return f"{len(seeds)} seeds: {percent(min(seeds))} to {percent(max(seeds))}"


def count_text(cell: dict[str, Any]) -> str:
    """12 of 1,319"""
    return f"{cell['part']:,} of {cell['whole']:,}" if cell["whole"] is not None else ""


def tokens_text(cell: dict[str, Any]) -> str:
    """1,234 tokens; "" where nobody counted."""
    return f"{cell['tokens']:,.0f} tokens" if cell["tokens"] is not None else ""


def p_text(p: float) -> str:
    """p with two digits that count; very small ones by their bound."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def heads(told: dict[str, Any]) -> list[str]:
    """Of each column its name, how many seeds, and what it is compared with."""
    found = []
    for column, base in zip(told["columns"], told["against"], strict=True):
        seeds = len(column["runs"])
        more = [f"{seeds} seeds"] * (seeds > 1) + [f"Δ to {base}"] * (base is not None)
        found.append(f"{column['name']}" + (f" ({', '.join(more)})" if more else ""))
    return found
