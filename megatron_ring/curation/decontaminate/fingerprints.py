"""Fingerprints: what is kept of a benchmark in place of its text, and the file it is kept in.

For each item: salted 64-bit hashes of its n-grams (without boilerplate), of its rarer words, and of
its numbers. All of it is sealed with the salt, which lies in a file of its own:

- Without the salt a file tells the benchmark's name, date and ids of items, the SHA-256 of the file
  it was built from, and how many hashes there are in all. The hashes are noise: no dictionary can
  be tried on them, equal hashes cannot be told.
- With the salt anyone can try guesses: first which words and numbers an item has, then, piece by
  piece, its text. Who may not read the benchmark must not get its salt either.
- The hash of words is fast and not cryptographic; what protects the file is the seal (SHAKE-256).
"""

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.decontaminate.words import NORMALISER, Salt

FORMAT = 1
SALT_BYTES = 32
_NAMES = ("counts", "grams", "numbers", "words")  # the tensors of a file


@dataclass(frozen=True)
class Item:
    """What is kept of one item."""

    id: str
    grams: np.ndarray  # uint64, sorted, distinct; of a short item the one hash of all its words
    size: int  # words a gram: n, or all words of an item that has fewer
    whole: bool  # all grams must be found: the item is short, or has too few of its own
    words: np.ndarray  # uint64 stems of its content words, the rarest in the benchmark first
    numbers: np.ndarray  # uint64, ascending


@dataclass(frozen=True)
class Fingerprint:
    """One benchmark."""

    name: str
    date: str  # when it was built, YYYY-MM-DD
    source: str  # SHA-256 of the file it was built from
    n: int
    salt: str  # name of the salt
    items: list[Item]

    def save(self, file: Path, salt: Salt) -> None:
        """Write the file; the same fingerprint gives the same bytes."""
        rows = [(len(i.grams), len(i.words), len(i.numbers), i.size, i.whole) for i in self.items]
        tensors = {
            "counts": np.array(rows, "<i4").reshape(-1).view(np.uint8),
            "grams": _bytes([item.grams for item in self.items]),
            "words": _bytes([item.words for item in self.items]),
            "numbers": _bytes([item.numbers for item in self.items]),
        }
        check = _check(tensors, salt)
        about = {
            "format": FORMAT,
            "name": self.name,
            "date": self.date,
            "source": self.source,
            "n": self.n,
            "normaliser": NORMALISER,
            "salt": salt.name,
            "check": check,
            "ids": [item.id for item in self.items],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        text = {"fingerprint": json.dumps(about, ensure_ascii=False)}
        file.write_bytes(save(_sealed(tensors, salt, check), text))


def load(file: Path, salt: Salt) -> Fingerprint:
    """Read a fingerprint. ConfigError names the file where it is none, is damaged, was built with
    another salt, or by another version of the normaliser (whose hashes mean other words)."""
    about, tensors = _read(file)
    for key, ours in (("format", FORMAT), ("normaliser", NORMALISER)):
        if about[key] != ours:
            raise ConfigError(
                f"{file}: {key} {about[key]}, but this version reads {ours}; build it again with "
                "tools/fingerprint.py"
            )
    if about["salt"] != salt.name:
        raise ConfigError(
            f"{file}: built with salt {about['salt']}, but the salt given is {salt.name}; give "
            "the salt file it was built with"
        )
    tensors = _sealed(tensors, salt, about["check"])
    if _check(tensors, salt) != about["check"]:
        raise ConfigError(f"{file}: damaged (its check does not fit); build it again")
    counts = tensors["counts"].view("<i4").reshape(-1, 5)
    parts = [
        np.split(tensors[name].view("<u8").astype(np.uint64), np.cumsum(counts[:-1, k]))
        for k, name in enumerate(("grams", "words", "numbers"))
    ]
    items = [
        Item(id_, grams, int(row[3]), bool(row[4]), words, numbers)
        for id_, row, grams, words, numbers in zip(about["ids"], counts, *parts, strict=True)
    ]
    kept = {key: about[key] for key in ("name", "date", "source", "n", "salt")}
    return Fingerprint(**kept, items=items)


def about_file(file: Path) -> dict[str, Any]:
    """What a file tells without its salt."""
    about, tensors = _read(file)
    return {**about, "bytes": sum(map(len, tensors.values()))}


def open_salt(file: Path, create: bool = False) -> Salt:
    """The salt in a file of 64 hexadecimal digits; a new one is drawn where there is no file and
    `create` says so. ConfigError names the file where it is missing or holds something else."""
    if create and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(SALT_BYTES) + "\n", encoding="ascii")
        file.chmod(0o600)
    try:
        secret = bytes.fromhex(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: no salt file; it is written beside the first fingerprint that "
            "tools/fingerprint.py builds"
        ) from None
    except ValueError:
        raise ConfigError(f"{file}: no salt, which is {2 * SALT_BYTES} hex digits") from None
    if len(secret) != SALT_BYTES:
        raise ConfigError(
            f"{file}: {len(secret)} bytes, but a salt has {SALT_BYTES}; build one with "
            "tools/fingerprint.py"
        )
    return Salt(secret)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with safe_open(file, framework="numpy") as opened:
            about = (opened.metadata() or {}).get("fingerprint")
            names = set(opened.keys())
            if about is None or names != set(_NAMES):
                raise ConfigError(f"{file}: safetensors, but no fingerprint of a benchmark")
            return json.loads(about), {name: opened.get_tensor(name) for name in _NAMES}
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; build it with tools/fingerprint.py") from None
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file}: no fingerprint of a benchmark ({error})") from None


def _bytes(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays).astype("<u8").view(np.uint8)


def _check(tensors: dict[str, np.ndarray], salt: Salt) -> str:
    """Keyed hash of the open contents. As the seal's nonce it differs where contents differ."""
    check = hashlib.blake2b(key=salt.secret, digest_size=16, person=b"ring-check")
    for name in _NAMES:
        check.update(len(tensors[name]).to_bytes(8, "little"))
        check.update(tensors[name].tobytes())
    return check.hexdigest()


def _sealed(tensors: dict[str, np.ndarray], salt: Salt, nonce: str) -> dict[str, np.ndarray]:
    """Contents xor a stream made of salt and nonce; done twice it is undone."""
    stream = _stream(tensors, salt, nonce)
    return {name: tensors[name] ^ next(stream) for name in _NAMES}


def _stream(tensors: dict[str, np.ndarray], salt: Salt, nonce: str) -> Iterator[np.ndarray]:
    for name in _NAMES:
        shake = hashlib.shake_256(salt.secret + nonce.encode() + name.encode())
        yield np.frombuffer(shake.digest(len(tensors[name])), np.uint8)
