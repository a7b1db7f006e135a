"""The numbers of a text, and whether two texts speak of the same ones.

The same words with other numbers are another problem, however alike they look (no similarity of
embeddings tells them apart). Numbers are compared as multisets; signs and units do not count.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from megatron_ring.curation.decontaminate.words import Salt, normalised

_UNITS = "zero - two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_UNITS += " fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
# "one" is more often a pronoun than a number.
SPELLED = {word: str(value) for value, word in enumerate(_UNITS.split()) if word != "-"}
SPELLED |= {word: str(10 * tens) for tens, word in enumerate(_TENS.split(), 2)}

_DRAWING = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_GROUPS = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!|\\ )(?=\d{3}(?!\d))")
_SHORT_FRACTION = re.compile(r"(\\[dt]?frac)\s*(\d)\s*(\d)")
_LEADING = re.compile(r"\A0+(?=\d)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|[a-z]+")


def numbers_of(text: str) -> list[str]:
    """The numbers of a text in order, without leading zeros, zeros behind the point, thousands'
    separators; English words from zero to ninety count, "one" does not, nor do coordinates of
    drawings ([asy])."""
    text = normalised(text)
    # Looking for a fixed string costs a hundredth of an expression that finds nothing.
    if "[asy]" in text:
        text = _DRAWING.sub(" ", text)
    text = _GROUPS.sub("", text)
    if "frac" in text:
        text = _SHORT_FRACTION.sub(r"\1 \2 \3", text)
    found = []
    for word in _NUMBER.findall(text):
        if word in SPELLED:
            found.append(SPELLED[word])
        elif word[0].isdigit():
            word = word.rstrip("0").rstrip(".") if "." in word else word
            found.append(_LEADING.sub("", word))
    return found


def hashed(numbers: Iterable[str], salt: Salt) -> list[int]:
    """Each number as a salted 64-bit hash, as fingerprints keep it."""
    return [_hash_of(number, salt) for number in numbers]


@lru_cache(maxsize=1 << 14)
def _hash_of(number: str, salt: Salt) -> int:
    data = hashlib.blake2b(number.encode(), digest_size=8, key=salt.secret)
    return int.from_bytes(data.digest())


def missing(item: Sequence[int], text: Iterable[int]) -> float:
    """The share of `item`'s numbers, with their multiplicity, that `text` has not; 0 of none."""
    there = Counter(text)
    lost = 0
    for number in item:
        if there[number] > 0:
            there[number] -= 1
        else:
            lost += 1
    return lost / max(len(item), 1)
