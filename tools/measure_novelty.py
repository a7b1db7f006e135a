"""Whether novelty tells new problems from copies: sets that people wrote, against themselves.

    python tools/measure_novelty.py DATA

Of each set: the share of its own problems that is called known to those before it, and of copies
with other numbers, and with other numbers and names. DATA holds gsm8k/train.jsonl and
math_train_answers/math_train_7474.json.
"""

import json
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.config.curation.novelty import NoveltyConfig
from megatron_ring.curation.synthesis.novelty import Novelty

SETS = {
    "GSM8K": ("gsm8k/train.jsonl", "question"),
    "MATH": ("math_train_answers/math_train_7474.json", "problem"),
}
NAMES = "Ada Ben Chi Dora Emil Fay Gus Hana Ivo June Karl Lena Max Nora Otto Pia".split()
NUMBER, NAME, WORD = (re.compile(p) for p in (r"\d+", r"\b[A-Z][a-z]+\b", r"\b[a-z]+\b"))


def renumbered(text: str, rng: random.Random) -> str:
    """Each number another one of about its size."""
    return NUMBER.sub(lambda found: str(rng.randint(1, 10 ** len(found[0]))), text)


def renamed(text: str, names: set[str], rng: random.Random) -> str:
    """Each name another one, the same wherever it stands."""
    others: dict[str, str] = {}
    return NAME.sub(
        lambda f: others.setdefault(f[0], rng.choice(NAMES)) if f[0] in names else f[0], text
    )


def names_in(texts: Sequence[str]) -> set[str]:
    """Capitalised words that no text writes small."""
    small = {word for text in texts for word in WORD.findall(text)}
    return {name for text in texts for name in NAME.findall(text) if name.lower() not in small}


def measure(name: str, texts: list[str], copies: int, rng: random.Random) -> None:
    """Print the shares of a set."""
    novelty, begun, known = Novelty(NoveltyConfig()), time.monotonic(), 0
    for number, text in enumerate(texts):
        known += novelty.why_known(text) is not None
        novelty.add(str(number), text)
    each = 1000 * (time.monotonic() - begun) / len(texts)
    print(f"{name}: {known} of {len(texts)} called known ({known / len(texts):.2%}), {each:.1f} ms")
    names, some = names_in(texts), rng.sample(texts, min(copies, len(texts)))
    changes: dict[str, Callable[[str], str]] = {
        "other numbers": lambda text: renumbered(text, rng),
        "other numbers and names": lambda text: renamed(renumbered(text, rng), names, rng),
    }
    for what, change in changes.items():
        found = sum(novelty.why_known(change(text)) is not None for text in some)
        print(f"  copies with {what}: {found} of {len(some)} caught ({found / len(some):.1%})")


def main(
    data: Annotated[Path, typer.Argument(help="folder of the data sets")],
    copies: Annotated[int, typer.Option(help="of each kind", min=1)] = 600,
    first: Annotated[int | None, typer.Option(help="only so many problems of a set", min=1)] = None,
    seed: Annotated[int, typer.Option(help="of the changes")] = 0,
) -> None:
    """Print the shares at the default options."""
    for name, (path, key) in SETS.items():
        text = (data / path).read_text(encoding="utf-8")
        rows = json.loads(text) if path.endswith(".json") else map(json.loads, text.splitlines())
        texts = [row[key] for row in rows][:first]
        measure(name, texts, copies, random.Random(seed))


if __name__ == "__main__":
    typer.run(main)
