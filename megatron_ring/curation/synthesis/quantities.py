"""Answers with units: "5 m/s", "18 km/h", "5.0", "2.5\\times10^{-3}~\\mathrm{mol\\,L^{-1}}".

Two answers say the same when their values agree in SI units, or when one has no unit and their
numbers agree. Solvers round, so numbers agree within a tolerance; whole numbers without a unit are
counts, and agree when they are equal. Words that are no unit ("12 rabbits") do not count.
"""

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from megatron_ring.curation.collect import answers
from megatron_ring.curation.collect.answers import Verdict
from megatron_ring.curation.synthesis import agreement
from megatron_ring.curation.synthesis.agreement import Agreement, Class

Dimensions = tuple[tuple[str, int], ...]  # (base unit, power), by name, no power 0

# In SI units: scale, base units and powers. Definitions: SI brochure, 9th edition, tables 2-8.
_SI = {
    "m": (1.0, "m"), "g": (1e-3, "kg"), "s": (1.0, "s"), "A": (1.0, "A"), "K": (1.0, "K"),
    "mol": (1.0, "mol"), "cd": (1.0, "cd"), "Hz": (1.0, "s-1"), "N": (1.0, "kg m s-2"),
    "Pa": (1.0, "kg m-1 s-2"), "J": (1.0, "kg m2 s-2"), "W": (1.0, "kg m2 s-3"),
    "C": (1.0, "A s"), "V": (1.0, "kg m2 s-3 A-1"), "F": (1.0, "kg-1 m-2 s4 A2"),
    "Ω": (1.0, "kg m2 s-3 A-2"), "S": (1.0, "kg-1 m-2 s3 A2"), "Wb": (1.0, "kg m2 s-2 A-1"),
    "T": (1.0, "kg s-2 A-1"), "H": (1.0, "kg m2 s-2 A-2"), "Bq": (1.0, "s-1"),
    "Gy": (1.0, "m2 s-2"), "Sv": (1.0, "m2 s-2"), "kat": (1.0, "mol s-1"), "rad": (1.0, ""),
    "L": (1e-3, "m3"), "l": (1e-3, "m3"), "eV": (1.602176634e-19, "kg m2 s-2"),
    "cal": (4.184, "kg m2 s-2"), "bar": (1e5, "kg m-1 s-2"), "M": (1e3, "mol m-3"),
    "Wh": (3600.0, "kg m2 s-2"), "Da": (1.66053906660e-27, "kg"), "t": (1e3, "kg"),
}  # fmt: skip
_OTHERS = {
    "min": (60.0, "s"), "h": (3600.0, "s"), "hr": (3600.0, "s"), "d": (86400.0, "s"),
    "yr": (31557600.0, "s"), "Å": (1e-10, "m"), "u": (1.66053906660e-27, "kg"),
    "atm": (101325.0, "kg m-1 s-2"), "mmHg": (133.322387415, "kg m-1 s-2"),
    "Torr": (101325 / 760, "kg m-1 s-2"), "°": (math.pi / 180, ""), "%": (1e-2, ""),
    "ppm": (1e-6, ""), "°C": (1.0, "celsius"), "dB": (1.0, "decibel"),
}  # fmt: skip
_PREFIXES = {
    "": 0, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "d": -1, "c": -2, "m": -3, "µ": -6, "u": -6,
    "n": -9, "p": -12, "f": -15,
}  # fmt: skip
# Written out; a plural's s is left off first.
_NAMES = {
    "meter": "m", "metre": "m", "gram": "g", "second": "s", "sec": "s", "ampere": "A", "amp": "A",
    "kelvin": "K", "mole": "mol", "hertz": "Hz", "newton": "N", "pascal": "Pa", "joule": "J",
    "watt": "W", "coulomb": "C", "volt": "V", "farad": "F", "ohm": "Ω", "siemen": "S",
    "weber": "Wb", "tesla": "T", "henry": "H", "becquerel": "Bq", "gray": "Gy", "sievert": "Sv",
    "radian": "rad", "liter": "L", "litre": "L", "electronvolt": "eV", "calorie": "cal",
    "molar": "M", "dalton": "Da", "minute": "min", "hour": "h", "day": "d", "year": "yr",
    "angstrom": "Å", "atmosphere": "atm", "degree": "°", "deg": "°", "percent": "%", "celsiu": "°C",
    "decibel": "dB", "amu": "u", "torr": "Torr",
}  # fmt: skip
_LONG_PREFIXES = {
    "tera": "T", "giga": "G", "mega": "M", "kilo": "k", "deci": "d", "centi": "c", "milli": "m",
    "micro": "µ", "nano": "n", "pico": "p", "femto": "f",
}  # fmt: skip

_LATEX = (
    (r"\\(?:text|mathrm|mathit|rm|unit|operatorname|textrm|ensuremath)\s*(?=\{)", ""),
    (r"\^\s*\{?\s*\\circ\s*\}?\s*(?:\\?,|~|\s)*", "°"),
    (r"\\degree|\\circ|º", "°"),
    (r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×·⋅∙*]", "*"),
    (r"\\(?:u?mu|textmu)(?![a-zA-Z])\s*|μ", "µ"),
    (r"\\Omega(?![a-zA-Z])|Ω|Ω", "Ω"),
    (r"\\(?:AA|angstrom)(?![a-zA-Z])|Å", "Å"),
    (r"\\%|\\percent", "%"),
    (r"\\[,;:! ]|\\q?quad|~|\$|\\left|\\right|\\displaystyle", " "),
    (r"\\approx|\\sim(?:eq)?|≈|≃|~", "="),
    (r"[−–]", "-"),
    (r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))", ""),
)
_RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SAID = re.compile(r"\A(?:.*=|about|approximately|approx\.?|roughly)\s*", re.DOTALL | re.IGNORECASE)
_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_TEN = r"(?:\s*[*x]\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?|[eE]([-+]?\d+))"
_NUMBER = re.compile(
    rf"([-+]?)\s*(?:\\[dt]?frac\s*\{{\s*({_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}"
    rf"|({_DECIMAL})(?:\s*/\s*({_DECIMAL}))?){_TEN}?"
)
_POWER_OF_TEN = re.compile(r"([-+]?)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?")
_FACTOR = re.compile(r"\s*(?:([*/()·]|\bper\b)|(°C|°|%|[^\W\d_]+)(?:\s*\^?\s*(-?\d+))?)\s*")
_SHORTEST = 4  # letters of a word that is no unit; fewer are a symbol, as in 2x and 3 pi


@dataclass(frozen=True)
class Quantity:
    """A number with its unit."""

    number: float  # as written
    scale: float  # of the unit: number * scale is the value in SI units
    dimensions: Dimensions
    has_unit: bool
    is_count: bool  # written as a whole number, without a unit


def compare(given: str, gold: str, tolerance: float) -> Verdict:
    """right, wrong, or unknown where one is neither choice nor quantity. The order does not matter.

    `tolerance` is relative to the larger number: 0.01 for one per cent.
    """
    one, other = quantity(given), quantity(gold)
    if one is not None and other is not None:
        return "right" if _same(one, other, tolerance) else "wrong"
    letter = re.fullmatch(r"[A-Ea-e]", given.strip())
    return answers.compare(gold, given) if letter else answers.compare(given, gold)


def agree(
    given: Sequence[str | None], same: Callable[[str, str], Verdict], tolerance: float
) -> Agreement:
    """As agreement.agree, with `compare` for the plain comparison.

    Answers with a unit agree among each other, and so do those without. A class without goes to
    the largest class with units of which any answer is the same, and takes its answer: two units
    do not agree through a number that has none.
    """
    units = [_has_unit(answer) for answer in given]
    plain = partial(compare, tolerance=tolerance)
    with_units, without = (
        agreement.agree(
            [one if there is wanted else None for one, there in zip(given, units, strict=True)],
            same,
            plain,
            _form_of,
        )
        for wanted in (True, False)
    )
    classes = list(with_units.classes)
    for bare in without.classes:
        for index, one in enumerate(with_units.classes):
            said = {given[place] or "" for place in one.members}
            if any(plain(bare.answer, other) == "right" for other in said):
                members = tuple(sorted(classes[index].members + bare.members))
                classes[index] = Class(one.answer, len(members), members)
                break
        else:
            classes.append(bare)
    classes.sort(key=lambda one: -one.votes)
    left = len(given) - sum(one.votes for one in classes)
    return Agreement(tuple(classes), left, with_units.timeouts + without.timeouts)


def _has_unit(answer: str | None) -> bool:
    found = quantity(answer or "")
    return found is not None and found.has_unit


def _form_of(answer: str) -> Hashable:
    return quantity(answer) or agreement.form_of_text(answer)


def quantity(answer: str) -> Quantity | None:
    """The number and unit that an answer is; None when it is anything else."""
    text = answers.boxed(answer) or answer
    text = _RAISED.sub(lambda raised: "^" + raised[0].translate(_SUPERSCRIPTS), text)
    for pattern, plain in _LATEX:
        text = re.sub(pattern, plain, text)
    text = _SAID.sub("", text.strip()).strip().rstrip(".").strip()
    found = _POWER_OF_TEN.match(text)
    if found is not None:
        number, whole = float(f"{found[1]}1e{found[2]}"), False
    else:
        found = _NUMBER.match(text)
        if found is None:
            return None
        number, whole = _number_of(found)
    rest = text[found.end() :].replace("{", " ").replace("}", " ")
    unit = unit_of(rest)
    if unit is None or not math.isfinite(number):
        return None
    scale, dimensions, is_there = unit
    return Quantity(number, scale, dimensions, is_there, whole and not is_there)


def unit_of(text: str) -> tuple[float, Dimensions, bool] | None:
    """Scale, dimensions, whether any unit is there; None for what is no unit.

    All behind a slash is below it: J/mol K is J/(mol K), as everybody writes it.
    """
    at, below, scale, is_there = 0, 1, 1.0, False
    powers: dict[str, int] = {}
    while at < len(text.rstrip()):
        found = _FACTOR.match(text, at)
        if found is None:
            return None
        at = found.end()
        sign, word, power = found.groups()
        if sign is not None:
            below = -1 if sign in ("/", "per") else below
            continue
        known = _unit(word)
        if known is None:
            if len(word) < _SHORTEST and word not in ("of", "the") or power is not None:
                return None
            continue
        is_there = True
        exponent = below * int(power or 1)
        scale *= known[0] ** exponent
        for base, own in known[1]:
            powers[base] = powers.get(base, 0) + own * exponent
    return scale, tuple(sorted((base, p) for base, p in powers.items() if p)), is_there


@cache
def _unit(word: str) -> tuple[float, Dimensions] | None:
    """A unit by its symbol with any prefix, or by its name; None for other words."""
    for table in (_SI, _OTHERS):
        if word in table:
            return _spelled(*table[word])
    for prefix, power in _PREFIXES.items():
        rest = word.removeprefix(prefix)
        if prefix and rest != word and rest in _SI:
            scale, dimensions = _spelled(*_SI[rest])
            return scale * 10.0**power, dimensions
    name = word.lower()
    name = name if name in _NAMES else name.removesuffix("s")
    if name in _NAMES:
        return _unit(_NAMES[name])
    for prefix, short in _LONG_PREFIXES.items():
        if name.startswith(prefix) and name.removeprefix(prefix) in _NAMES:
            return _unit(short + _NAMES[name.removeprefix(prefix)])
    return None


def _spelled(scale: float, bases: str) -> tuple[float, Dimensions]:
    found = re.findall(r"([a-zA-Z]+)(-?\d+)?", bases)
    return scale, tuple((base, int(power or 1)) for base, power in found)


def _number_of(found: re.Match[str]) -> tuple[float, bool]:
    """The value of a match of _NUMBER, and whether it is written as a whole number."""
    sign, top, bottom, plain, divisor, *powers = found.groups()
    value = float(top or plain)
    under = float(bottom or divisor or 1)
    exponent = next((power for power in powers if power is not None), None)
    value = math.nan if under == 0 else value / under
    value *= 10.0 ** max(min(int(exponent or 0), 300), -300)
    whole = (top or plain).isdigit() and not (bottom or divisor or exponent)
    return -value if sign == "-" else value, whole


def _same(one: Quantity, other: Quantity, tolerance: float) -> bool:
    if one.is_count and other.is_count:
        return one.number == other.number
    plain, in_si = (one.number, other.number), (one.number * one.scale, other.number * other.scale)
    if one.has_unit and other.has_unit:
        return one.dimensions == other.dimensions and math.isclose(*in_si, rel_tol=tolerance)
    # 25 % is 25, and is 0.25.
    shares = not one.dimensions and not other.dimensions
    pairs = (plain, in_si) if shares else (plain,)
    return any(math.isclose(*pair, rel_tol=tolerance) for pair in pairs)
