"""What every rule of purification asks of a text: its reply, its code, its drawings."""

import re

from megatron_ring import think

# A fence that is never closed hides all that follows: half a program is no maths either.
_FENCE = r"(?m:^[ \t>]*(?P<fence>```+|~~~+))[\s\S]*?(?:(?P=fence)|\Z)"
_INLINE = r"(?<!`)(?P<ticks>`{1,2})(?!`)[^`\n]+(?P=ticks)(?!`)"
_DRAWING = (
    r"\[asy\][\s\S]*?(?:\[/asy\]|\Z)|<asy>[\s\S]*?(?:</asy>|\Z)"
    r"|\\begin\{(?P<drawing>asy|tikzpicture|pspicture|picture|circuitikz)\}"
    r"[\s\S]*?(?:\\end\{(?P=drawing)\}|\Z)|<svg\b[\s\S]*?(?:</svg>|\Z)"
)
_CODE = re.compile(f"{_FENCE}|{_INLINE}")
_CODE_OR_DRAWING = re.compile(f"{_FENCE}|{_INLINE}|{_DRAWING}")
DRAWING = re.compile(r"\[asy\]|<asy>|\\begin\{(?:asy|tikzpicture|pspicture|picture|circuitikz)\}")
DRAWING_FENCE = re.compile(r"(?m)^[ \t]*```+[ \t]*(?:asy|asymptote|tikz|mermaid|svg|dot)\b")
_STATEMENT = re.compile(
    r"(?m)^[ \t]*(?:def |class |import |from \w[\w.]* import |#include|public |private |function\b"
    r"|var |let |const |for ?\(|while ?\(|if ?\(|SELECT\b|<\?php|#!/|elif |else:|package \w"
    r"|using [A-Z]|@\w+$|\}\s*$|print\(|echo |\w[\w.\[\]]* ?[+*-]?= ?[^=\n]*[;)\]]\s*$"
    r"|<!?\w+[^>\n]*>)"
)
_PROGRAM = re.compile(
    r"(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|WITH) [\w*\"`(]|#!/|#include"
    r"|import \w|from \w[\w.]* import|<\?php|<!DOCTYPE|<html|package \w[\w.]*;"
    r"|using \w+;|public class |function \w+\(|\w+\(\) ?\{"
    r"|#? ?(?:sudo|grep|awk|sed|find|curl|git|ls|for \w+ in) [-.$*\"/\w]"
)
SYMBOLS = re.compile(
    r"[;{}](?=\s*(?:$|[\n}]))|\(\)|[=-]>|[=!]==?|&&|\|\||</|::|\+[=+]|[\"']\)|\$\w+ ?="
    r"|\w\.\w+\(|[$]\{|\$\(|\$[#?@]"
)
_LATEX = re.compile(
    r"\\(?:frac|dfrac|cdot|left|text|begin|boxed|sqrt|times|mathrm|le|ge|pi|sum|int)\b"
)


def blank(found: re.Match[str]) -> str:
    """White space of the same length, so that places in the text stay what they are."""
    return " " * len(found[0])


def without_code(text: str) -> str:
    """`text` with fenced and inline code blanked; drawings stay."""
    return _CODE.sub(blank, text) if "`" in text or "~~~" in text else text


def without_code_or_drawings(text: str) -> str:
    """`text` with code, Asymptote, TikZ and SVG blanked."""
    if "`" in text or "~~~" in text or "[asy]" in text or "\\begin" in text or "<" in text:
        return _CODE_OR_DRAWING.sub(blank, text)
    return text


def draws(text: str) -> bool:
    """Whether a figure stands in the text itself, as Asymptote, TikZ or the like."""
    return bool(DRAWING.search(text) or DRAWING_FENCE.search(text))


def reply_of(text: str) -> str:
    """What follows the thought; the whole text where it is still open."""
    parts = think.split(text)
    return parts.answer if parts.closed else text


def is_code(text: str) -> bool:
    """Whether `text`, outside fences, is a program rather than prose.

    Half its lines are statements, or symbols that prose has not come every 50 characters.
    """
    text = text[:20_000].strip()
    if _PROGRAM.match(text) and not text.endswith((".", "。")):
        return True
    lines = [line for line in text.split("\n") if line.strip()]
    if len(_STATEMENT.findall(text)) * 2 >= max(len(lines), 2):
        return True
    if _LATEX.search(text):
        return False
    symbols = len(SYMBOLS.findall(text))
    return symbols >= 2 and symbols * 50 >= len(text)


def excerpt(text: str, start: int, stop: int, most: int = 80) -> str:
    """The span as evidence: on one line, its middle left out where it is long."""
    span = text[start : min(stop, start + 4 * most)]
    span = " ".join(span.split())
    return span if len(span) <= most else span[: most - 1] + "…"
