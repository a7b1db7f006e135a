"""A model in this process, or on the ranks of a launch, as evaluation's door.

Rank 0 has the questions. The others wait until it says what is to be answered, and then all make
the same passes. What has ended is gathered every few passes and written down before anyone sees it,
so that a run that was killed asks for what is missing alone.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from megatron_ring import parallel, think
from megatron_ring.config import ConfigError
from megatron_ring.config.evaluation import SamplerConfig
from megatron_ring.convert.folder import newest, read_ring
from megatron_ring.curation.generate.memory import Memory
from megatron_ring.curation.generate.sending import joined
from megatron_ring.data.chat import render_prompt
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ring.evaluation.door import REFUSED, Ask, Said
from megatron_ring.model import frozen, weights
from megatron_ring.sampling.draw import How
from megatron_ring.sampling.sampler import Answer, Document, Sampler

PASSES = 32  # between two gatherings, each a small collective over all ranks
# Ranks wait for rank 0 while it reads data and grades, which has no limit of its own. If it dies,
# its connections break and the launcher ends them.
PATIENCE = 30 * 24 * 3600.0  # seconds
T = TypeVar("T")
Plan = list[tuple[int, int, list[int], int]]  # Document's arguments, of all that is to be answered


class StoppedError(ValueError):
    """Answering was broken off because a rank was told to stop. What has ended is kept."""


class Prompt(NamedTuple):
    """An ask as the model gets it."""

    key: str  # under which its answer is remembered: all that it depends on
    draws: int  # what its draws depend on besides seed and sample: the text
    tokens: list[int]
    primed: bool  # it ends in <think>


class SamplerDoor:
    """Answers of a model on any layout but cp > 1. Made on all ranks; rank 0 leads."""

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: Tokenizer,
        model: Mapping[str, Any],
        replies: Path,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`model` says whose answers these are, its weights by a fingerprint; `stopping` is asked
        now and then on every rank, and one rank's yes ends the answering with StoppedError."""
        self._sampler, self._tokenizer, self._stopping = sampler, tokenizer, stopping
        self._model, self._replies = dict(model), replies
        self.inside = False  # of a collective that the other ranks are in as well
        self._problem: Exception | None = None  # rank 0's, until all ranks have heard of it
        self._stopped = False  # before all was answered, since a rank was told to
        self.num_drawn = 0  # answers that were not remembered

    @cached_property
    def _memory(self) -> Memory:
        """Made when first needed: it makes the folder."""
        return Memory(self._replies)

    def described(self) -> dict[str, Any]:
        """The checkpoint and the sampling. Neither the layout nor where the checkpoint lies."""
        how = self._sampler.how
        told = {name: value for name, value in self._model.items() if name != "folder"}
        told |= {"temperature": how.temperature, "top_p": how.top_p}
        return told | {"max_tokens": how.max_tokens, "seed": how.seed, "stop": list(how.stop)}

    def answers(self, asks: Sequence[Ask], tell: Callable[[], None]) -> list[Said]:
        """As Door.answers, on rank 0. A prompt too long for the model is refused, not drawn."""
        assert parallel.is_first_rank(), "the other ranks follow"
        found: dict[str, Any] = {}
        prompts = [self._prompt(ask) for ask in asks]
        times: dict[str, int] = {}
        waiting: dict[str, tuple[Prompt, int]] = {}
        for prompt, ask in zip(prompts, asks, strict=True):
            times[prompt.key] = times.get(prompt.key, 0) + 1
            value = self._refusal(prompt) or self._memory.recall(prompt.key)
            if value is None:
                waiting[prompt.key] = prompt, ask.sample
            else:
                found[prompt.key] = value
                tell()
        numbers: dict[int, int] = {}  # of the texts, which are dealt to data ranks by them
        for prompt, _ in waiting.values():
            numbers.setdefault(prompt.draws, len(numbers))
        plan = [
            (numbers[prompt.draws], sample, prompt.tokens, prompt.draws)
            for prompt, sample in waiting.values()
        ]
        places = {
            line[:2]: prompt for line, (prompt, _) in zip(plan, waiting.values(), strict=True)
        }

        def take(answer: Answer) -> None:
            prompt = places[answer.prompt, answer.sample]
            found[prompt.key] = self._value(prompt, answer)
            self._memory.keep(prompt.key, found[prompt.key])
            self.num_drawn += 1
            for _ in range(times[prompt.key]):
                tell()

        if plan:
            self._lead_through(plan, take)
        return [Said(**found[prompt.key]) for prompt in prompts]

    def lead(self, work: Callable[[], T]) -> T | None:
        """What `work` returns or raises, on rank 0, where it may ask; None on the other ranks,
        which answer with rank 0 until it is done."""
        if not parallel.is_first_rank():
            self._follow()
            return None
        try:
            return work()
        finally:
            if "_memory" in vars(self):
                self._memory.close()
            if not self.inside:  # else the others are amid a pass, and the launcher ends them
                parallel.from_rank_0(None)

    def _follow(self) -> None:
        while (plan := parallel.from_rank_0(None)) is not None:
            for _ in self._drawn(plan):
                pass

    def _lead_through(self, plan: Plan, take: Callable[[Answer], None]) -> None:
        """Draw on all ranks; what goes wrong here alone is raised when all have left the passes."""
        self._problem, self.inside = None, True
        parallel.from_rank_0(plan)
        for answers in self._drawn(plan):
            try:
                for answer in answers if self._problem is None else ():
                    take(answer)
            except Exception as error:
                self._problem = error
        self.inside = False
        if self._problem is not None:
            raise self._problem
        if self._stopped:
            raise StoppedError("told to stop while answers were drawn")

    def _drawn(self, plan: Plan) -> Iterator[list[Answer]]:
        """Answers that have ended since the last time, of all ranks.

        A collective on all ranks, which end together: also when a rank was told to stop, or rank 0
        has a problem.
        """
        self._stopped = False
        own: list[Answer] = []
        documents = (Document(n, sample, list(tokens), key) for n, sample, tokens, key in plan)
        with closing(self._sampler.through(documents)) as steps:
            for number, step in enumerate(steps, 1):
                own += [self._sampler.answer(document) for document in step if document.ended]
                if number % PASSES:
                    continue
                answers, self._stopped, problem = self._gathered(own)
                own = []
                yield answers
                if self._stopped or problem:
                    return
        yield self._gathered(own)[0]

    def _gathered(self, own: list[Answer]) -> tuple[list[Answer], bool, bool]:
        """Answers of all ranks; was one told to stop; has rank 0 a problem?"""
        groups = self._sampler.stages[0].pg_collection
        speaks = groups.tp.rank() == groups.pp.rank() == 0  # for those that share its documents
        told = ([tuple(a) for a in own] if speaks else [], self._stopping(), bool(self._problem))
        everyone = parallel.gathered(told)
        answers = sorted(Answer(*answer) for of_rank, _, _ in everyone for answer in of_rank)
        return answers, any(stop for _, stop, _ in everyone), any(bad for _, _, bad in everyone)

    def _prompt(self, ask: Ask) -> Prompt:
        tools = [dict(tool) for tool in ask.tools]
        text = render_prompt([dict(turn) for turn in ask.messages], self._tokenizer, tools)
        described = self.described()
        for name in ("model", "step"):  # the weights say it
            described.pop(name)
        spelled = json.dumps([described, text, ask.sample], sort_keys=True).encode()
        draws = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
        return Prompt(
            hashlib.sha256(spelled).hexdigest(),
            int.from_bytes(draws, "little", signed=True),
            self._tokenizer.encode(text),
            text.rstrip().endswith(think.OPEN),
        )

    def _refusal(self, prompt: Prompt) -> dict[str, Any] | None:
        """What is said to a prompt that leaves no room for an answer."""
        size, longest = len(prompt.tokens), self._sampler.stages[0].arch.longest
        if size < longest:
            return None
        error = f"the prompt takes {size} tokens, the model has {longest} positions"
        return {"text": "", "finish": REFUSED, "card": {"error": error}}

    def _value(self, prompt: Prompt, answer: Answer) -> dict[str, Any]:
        """An answer as Said has it: text as training data and the endpoint's door have it.

        So it begins with the tag that opens the thought, also where the prompt wrote it. Where the
        model wrote that tag once more, the prompt's is left out, and `primed` says so, as think.py
        means it.
        """
        text = joined("", answer.text, prompt.primed)
        finish = "length" if answer.ended == "length" else "stop"
        card = {
            **self._model,
            **self.described(),
            "finish_reason": finish,
            "opens_thought": prompt.primed,  # the prompt ends in <think>
            "primed": prompt.primed and text == answer.text,
            "input_tokens": len(prompt.tokens),
            "output_tokens": len(answer.tokens) + (answer.ended == "end"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": prompt.key,
        }
        return {"text": text, "finish": finish, "card": card}


def how_of(options: SamplerConfig) -> How:
    """How answers are drawn, of the keys."""
    names = {"max_tokens", "temperature", "top_p", "seed"}
    return How(**options.model_dump(include=names), stop=tuple(options.stop))


@contextmanager
def opened(options: SamplerConfig, output: Path) -> Iterator[SamplerDoor]:
    """The door of a checkpoint, on all ranks of the launch; ConfigError when it cannot be opened.

    Its answers are kept in `output`, unless the keys say where.
    """
    if options.model is None:
        raise ConfigError("missing config key sampler.model: a checkpoint, or a run's folder")
    config = frozen.configure(options.model, overrides_of(options))
    words = load_tokenizer(options.tokenizer or frozen.tokenizer_folder(options.model))
    folder = newest(options.model)
    step = read_ring(folder)[1]["step"] if weights.is_megatron(folder) else None
    with frozen.opened(options.model, config, PATIENCE) as stages:
        sampler = Sampler(stages, words, how_of(options), options.max_batch)
        model = named(stages, folder, step, words)
        yield SamplerDoor(sampler, words, model, options.replies or output / "replies")


def overrides_of(options: SamplerConfig) -> list[str]:
    """The keys of the layout as those of a run."""
    parts = {"parallel": options.parallel, "experts": options.experts}
    parts["attention"] = options.attention
    given = {name: part.model_dump(exclude_defaults=True) for name, part in parts.items()}
    told = [f"{name}.{key}={value}" for name, keys in given.items() for key, value in keys.items()]
    return [*told, f"run.dtype={options.dtype}"]


def named(stages: list[Any], folder: Path, step: int | None, words: Tokenizer) -> dict[str, Any]:
    """Whose answers these are. A collective: weights are told apart by their checksum."""
    return {
        "model": folder.name,
        "folder": str(folder),
        "step": step,
        "weights": weights.fingerprint(stages),
        "dtype": str(next(stages[0].parameters()).dtype).removeprefix("torch."),
        "tokenizer": words.fingerprint[:16],
    }
