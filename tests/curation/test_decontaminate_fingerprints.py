"""Fingerprints: what is masked, what is kept, the file's round trip, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.decontaminate import fingerprints, words
from megatron_ring.curation.decontaminate.benchmark_file import read_items
from megatron_ring.curation.decontaminate.build import build, stop_stems
from megatron_ring.curation.decontaminate.fingerprints import about_file, load, open_salt
from megatron_ring.curation.decontaminate.words import Salt

SALT = Salt(bytes(range(32)))
TAIL = "where m and n are relatively prime positive integers and then find m plus n"
ITEMS = [
    ("a", f"A frog leaps over 12 stones in a pond of 31 lilies, the chance is m over n {TAIL}"),
    ("b", f"Two bells ring together every 45 minutes until the tower falls silent {TAIL}"),
    ("c", f"A painter mixes 3 buckets of ochre with 8 buckets of umber on Sunday {TAIL}"),
    ("短", "求 x 的值"),
    ("e", "Seven lamps"),
]


def gram_set(text: str, n: int = 8) -> set[int]:
    return set(words.grams(words.split([text], SALT).hashes_W, n, SALT).tolist())


def test_grams_common_to_three_items_are_masked() -> None:
    made, spared = build("own", ITEMS, SALT)
    assert spared == []
    common = gram_set(ITEMS[0][1]) & gram_set(ITEMS[1][1]) & gram_set(ITEMS[2][1])
    assert len(common) == len(TAIL.split()) - 7
    for item, (_, text) in list(zip(made.items, ITEMS, strict=True))[:3]:
        assert set(item.grams.tolist()) == gram_set(text) - common and not item.whole
    # Two of them are not enough.
    two = build("own", ITEMS[:2], SALT)[0]
    assert set(two.items[0].grams.tolist()) == gram_set(ITEMS[0][1])


def test_a_background_masks_what_is_usual_there() -> None:
    texts = [f"{number} other words, {TAIL}" for number in range(3)]
    made, spared = build("own", ITEMS[:1], SALT, background=iter(texts))
    assert set(made.items[0].grams.tolist()) == gram_set(ITEMS[0][1]) - gram_set(TAIL)
    assert spared == []
    made, _ = build("own", ITEMS[:1], SALT, background=texts[:2])
    assert set(made.items[0].grams.tolist()) == gram_set(ITEMS[0][1])


def test_a_background_with_the_benchmark_in_it_masks_nothing() -> None:
    made, spared = build("own", ITEMS[:2], SALT, background=[ITEMS[0][1]] * 3)
    assert spared == ["a"]
    assert set(made.items[0].grams.tolist()) == gram_set(ITEMS[0][1])


def test_short_items_and_items_of_boilerplate_are_whole() -> None:
    made, _ = build("own", [*ITEMS, *[(f"t{k}", f"{TAIL} {k}") for k in range(3)]], SALT)
    short, tiny, template = made.items[3], made.items[4], made.items[5]
    assert short.whole and short.size == 4 and set(short.grams.tolist()) == gram_set("求 x 的值", 4)
    assert tiny.whole and tiny.size == 2
    assert template.whole and set(template.grams.tolist()) == gram_set(f"{TAIL} 0")


def test_content_words_rarest_first_without_numbers_and_stop_words() -> None:
    made, _ = build("own", [("1", "Find the frog 12"), ("2", "the frog and the newt")], SALT)
    newt, frog = (words.split([w], SALT).stems(SALT)[0] for w in ("newt", "frog"))
    assert made.items[1].words.tolist() == [newt, frog]
    assert made.items[0].words.tolist() == [frog]
    assert words.split(["find"], SALT).stems(SALT)[0] in stop_stems(SALT)


def test_round_trip_and_same_bytes(tmp_path: Path) -> None:
    made, _ = build("own", ITEMS, SALT, n=5, date="2026-11-25", source="ab" * 32)
    made.save(tmp_path / "one", SALT)
    again = build("own", ITEMS, Salt(bytes(range(32))), n=5, date="2026-11-25", source="ab" * 32)[0]
    again.save(tmp_path / "two", SALT)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = load(tmp_path / "one", SALT)
    for key in ("name", "date", "source", "n", "salt"):
        assert back.__dict__[key] == made.__dict__[key]
    for one, other in zip(made.items, back.items, strict=True):
        for key, value in one.__dict__.items():
            assert np.array_equal(value, other.__dict__[key]), key


def test_a_file_is_small_and_without_text_and_equal_hashes(tmp_path: Path) -> None:
    made, _ = build("own", ITEMS * 2, SALT)
    made.save(tmp_path / "one", SALT)
    data = (tmp_path / "one").read_bytes()
    assert len(data) < 1024 * len(made.items) + 1024
    for _, text in ITEMS:
        assert all(word.encode() not in data for word in re.findall(r"\w{4,} \w{4,}", text))
    hashes = {int(g) for item in made.items for g in (*item.grams, *item.words, *item.numbers)}
    assert all(value.to_bytes(8, "little") not in data for value in hashes)
    assert SALT.secret not in data and SALT.secret.hex().encode() not in data
    sealed = load_file(tmp_path / "one")["grams"].view("<u8")
    # Every item is there twice, and so is every hash; sealed, none are alike.
    assert len(set(sealed.tolist())) == len(sealed)
    about = about_file(tmp_path / "one")
    assert (about["name"], about["n"], about["ids"][:3]) == ("own", 8, ["a", "b", "c"])


def damaged(file: Path, **changes: object) -> Path:
    """A copy whose metadata says something else."""
    tensors, about = load_file(file), about_file(file)
    about.pop("bytes")
    other = file.with_name("other")
    save_file(tensors, other, {"fingerprint": json.dumps({**about, **changes})})
    return other


def test_refusals(tmp_path: Path) -> None:
    file = tmp_path / "one"
    made, _ = build("own", ITEMS, SALT)
    made.save(file, SALT)
    other = Salt(bytes(32))
    words_ = f"{file}: built with salt {SALT.name}, but the salt given is {other.name}; give the "
    with pytest.raises(ConfigError, match=re.escape(words_ + "salt file it was built with")):
        load(file, other)
    with pytest.raises(ConfigError, match="normaliser 0, but this version reads 1; build it again"):
        load(damaged(file, normaliser=0), SALT)
    with pytest.raises(ConfigError, match="format 7, but this version reads 1; build it again"):
        load(damaged(file, format=7), SALT)
    with pytest.raises(ConfigError, match="damaged .its check does not fit.; build it again"):
        load(damaged(file, check="00" * 16), SALT)
    with pytest.raises(ConfigError, match="no such file; build it with tools/fingerprint.py"):
        load(tmp_path / "none", SALT)
    save_file({"x": np.zeros(1)}, tmp_path / "weights")
    with pytest.raises(ConfigError, match="safetensors, but no fingerprint of a benchmark"):
        load(tmp_path / "weights", SALT)
    (tmp_path / "text").write_text("not a fingerprint at all")
    with pytest.raises(ConfigError, match="no fingerprint of a benchmark .Error while deser"):
        load(tmp_path / "text", SALT)
    with pytest.raises(ValueError, match="benchmark own: no items"):
        build("own", [], SALT)
    with pytest.raises(ValueError, match="benchmark own: item 3 has no words"):
        build("own", [("2", "x"), ("3", "…!")], SALT)


def test_one_bit_of_damage_is_noticed(tmp_path: Path) -> None:
    made, _ = build("own", ITEMS, SALT)
    made.save(tmp_path / "one", SALT)
    data = bytearray((tmp_path / "one").read_bytes())
    data[-5] ^= 1
    (tmp_path / "one").write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        load(tmp_path / "one", SALT)


def test_salt_files(tmp_path: Path) -> None:
    file = tmp_path / "new" / "salt"
    with pytest.raises(ConfigError, match="no salt file; it is written beside the first"):
        open_salt(file)
    made = open_salt(file, create=True)
    assert file.stat().st_mode & 0o077 == 0 and len(made.secret) == fingerprints.SALT_BYTES
    assert open_salt(file, create=True).secret == open_salt(file).secret == made.secret
    assert open_salt(tmp_path / "second", create=True).name != made.name
    (tmp_path / "short").write_text("abcd")
    with pytest.raises(ConfigError, match="2 bytes, but a salt has 32; build one with"):
        open_salt(tmp_path / "short")
    (tmp_path / "words").write_text("salt")
    with pytest.raises(ConfigError, match="no salt, which is 64 hex digits"):
        open_salt(tmp_path / "words")


def test_items_of_files(tmp_path: Path) -> None:
    rows = [{"id": "p1", "text": "求值"}, {"id": "p2", "text": "two"}]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    assert read_items(lines, "text") == [("0", "求值"), ("1", "two")]
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"text": "a\u2028b"}, ensure_ascii=False), encoding="utf-8")
    assert read_items(odd, "text") == [("0", "a\u2028b")]  # a line break to str.splitlines
    array = tmp_path / "a.json"
    array.write_text(json.dumps(rows))
    assert read_items(array, "text", "id") == [("p1", "求值"), ("p2", "two")]
    for column, message in (("txt", "row 0 has no column 'txt'; it has id, text"),):
        with pytest.raises(ConfigError, match=message):
            read_items(lines, column)
    cases = {
        '{"text": 3}': "row 0: text is 3, but a text is needed",
        "[1]": "row 0 is no object, but .1.",
        "{": "not JSON .*; expected JSONL or a .json array",
        "": "no rows",
    }
    for text, message in cases.items():
        lines.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_items(lines, "text")
    with pytest.raises(ConfigError, match="gone.jsonl: cannot be read"):
        read_items(tmp_path / "gone.jsonl", "text")
    (tmp_path / "bad.parquet").write_text("PAR")
    with pytest.raises(ConfigError, match="bad.parquet: cannot be read"):
        read_items(tmp_path / "bad.parquet", "text")
    lines.write_text(json.dumps(rows[0]), encoding="utf-8-sig")  # as Windows' editors save
    assert read_items(lines, "text") == [("0", "求值")]
