"""Words of many texts at once, as salted 64-bit hashes, by numpy on bytes.

Normalisation (NORMALISER counts its changes): Unicode NFKC and lower case. A word is a run of
letters or a run of digits, so "x^2", "x²" and "x_2" are x 2; each Chinese or Japanese character,
and each beyond the basic plane, is a word of its own. dfrac and tfrac are frac. All else (space,
punctuation, operators) separates words; numbers are words like others.

Letters: W = words of a batch, T = texts of a batch.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

NORMALISER = 1
STEM_BYTES = 6  # "kilometre" and "kilometers" are one to the neighbours pass
_BEHIND = "\0" * 16
_LONGEST = 256  # bytes of a word that are looked at; beyond that it is no word

NUMBER = 2  # of the classes of words; letters are 1, single characters alternate between 4 and 5
_SEPARATOR, _SINGLE = 0, 4
_SAME = {b"dfrac": b"frac", b"tfrac": b"frac"}
# Separators that NFKC and lower case leave alone: most texts are ASCII without them, and fast.
_SIGNS = "’‘“”–—−×÷°€£"
_KEPT_BYTES = 1 << 24
# mask k leaves the first k bytes, beyond 8 all
_MASKS = np.array([(1 << 8 * k) - 1 for k in range(9)], np.uint64)


class Salt:
    """Odd multipliers drawn from a secret: the same words hash differently under another salt."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        drawn = hashlib.blake2b(secret, digest_size=40, person=b"ring-words").digest()
        # word, rest of a long word, gram, stem, pair of characters
        self.word, self.rest, self.gram, self.stem, self.pair = (
            int.from_bytes(drawn[k : k + 8], "little") | 1 for k in range(0, 40, 8)
        )

    @property
    def name(self) -> str:
        """What may be told of the secret: whether two files were made with the same one."""
        return hashlib.blake2b(self.secret, digest_size=8, person=b"ring-name").hexdigest()


@dataclass(frozen=True)
class Words:
    """The words of T texts, one text after the other."""

    hashes_W: np.ndarray  # uint64
    starts_W: np.ndarray  # int64, bytes from the beginning of the batch
    lengths_W: np.ndarray  # int64, bytes
    first_T: np.ndarray  # int64 [T + 1]: words of text t are first_T[t] : first_T[t + 1]
    offsets_T: np.ndarray  # int64 [T + 1]: first byte of each text
    buffer: np.ndarray  # uint8, the normalised texts, with 16 bytes of nothing behind
    classes: np.ndarray  # uint8 of each byte, see NUMBER

    @cached_property
    def classes_W(self) -> np.ndarray:
        """uint8, see NUMBER."""
        return self.classes.take(self.starts_W)

    def stems(self, salt: Salt, part: slice = slice(None)) -> np.ndarray:
        """uint64: the words of `part` by their first STEM_BYTES bytes; a single character together
        with the next one, as Chinese words mostly have two."""
        lengths_W = np.minimum(self.lengths_W[part], STEM_BYTES)
        stems_W = _load(self.buffer, self.starts_W[part], lengths_W)
        _mix(stems_W, salt.stem)
        single = self.classes_W[part] >= _SINGLE
        here = np.flatnonzero(single[:-1] & single[1:])
        if len(here):
            here = here[~np.isin(here + (part.start or 0) + 1, self.first_T)]
        stems_W[here] = stems_W[here] * np.uint64(salt.pair) + stems_W[here + 1]
        return stems_W

    def text_of(self, words: np.ndarray) -> np.ndarray:
        """int64: the text in which each of `words` (indices) lies."""
        return np.searchsorted(self.first_T, words, side="right") - 1

    def span(self, text: int, start: int, stop: int, original: str) -> str:
        """Words start to stop as they stand in `original`, the text of that number."""
        begin = int(self.offsets_T[text])
        a = int(self.starts_W[start])
        b = int(self.starts_W[stop - 1]) + int(self.lengths_W[stop - 1])
        if original.isascii():
            return original[a - begin : b - begin]
        data = self.buffer[begin:b].tobytes()
        a, b = len(data[: a - begin].decode()), len(data.decode())
        same = normalised(original)
        return (original if len(same) == len(original) else same)[a:b]

    def strings(self) -> list[str]:
        """The words themselves; for people and tests."""
        data = self.buffer.tobytes()
        ends = (self.starts_W + self.lengths_W).tolist()
        return [
            data[a:b].decode("utf-8", "replace")
            for a, b in zip(self.starts_W.tolist(), ends, strict=True)
        ]


def normalised(text: str) -> str:
    """NFKC and lower case; what offsets in a text that is not ASCII count."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()


def split(texts: Sequence[str], salt: Salt) -> Words:
    """All words of `texts`, hashed with `salt`."""
    # A separator in front and behind, so that every word has a boundary at both ends.
    if all(map(str.isascii, texts)):
        lengths_T = np.fromiter(map(len, texts), np.int64, len(texts))
        joined = "\n".join(["", *texts, _BEHIND]).encode()
    else:
        encoded = [text.encode() if text.isascii() else _plain(text) for text in texts]
        lengths_T = np.fromiter(map(len, encoded), np.int64, len(texts))
        joined = b"\n".join([b"", *encoded, _BEHIND.encode()])
    offsets_T = np.concatenate([[1], 1 + np.cumsum(lengths_T + 1)])
    buffer, classes = _classes(np.frombuffer(joined, np.uint8))
    inside = classes != _SEPARATOR
    changes = classes[1:] != classes[:-1]
    starts_W = np.flatnonzero(changes & inside[1:])
    lengths_W = np.flatnonzero(changes & inside[:-1])
    lengths_W -= starts_W
    starts_W += 1  # a change is counted at the byte before it
    hashes_W = _hash(buffer, starts_W, lengths_W, salt)
    for name, other in _SAME.items():
        same = hashes_W == hash_of(name, salt)
        if same.any():
            hashes_W[same] = hash_of(other, salt)
    first_T = np.searchsorted(starts_W, offsets_T)
    return Words(hashes_W, starts_W, lengths_W, first_T, offsets_T, buffer, classes)


@lru_cache(maxsize=64)
def hash_of(word: bytes, salt: Salt) -> np.uint64:
    """The hash of one word, given in normal form."""
    one = np.array([len(word)])
    return _hash(np.frombuffer(word + bytes(16), np.uint8), one * 0, one, salt)[0]


def grams(hashes_W: np.ndarray, n: int, salt: Salt) -> np.ndarray:
    """uint64 [W - n + 1]: hashes of n words in a row, sum of hash[i + k] * m^(n - 1 - k) mod 2^64.

    Made by doubling, most significant bit of n first. Grams over the end of a text are made too.
    """
    if len(hashes_W) < n:
        return np.zeros(0, np.uint64)
    size, out_W = 1, hashes_W
    for bit in bin(n)[3:]:
        made_W = _times(out_W[:-size], salt.gram, size)
        made_W += out_W[size:]
        out_W = made_W
        size *= 2
        if bit == "1":
            tail_W = hashes_W[size:]
            out_W = _times(out_W[: len(tail_W)], salt.gram, 1) + tail_W
            size += 1
    return out_W


def sorted_index(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64, int64: which of `values` are in the sorted `table`, and at which place of it."""
    if not len(table):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    at = np.searchsorted(table, values)
    there = np.flatnonzero(table.take(at, mode="clip") == values)
    return there, at[there]


def keep_memory() -> None:
    """Let malloc keep what arrays of a batch need; giving it back and asking again took a third of
    the time. (glibc, mallopt(3): freeing a block raises the limits from which it is given back.)"""
    np.empty(_KEPT_BYTES, np.uint8)


def _plain(text: str) -> bytes:
    """The normal form in UTF-8. Where a text is ASCII but for _SIGNS, these become apostrophes."""
    plain = text
    for sign in _SIGNS:
        plain = plain.replace(sign, "'")
    if plain.isascii():
        return plain.encode()
    # Half surrogates, which a broken file may hold, become question marks.
    return normalised(text).encode("utf-8", "replace")


def _classes(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8, uint8: bytes in lower case, and the class of each. Multiplied, as shifts are slow."""
    letter = ((raw | 32) - 97) < 26
    digit = (raw - 48) < 10
    high = raw > 127
    classes = (letter | high).view(np.uint8) + digit.view(np.uint8) * np.uint8(NUMBER)
    if high.any():
        _mark_wide(raw, classes)
    return raw | letter.view(np.uint8) * np.uint8(32), classes


def _times(values: np.ndarray, multiplier: int, power: int) -> np.ndarray:
    return values * np.uint64(pow(multiplier, power, 1 << 64))


def _mark_wide(raw: np.ndarray, classes: np.ndarray) -> None:
    """Set the classes of what is not ASCII: letters stay, symbols separate, others are single.

    By UTF-8 lead byte: C2 and E2 hold symbols (NFKC has turned what looks like letters and digits
    into these), E3 80 the CJK punctuation, E3 to E9 the kana and CJK, F0 up the upper planes.
    """
    leads = np.flatnonzero(raw >= 0xC2)
    first, second = raw[leads], raw[np.minimum(leads + 1, len(raw) - 1)]
    size = 2 + (first >= 0xE0) + (first >= 0xF0)
    symbol = (first == 0xC2) | (first == 0xE2) | ((first == 0xE3) & (second == 0x80))
    symbol |= (first == 0xC3) & ((second == 0x97) | (second == 0xB7))  # × and ÷
    single = ~symbol & (((first >= 0xE3) & (first <= 0xE9)) | (first >= 0xF0))
    alternating = (_SINGLE + np.cumsum(single) % 2).astype(np.uint8)
    for mask, values in ((symbol, None), (single, alternating)):
        at = leads[mask]
        for k in range(4):
            inside = size[mask] > k
            where = at[inside] + k
            classes[where] = _SEPARATOR if values is None else values[mask][inside]


def _hash(
    buffer: np.ndarray, starts_W: np.ndarray, lengths_W: np.ndarray, salt: Salt
) -> np.ndarray:
    """Eight bytes at a time; most words have no more."""
    hashes_W = _load(buffer, starts_W, lengths_W)
    _mix(hashes_W, salt.word)
    more = np.flatnonzero(lengths_W > 8)
    done = 8
    while len(more) and done < _LONGEST:
        part = _load(buffer, starts_W[more] + done, lengths_W[more] - done)
        mixed = hashes_W[more] * np.uint64(salt.rest) + part
        _mix(mixed, salt.word)
        hashes_W[more] = mixed
        done += 8
        more = more[lengths_W[more] > done]
    return hashes_W


def _load(buffer: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """uint64: the first min(8, length) bytes from each start, the first one lowest."""
    windows = np.ndarray(len(buffer) - 7, "<u8", buffer, strides=(1,))
    values = windows[starts]
    values &= _MASKS.take(lengths, mode="clip")  # off with what comes behind the word
    return values


def _mix(values: np.ndarray, multiplier: int) -> None:
    """Spread the bits over the word, in place: upwards by the product, then down."""
    values *= np.uint64(multiplier)
    values ^= values >> np.uint64(32)
