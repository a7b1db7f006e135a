"""Words, sentences and capital words of a text, counted by IFEval's rules.

The published checkers count words with the pattern of word characters, sentences with NLTK's
trained model, and capital words with NLTK's tokenizer. Words are counted in the same way here.
The other two follow rules of our own, which need no trained data:

Sentences end in . ! or ? and white space. The trained model also learns abbreviations from its
corpus; here they are the ones listed below, so that a rare one ("approx. Five") may count once
more. Capital words are split at white space, at punctuation, and before n't, 's, 'm, 'd, 'll, 're,
've, as NLTK does; odd strings of signs (":-D") may fall apart in another way.
"""

import re

WORD = re.compile(r"\w+")
CLOSERS = "\"'”’)]}»*_"
TITLES = frozenset("mr mrs ms dr prof st rev gen col lt sgt capt gov sen rep hon mt vs fig".split())
SHORT = frozenset("e.g i.e a.m p.m u.s u.k u.n d.c ph.d etc inc ltd co corp jr sr dept est".split())
SPLITTERS = re.compile(r"[,;:@#$%&?!\[\](){}<>\"“”«»`]|--+|\.\.\.|…")
CLITIC = re.compile(r"(?i)(?<=\w)(?='(?:s|m|d|ll|re|ve)(?!\w))|(?<=\w)(?=n't(?!\w))")
FUSED = re.compile(
    r"(?i)(?<=\bcan)(?=not\b)|(?<=\bgim)(?=me\b)|(?<=\bgon)(?=na\b)|(?<=\bgot)(?=ta\b)"
)


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores: "don't" is two."""
    return len(WORD.findall(text))


def count_sentences(text: str) -> int:
    """Sentences; a rest without an end mark is one. Line breaks alone end nothing."""
    tokens = text.split()
    ends = [_ends(token, after) for token, after in zip(tokens, [*tokens[1:], ""], strict=False)]
    return sum(ends) + bool(ends and not ends[-1])


def count_capital_words(text: str) -> int:
    """Words without a small letter and with a capital one; "I" is one, "IT'S" is two."""
    text = SPLITTERS.sub(" ", text)
    text = FUSED.sub(" ", CLITIC.sub(" ", text))
    return sum(word.isupper() for word in text.split())


def _ends(token: str, after: str) -> bool:
    """Does a sentence end with `token`, when `after` ("" at the end) is the next one?"""
    core = token.rstrip(CLOSERS)
    if core[-1:] in ("!", "?") or (core[-1:] == "." and not after):
        return True
    if core[-1:] != ".":
        return False
    starts_low = after.lstrip(CLOSERS + "([{«“‘")[:1].islower()
    if core.endswith(".."):
        return not starts_low
    word = core[:-1].lstrip("\"'“‘([{*_").lower()
    if word in TITLES or (len(word) == 1 and word.isalpha() and word != "i"):
        return False
    if word in SHORT or word.isdigit():
        return not starts_low
    return True
