"""Where the formulas of a text are: $…$, $$…$$, \\(…\\), \\[…\\], environments.

Dollars are also money and shell variables. A pair of them holds a formula unless what stands
between reads as prose: "$5 and pears cost $", or leans on one side only: "$total = $".
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

TOP_ENVIRONMENTS = frozenset(
    f"{name}{star}"
    for name in "equation align gather multline eqnarray alignat flalign displaymath math".split()
    for star in ("", "*")
)
INNER_ENVIRONMENTS = frozenset(
    "matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix matrix* pmatrix* bmatrix* Bmatrix* "
    "vmatrix* Vmatrix* psmallmatrix bsmallmatrix array darray subarray cases cases* dcases dcases* "
    "rcases drcases numcases aligned alignedat gathered split multlined IEEEeqnarray subequations "
    "equationarray CD tabular tabular* center".split()
)
# $<<48/2=24>>24 is GSM8K's: an amount with its calculation.
_OPENER = re.compile(
    r"\\\\|\\\$|\$\$|\$(?!<<)|\\\[|\\\(|\\begin\{(?P<name>[a-zA-Z]+\*?)\}|(?P<end>\\end\{[a-zA-Z]+\*?\})"
)
_DOLLAR_OR_END = re.compile(r"\\[\s\S]|\$(?!<<)|\n[ \t]*\n")
_TEXT_GROUP = re.compile(r"\\(?:text[a-z]*|mbox|hbox|fbox|mathrm)\s*\{")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_WORDS = re.compile(
    r"(?<![\\a-zA-Z{])[a-z]{2,}[,.;:]? +(?:[a-z]{2,}|I|\()(?![a-zA-Z]*\()|[.!?] [A-Z][a-z]"
)
_WORD = re.compile(r"(?<![\\a-zA-Z{])[a-z]{2,}(?![a-zA-Z(])")
_CHINESE = re.compile("[\u3400-\u9fff]{4}")
_GROUPS = re.compile(r"\\[a-zA-Z]+\s*(?:\{[^{}]*\})?")
_PRICE = re.compile(
    r"\$ ?\d[\d,]*(?:\.\d+)?(?![\d\\^_{])(?=\s*(?:[A-Za-z,;:.)!?/%]|-[a-z]|$|[—–\n]))"
)
_PREFIX = re.compile(r"[A-Z]$")  # US$50
_FORMULA_START = re.compile(
    r"\$\s*(?:\\[a-zA-Z]+|[a-zA-Z]['\d]?\s*(?:[=<>^_+*/(-]|\\)|[-(|]?\d*[a-zA-Z]?[\^_{]|\d+(?:[\^_\\]|[a-z]\b))"
)
_VARIABLE = re.compile(r"[A-Za-z_]\w+ *(?:$|[-+*/.=;,)\]]+ *$)")  # shell, PHP: $total = $
MOST_NESTED = 16  # dollars within \text{…} of one formula


class Formula(NamedTuple):
    """A formula, or an opening delimiter that nothing closes."""

    start: int
    stop: int
    inner: str  # what stands between the delimiters; an environment with its \begin and \end
    opener: str  # $, $$, \\(, \\[, or the environment's name
    closed: bool


class _Closers:
    """Next place of a delimiter; each is looked for once, so that the whole stays linear."""

    def __init__(self, text: str) -> None:
        self.text, self.next = text, {}

    def find(self, token: str, after: int) -> int:
        """Where `token` stands at or after `after`; -1 for nowhere. `after` must not decrease."""
        known = self.next.get(token)
        if known is None or -1 < known < after:
            known = self.text.find(token, after)
            while known > 0 and _escaped(self.text, known):
                known = self.text.find(token, known + 1)
            self.next[token] = known
        return known


def formulas(text: str) -> Iterator[Formula]:
    """Formulas of `text` in order; code and drawings must have been blanked."""
    closers, at = _Closers(text), 0
    while found := _OPENER.search(text, at):
        at = found.end()
        token = found[0]
        if token in ("\\\\", "\\$") or found["end"]:
            continue
        if token == "$":
            formula = _dollar(text, found.start(), closers)
        elif found["name"]:
            if found["name"] not in TOP_ENVIRONMENTS | INNER_ENVIRONMENTS - {"tabular", "center"}:
                continue
            formula = _between(text, found, closers, f"\\end{{{found['name']}}}", found["name"])
        else:
            close = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}[token]
            formula = _between(text, found, closers, close, token)
        if formula is not None:
            yield formula
            at = max(at, formula.stop if formula.closed else at)


def unclosed(text: str) -> int | None:
    """Where the last formula that nothing closes starts; None when there is none."""
    start, pairs = None, 0
    for formula in formulas(text):
        if formula.closed:
            pairs += formula.opener == "$"
            start = None
        # Behind other formulas in dollars, "$1" is the start of one and no price.
        elif formula.opener != "$" or pairs >= 2 or is_formula_start(text, formula.start):
            start = formula.start
    return start


def is_formula_start(text: str, at: int) -> bool:
    """Whether the dollar at `at` is followed by maths rather than an amount or a variable."""
    return bool(_FORMULA_START.match(text, at))


def _between(
    text: str, found: re.Match[str], closers: _Closers, close: str, opener: str
) -> Formula | None:
    stop = closers.find(close, found.end())
    start = found.start()
    # Inline maths does not cross an empty line.
    if opener == "\\(" and stop >= 0 and _PARAGRAPH.search(text, start, stop):
        stop = -1
    if stop < 0:
        return Formula(
            start, min(len(text), start + 200), text[found.end() : start + 200], opener, False
        )
    inner = text[found.end() : stop]
    if found["name"]:
        inner = text[start : stop + len(close)]
    elif opener == "$$" and not inner.strip():
        return None
    return Formula(start, stop + len(close), inner, opener, True)


def _dollar(text: str, start: int, closers: _Closers) -> Formula | None:
    """The formula that opens with the dollar at `start`; None where it is money or a variable."""
    first = stop = None
    for count, found in enumerate(_dollars(text, start + 1)):
        if first is None:
            first = found
        if not _text_group_is_open(text[start + 1 : found]):
            stop = found
            break
        if count >= MOST_NESTED:
            break
    stop = first if stop is None else stop
    if stop is None:
        if _PRICE.match(text, start) or _PREFIX.search(text, max(start - 1, 0), start):
            return Formula(start, start + 1, "", "$", False)
        end = min(len(text), start + 80)
        return Formula(start, end, text[start + 1 : end], "$", False)
    inner = text[start + 1 : stop]
    return None if _is_prose(inner) else Formula(start, stop + 1, inner, "$", True)


def _dollars(text: str, at: int) -> Iterator[int]:
    """Unescaped dollars from `at` to the end of the paragraph."""
    for found in _DOLLAR_OR_END.finditer(text, at):
        if found[0][0] == "\n":
            return
        if found[0] == "$":
            yield found.start()


def _text_group_is_open(inner: str) -> bool:
    """Whether `inner` ends within \\text{…}, whose dollars are formulas of their own."""
    last = None
    for found in _TEXT_GROUP.finditer(inner):
        last = found
    if last is None:
        return False
    rest = re.sub(r"\\.", "", inner[last.end() :])
    return rest.count("{") >= rest.count("}")


def reads_as_prose(text: str) -> bool:
    """Whether words of a sentence stand in `text` outside commands and their arguments."""
    bare = _GROUPS.sub(" ", text)
    return len(_WORD.findall(bare)) >= 2 or bool(_CHINESE.search(bare))


def _is_prose(inner: str) -> bool:
    if not inner.strip():
        return True
    lopsided = inner[-1].isspace() and not inner[0].isspace()
    bare = _GROUPS.sub(" ", inner)
    if "\\" not in inner and lopsided and (inner[0].isdigit() or _VARIABLE.match(inner)):
        return True
    return bool(_WORDS.search(bare)) and (lopsided or inner[0].isdigit() or "\\" not in inner)


def _escaped(text: str, at: int) -> bool:
    """Whether an odd number of backslashes stands before `at`, so that the token is no token."""
    start = at
    while start > 0 and text[start - 1] == "\\":
        start -= 1
    return (at - start) % 2 == 1
