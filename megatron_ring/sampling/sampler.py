"""Answers to prompts, many at once: who is read, who goes on, who is done."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch.distributed as dist

from megatron_ring.config import ConfigError
from megatron_ring.data.tokenizer import Tokenizer
from megatron_ring.model.ling import LingModel
from megatron_ring.sampling import passes
from megatron_ring.sampling.draw import How, draw
from megatron_ring.sampling.memory import Memory, remembering

Turns = list[dict[str, str]]  # of one conversation, each with role and content
# A stop string is looked for in so many more last tokens than it has bytes: a token may decode to
# nothing, or to less at the beginning of a text.
MORE_TOKENS = 8


class Words(Protocol):
    """What sampling asks of a tokenizer."""

    eos_id: int
    size: int

    def decode(self, ids: Iterable[int]) -> str: ...


class Answer(NamedTuple):
    """What the model said to a prompt."""

    prompt: int  # its number
    sample: int
    tokens: list[int]  # without the end token
    text: str  # without the end token, and up to a stop string
    ended: str  # "end": by the end token, "stop": before a stop string, "length": cut


@dataclass
class Document:
    """A prompt and what has been said to it so far."""

    prompt: int
    sample: int
    tokens: list[int]  # of the prompt and of the answer
    key: int | None = None  # 64 bits that its draws depend on; absent: the prompt's number
    start: int = field(init=False)  # of the answer
    ended: str = ""  # as Answer's, once it has
    stop: str = ""  # the stop string that ended it

    def __post_init__(self) -> None:
        self.start = len(self.tokens)

    @property
    def place(self) -> tuple[int, int, int]:
        """What its next draw depends on besides the seed."""
        return self.prompt if self.key is None else self.key, self.sample, len(self.tokens)

    def text(self, tokenizer: Words) -> str:
        """The answer so far."""
        text = tokenizer.decode(self.tokens[self.start :])
        return text[: text.index(self.stop)] if self.stop else text


def encode(tokenizer: Tokenizer, prompts: list[Turns], longest: int) -> list[list[int]]:
    """Tokens of conversations that the assistant is to go on with.

    ConfigError when one leaves no room in a model of `longest` positions.
    """
    texts = [tokenizer.render(turns, add_generation_prompt=True) for turns in prompts]
    tokens = [tokenizer.encode(text) for text in texts]
    for turns, of_prompt in zip(prompts, tokens, strict=True):
        if len(of_prompt) >= longest:
            raise ConfigError(
                f"the prompt {turns[-1]['content'][:40]!r} takes {len(of_prompt)} tokens, the "
                f"model's {longest} positions leave no room for an answer"
            )
    return tokens


@dataclass(frozen=True)
class Sampler:
    """Draws answers from a model on any layout but cp > 1. All ranks call it with the same prompts.

    Prompts are dealt to the data ranks; at most `max_batch` documents of a rank are in work at a
    time, and others begin where some have ended. Prompts are read together up to `row_tokens`
    tokens; samples of one prompt that begin together are read once. A token is decided by the
    model, the seed, the numbers of prompt and sample and its position: as far as logits agree,
    layouts and `max_batch` change no text. Without `remember` every token costs its whole document.
    """

    stages: list[LingModel]
    tokenizer: Words
    how: How
    max_batch: int = 64
    row_tokens: int = 16384
    remember: bool = True

    def __post_init__(self) -> None:
        passes.check(self.stages)
        if self.max_batch < 1:
            raise ValueError(f"max_batch={self.max_batch} must be at least 1")

    def answers(self, prompts: list[list[int]], samples: int = 1) -> list[Answer]:
        """Of every prompt so many; all of prompt 0 first. On every rank."""
        steps = self.steps(prompts, samples)
        return self.gathered([self.answer(d) for step in steps for d in step if d.ended])

    def gathered(self, own: list[Answer]) -> list[Answer]:
        """Those of all ranks in the order of their numbers, on every rank."""
        group = self.stages[0].pg_collection.dp
        everyone: list[Any] = [None] * group.size()
        dist.all_gather_object(everyone, own, group=group)
        return sorted(Answer(*answer) for of_rank in everyone for answer in of_rank)

    def answer(self, document: Document) -> Answer:
        d = document
        return Answer(d.prompt, d.sample, d.tokens[d.start :], d.text(self.tokenizer), d.ended)

    def steps(self, prompts: list[list[int]], samples: int = 1) -> Iterator[list[Document]]:
        """As `through`, of every prompt so many; ValueError when one has no tokens."""
        if [] in prompts:
            raise ValueError(f"prompt {prompts.index([])} has no tokens; give it at least one")
        return self.through(
            Document(number, sample, list(tokens))
            for number, tokens in enumerate(prompts)
            for sample in range(samples)
        )

    def through(self, documents: Iterable[Document]) -> Iterator[list[Document]]:
        """After each pass, this rank's documents that it gave a token: a collective on all ranks.

        All ranks name all documents. Those of one prompt stand together, to be read once.
        """
        group = self.stages[0].pg_collection.dp
        waiting = deque(d for d in documents if d.prompt % group.size() == group.rank())
        going: list[Document] = []
        places = min(self.max_batch, len(waiting))
        with remembering(self.stages, places) if self.remember else nullcontext() as memory:
            while True:
                joining, owners, texts = self._joining(waiting, places - len(going))
                going_tokens = len(going) if self.remember else sum(len(d.tokens) for d in going)
                sizes = [sum(map(len, texts)), going_tokens]
                to_read, to_go = passes.agreed(self.stages, sizes)
                if to_read:
                    self._read(memory, joining, owners, texts, to_read)
                    going += joining
                elif to_go:
                    self._go_on(memory, going, to_go)
                else:
                    return
                yield list(joining if to_read else going)
                self._leave(memory, going)

    def _joining(
        self, waiting: deque[Document], room: int
    ) -> tuple[list[Document], list[int], list[list[int]]]:
        """Documents that begin, for each the number of its text, and the texts to be read."""
        joining: list[Document] = []
        owners: list[int] = []
        texts: list[list[int]] = []
        while waiting and len(joining) < room:
            document = waiting[0]
            if not joining or joining[-1].prompt != document.prompt:
                tokens = len(document.tokens) + sum(map(len, texts))
                if texts and tokens > self.row_tokens:
                    break
                texts.append(document.tokens)
            joining.append(waiting.popleft())
            owners.append(len(texts) - 1)
        return joining, owners, [list(text) for text in texts]

    def _read(
        self,
        memory: Memory | None,
        joining: list[Document],
        owners: list[int],
        texts: list[list[int]],
        row_tokens: int,
    ) -> None:
        if memory is not None:
            memory.read([len(text) for text in texts], owners)
        device = passes.device_of(self.stages)
        batch = passes.whole_documents(texts, row_tokens, device)
        self._draw(passes.logits(self.stages, batch), owners, joining)

    def _go_on(self, memory: Memory | None, going: list[Document], row_tokens: int) -> None:
        documents, device = [d.tokens for d in going], passes.device_of(self.stages)
        if memory is None:
            batch = passes.whole_documents(documents, row_tokens, device)
        else:
            memory.go_on()
            batch = passes.next_tokens(documents, row_tokens, device)
        self._draw(passes.logits(self.stages, batch), list(range(len(going))), going)

    def _draw(self, logits_NV: Any, rows: list[int], documents: list[Document]) -> None:
        """Give each document its next token, from its row of the logits."""
        chosen: list[int] = []
        first = self.stages[0].pg_collection.tp.rank() == 0
        if logits_NV is not None and first and documents:
            # A model may have more rows than its tokenizer has tokens: those stand for no text.
            known = logits_NV[:, : self.tokenizer.size]
            if rows != list(range(len(known))):
                known = known[rows]
            chosen = draw(known, self.how, [d.place for d in documents])
        chosen = passes.told(self.stages, chosen, len(documents))
        for document, token in zip(documents, chosen, strict=True):
            self._take(document, token)

    def _take(self, document: Document, token: int) -> None:
        if token == self.tokenizer.eos_id:
            document.ended = "end"
            return
        document.tokens.append(token)
        self._look_for_stop(document)
        said = len(document.tokens) - document.start
        full = said == self.how.max_tokens or len(document.tokens) == self.stages[0].arch.longest
        if not document.ended and full:
            document.ended = "length"

    def _look_for_stop(self, document: Document) -> None:
        if not self.how.stop:
            return
        window = max(len(stop.encode()) for stop in self.how.stop) + MORE_TOKENS
        last = self.tokenizer.decode(document.tokens[document.start :][-window:])
        if not any(stop in last for stop in self.how.stop):
            return
        text = self.tokenizer.decode(document.tokens[document.start :])
        found = [stop for stop in self.how.stop if stop in text]
        if found:
            document.ended, document.stop = "stop", min(found, key=text.index)

    def _leave(self, memory: Memory | None, going: list[Document]) -> None:
        """Those that have ended make room; the last takes the place of each, as in the memory."""
        for place in reversed(range(len(going))):
            if going[place].ended:
                going[place] = going[-1]
                going.pop()
                if memory is not None:
                    memory.leave(place)
