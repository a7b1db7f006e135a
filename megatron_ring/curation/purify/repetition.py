"""Texts that loop.

Loops are looked for among tokens (words, numbers, single other characters), so that neither white
space nor line breaks hide them. An n-gram whose last occurrence lies d tokens back, followed by one
of which the same is true, and so on, is a stretch of period d; it is found in time proportional to
the text, whatever the period. What only looks alike changes something each time: the number of a
case, a row of a table, the thought after "wait". Such stretches have no period.
"""

import re
from collections import Counter

import numpy as np

from megatron_ring.config.curation.purify import RepetitionConfig
from megatron_ring.curation.purify.text import excerpt

# Words and numbers longer than 20 characters come one character at a time: "abcabcabc…" loops too.
_TOKEN = re.compile(r"[A-Za-z]{1,20}(?![A-Za-z])|\d{1,20}(?!\d)|\S")
_MARKER = re.compile(r"(?m)^[ \t]*(?:\(?\d{1,4}[.)、:]|[-*•])[ \t]*")
_RUN = re.compile(r"(\S)\1{31,}")
_RULERS = set("-=_.*#~+─━═—·…")
_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]?")
_WORD = re.compile(r"[A-Za-z]{2,}|\d+|[\u3400-\u9fff]")
GRAM = 6  # tokens; shorter ones recur by chance in tables


def characters(text: str, options: RepetitionConfig) -> str | None:
    """One character many times in a row."""
    for run in _RUN.finditer(text):
        length = run.end() - run.start()
        most = options.ruler_run if run[1] in _RULERS else options.character_run
        if length >= most:
            return f"{run[1]!r} {length} times in a row, at most {most - 1}"
    return None


def loop(text: str, options: RepetitionConfig) -> str | None:
    """The same words, lines or paragraphs again and again, one copy right behind the other."""
    return _loop(text, options, any_number=False)


def counted_loop(text: str, options: RepetitionConfig) -> str | None:
    """A loop whose copies differ in their numbers alone, though they have many words and few."""
    return _loop(text, options, any_number=True)


def sentences(text: str, options: RepetitionConfig) -> str | None:
    """A large share of the text is sentences said before, wherever they stand."""
    seen: Counter[str] = Counter()
    again = total = times = 0
    for found in _SENTENCE.finditer(text):
        total += len(found[0])
        key = found[0].strip()
        if _weight(key) < options.sentence_characters or not _has_words(key):
            continue
        seen[key] += 1
        # Once in the thought and once in the reply is usual.
        if seen[key] > 2:
            again += len(found[0])
            times += 1
    if times < options.sentence_times or again < options.sentence_share * total:
        return None
    worst, count = seen.most_common(1)[0]
    return f"{count} times, {again / total:.0%} of the text repeats: {excerpt(worst, 0, 400)}"


def ngrams(text: str, options: RepetitionConfig) -> str | None:
    """Most of the text's word n-grams have occurred before."""
    size = options.ngram_words
    share, count = repeated_share(text, size)
    if count < options.ngram_least or share < options.ngram_share:
        return None
    return f"{share:.0%} of {count} {size}-grams of words occurred before"


def words_of(text: str) -> list[str]:
    """Words, numbers and Chinese characters; single letters and signs are left out."""
    return _WORD.findall(text)


def repeated_share(text: str, size: int) -> tuple[float, int]:
    """Share of the text's n-grams of `size` words that occurred before in it; and n-grams."""
    words = words_of(text)
    count = len(words) - size + 1
    if count < 1:
        return 0.0, 0
    ids: dict[str, int] = {}
    array = np.array([ids.setdefault(word, len(ids)) for word in words], dtype=np.uint64)
    return 1 - len(np.unique(_grams(array, size))) / count, count


def _loop(text: str, options: RepetitionConfig, any_number: bool) -> str | None:
    for at in range(0, len(text), options.window):
        part = _MARKER.sub(lambda m: " " * len(m[0]), text[at : at + options.window])
        found = _worst_stretch(part, options, any_number)
        if found:
            return found
    return None


def _worst_stretch(text: str, options: RepetitionConfig, any_number: bool) -> str | None:
    tokens = _TOKEN.findall(text)
    if len(tokens) < 3 * GRAM:
        return None
    ids: dict[str, int] = {}
    names = [("0" if t[0].isdigit() else t) for t in tokens] if any_number else tokens
    array = np.array([ids.setdefault(name, len(ids)) for name in names], dtype=np.uint64)
    for start, stop, period in stretches(array):
        copies = (stop - start) / period
        if copies < options.loop_copies:
            continue
        cycle = tokens[start : start + period]
        repeated = (copies - 1) * sum(map(_weight, cycle))
        # Many copies convince sooner, unless they are cells of an empty table.
        many = copies >= options.wordless_copies
        many |= copies >= options.many_copies and len(set(cycle)) >= options.many_symbols
        if repeated < options.loop_characters / (1 + many):
            continue
        if any_number:
            bad = _wordy(cycle, options) and copies >= options.counted_copies
        else:
            bad = _loops(cycle, copies, options)
        if bad:
            return f"{copies:.0f} times, {stop - start} tokens: {excerpt(' '.join(cycle), 0, 400)}"
    return None


def stretches(ids_S: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, stop, period) of stretches in which each token equals the one a period before it.

    `ids_S`: uint64 numbers of tokens. A stretch has at least GRAM tokens beyond its first period.
    """
    grams = _grams(ids_S, GRAM)
    order = np.argsort(grams, kind="stable")
    distance = np.zeros(len(grams), dtype=np.int64)  # 0: not seen before
    same = grams[order[1:]] == grams[order[:-1]]
    distance[order[1:][same]] = (order[1:] - order[:-1])[same]
    edges = np.flatnonzero(np.diff(distance)) + 1
    starts = np.concatenate(([0], edges))
    stops = np.concatenate((edges, [len(grams)]))
    found = distance[starts]
    keep = found > 0
    return [
        (int(start - period), int(stop + GRAM - 1), int(period))
        for start, stop, period in zip(starts[keep], stops[keep], found[keep], strict=True)
    ]


def _grams(ids_S: np.ndarray, size: int) -> np.ndarray:
    """A 64-bit hash of each `size` tokens in a row; an odd multiplier, so that no token is lost."""
    count = len(ids_S) - size + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for k in range(size):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids_S[k : k + count] + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _loops(cycle: list[str], copies: float, options: RepetitionConfig) -> bool:
    # Of formulas, commands and variables are no words: \\frac{1}{9x} + …
    pairs = zip(cycle[-1:] + cycle, cycle, strict=False)
    if any(t[0].isalpha() and last != "\\" and _is_word(t, last) for last, t in pairs):
        return True
    # Zeros of a matrix and equal summands have a period too, of a few symbols and no word.
    return copies >= options.wordless_copies and len(set(cycle)) >= options.wordless_symbols


def _is_word(token: str, last: str) -> bool:
    return len(token) > 1 or token > "\u2e7f" or last.isalpha()


def _wordy(cycle: list[str], options: RepetitionConfig) -> bool:
    words = sum(t[0].isalpha() for t in cycle)
    numbers = sum(t[0].isdigit() for t in cycle)
    return words >= options.counted_words and numbers <= options.counted_numbers * len(cycle)


def _weight(text: str) -> int:
    """Characters, those of Chinese counted twice: they say more each."""
    return len(text) if text.isascii() else len(text) + sum(c > "\u2e7f" for c in text)


def _has_words(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]{2} [A-Za-z]{2}|[\u3400-\u9fff]{4}", text))
