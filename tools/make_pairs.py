"""Pairs of answers for DPO, made by rule from any chat samples with right answers.

    python tools/make_pairs.py tags chats.jsonl structure.jsonl --number 3000
    python tools/make_pairs.py answers chats.jsonl general.jsonl --number 4000

tags: the chosen answer has right think tags, the rejected one the same words with damaged tags
(missing_open, missing_close, redundant, misplaced, empty, as often each); "format_spans" marks the
characters where the two part. answers: the same thought, but the final answer of another sample (of
the same "task", where samples have one). Samples are {"messages": [...]} with an assistant turn
last; the thought stands in <think></think> or in reasoning_content. Those that do not serve are
counted. Pack the pairs with kind=pairs; the same seed gives the same bytes.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_ring.curation import corrupt_tags

Pair = dict[str, Any]
Chats = Annotated[Path, typer.Argument(help="chat samples, JSONL")]
Output = Annotated[Path, typer.Argument(help="pairs to write, JSONL")]
Number = Annotated[int | None, typer.Option(help="at most so many pairs", min=1)]
Seed = Annotated[int, typer.Option(help="of the choice of samples and of the damage", min=0)]

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)


@app.command()
def tags(chats: Chats, output: Output, number: Number = None, seed: Seed = 1234) -> None:
    """Right against damaged think tags, around the same words."""
    rng = random.Random(seed)

    def damage(sample: dict[str, Any], chosen: str, made: int) -> Pair | str:
        if corrupt_tags.split(chosen) is None:
            return "no thought between right tags"
        kind = corrupt_tags.KINDS[made % len(corrupt_tags.KINDS)]
        rejected = corrupt_tags.corrupt(chosen, kind, rng)
        spans = dict(
            zip(("chosen", "rejected"), corrupt_tags.differences(chosen, rejected), strict=True)
        )
        return {"damage": kind, "rejected": rejected, "format_spans": spans}

    make(chats, output, number, rng, damage)


@app.command()
def answers(chats: Chats, output: Output, number: Number = None, seed: Seed = 1234) -> None:
    """The right final answer against that of another sample, after the same thought."""
    rng = random.Random(seed)
    others: dict[Any, list[str]] = {}
    for sample in read(chats):
        if not damaged(answer_of(sample)):
            others.setdefault(sample.get("task"), []).append(final(answer_of(sample))[1])

    def exchange(sample: dict[str, Any], chosen: str, made: int) -> Pair | str:
        if damaged(chosen):
            return "damaged think tags"
        before, said = final(chosen)
        other = rng.choice(others[sample.get("task")])
        if other == said:
            return "the other sample's answer is the same"
        return {"rejected": before + other}

    make(chats, output, number, rng, exchange)


def make(
    chats: Path,
    output: Path,
    number: int | None,
    rng: random.Random,
    reject: Callable[[dict[str, Any], str, int], Pair | str],
) -> None:
    """Write the pairs of `reject`, which says why where it makes none, and tell what was made."""
    samples = list(read(chats))
    rng.shuffle(samples)
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for sample in samples:
        chosen = answer_of(sample)
        made = reject(sample, chosen, len(pairs))
        if isinstance(made, str):
            dropped[made] += 1
            continue
        kept = {key: sample[key] for key in ("id", "task") if key in sample}
        pairs.append({**kept, "messages": sample["messages"][:-1], "chosen": chosen, **made})
        if len(pairs) == number:
            break
    if not pairs:
        raise SystemExit(f"{chats}: no pair could be made: {dict(dropped)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs]
    output.write_text("".join(lines), encoding="utf-8")
    why = "".join(f"; {count} samples left out: {reason}" for reason, count in dropped.items())
    fewer = f" of {number} asked for" if number is not None and len(pairs) < number else ""
    print(f"{output}: {len(pairs)} pairs{fewer}{why}")


def read(file: Path) -> Iterator[dict[str, Any]]:
    """The samples of a JSONL file; the error names file and line of one that does not end in an
    assistant turn with text."""
    if not file.is_file():
        raise SystemExit(f"there is no {file}")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                sample = json.loads(line)
                usable = len(sample["messages"]) > 1 and answer_of(sample)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise SystemExit(f"{file}:{number}: {type(error).__name__} {error}") from None
            if not usable:
                raise SystemExit(f"{file}:{number}: the last turn is no answer with text")
            yield sample


def answer_of(sample: dict[str, Any]) -> str:
    """Text of the last turn, "" where it is not the assistant's; a thought apart comes first."""
    turn = sample["messages"][-1]
    thought = (turn.get("reasoning_content") or "").strip()
    before = f"<think>\n{thought}\n</think>\n\n" if thought else ""  # as data/chat.py writes it
    return before + turn["content"] if turn["role"] == "assistant" and turn["content"] else ""


def damaged(answer: str) -> bool:
    """Whether it has think tags, but not `<think>thought</think>answer`."""
    return "think>" in answer and corrupt_tags.split(answer) is None


def final(answer: str) -> tuple[str, str]:
    """What comes before the final answer, thought and tags, and the final answer."""
    before, tag, said = answer.rpartition("</think>")
    space = said[: len(said) - len(said.lstrip())]
    return before + tag + space, said.strip()


if __name__ == "__main__":
    app()
