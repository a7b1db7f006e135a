"""What is said of one answer: is it right, is it well-formed, and how much of it is said before.

Each rule for a rejected answer gives evidence, or None where the answer does not break it.
"""

from typing import Any

from megatron_ring import think
from megatron_ring.config.curation.preference import ChoiceConfig, GeneralConfig, OverlapConfig
from megatron_ring.curation import corrupt_tags
from megatron_ring.curation.collect.answers import Verdict, compare, final_answer, judge, normal
from megatron_ring.curation.collect.equality import MathVerify
from megatron_ring.curation.purify import repetition

LOOPS = {
    "characters": repetition.characters,
    "loop": repetition.loop,
    "counted_loop": repetition.counted_loop,
    "sentences": repetition.sentences,
    "ngrams": repetition.ngrams,
}
Grams = set[tuple[str, ...]]


class Judge:
    """Whether an answer is the gold one, by verifiers' words, or by comparison."""

    def __init__(self, options: ChoiceConfig) -> None:
        """ConfigError when the options need a package that is not there."""
        self.options = options
        self._plain = compare_text if options.equality == "text" else compare
        verifier = MathVerify(options.timeout) if options.equality == "math_verify" else None
        self._verify = self._plain if verifier is None else verifier.compare

    def verdict(self, one: dict[str, Any], gold: str | None) -> Verdict:
        """Right, wrong, unknown or timeout.

        An answer that does not say which of its words are final is compared as a whole; a sentence
        is no formula, so that math-verify is not asked of it. Where its thought ends must be known.
        """
        told = "score" in one or "correct" in one
        if told or gold is None or final_answer(one["text"]) is not None:
            return judge(one, gold, self._compare, self.options.min_score)
        if wrong_tags(one["text"], self.options) is not None:
            return "unknown"
        return self._plain(said(one["text"]), gold)

    def wrong(self, one: dict[str, Any], gold: str | None) -> str:
        """Evidence for a verdict of wrong."""
        if "score" in one:
            return f"score {one['score']} below {self.options.min_score}"
        if "correct" in one:
            return "its verifiers say so"
        given = final_answer(one["text"])
        return f"{(said(one['text']) if given is None else given)[:200]!r}, not {gold!r}"

    def _compare(self, given: str, gold: str) -> Verdict:
        # Most right answers are so at sight.
        return "right" if self._plain(given, gold) == "right" else self._verify(given, gold)


def compare_text(given: str, gold: str) -> Verdict:
    """Right when the normal texts are the same, else wrong."""
    return "right" if normal(given) == normal(gold) else "wrong"


def said(text: str) -> str:
    """What follows the thought; all of an answer without one."""
    return think.answer_of(text).strip()


def unfinished(one: dict[str, Any], options: ChoiceConfig) -> str | None:
    """Its end, where that is not a good one."""
    if "finish" in one and one["finish"] not in options.finish:
        return f"finish={one['finish']}"
    if one.get("complete") is False:
        return "the source says that the thought is open"
    return None


def wrong_tags(text: str, options: ChoiceConfig) -> str | None:
    """The think tags, where they are not `<think>thought</think>answer`."""
    tags = think.TAG.findall(text)
    if corrupt_tags.split(text) is not None or (not tags and options.think == "allow"):
        return None
    return " ".join(tags) or "no tags"


def loops(text: str, options: ChoiceConfig) -> str | None:
    """The first of purification's loops that it has."""
    for name, find in LOOPS.items():
        if (found := find(text, options.repetition)) is not None:
            return f"{name}: {found}"
    return None


def repetitive(text: str, chosen: str, options: GeneralConfig) -> str | None:
    """A loop, or n-grams that come back, clearly more of them than in the chosen answer."""
    if (found := loops(text, options)) is not None:
        return found
    size = options.overlap.words
    share, count = repetition.repeated_share(text, size)
    if count < options.repeated_least or share < options.repeated_share:
        return None
    usual, _ = repetition.repeated_share(chosen, size)
    if share - usual < options.repeated_more:
        return None
    return (
        f"{share:.0%} of {count} {size}-grams occurred before in it, at least "
        f"{options.repeated_share:.0%}; of the chosen's {usual:.0%}"
    )


def longer(text: str, chosen: str, options: GeneralConfig) -> str | None:
    """Characters of both, where it is clearly the longer one."""
    ratio = len(text) / len(chosen)
    if ratio < options.longer_ratio or len(text) - len(chosen) < options.longer_characters:
        return None
    return (
        f"{len(text):,} characters, {ratio:.2f} times the chosen's {len(chosen):,}, at least "
        f"{options.longer_ratio:g} times"
    )


def grams(text: str, size: int) -> Grams:
    """The text's n-grams of `size` words; of tags, none."""
    words = repetition.words_of(think.TAG.sub(" ", text))
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def overlap(text: str, prompt: str, others: list[str], options: OverlapConfig) -> float:
    """Weighted sum of three shares of n-grams, each 0 to 1; 0 for an answer that has none.

    Of all n-grams those that occurred before in the answer; of its different ones those that the
    prompt has, and those that at least one of the `others` has.
    """
    own = grams(text, options.words)
    if not own:
        return 0.0
    within, _ = repetition.repeated_share(think.TAG.sub(" ", text), options.words)
    copied = len(own & grams(prompt, options.words)) / len(own)
    shared = 0.0
    if options.others:
        usual: Grams = set().union(*(grams(other, options.words) for other in others))
        shared = len(own & usual) / len(own)
    return options.within * within + options.prompt * copied + options.others * shared
