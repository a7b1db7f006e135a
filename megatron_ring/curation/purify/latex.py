"""Formulas that LaTeX would refuse, found without LaTeX.

A scanner that knows groups, environments, \\left and \\right, scripts, and how many arguments a
command takes. It is no typesetter: what it does not know of it lets pass, an unknown command
excepted. tools/measure_purification.py compares it with KaTeX.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from megatron_ring.config.curation.purify import LatexConfig
from megatron_ring.curation.purify.commands import COMMANDS
from megatron_ring.curation.purify.mathematics import (
    INNER_ENVIRONMENTS,
    TOP_ENVIRONMENTS,
    Formula,
    formulas,
    is_formula_start,
)
from megatron_ring.curation.purify.text import excerpt, is_code, without_code_or_drawings

_TOKEN = re.compile(
    r"\\[a-zA-Z]+\*?|\\[\s\S]|\\\Z|'+|(?<!\\)%[^\n]*|[{}^_&#$]|\s+|[^\\{}^_&#$%'\s]"
)
_NAME = re.compile(r"\s*\{\s*([^{}\n]{1,40}?)\s*\}")
_OPTION = re.compile(r"\s*\[")
_GROUP_START = re.compile(r"\s*\{")
_DEFINES = re.compile(
    r"\\(?:(?:re)?newcommand|providecommand|DeclareMathOperator|def|let|gdef|edef)\*?\s*\{?\s*"
    r"\\([a-zA-Z]+)"
)
_REGEX = re.compile(r"\\[dwsDWSb][+*?{\]\\)]")  # \(\d+\) is a pattern, not a formula

_ONE = (
    "sqrt overline underline widehat widetilde hat bar vec dot ddot tilde check breve acute grave "
    "mathbf mathrm mathbb mathcal mathfrak mathsf mathit mathscr mathtt boldsymbol bm pmb boxed "
    "cancel bcancel xcancel phantom hphantom vphantom overbrace underbrace mathop mathbin mathrel "
    "overrightarrow overleftarrow overleftrightarrow operatorname pmod xrightarrow xleftarrow "
    "substack mathring smash not pod"
)
_ARGUMENTS = {name: 1 for name in _ONE.split()}
_ARGUMENTS |= dict.fromkeys(
    "frac dfrac tfrac cfrac binom dbinom tbinom overset underset".split(), 2
)
_ARGUMENTS |= {"stackrel": 2}
# Arguments that are no maths: braces must match, the rest is not looked at.
_RAW = {
    name: 1
    for name in "text textbf textit textrm textsf texttt textnormal textup textsc emph mbox hbox "
    "fbox label tag ref eqref cite ce pu si num ang url color hspace vspace rule intertext "
    "shortintertext operatorname mathrm unit href textcolor colorbox raisebox".split()
} | {"SI": 2, "qty": 2}
_DELIMITERS = frozenset("()[]|./<>⟨⟩") | frozenset(
    "\\" + name
    for name in "{ } | langle rangle lvert rvert lVert rVert vert Vert lfloor rfloor lceil rceil "
    "lbrace rbrace lbrack rbrack backslash uparrow downarrow updownarrow Uparrow Downarrow "
    "lgroup rgroup lmoustache rmoustache ulcorner urcorner llcorner lrcorner llbracket rrbracket "
    "lang rang Updownarrow lt gt".split()
)
_OPERATORS = frozenset(
    "sum prod coprod int iint iiint iiiint oint oiint bigcup bigcap bigoplus bigotimes bigvee "
    "bigwedge bigsqcup bigodot biguplus lim limsup liminf max min sup inf argmax argmin gcd det Pr "
    "varlimsup varliminf injlim projlim varinjlim varprojlim operatorname operatorname* mathop "
    "intop limits nolimits overbrace underbrace idotsint smallint xrightarrow lcm log mathrm "
    "displaylimits oiiint".split()
)
# Plain TeX: an environment in braces.
_BRACED = frozenset("matrix pmatrix cases eqalign displaylines bordermatrix align substack".split())
_GROUPS, _ALIGNED = ("{", "plain"), ("environment", "plain")


class Problem(NamedTuple):
    """What is wrong with a formula, and where in it."""

    rule: str
    why: str
    at: int


def problem(text: str, off: frozenset[str], options: LatexConfig) -> tuple[str, str] | None:
    """(rule, evidence) of the first formula of `text` that is invalid by a rule not `off`."""
    if "$" not in text and "\\" not in text:
        return None
    plain = without_code_or_drawings(text)
    own = frozenset(options.commands) | frozenset(_DEFINES.findall(plain))
    environments = TOP_ENVIRONMENTS | INNER_ENVIRONMENTS | frozenset(options.environments)
    code = None
    for formula in formulas(plain):
        found = _unclosed(plain, formula) if not formula.closed else None
        if formula.closed and not _REGEX.search(formula.inner):
            found = Scanner(formula.inner, own, environments).run()
        if found is None or found.rule in off:
            continue
        code = is_code(plain) if code is None else code
        if code:
            return None
        start = formula.start + (len(formula.opener) if formula.opener[0] in "$\\" else 0)
        place = start + found.at
        shown = excerpt(plain, max(place - 40, formula.start), min(place + 30, formula.stop))
        return found.rule, f"{found.why}: {shown}"
    return None


def _unclosed(text: str, formula: Formula) -> Problem | None:
    if formula.opener == "$":
        bad = bool(formula.inner) and is_formula_start(text, formula.start)
        return Problem("latex_delimiters", "$ is not closed", 0) if bad else None
    if formula.opener[0] not in "$\\":
        return Problem("latex_environments", f"\\begin{{{formula.opener}}} is not closed", 0)
    looks = re.match(r"\s*(?:[\\\w({|+-])", formula.inner) and not _REGEX.search(formula.inner)
    if formula.opener == "$$":
        looks = looks and re.search(r"[=^_\\]", formula.inner)
    return Problem("latex_delimiters", f"{formula.opener} is not closed", 0) if looks else None


class Frame:
    """A group, an environment, or the space between \\left and \\right, and its last atom."""

    def __init__(self, kind: str, name: str, at: int) -> None:
        self.kind, self.name, self.at = kind, name, at
        self.above, self.below = 0, False  # above: 0 nothing, 1 primes, 2 a superscript
        self.waits: list[list] = []  # [what waits for arguments, how many]
        self.operator = False  # the last token may carry \limits


class Scanner:
    """One formula, read once from left to right; stops at the first problem."""

    def __init__(self, text: str, own: frozenset[str], environments: frozenset[str]) -> None:
        self.text, self.own, self.environments = text, own, environments
        self.frames = [Frame("formula", "", 0)]
        self.at = 0

    def run(self) -> Problem | None:
        """The first problem, or None."""
        while found := _TOKEN.match(self.text, self.at):
            start, token = self.at, found[0]
            self.at = found.end()
            if token[0].isspace() or token[0] == "%":
                continue
            wrong = self.read(token, start)
            if wrong:
                return Problem(*wrong, start)
        frame = self.frames[-1]
        if self.at < len(self.text):
            return Problem("latex_commands", "a backslash ends the formula", self.at)
        if len(self.frames) > 1:
            return Problem(*_never_closed(frame), frame.at)
        wrong = _waiting(frame)
        return Problem(*wrong, max(len(self.text) - 1, 0)) if wrong else None

    def read(self, token: str, start: int) -> tuple[str, str] | None:
        """Takes one token in; the problem it makes, if any."""
        frame = self.frames[-1]
        operator, frame.operator = frame.operator, False
        if token[0] == "\\":
            return self.command(token, start, operator)
        if token == "{":
            self.frames.append(Frame("{", "", start))
        elif token == "}":
            return self.close(_GROUPS, "} without {")
        elif token in "^_":
            return self.script(token)
        elif token[0] == "'":
            if frame.above == 2:
                return "latex_scripts", "a prime behind a superscript"
            frame.above = 1
        elif token == "&":
            return self.align("&")
        elif token == "#":
            return "latex_commands", "# stands outside a macro"
        elif token != "$":
            self.item()
        return None

    def command(self, token: str, start: int, operator: bool) -> tuple[str, str] | None:
        """A control word or symbol."""
        name = token[1:]
        if name in ("begin", "end", "left", "right", "middle"):
            return self.paired(name, start)
        if name == "\\" or name in ("cr", "newline"):
            return self.row(name)
        if name in ("limits", "nolimits"):
            self.frames[-1].operator = operator
            return None if operator else ("latex_scripts", f"{token} behind no operator")
        if name in ("hline", "cline"):
            return self.align(token)
        if not name[0].isalpha():
            # Spaces and braces: an atom unless it is a space.
            if name[0] not in ",;:! >" and not name[0].isspace():
                self.item()
            return None
        bare = name.rstrip("*")
        if bare not in COMMANDS and bare not in self.own:
            return "latex_commands", f"unknown command {token}"
        if bare in _BRACED and _GROUP_START.match(self.text, self.at):
            self.at = _GROUP_START.match(self.text, self.at).end()
            self.frames.append(Frame("plain", bare, start))
            return None
        wrong = self.arguments(bare) if bare not in self.own else self.item()
        self.frames[-1].operator = name in _OPERATORS
        return wrong

    def arguments(self, name: str) -> tuple[str, str] | None:
        """Skips arguments that are no maths, and notes how many others must come."""
        if name == "sqrt" and (option := _OPTION.match(self.text, self.at)):
            stop = _matching(self.text, option.end(), "[", "]")
            if stop is None:
                return "latex_braces", "[ of \\sqrt is not closed"
            self.at = stop
        raw = _RAW.get(name, 0)
        for _ in range(raw):
            group = _GROUP_START.match(self.text, self.at)
            if not group:
                break
            stop = _matching(self.text, group.end(), "{", "}")
            if stop is None:
                return "latex_braces", f"{{ of \\{name} is not closed"
            self.at = stop
            if name in _ARGUMENTS:
                return self.item()
        if name in _ARGUMENTS:
            self.frames[-1].waits.append([f"\\{name}", _ARGUMENTS[name]])
            return None
        if name in ("displaystyle", "textstyle", "scriptstyle", "quad", "qquad", "color", "label"):
            return None
        return self.item()

    def paired(self, name: str, start: int) -> tuple[str, str] | None:
        """begin, end, left, right, middle."""
        if name in ("begin", "end"):
            found = _NAME.match(self.text, self.at)
            if not found:
                return "latex_environments", f"\\{name} without a name"
            self.at = found.end()
            if name == "end":
                return self.close(("environment",), f"\\end{{{found[1]}}}", found[1])
            if found[1] not in self.environments:
                return "latex_environments", f"unknown environment {found[1]}"
            self.frames.append(Frame("environment", found[1], start))
            if found[1].rstrip("*") in (
                "array",
                "darray",
                "subarray",
                "alignat",
                "alignedat",
                "tabular",
            ):
                self.skip_option()
                if group := _GROUP_START.match(self.text, self.at):
                    self.at = _matching(self.text, group.end(), "{", "}") or self.at
            return None
        delimiter = self.delimiter()
        if delimiter not in _DELIMITERS:
            return "latex_left_right", f"\\{name} before {delimiter or 'nothing'}"
        if name == "left":
            self.frames.append(Frame("left", "", start))
            return None
        if name == "middle":
            inside = self.frames[-1].kind == "left"
            return None if inside else ("latex_left_right", "\\middle outside \\left … \\right")
        return self.close(("left",), "\\right without \\left")

    def skip_option(self) -> None:
        if option := _OPTION.match(self.text, self.at):
            self.at = _matching(self.text, option.end(), "[", "]") or self.at

    def delimiter(self) -> str:
        found = re.compile(r"\s*(\\[a-zA-Z]+|\\.|\S)?").match(self.text, self.at)
        self.at = found.end()
        return found[1] or ""

    def script(self, token: str) -> tuple[str, str] | None:
        frame = self.frames[-1]
        if frame.waits:
            return "latex_arguments", f"{token} where an argument of {frame.waits[-1][0]} should be"
        if token == "^":
            if frame.above == 2:
                return "latex_scripts", "two superscripts"
            frame.above = 2
        else:
            if frame.below:
                return "latex_scripts", "two subscripts"
            frame.below = True
        frame.waits.append([token, 1])
        return None

    def align(self, token: str) -> tuple[str, str] | None:
        frame = self.frames[-1]
        if frame.kind not in _ALIGNED:
            return "latex_alignment", f"{token} outside an environment"
        return _waiting(frame) or self.fresh()

    def row(self, name: str) -> tuple[str, str] | None:
        frame = self.frames[-1]
        if frame.kind == "left":
            return "latex_left_right", "a new line between \\left and \\right"
        self.skip_option()
        return _waiting(frame) or self.fresh()

    def fresh(self) -> None:
        frame = self.frames[-1]
        frame.above, frame.below = 0, False

    def close(self, kinds: tuple[str, ...], what: str, name: str = "") -> tuple[str, str] | None:
        """Closes the innermost frame, which must be of `kinds`, and of `name` if one is given."""
        frame = self.frames[-1]
        if frame.kind not in kinds:
            rule = {"{": "latex_braces", "environment": "latex_environments"}
            return rule.get(kinds[0], "latex_left_right"), f"{what} closes nothing"
        if name != frame.name and name:
            return "latex_environments", f"\\begin{{{frame.name}}} ends as {name}"
        wrong = _waiting(frame)
        if wrong:
            return wrong
        self.frames.pop()
        return self.item()

    def item(self) -> None:
        """An atom or a group is complete: an argument, or what scripts will stand at."""
        frame = self.frames[-1]
        while frame.waits:
            frame.waits[-1][1] -= 1
            if frame.waits[-1][1]:
                return
            if frame.waits.pop()[0] in "^_":
                return
        frame.above, frame.below = 0, False


def _waiting(frame: Frame) -> tuple[str, str] | None:
    if not frame.waits:
        return None
    what = frame.waits[-1][0]
    if what in "^_":
        return "latex_scripts", f"{what} with nothing behind"
    return "latex_arguments", f"{what} lacks an argument"


def _never_closed(frame: Frame) -> tuple[str, str]:
    if frame.kind == "environment":
        return "latex_environments", f"\\begin{{{frame.name}}} is not closed"
    if frame.kind == "left":
        return "latex_left_right", "\\left without \\right"
    return "latex_braces", "{ is not closed"


def _matching(text: str, at: int, open_: str, close: str) -> int | None:
    """Behind the bracket that closes the one before `at`; escaped ones do not count."""
    depth, braces = 1, 0
    for found in (
        re.finditer(r"\\[\s\S]|[{}\[\]]", text[at:]) if close == "]" else _braces(text, at)
    ):
        token = found[0]
        if close == "]" and token in "{}":
            braces += 1 if token == "{" else -1
            if braces < 0:
                return None
        elif token == close and braces == 0:
            depth -= 1
            if depth == 0:
                return (at if close == "]" else 0) + found.end()
        elif token == open_ and braces == 0:
            depth += 1
    return None


def _braces(text: str, at: int) -> Iterator[re.Match[str]]:
    return re.compile(r"\\[\s\S]|[{}]").finditer(text, at)
