"""Reference scores beside packed pairs: `PACKED/reference/`, written once and read by training.

`scores.npy` holds float64 [documents, 2]: Σ log-probability of each answer's tokens, and of those
in its format spans; NaN for documents the plan never shows. `routing.npy` holds the experts chosen
in the plan's first rows, so that training can say how many choices differ. `reference.json` says
which weights and rows they belong to. All of it lies in `reference.partial/` until it is complete.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ring.data.rows import Rows

FORMAT = 1
ABOUT, SCORES, ROUTING = "reference.json", "scores.npy", "routing.npy"


@dataclass(frozen=True)
class About:
    """What the scores belong to; two that are equal describe the same numbers."""

    weights: str  # fingerprint of the weights as they stood in memory
    model: str  # the checkpoint's folder, for people
    dtype: str  # "fp32" or "bf16"
    packed: str  # fingerprint of the packed folder: tokens, plan and tokenizer
    routing: tuple[int, int, int, int]  # rows, layers, tokens in a row, experts a token
    format: int = FORMAT


def folder_of(rows: Rows) -> Path:
    """Where the complete scores of a packed folder lie."""
    return rows.folder / "reference"


@dataclass(frozen=True)
class Reference:
    """Complete scores."""

    about: About
    scores: np.ndarray  # float64 [documents, 2]
    routing: np.ndarray  # uint16 [rows, layers, S, K]; the first rows of the plan

    @classmethod
    def open(cls, rows: Rows) -> "Reference":
        """The scores beside `rows`; ValueError when there are none, or of other rows."""
        folder = folder_of(rows)
        if not folder.is_dir():
            raise ValueError(
                f"{rows.folder} has no reference scores; make them with tools/score_reference.py "
                f"MODEL {rows.folder}, MODEL being the weights that training starts from"
            )
        about = _read_about(folder)
        if about is None or about.packed != rows.fingerprint:
            was = "nothing readable" if about is None else about.packed
            raise ValueError(
                f"{folder} holds scores of other rows or another tokenizer ({was}, the rows are "
                f"{rows.fingerprint}); score them again with tools/score_reference.py"
            )
        scores = np.load(folder / SCORES)
        missing = int(np.isnan(scores[shown(rows)]).any(axis=1).sum())
        if missing:
            raise ValueError(f"{folder} is damaged: {missing} answers have no score; remove it")
        return cls(about, scores, np.load(folder / ROUTING, mmap_mode="r"))


class Partial:
    """Scores being made; a killed run goes on where it was."""

    def __init__(self, rows: Rows, about: About) -> None:
        """Open what there is of these scores, or start; others' parts are thrown away."""
        self.rows, self.about = rows, about
        self.folder = rows.folder / "reference.partial"
        if _read_about(self.folder) != about:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            scores = np.full((len(rows.documents), 2), np.nan)
            np.save(self.folder / SCORES, scores)
            np.save(self.folder / ROUTING, np.zeros(about.routing, np.uint16))
            # Last: a folder without it is thrown away.
            (self.folder / ABOUT).write_text(json.dumps(asdict(about), indent=1), encoding="utf-8")
        self.scores = np.load(self.folder / SCORES, mmap_mode="r+")
        self.routing = np.load(self.folder / ROUTING, mmap_mode="r+")

    def missing(self) -> list[int]:
        """Rows still to be scored: each shows an answer that no row before it shows.

        The first rows are run for their routing in any case, also when an epoch repeats itself.
        """
        covered = ~np.isnan(self.scores).any(axis=1)
        wanted = []
        for number in range(self.rows.num_rows):
            documents = self.rows.documents_of(number)
            routed = number >= len(self.routing) or self.routing[number].any()
            if not (routed and covered[documents].all()):
                wanted.append(number)
                covered[documents] = True
        return wanted

    def add(self, row: int, scores: np.ndarray, routing: np.ndarray | None) -> None:
        """Keep one row: float64 [answers, 2], and the chosen experts [layers, S, K]."""
        if routing is not None:
            self.routing[row] = routing
            self.routing.flush()
        self.scores[self.rows.documents_of(row)] = scores
        self.scores.flush()

    def finish(self) -> Path:
        """Put the complete scores in their place; the folder."""
        final = folder_of(self.rows)
        shutil.rmtree(final, ignore_errors=True)
        self.folder.rename(final)
        return final


def shown(rows: Rows) -> np.ndarray:
    """Documents that the plan shows, int64."""
    return np.unique(np.concatenate([rows.documents_of(n) for n in range(rows.num_rows)]))


def _read_about(folder: Path) -> About | None:
    """None when there is none that this program can read."""
    try:
        told: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return About(**{**told, "routing": tuple(told["routing"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
