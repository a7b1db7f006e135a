"""Talk with a model in the terminal.

\b
    python tools/chat.py runs/sft
    python tools/chat.py Ling-lite --system "Be brief." --temperature 0.6 --top-p 0.95
    torchrun --nproc-per-node 2 tools/chat.py Ling-lite parallel.ep=2
    printf 'What is 3 + 4?\\n/save talks.jsonl\\n' | python tools/chat.py runs/sft

MODEL is a Megatron checkpoint (the folder of one step), a run's folder (its newest) or a Hugging
Face folder. Tokens are shown as they come, a thought in <think> tags dimmed. A line is a turn, or

\b
    /reset        forget all turns but the system's
    /save FILE    add the conversation to a JSONL file, as a sample for training
    /quit         leave; so does the end of the input

Ctrl-C ends an answer (of a single process). The same conversation with the same seed gets the same
answers.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from rich.console import Console

from megatron_ring import parallel, think
from megatron_ring.config import ConfigError
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ring.model import frozen
from megatron_ring.sampling.draw import How
from megatron_ring.sampling.sampler import Answer, Document, Sampler, Turns, encode

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False, soft_wrap=True, emoji=False)
HELP = "/reset forgets the turns, /save FILE keeps them, /quit leaves"


@app.command(help=__doc__)
def main(
    model: Annotated[str, typer.Argument(help="Megatron checkpoint or Hugging Face folder")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value …")] = None,
    system: Annotated[str | None, typer.Option(help="a system turn before all others")] = None,
    max_tokens: Annotated[int, typer.Option(help="longest answer", min=1)] = 4096,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token", min=0)] = 0.6,
    top_p: Annotated[
        float, typer.Option(help="draw from the likeliest tokens that have this probability")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="of the random draws")] = 0,
    tokenizer: Annotated[str | None, typer.Option(help="default: the model's own")] = None,
) -> None:
    try:
        how = How(max_tokens, temperature, top_p, seed)
        config = frozen.configure(model, overrides or [])
        words = load_tokenizer(tokenizer or str(frozen.tokenizer_folder(model)))
        with frozen.opened(model, config) as stages:
            talk = Talk(Sampler(stages, words, how, max_batch=1), words, system)
            if dist.get_rank() == 0 and sys.stdin.isatty():
                console.print(HELP, style="dim")
            while (line := parallel.from_rank_0(typed())) is not None and talk.hear(line):
                pass
    except (ConfigError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def typed() -> str | None:
    """The next line that is typed, on the first rank; None at the end."""
    if dist.get_rank() > 0:
        return None
    if sys.stdin.isatty():
        try:
            return input("> ")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return None
    line = sys.stdin.readline()
    if not line:
        return None
    console.print("> " + line.rstrip("\n"), markup=False)
    return line.rstrip("\n")


@dataclass
class Talk:
    """A conversation, the same on all ranks; the first one shows it."""

    sampler: Sampler
    words: Tokenizer
    system: str | None
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self._reset()

    def hear(self, line: str) -> bool:
        """Answer a line, or do what it says; False when that is to leave."""
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return False
        if command == "/reset":
            self._reset()
        elif command == "/save":
            self._save(rest.strip())
        elif command.startswith("/"):
            say(f"there is no command {command}: {HELP}")
        elif command:
            self._answer(line)
        return True

    def _reset(self) -> None:
        self.turns = [{"role": "system", "content": self.system}] if self.system else []

    def _save(self, name: str) -> None:
        if not name:
            say("/save needs a file: /save talks.jsonl")
        elif all(turn["role"] != "assistant" for turn in self.turns):
            say("nothing has been answered yet, so nothing is saved")
        elif dist.get_rank() == 0:
            try:
                with Path(name).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"messages": self.turns}, ensure_ascii=False) + "\n")
            except OSError as error:
                say(f"cannot write {name}: {error.strerror}")
            else:
                say(f"{name}: {len(self.turns)} turns added")

    def _answer(self, question: str) -> None:
        turns = [*self.turns, {"role": "user", "content": question}]
        try:
            longest = self.sampler.stages[0].arch.longest
            [prompt] = encode(self.words, [turns], longest)
        except (ConfigError, ValueError) as error:
            say(f"{error}; /reset begins anew")
            return
        primed = self.words.decode(prompt[-16:]).rstrip().endswith(think.OPEN)
        shown = Shown(primed, lambda text, dim: show(text, "dim" if dim else ""))
        [answer] = self.sampler.gathered(self._said(prompt, shown))
        say("" if answer.ended == "end" else f" [cut at {len(answer.tokens)} tokens]")
        whole = think.OPEN * primed + answer.text
        self.turns = [*turns, {"role": "assistant", "content": whole}]

    def _said(self, prompt: list[int], shown: "Shown") -> list[Answer]:
        """The answer, shown as it comes, on the ranks that know it."""
        document: Document | None = None
        try:
            for step in self.sampler.steps([prompt]):
                for document in step:
                    shown.more(document.text(self.words), bool(document.ended))
        except KeyboardInterrupt:
            if dist.get_world_size() > 1 or document is None:
                raise
            shown.more(document.text(self.words), True)
        return [] if document is None else [self.sampler.answer(document)]


@dataclass
class Shown:
    """A text that grows, shown once: `show` gets each new part, and whether it is thought.

    What may be the beginning of a tag or a part of a character waits for what follows.
    """

    primed: bool
    show: Callable[[str, bool], None]
    shown: int = 0  # characters

    def more(self, text: str, complete: bool) -> None:
        """Show what is new in the whole `text` so far."""
        end = len(text) if complete else settled(text)
        first, stop = thought(text[:end], self.primed)
        for start, to, dim in ((0, first, False), (first, stop, True), (stop, end, False)):
            if (part := text[max(start, self.shown) : to]) and to > self.shown:
                self.show(part, dim)
        self.shown = max(self.shown, end)


def settled(text: str) -> int:
    """How many characters of a text that grows will stay as they are."""
    end = len(text.rstrip("\ufffd"))
    for tag in (think.OPEN, think.CLOSE):
        for length in range(len(tag) - 1, 0, -1):
            if text[:end].endswith(tag[:length]):
                return end - length
    return end


def thought(text: str, primed: bool) -> tuple[int, int]:
    """Where the thought begins and ends, its tags with it; (0, 0) when there is none."""
    if not (tags := think.tags(text, primed)):
        return 0, 0
    first = tags[0].start if tags[0].opens else 0
    return first, len(text) - len(think.split(text, primed).answer)


def show(text: str, style: str) -> None:
    if dist.get_rank() == 0:
        console.print(text, end="", style=style, markup=False)


def say(text: str) -> None:
    """A line of the program's own."""
    if dist.get_rank() == 0:
        console.print(text, style="dim", markup=False)


if __name__ == "__main__":
    torch.set_num_threads(max(1, torch.get_num_threads() // parallel.world_size()))
    app()
