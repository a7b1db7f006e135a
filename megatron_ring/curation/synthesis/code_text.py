"""A reply taken apart: which lines are problem, solution, tests, and which are a fenced block.

Models announce the three parts in many ways ("## Problem", "**Tests:**", "<solution>", "1. Problem
statement: ..."), and some not at all. Nothing is judged here.
"""

import re
from dataclasses import dataclass

from megatron_ring import think

WORDS = {
    "problem": r"(?:programming |coding )?(?:problem|task|question|exercise|challenge)"
    r"(?: statement| description)?|statement|description|题目|问题|问题描述",
    "solution": r"(?:python |reference |sample )?(?:solution|implementation|code|answer)(?: code)?"
    r"|解答|解法|代码|参考答案",
    "tests": r"(?:python )?(?:unit )?tests?(?: cases?| code| suite)?|assert(?:s|ions?)?"
    r"|测试|测试用例",
}
MARK = "#*_<>/[]()=-.:：【】 \t"
MARKS = rf"[{re.escape(MARK)}]*"
LEAD = r"(?:(?:step|part) )?(?:[0-9a-c][.):]\s*)?(?:here (?:is|are) )?(?:the |a |an |new |your )*"
HEADINGS = {
    role: re.compile(
        rf"{LEAD}{MARKS}(?:{words})(?: \d+| \(?in python\)?)?"
        rf"(?:{MARKS}|[*_\]]*\s*[:：][*_]*(?P<rest>.*))",
        re.IGNORECASE,
    )
    for role, words in WORDS.items()
}
FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([^\s`]*)[^`]*")
RULE = re.compile(r"[\s\-=*_]*")
PYTHON = ("python", "python3", "py", "python-repl", "")


@dataclass(frozen=True)
class Piece:
    """Lines that belong together."""

    role: str  # problem, solution, tests; "" before the first heading
    text: str
    language: str | None = None  # of a fenced block, in small letters; None: prose
    closed: bool = True  # the block has its closing fence

    @property
    def is_python(self) -> bool:
        """A block that may hold Python: it says so, or does not say what it is."""
        return self.language in PYTHON


def answer_of(text: str) -> str | None:
    """What stands behind the last </think>; None where a thought is still open."""
    parts = think.split(text)
    if not parts.closed:
        return None
    return text if parts.thought is None else parts.answer.strip("\n")


def pieces(text: str) -> list[Piece]:
    """All of an answer, in order; empty ones are left out."""
    found: list[Piece] = []
    role, fence, language = "", "", ""
    lines: list[str] = []

    def close(of: str | None, closed: bool = True) -> None:
        kept = "\n".join(lines).strip("\n")
        if kept.strip():
            found.append(Piece(role, kept, of, closed))
        lines.clear()

    for line in text.splitlines():
        mark = FENCE.fullmatch(line)
        if fence:
            if mark and not mark[2] and mark[1].startswith(fence):
                close(language)
                fence = ""
            else:
                lines.append(line)
        elif mark:
            if mark[2].lower() in ("markdown", "md"):
                continue  # all of the answer is wrapped; what closes it opens an empty block
            close(None)
            fence, language = mark[1], mark[2].lower()
        elif (heading := _heading(line)) is not None:
            close(None)
            role = heading[0]
            lines.append(heading[1])
        else:
            lines.append(line)
    close(language if fence else None, closed=not fence)
    return found


def first_problem(found: list[Piece]) -> list[Piece]:
    """Pieces up to where a second problem begins; some models go on for as long as they may."""
    solved = False
    for number, piece in enumerate(found):
        if solved and piece.role == "problem":
            return found[:number]
        solved = solved or piece.role in ("solution", "tests")
    return found


def prose(found: list[Piece]) -> str:
    """Text as it was written, with the fences of its blocks, without rulers at either end."""
    shown = [
        piece.text if piece.language is None else f"```{piece.language}\n{piece.text}\n```"
        for piece in found
    ]
    lines = "\n\n".join(shown).splitlines()
    while lines and RULE.fullmatch(lines[0]):
        del lines[0]
    while lines and RULE.fullmatch(lines[-1]):
        del lines[-1]
    return "\n".join(lines).strip()


def without_greeting(text: str) -> str:
    """Without first paragraphs that only announce what follows: "Sure! Here is one:"."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    while paragraphs and (
        paragraphs[0].rstrip().endswith(":")
        or re.match(r"(sure|certainly|of course|okay|ok|here)\b", paragraphs[0], re.IGNORECASE)
    ):
        del paragraphs[0]
    return "\n\n".join(paragraphs)


def _heading(line: str) -> tuple[str, str] | None:
    """The part that a line announces, and what it says of it already."""
    if len(line) > 2000:
        return None
    bare = line.strip().lstrip(MARK)
    for role, pattern in HEADINGS.items():
        found = pattern.fullmatch(bare)
        if found is None:
            continue
        rest = (found["rest"] or "").strip()
        # "Test cases: at most 100" may be a line of the problem; "**Test cases:** ..." announces.
        if role == "problem" or not rest or re.match(r"[#*_<\[0-9]", line.strip()):
            return role, rest
    return None
