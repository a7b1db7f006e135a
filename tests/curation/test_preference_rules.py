"""Pairs by rule: what may be chosen, what breaks which rule, and in what words that is told."""

import random
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.preference import BlendConfig, GeneralConfig, OverlapConfig
from megatron_ring.config.loading import build
from megatron_ring.curation.preference import rules
from megatron_ring.curation.preference.general import Chooser, Chosen, General, Rejected
from megatron_ring.curation.preference.offers import Offer, to_offer
from megatron_ring.curation.record import Rejection

SOURCES = [{"path": "x.jsonl"}]
LOOP = "Wait, let me think about this number again and again. " * 12


def thought(answer: str, of: str = "Two and two make four.") -> str:
    return f"<think>\n{of}\n</think>\n\n{answer}"


def boxed(number: int, of: str = "Two and two make four.") -> str:
    return thought(f"It is \\boxed{{{number}}}.", of)


def offer(
    *candidates: Any, response: str | None = None, prompt: str = "2+2?", **keys: Any
) -> Offer:
    """Of texts, or candidates; the gold answer is 4."""
    offered = [one if isinstance(one, dict) else {"text": one} for one in candidates]
    messages = [{"role": "user", "content": prompt}]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    row = {"id": "a/1", "messages": messages, "extra": {"candidates": offered}, "answer": "4"}
    return to_offer("x.jsonl:1", {**row, **keys})


def options(**keys: Any) -> GeneralConfig:
    return GeneralConfig.model_validate({"sources": SOURCES, **keys})


def chosen(given: Offer, **keys: Any) -> Chosen | Rejection:
    return Chooser(options(**keys)).choose(given)


def number(given: Offer, **keys: Any) -> int | str:
    found = chosen(given, **keys)
    assert isinstance(found, Chosen), found
    return found.number


def broken(given: Offer, **keys: Any) -> dict[str, Rejected]:
    """Of an offer with one pair: what is rejected, by rule."""
    shares = dict.fromkeys(["wrong", "longer", "repetitive", "unfinished", "tags"], 1)
    found = General(options(**{"shares": shares, **keys}), 1).propose(given)
    assert not isinstance(found, Rejection), found
    [hand] = found[1]
    return hand


def test_overlap_by_hand() -> None:
    weights = OverlapConfig(words=2, within=1, prompt=0, others=0)
    # Pairs of words: ab bc ca ab bc; two of five were there before.
    assert rules.overlap("aa bb cc aa bb cc", "", [], weights) == pytest.approx(2 / 5)
    # Of the three different ones, the prompt has one, the others have two.
    copied = OverlapConfig(words=2, within=0, prompt=1, others=0)
    assert rules.overlap("aa bb cc aa bb cc", "so bb cc", ["aa bb"], copied) == pytest.approx(1 / 3)
    usual = OverlapConfig(words=2, within=0, prompt=0, others=1)
    several = ["cc aa", "so aa bb", "cc aa"]
    assert rules.overlap("aa bb cc aa bb cc", "", several, usual) == pytest.approx(2 / 3)
    every = OverlapConfig(words=2, within=1, prompt=2, others=3)
    assert rules.overlap("aa bb cc aa bb cc", "so bb cc", several, every) == pytest.approx(
        2 / 5 + 2 / 3 + 3 * 2 / 3
    )
    # Tags and signs are no words, a Chinese character is one, and few words overlap with nothing.
    assert rules.overlap("<think>aa</think> + bb", "aa bb", [], copied) == 1
    tagged = "<think>aa</think> bb <think>aa</think> bb"  # aa bb, bb aa, aa bb
    assert rules.overlap(tagged, "", [], weights) == pytest.approx(1 / 3)
    assert rules.overlap("二加二", "二加", [], copied) == 1 / 2
    assert rules.overlap("aa", "aa", ["aa"], every) == 0


def test_the_right_answer_with_the_lowest_overlap_is_chosen() -> None:
    said_twice = "First we add the two numbers. First we add the two numbers."
    answers = [
        boxed(5),
        boxed(4, of=said_twice),
        boxed(4, of="Counting two up from two gives three, then four."),
        boxed(4, of="Counting two up from two gives three, then four, which is even as well."),
    ]
    assert number(offer(*answers)) == 2
    # Without the third the longer text with no word twice goes before the repeated one.
    assert number(offer(answers[0], answers[1], answers[3])) == 2
    # What the prompt says already counts.
    prompt = "Counting two up from two gives three, then four. Is 2+2 four?"
    assert number(offer(*answers[:3], prompt=prompt)) == 1
    # What another answer says too: 2 and 3 share nearly all.
    assert number(offer(*answers), overlap={"others": 2, "within": 0.1}) == 1
    # By equal overlap the shorter one, then the first.
    assert number(offer(thought("\\boxed{4}!!"), thought("\\boxed{4}"), thought("\\boxed{4}"))) == 1


@pytest.mark.parametrize(
    ("one", "keys", "reason", "evidence"),
    [
        (boxed(5), {}, "wrong", "0: wrong"),
        (thought("four"), {}, "unknown", "0: unknown"),
        (thought("four"), {"correct": "prefer"}, None, ""),
        (boxed(5), {"correct": "prefer"}, "wrong", "0: wrong"),
        ({"text": boxed(4), "finish": "length"}, {}, "unfinished", "0: unfinished finish=length"),
        ({"text": boxed(4), "finish": "length"}, {"finish": ["length"]}, None, ""),
        (
            {"text": boxed(4), "complete": False},
            {},
            "unfinished",
            "0: unfinished the source says that the thought is open",
        ),
        ("So \\boxed{4}", {}, "tags", "0: tags no tags"),
        ("So \\boxed{4}", {"think": "allow"}, None, ""),
        ("a</think>\\boxed{4}", {"think": "allow"}, "tags", "0: tags </think>"),
        (
            boxed(4, of=LOOP),
            {},
            "repetitive",
            "0: repetitive loop: 12 times, 144 tokens: Wait , let",
        ),
        ({"text": boxed(4), "score": 0.5}, {}, "wrong", "0: wrong"),
        ({"text": boxed(9), "score": 0.5}, {"min_score": 0.5}, None, ""),
        ({"text": boxed(9), "correct": True}, {}, None, ""),
        (thought("4"), {}, None, ""),
        (thought("four"), {"equality": "text"}, "wrong", "0: wrong"),
        (" \n", {}, "no_answer", "1 candidates, no response"),
    ],
)
def test_what_may_be_chosen(one: Any, keys: dict, reason: str | None, evidence: str) -> None:
    found = chosen(offer(one), **keys)
    if reason is None:
        assert isinstance(found, Chosen) and found.number == 0
    else:
        assert isinstance(found, Rejection) and found.reason == reason
        assert found.evidence.startswith(evidence)


def test_known_to_be_right_goes_before_low_overlap() -> None:
    said_twice = "First we add the two numbers. First we add the two numbers."
    both = [thought("four of them"), boxed(4, of=said_twice)]
    assert number(offer(*both), correct="prefer") == 1


def test_answers_with_different_faults() -> None:
    found = chosen(offer(boxed(5), "\\boxed{4}", response=boxed(6)))
    assert found == Rejection("none_good", "0: wrong; 1: tags no tags; reference: wrong")


def test_the_records_own_response() -> None:
    right = thought("Four, since two and two are four.")
    given = offer(boxed(5), response=right)
    found = chosen(given)
    # It may be chosen though nobody can tell that it is right.
    assert isinstance(found, Chosen) and (found.number, found.verdict) == ("reference", "unknown")
    assert found.text == right
    assert chosen(given, reference="never") == Rejection("wrong", "0: wrong")
    given = offer(boxed(4), response=right)
    assert number(given) == 0
    assert number(given, reference="always") == "reference"
    assert number(offer(boxed(4), response=boxed(5)), reference="always") == 0
    # A thought that stands apart comes before it.
    turn = {"role": "assistant", "content": "4", "reasoning_content": " two twos "}
    apart = [{"role": "user", "content": "2+2?"}, turn]
    found = chosen(offer(boxed(5), messages=apart))
    assert isinstance(found, Chosen) and found.text == "<think>\ntwo twos\n</think>\n\n4"


LONG = (
    "There is more than one way to see it, and each of them takes some words. Put two apples "
    "beside two pears, and count what lies on the table from left to right; whoever comes last is "
    "the sum. Or draw a line, mark every step on it, go two marks, rest a while, then go on by as "
    "many. Both roads end at the same place, which is reassuring."
)


@pytest.mark.parametrize(
    ("one", "keys", "rule", "evidence"),
    [
        (boxed(5), {}, "wrong", "'5', not '4'"),
        (thought("5"), {}, "wrong", "'5', not '4'"),
        (thought("Monday"), {"equality": "text"}, "wrong", "'Monday', not '4'"),
        ({"text": boxed(4) + "!", "correct": False}, {}, "wrong", "its verifiers say so"),
        ({"text": boxed(4) + "!", "score": 0.2}, {}, "wrong", "score 0.2 below 1.0"),
        (
            boxed(4, of=LONG),
            {},
            "longer",
            "369 characters, 6.47 times the chosen's 57, at least 1.5 times",
        ),
        (boxed(4, of=LOOP), {}, "repetitive", "loop: 12 times, 144 tokens: Wait , let me think"),
        ({"text": boxed(4) + " ", "finish": "length"}, {}, None, ""),
        ({"text": boxed(4) + "!", "finish": "length"}, {}, "unfinished", "finish=length"),
        ("Two twos.</think>\\boxed{4}", {}, "tags", "</think>"),
        ("Two twos are \\boxed{4}", {}, "tags", "no tags"),
    ],
)
def test_each_rule(one: Any, keys: dict, rule: str | None, evidence: str) -> None:
    given = offer(boxed(4), one)
    if rule is None:
        found = General(options(**keys), 1).propose(given)
        assert found == Rejection(
            "nothing_to_reject", "0 other answers break none of wrong, longer, repetitive"
        )
        return
    found = broken(given, **keys)[rule]
    assert (found.number, found.rule) == (1, rule) and found.evidence.startswith(evidence)


def test_a_thought_that_never_ends_is_no_wrong_answer() -> None:
    given = offer(boxed(4), "<think>\nLet us see: 2 and 2")
    assert set(broken(given, equality="text")) == {"tags"}


def test_longer_has_a_ratio_and_a_difference() -> None:
    short, long = boxed(4), boxed(4, of=LONG)  # 57 and 369 characters
    assert "longer" in broken(offer(short, long), longer_ratio=6.4, longer_characters=312)
    for keys in ({"longer_ratio": 6.5}, {"longer_characters": 313}):
        assert isinstance(General(options(**keys), 1).propose(offer(short, long)), Rejection)
    # Of one that nothing is known of, it may not be the length either; by nothing known of both.
    unknown = thought("four", of=LONG)
    found = General(options(), 1).propose(offer(short, unknown))
    assert isinstance(found, Rejection) and found.reason == "nothing_to_reject"
    assert "longer" in broken(offer(thought("four"), unknown), correct="prefer")
    # One that is wrong, cut or in wrong tags is not to blame for its length.
    for worse in (
        boxed(5, of=LONG),
        {"text": long, "finish": "length"},
        long.replace("<think>", ""),
    ):
        assert "longer" not in broken(offer(short, worse))


def test_repeated_ngrams_are_compared_with_the_chosens() -> None:
    rng = random.Random(3)
    words = ["apple", "pear", "plum", "fig", "date", "lime"]
    fresh = " ".join(f"{rng.choice(words)} {n}" for n in range(60))
    again = " ".join([*(f"{n} {rng.choice(words)}" for n in range(40)), *fresh.split()[:60] * 2])
    share, count = rules.repetition.repeated_share(again, 4)
    slow = [tuple(again.split()[i : i + 4]) for i in range(len(again.split()) - 3)]
    assert (share, count) == (1 - len(set(slow)) / len(slow), len(slow))
    few = {"repetition": {"loop_copies": 9, "ngram_least": 10_000}}
    found = broken(offer(boxed(4, of=fresh), boxed(4, of=again)), **few, repeated_share=0.25)
    seen = found["repetitive"].evidence
    assert seen.startswith("28% of 203 ") and seen.endswith("at least 25%; of the chosen's 0%")
    for keys in ({"repeated_share": 0.29}, {"repeated_more": 0.3}, {"repeated_least": 300}):
        keys = {"repeated_share": 0.25, **few, **keys}
        pair = General(options(shares={"repetitive": 1}, **keys), 1)
        found = pair.propose(offer(boxed(4, of=fresh), boxed(4, of=again)))
        assert isinstance(found, Rejection) and found.reason == "nothing_to_reject", keys


def test_only_the_recipes_rules_count() -> None:
    given = offer(boxed(4), boxed(5), boxed(4, of=LONG))
    assert set(broken(given)) == {"wrong", "longer"}
    assert set(broken(given, shares={"longer": 1})) == {"longer"}
    found = General(options(shares={"tags": 1, "unfinished": 1}), 1).propose(given)
    assert found == Rejection("nothing_to_reject", "2 other answers break none of tags, unfinished")
    assert General(options(), 1).propose(offer(response=boxed(4))) == Rejection(
        "no_candidates", "no sampled answers in extra.candidates"
    )


def test_hands_share_no_answer_and_follow_the_seed() -> None:
    given = offer(boxed(4), *(boxed(n) for n in range(5, 12)), boxed(4, of=LONG))
    made = General(options(pairs_per_prompt=3), 1).propose(given)
    assert not isinstance(made, Rejection)
    found, hands = made
    assert found.number == 0 and len(hands) == 3
    used = [one.number for hand in hands for one in hand.values()]
    assert len(used) == len(set(used)) and 0 not in used
    again, other = (General(options(pairs_per_prompt=3), seed).propose(given) for seed in (1, 2))
    assert again == made != other
    few = General(options(pairs_per_prompt=9), 1).propose(offer(boxed(4), boxed(5)))
    assert not isinstance(few, Rejection) and len(few[1]) == 1
    # Any of the wrong ones may be the one.
    drawn = {
        next(iter(General(options(), seed).propose(given)[1][0].values())).number
        for seed in range(25)
    }
    assert drawn == set(range(1, 9))


def test_verdicts_are_counted() -> None:
    maker = General(options(), 1)
    maker.propose(offer(boxed(4), boxed(5), boxed(6), thought("four"), "  "))
    assert maker.verdicts == {"right": 1, "wrong": 2, "unknown": 1, "blank": 1}


def test_math_verify_judges_formulas() -> None:
    pytest.importorskip("math_verify")
    given = offer(thought("\\boxed{2\\sqrt{2}}"), thought("\\boxed{\\sqrt{9}}"), answer="\\sqrt{8}")
    found = General(options(equality="math_verify"), 1).propose(given)
    assert not isinstance(found, Rejection)
    assert found[0].number == 0
    assert found[1][0]["wrong"].evidence == "'\\\\sqrt{9}', not '\\\\sqrt{8}'"
    # Plain comparison cannot tell.
    assert chosen(given) == Rejection("unknown", "0: unknown; 1: unknown")


def test_options_that_make_no_sense() -> None:
    def complaint(tree: dict) -> str:
        with pytest.raises(ConfigError) as error:
            build(BlendConfig, {"output": "o", **tree})
        return str(error.value)

    assert complaint({}) == "there is nothing to make; give general, structure or both"
    sources = {"sources": SOURCES}
    assert complaint({"structure": {**sources, "think": "allow"}}) == (
        "structure: think=allow: tags are damaged where there are some; require"
    )
    assert "general.shares.worng" in complaint({"general": {**sources, "shares": {"worng": 1}}})
    assert complaint({"general": {**sources, "longer_ratio": 1}}) == (
        "general.longer_ratio=1: input should be greater than 1"
    )
    assert complaint({"general": {**sources, "overlaps": {}}}) == (
        "unknown config key general.overlaps; did you mean general.overlap?"
    )
    assert "general.shares={}" in complaint({"general": {**sources, "shares": {}}})
