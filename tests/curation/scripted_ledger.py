"""What a scripted endpoint wrote down: a line for each attempt, and questions about them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any


class Ledger:
    """The lines of a ledger, as they are at this moment.

    A line has began and ended (seconds of time.time()), request (hash of the body), key (header
    Idempotency-Key or null), identity (hash of the key, or without one the request), attempt (from
    1), did (what was done), in_flight (this one included), body, delivered (all of an answer went
    to a connection that was open), replayed (from memory), charged, kept (remembered for replay),
    input_tokens and output_tokens (those charged).
    """

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def __len__(self) -> int:
        return len(self.lines)

    def did(self) -> Counter[str]:
        """How often each kind of answer was given."""
        return Counter(line["did"] for line in self.lines)

    def of(self, text: str) -> list[dict[str, Any]]:
        """Lines of requests whose last message has `text`, in order of their beginning."""
        found = [x for x in self.lines if text in str(x["body"]["messages"][-1]["content"])]
        return sorted(found, key=lambda line: line["began"])

    def charged(self) -> Counter[str]:
        """How many good answers each identity was charged for."""
        return Counter(x["identity"] for x in self.lines if x["charged"] and x["kept"])

    def twice(self) -> list[str]:
        """Identities that were charged for more than one good answer."""
        return [identity for identity, times in self.charged().items() if times > 1]

    def replays(self) -> int:
        return sum(line["replayed"] for line in self.lines)

    def tokens(self) -> tuple[int, int]:
        """Input and output tokens charged."""
        return (
            sum(line["input_tokens"] for line in self.lines),
            sum(line["output_tokens"] for line in self.lines),
        )

    def most_at_once(self) -> int:
        """The most requests that were in flight at a time."""
        return max((line["in_flight"] for line in self.lines), default=0)
