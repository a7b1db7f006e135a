"""Makes fingerprints from a benchmark's text."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice, pairwise

import numpy as np

from megatron_ring.curation.decontaminate import words
from megatron_ring.curation.decontaminate.fingerprints import Fingerprint, Item
from megatron_ring.curation.decontaminate.numbers import hashed, numbers_of
from megatron_ring.curation.decontaminate.words import Salt, sorted_index

COMMON = 3  # an n-gram of so many items, or texts of the background, is boilerplate
MIN_GRAMS = 4  # an item with fewer grams of its own must be found whole

# Words that say little of what a problem is about, and those of usual instructions.
STOP_WORDS = """
a about after all also an and another any are as at be been before being between both but by can
could did do does during each either every for from had has have he her his how i if in into is it
its just let many more most much must no not of off on once one only or other out over per same she
should so some such than that the their them then there these they this those through to too under
until up was we were what when where which while who whose why will with would you your
answer answers boxed calculate carefully choose compute correct determine evaluate explain express
final find following format give given below above instruction integer number numbers please
problem put question reason response show simplify solution solve step suppose value values within
write written
asy begin cdot circ displaystyle end frac label left leq geq mathrm quad right sqrt text textbf
times draw size unitsize
"""


def build(
    name: str,
    items: Sequence[tuple[str, str]],
    salt: Salt,
    *,
    n: int = 8,
    date: str = "",
    source: str = "",
    background: Iterable[str] = (),
) -> tuple[Fingerprint, list[str]]:
    """The fingerprint of `items`, pairs of id and text. ValueError: no items, or one has no words.

    `background` are texts that are known not to hold the benchmark (older competitions, other
    people's instructions). Were they to hold an item often, its grams would look like boilerplate:
    where they would mask more than half of an item's grams they mask none of them, and the item's
    id is in the list that comes second.
    """
    if not items:
        raise ValueError(f"benchmark {name}: no items")
    split = words.split([text for _, text in items], salt)
    spans = list(pairwise(split.first_T.tolist()))
    for (item, _), (start, stop) in zip(items, spans, strict=True):
        if start == stop:
            raise ValueError(f"benchmark {name}: item {item} has no words")
    sizes = [min(n, stop - start) for start, stop in spans]
    grams = [
        np.unique(words.grams(split.hashes_W[start:stop], size, salt))
        for (start, stop), size in zip(spans, sizes, strict=True)
    ]
    long = [own for own, size in zip(grams, sizes, strict=True) if size == n]
    known, counts = np.unique(np.concatenate([*long, grams[0][:0]]), return_counts=True)
    seen, rarity = _count(background, known, n, salt)
    common, usual = known[counts >= COMMON], known[seen >= COMMON]
    stems = [_content(split, start, stop, salt) for start, stop in spans]
    for own in stems:
        _add(rarity, own)
    made, spared = [], []
    for number, (item, text) in enumerate(items):
        own, size = grams[number], sizes[number]
        masked = np.isin(own, usual)
        if 2 * masked.sum() > len(own):
            spared.append(item)
            masked[:] = False
        own = own[~(masked | np.isin(own, common))]
        whole = size < n or len(own) < MIN_GRAMS
        rare_first = sorted(stems[number].tolist(), key=lambda stem: (rarity[stem], stem))
        made.append(
            Item(
                id=item,
                grams=grams[number] if whole else own,
                size=size,
                whole=whole,
                words=np.array(rare_first, np.uint64),
                # In ascending order, so that the order of the text is not told.
                numbers=np.array(sorted(hashed(numbers_of(text), salt)), np.uint64),
            )
        )
    return Fingerprint(name, date, source, n, salt.name, made), spared


def content(stems: np.ndarray, classes: np.ndarray, salt: Salt) -> np.ndarray:
    """uint64, ascending: distinct stems without numbers and stop words."""
    found = np.unique(stems[classes != words.NUMBER])
    return found[~np.isin(found, stop_stems(salt))]


@lru_cache(maxsize=8)
def stop_stems(salt: Salt) -> np.ndarray:
    """uint64: stems of STOP_WORDS."""
    return words.split([STOP_WORDS], salt).stems(salt)


def _content(split: words.Words, start: int, stop: int, salt: Salt) -> np.ndarray:
    part = slice(start, stop)
    return content(split.stems(salt, part), split.classes_W[part], salt)


def _count(
    texts: Iterable[str], grams: np.ndarray, n: int, salt: Salt
) -> tuple[np.ndarray, dict[int, int]]:
    """In how many of `texts` each of `grams` (sorted) lies, and each stem."""
    counts: np.ndarray = np.zeros(len(grams), np.int64)
    stems: dict[int, int] = {}
    for batch in _batches(texts, 256):
        split = words.split(batch, salt)
        for start, stop in pairwise(split.first_T.tolist()):
            made = words.grams(split.hashes_W[start:stop], n, salt)
            counts[np.unique(sorted_index(grams, made)[1])] += 1
            _add(stems, _content(split, start, stop, salt))
    return counts, stems


def _add(counts: dict[int, int], found: np.ndarray) -> None:
    for one in found.tolist():
        counts[one] = counts.get(one, 0) + 1


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, size)):
        yield batch
