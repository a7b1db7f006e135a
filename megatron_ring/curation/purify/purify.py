"""The stage that drops spoilt answers (Ring-Lite-Distill's report, §2.2.3)."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import get_args

from megatron_ring.config.curation.purify import PurifyConfig, Rule
from megatron_ring.curation.purify import figures, latex, repetition, truncation
from megatron_ring.curation.record import (
    Record,
    Rejection,
    calls_tools,
    prompt_of,
    response_of,
)

RULES: tuple[str, ...] = get_args(Rule)
COMPLETE = ("truncation_answer", "truncation_ending")  # not asked of a turn that calls tools
FAMILIES = ("repetition", "truncation", "latex", "figures")

# What a check is given: prompt, response (empty where there is none), finish_reason of the card.
Check = Callable[[str, str, str | None], str | None]


class Purify:
    """Drops a record at the first rule that finds something; the rule's name is the reason."""

    def __init__(self, options: PurifyConfig) -> None:
        self.options = options
        self.off = frozenset(options.off)
        self.checks = {
            name: check for name, check in _checks(options).items() if name not in self.off
        }

    def apply(self, record: Record) -> Record | Rejection:
        """The record as it is, or the first rule that drops it with the span or number it saw."""
        return next(self.findings(record), None) or record

    def findings(self, record: Record) -> Iterator[Rejection]:
        """All that the rules find, cheap rules first; of invalid LaTeX the first formula alone."""
        prompt, response = prompt_of(record), response_of(record)
        reason, calls = record.get("card", {}).get("finish_reason"), calls_tools(record)
        for name, check in self.checks.items():
            # A prompt that still waits for its answer can have a missing figure or broken LaTeX.
            if response is None and name.startswith(("repetition", "truncation")):
                continue
            if calls and name in COMPLETE:
                continue
            evidence = check(prompt, response or "", reason)
            if evidence:
                yield Rejection(name, evidence)
        yield from self.invalid_latex(prompt, response or "")

    def invalid_latex(self, prompt: str, response: str) -> Iterator[Rejection]:
        """The first invalid formula of the response, or else of the prompt."""
        if all(name in self.off for name in RULES if name.startswith("latex")):
            return
        texts = [response] if self.options.latex.look_at == "response" else [response, prompt]
        for text in texts:
            found = latex.problem(text, self.off, self.options.latex)
            if found:
                yield Rejection(*found)
                return


def _checks(options: PurifyConfig) -> dict[str, Check]:
    """Rules by name in the order they are asked: what costs little comes first."""
    cut, loop, seen = options.truncation, options.repetition, options.figures
    pattern = figures.make_reference(seen)
    own = bool(seen.patterns)
    return {
        "truncation_length": lambda p, r, reason: truncation.length(reason, cut),
        "truncation_think": lambda p, r, reason: truncation.open_thought(r),
        "truncation_answer": lambda p, r, reason: truncation.answer(p, r),
        "truncation_fence": lambda p, r, reason: truncation.fence(r),
        "truncation_formula": lambda p, r, reason: truncation.formula(r),
        "truncation_ending": lambda p, r, reason: truncation.ending(r, cut),
        "figures_image": lambda p, r, reason: figures.image(p, r, seen),
        "figures_drawn": lambda p, r, reason: figures.drawn(p, r, seen),
        "figures_reference": lambda p, r, reason: figures.reference(p, r, pattern, own),
        **{
            f"repetition_{rule.__name__}": partial(_response_only, rule, loop)
            for rule in (
                repetition.characters,
                repetition.loop,
                repetition.counted_loop,
                repetition.sentences,
                repetition.ngrams,
            )
        },
    }


def _response_only(
    rule: Callable, options: object, _p: str, response: str, _r: object
) -> str | None:
    return rule(response, options)
