"""The fingerprint of a packed folder: everything that decides a row."""

import hashlib
import json
from typing import Any

import numpy as np

FORMAT = 1  # of the packed folder; raised when an older reader would misread it


class FolderHash:
    """The fingerprint: documents are added in order, the plan and the tokenizer at the end."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(
        self,
        tokens: np.ndarray,
        targets: np.ndarray,
        source: int,
        marks: np.ndarray | None = None,
    ) -> None:
        """Take in one document; `marks`, the tokens in format spans, are there in pairs only."""
        self._hash.update(np.array([len(tokens), source], dtype="<i8").tobytes())
        self._hash.update(np.asarray(tokens, dtype="<i4").tobytes())
        self._hash.update(np.packbits(targets).tobytes())
        if marks is not None:
            self._hash.update(np.packbits(marks).tobytes())

    def finish(
        self,
        row_tokens: int,
        tokenizer: dict[str, Any],
        plan_documents: np.ndarray,
        row_starts: np.ndarray,
        kind: str = "chat",
    ) -> str:
        """Hex digest of everything that decides a row."""
        decides = {key: tokenizer[key] for key in ("fingerprint", "size", "eos_id", "pad_id")}
        head = {"format": FORMAT, "row_tokens": row_tokens, "tokenizer": decides}
        if kind != "chat":  # older folders say nothing of a kind
            head["kind"] = kind
        self._hash.update(json.dumps(head, sort_keys=True).encode())
        for array in (row_starts, plan_documents):
            self._hash.update(np.asarray(array, dtype="<i8").tobytes())
        return self._hash.hexdigest()
