"""Table 1 of Yao et al. 2024 beside our own figures of the same designs."""

from collections.abc import Mapping

Means = Mapping[tuple[str, str, str], float]  # by design, history and method

# As a third party's note relays it, √PEHE, mean ± sd of 10 runs; not verified.
PAPER = {
    "ridge": (
        ("observational only", "21.97±1.06", "25.05±2.92", "–"),
        ("RCT-only", "9.74±2.39", "4.06±0.52", "2.49±1.06"),
        ("naive pooling", "21.43±1.06", "12.82±3.48", "15.85±0.32"),
        ("Kallus 2018", "14.62±6.18", "9.70±2.68", "–"),
        ("integrative R", "7.68±0.34", "8.52±0.71", "–"),
        ("CIO, complete history", "5.75±0.34", "2.36±0.48", "–"),
        ("CIO, incomplete history", "8.96±0.63", "2.14±0.65", "1.48±0.38"),
    ),
    "forest": (
        ("observational only", "18.35", "48.17", "–"),
        ("RCT-only", "10.41±2.87", "6.96", "2.30±0.70"),
        ("naive pooling", "17.83", "7.83", "3.84"),
        ("Kallus 2018", "11.76", "18.59", "–"),
        ("integrative R", "8.84", "9.51", "–"),
        ("CIO, complete history", "6.65±0.26", "5.61±0.93", "–"),
        ("CIO, incomplete history", "10.18±2.94", "5.35±0.96", "2.29±0.70"),
    ),
}
DIFFERS = (
    "The paper's functions of the simulation and its semi-synthetic constructions could not be "
    "had: sizes (p = 5, 200 randomized, 3,000 historical before an arm is left out) and the "
    "outcome model are its own, functions and scales are ours. Compare orders, not numbers.",
    "STAR here: AER's table has two scores, the paper's three, and other features; the coin, the "
    "effect and the choice by an unseen residual are ours.",
    "NSW here: only the 425 randomized controls, with a new coin and a known effect, so that no "
    "outcome is modelled; history is PSID's 2,490, as in the paper.",
    'CIO here compares each arm with the same arm. "CIO as relayed" takes all randomized rows as '
    "its control, which attenuates the effect.",
    "Base learners are quadratic ridge and a random forest; TARNet is left out.",
)

CAPTION = (
    "√PEHE: the paper's, as a third party relays it, and ours; in brackets as multiples of "
    "RCT-only, ours of its T-learner. Ours are CIO's automatic choice, and of an incomplete "
    "history first the treated-only, then the control-only one. What differs:"
)
ALONE = "RCT-only"
COMPLETE, INCOMPLETE = ("complete",), ("treated_only", "control_only")
OURS = {
    "observational only": ("observational only", COMPLETE),
    ALONE: ("RCT-only T", COMPLETE),
    "naive pooling": ("naive pooling", COMPLETE),
    "Kallus 2018": ("Kallus 2018", COMPLETE),
    "integrative R": ("integrative R", COMPLETE),
    "CIO, complete history": ("CIO, auto", COMPLETE),
    "CIO, incomplete history": ("CIO, auto", INCOMPLETE),
}
DESIGNS = {"simulation": "paper", "STAR": "star", "NSW": "nsw"}
NOTHING = "–"


def table(base: str, means: Means) -> list[list[str]]:
    """Head and rows of one base: a column of the paper's figures and one of ours a design."""
    head = [base, *(name for design in DESIGNS for name in (f"{design}, paper", "ours"))]
    alone = dict(zip(DESIGNS, _of(base, ALONE), strict=True))
    rows = [head]
    for method, *told in PAPER.get(base, ()):
        row = [method]
        for design, theirs in zip(DESIGNS, told, strict=True):
            row.append(_with_ratio(theirs, alone[design]))
            row.append(_ours(DESIGNS[design], method, means))
        rows.append(row)
    return rows


def _of(base: str, method: str) -> tuple[str, ...]:
    return next((row[1:] for row in PAPER.get(base, ()) if row[0] == method), ("",) * len(DESIGNS))


def _with_ratio(theirs: str, alone: str) -> str:
    """5.75±0.34 (0.59)"""
    if theirs in (NOTHING, alone):
        return theirs
    value, unit = (float(text.split("±")[0]) for text in (theirs, alone))
    return f"{theirs} ({value / unit:.2f})"


def _ours(design: str, method: str, means: Means) -> str:
    """0.77, 0.74 (0.85, 0.81): of each history the design has."""
    name, wanted = OURS[method]
    if design == "nsw":  # its history has controls alone, by nature
        wanted = () if method == "CIO, complete history" else ("control_only",)
    found = [
        (means[design, history, name], means.get((design, history, OURS[ALONE][0])))
        for history in wanted
        if (design, history, name) in means
    ]
    values = ", ".join(f"{value:.2f}" for value, _ in found)
    ratios = ", ".join(f"{value / unit:.2f}" for value, unit in found if unit)
    if method == ALONE or not ratios:
        return values or NOTHING
    return f"{values} ({ratios})"
