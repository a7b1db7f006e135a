"""How many of several answers to one question agree.

Every vote is for a form: answers whose plain texts or exact numbers are the same. The forms are
taken in an order that does not depend on the order of the answers (the most frequent first, then
the one whose spelling is the shortest, then by its letters), and each joins the first class whose
leading form it equals, or leads a class of its own. So:

- a class counts the answers that equal its leading form, the one that is handed on as the answer;
  of a = b, b = c, a ≠ c the most frequent leads, and what differs from it has no vote in its class;
- a pair whose comparison is unknown or takes too long is not joined: votes can be too few then,
  never too many;
- of two classes with as many votes the one whose leading form comes first is the largest; a caller
  that asks for more than half of the answers never sees a tie.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from megatron_ring.curation.collect.answers import Verdict, as_number, compare, normal


@dataclass(frozen=True)
class Class:
    """Answers that are equal."""

    answer: str  # the most frequent spelling of the leading form, then the shortest, then by letter
    votes: int
    members: tuple[int, ...]  # places in the answers as they were given, from 0, in order


@dataclass(frozen=True)
class Agreement:
    """Who agrees with whom, the largest class first."""

    classes: tuple[Class, ...]
    without: int  # answers that are None or empty: responses that end without one
    timeouts: int  # comparisons of two forms that took too long

    def agreed(self, min_votes: int) -> str | None:
        """The answer of at least `min_votes`; None when there is none, or another has as many."""
        if not self.classes or self.classes[0].votes < min_votes:
            return None
        if len(self.classes) > 1 and self.classes[1].votes == self.classes[0].votes:
            return None
        return self.classes[0].answer


@dataclass
class _Form:
    spelling: str
    members: list[int]


def agree(
    answers: Sequence[str | None],
    same: Callable[[str, str], Verdict] = compare,
    plain: Callable[[str, str], Verdict] | None = None,
    form_of: Callable[[str], Hashable] | None = None,
) -> Agreement:
    """Classes of equal answers, with exact counts.

    `same` is asked, in an order of the two that is always the same, only about forms that plain
    comparison leaves unknown; MathVerifyPool.compare is one. `plain` stands in for the comparison
    of texts and exact numbers, and `form_of` then gives the same for answers that it calls equal
    whatever a third one is.
    """
    plain, form_of = plain or _plain, form_of or form_of_text
    leaders: list[_Form] = []
    votes: list[list[int]] = []
    timeouts = 0
    for form in _forms(answers, form_of):
        for leader, members in zip(leaders, votes, strict=True):
            verdict = plain(form.spelling, leader.spelling)
            if verdict == "unknown":
                verdict = same(form.spelling, leader.spelling)
            timeouts += verdict == "timeout"
            if verdict == "right":
                members += form.members
                break
        else:
            leaders.append(form)
            votes.append(list(form.members))
    classes = [
        Class(leader.spelling, len(members), tuple(sorted(members)))
        for leader, members in zip(leaders, votes, strict=True)
    ]
    classes.sort(key=lambda one: -one.votes)  # stable: leading forms stay in order
    without = len(answers) - sum(one.votes for one in classes)
    return Agreement(tuple(classes), without, timeouts)


def _forms(answers: Sequence[str | None], form_of: Callable[[str], Hashable]) -> list[_Form]:
    """Distinct forms, in the order that they lead."""
    places: dict[Hashable, list[int]] = {}
    for place, answer in enumerate(answers):
        if answer is not None and normal(answer):
            places.setdefault(form_of(answer), []).append(place)
    forms = []
    for members in places.values():
        spellings = Counter(answers[place] for place in members)
        spelling = min(spellings, key=lambda text: (-spellings[text], len(text), text))
        forms.append(_Form(spelling, members))
    return sorted(forms, key=lambda form: (-len(form.members), len(form.spelling), form.spelling))


def form_of_text(answer: str) -> Hashable:
    """The same for answers that plain comparison calls equal, whatever a third one is."""
    text = normal(answer)
    number = as_number(text)
    return (text if number is None else number, "%" in answer)


def _plain(one: str, other: str) -> Verdict:
    """Plain comparison with either as the gold one: only a gold letter is a letter of a choice."""
    verdict = compare(one, other)
    return compare(other, one) if verdict == "unknown" else verdict
