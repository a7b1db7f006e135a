"""Words, n-grams and numbers against plain Python that does one text at a time."""

import random
import re
import unicodedata

import numpy as np
import pytest

from megatron_ring.curation.decontaminate import words
from megatron_ring.curation.decontaminate.numbers import hashed, missing, numbers_of
from megatron_ring.curation.decontaminate.words import Salt

SALT = Salt(b"a secret for tests")
SINGLE = "\u3001-\u9fff\U00010000-\U0010ffff"
ALPHABET = "abz ABZ 0179 \n.,$\\{}^_'\"-+éßπЖ×÷²½ⅧＡ１，。！、函数值求あカ😀\u200b’…한글\ud800"
TEXTS = [
    "",
    " ",
    "x",
    "Let $x^2+3.5=\\dfrac{1}{2}$; find f(x_1).",
    "求函数 ab 的值。",
    "naïve Ⅷ½ 4×5 x² 😀a",
    "supercalifragilistic" * 20,
]


def reference(text: str) -> list[str]:
    """The definition in the docstring of words.py, by regular expressions."""
    text = unicodedata.normalize("NFKC", text).lower().encode("utf-8", "replace").decode()
    # Symbols that are not ASCII: Latin-1's, the blocks from U+2000 to U+2FFF, CJK punctuation.
    text = re.sub("[\x80-\xbf×÷\u2000-\u2fff\u3000-\u303f]", " ", text)
    pieces = re.findall(rf"[{SINGLE}]|[0-9]+|(?:[a-z]|[^\x00-\x7f{SINGLE}])+", text)
    return [{"dfrac": "frac", "tfrac": "frac"}.get(piece, piece) for piece in pieces]


def random_texts(seed: int, number: int, alphabet: str = ALPHABET) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(number)]


def test_words_are_those_of_the_definition() -> None:
    texts = TEXTS + random_texts(0, 300)
    split = words.split(texts, SALT)
    assert len(split.first_T) == len(texts) + 1 and split.first_T[0] == 0
    strings = [{"dfrac": "frac", "tfrac": "frac"}.get(w, w) for w in split.strings()]
    for number, text in enumerate(texts):
        start, stop = split.first_T[number : number + 2]
        assert strings[start:stop] == reference(text), text
        assert (split.text_of(np.arange(start, stop)) == number).all()


def test_words_by_hand() -> None:
    split = words.split(["Let $x^2+3.5=\\dfrac12$，求函数ab的值。 2πr 😀a"], SALT)
    assert " ".join(split.strings()) == "let x 2 3 5 dfrac 12 求 函 数 ab 的 值 2 πr 😀 a"
    assert split.classes_W.tolist()[:5] == [1, 1, words.NUMBER, words.NUMBER, words.NUMBER]


def test_equal_words_have_equal_hashes_and_others_have_not() -> None:
    texts = TEXTS + random_texts(1, 200)
    split = words.split(texts, SALT)
    by_word: dict[str, set[int]] = {}
    for word, value in zip(
        (w for text in texts for w in reference(text)), split.hashes_W.tolist(), strict=True
    ):
        by_word.setdefault(word, set()).add(value)
    assert all(len(values) == 1 for values in by_word.values())
    assert len(set.union(*by_word.values())) == len(by_word) > 200


@pytest.mark.parametrize("length", [7, 8, 9, 15, 16, 17, 24, 40])
def test_every_letter_of_a_word_counts(length: int) -> None:
    word = ("abcdefghijklmnopqrstuvwxyz" * 2)[:length]
    others = [word[:k] + "é" + word[k + 1 :] for k in range(length)]
    hashes = words.split([word, word[:-1], *others], SALT).hashes_W
    assert len(set(hashes.tolist())) == len(hashes)


def test_hashes_of_short_words_are_spread() -> None:
    """Runs of single letters and digits are what formulas are made of."""
    rng = random.Random(5)
    text = " ".join(rng.choices("0123456789xyzabcn", k=20_000))
    grams = words.grams(words.split([text], SALT).hashes_W, 8, SALT)
    ones = np.unpackbits(np.unique(grams).view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert abs(ones - 0.5).max() < 0.05


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_grams_are_the_polynomial(n: int) -> None:
    hashes = np.random.default_rng(n).integers(0, 1 << 63, 30).astype(np.uint64)
    made = words.grams(hashes, n, SALT)
    values = hashes.tolist()
    expected = [
        sum(values[i + k] * SALT.gram ** (n - 1 - k) for k in range(n)) % (1 << 64)
        for i in range(len(values) - n + 1)
    ]
    assert made.tolist() == expected
    assert words.grams(hashes[: n - 1], n, SALT).tolist() == []


def test_batches_do_not_matter() -> None:
    texts = TEXTS + random_texts(2, 50)
    together = words.split(texts, SALT)
    alone = [words.split([text], SALT) for text in texts]
    assert together.hashes_W.tolist() == [h for one in alone for h in one.hashes_W.tolist()]
    # A single character's stem goes with the next one, but not with that of the next text.
    assert together.stems(SALT).tolist() == [h for one in alone for h in one.stems(SALT).tolist()]
    for number, one in enumerate(alone):
        part = slice(*together.first_T[number : number + 2].tolist())
        assert together.stems(SALT, part).tolist() == one.stems(SALT).tolist()


def test_another_salt_gives_other_hashes() -> None:
    other = Salt(b"another secret")
    ours, theirs = (words.split(["one two three 函数"], s) for s in (SALT, other))
    assert not set(ours.hashes_W.tolist()) & set(theirs.hashes_W.tolist())
    assert not set(ours.stems(SALT).tolist()) & set(theirs.stems(other).tolist())
    assert SALT.name != other.name and SALT.name == Salt(b"a secret for tests").name


def test_stems_by_hand() -> None:
    split = words.split(["kilometer kilometres walk walks 函数 函值"], SALT)
    stems = split.stems(SALT).tolist()
    assert stems[0] == stems[1] and stems[2] != stems[3]
    assert stems[4] != stems[6]  # the same character before another one


def test_spans_are_those_of_the_original() -> None:
    texts = ["Find THE sum, of $x_1$!", "Ａlso：求函数 F(X) 的值。", "ﬁne ﬁles here"]
    split = words.split(texts, SALT)
    first = split.first_T
    assert split.span(0, first[0] + 1, first[0] + 5, texts[0]) == "THE sum, of $x"
    assert split.span(1, first[1] + 1, first[1] + 5, texts[1]) == "求函数 F"
    # NFKC made the text longer: the normal form is shown.
    assert split.span(2, first[2] + 1, first[2] + 3, texts[2]) == "files here"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("buys 3 pens for $2.50 each, 1,200 in all", "3 2.5 1200"),
        ("$1{,}000$ and 2\\,500 and 0.50 and 007", "1000 2500 0.5 7"),
        ("\\frac12 of \\dfrac{3}{4}, x^2", "1 2 3 4 2"),
        ("Three of the twelve, one each", "3 12"),
        ("买３个苹果，共 12 元", "3 12"),
        ("a point (1,2,345) and 12,34", "1 2345 12 34"),
        ("side 4 [asy] draw((0,0)--(9,9)); [/asy] area?", "4"),
        ("none", ""),
    ],
)
def test_numbers_by_hand(text: str, expected: str) -> None:
    assert numbers_of(text) == expected.split()


def test_missing_counts_each_as_often_as_it_is_there() -> None:
    assert missing([2, 2, 5], [2, 5, 9]) == pytest.approx(1 / 3)
    assert missing([2, 5], [5, 2, 2]) == 0 and missing([], [1]) == 0
    one, two = hashed(["2.5", "7"], SALT)
    assert [one, two] == hashed(["2.5", "7"], SALT) and one != hashed(["2.5"], Salt(b"other"))[0]


def test_signs_are_like_spaces_and_keep_their_place() -> None:
    """Texts that are ASCII but for signs go another way; beside one that is not, they do not."""
    for sign in words._SIGNS:
        assert words.normalised(sign) == sign and len(sign) == 1
        text = f"Let{sign}x{sign}{sign}be 3{sign}4"
        spaced = words.split([text.replace(sign, " ")], SALT)
        for beside in ([], ["é"]):
            made = words.split([text, *beside], SALT)
            assert made.hashes_W[:5].tolist() == spaced.hashes_W.tolist()
            assert made.span(0, 1, 4, text) == f"x{sign}{sign}be 3"
        slow = words.split([text + "é"], SALT)
        assert slow.hashes_W[:4].tolist() == spaced.hashes_W[:4].tolist()
        assert slow.span(0, 1, 4, text + "é") == f"x{sign}{sign}be 3"
