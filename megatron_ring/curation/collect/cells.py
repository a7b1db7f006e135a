"""What a row holds at a place such as `a.b`, templates over such places, and a record's kind."""

import re
from typing import Any

from megatron_ring.curation.record import Record


def pick(data: Any, place: str | None) -> Any:
    """What lies at a place; None when nothing does."""
    if place is None:
        return None
    if isinstance(data, dict) and place in data:  # a column whose own name has a dot
        return data[place]
    for step in place.split("."):
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and step.isdigit() and int(step) < len(data):
            data = data[int(step)]
        else:
            return None
    return data


def text(data: dict[str, Any], place: str | None) -> str | None:
    """What lies at a place, or what a template makes of several, as text; None when it is empty."""
    if place is None:
        return None
    if "{" not in place:
        return as_text(pick(data, place)).strip() or None
    filled = re.sub(r"\{([^{}]+)\}", lambda match: as_text(pick(data, match[1])), place)
    return re.sub(r"\n{3,}", "\n\n", filled).strip() or None  # absent columns leave no hole


def as_text(value: Any) -> str:
    """A cell as text: nothing for None, a line an element for lists."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(map(as_text, value))
    return value if isinstance(value, str) else str(value)


def kind_of(record: Record) -> str | None:
    """tools where a record has any, else the kind that its source states (extra.kind)."""
    return "tools" if record.get("tools") else record.get("extra", {}).get("kind")


def other_kind(record: Record, kinds: list[str]) -> bool:
    """Is a record of none of these kinds? No kinds mean all."""
    return bool(kinds) and kind_of(record) not in kinds
