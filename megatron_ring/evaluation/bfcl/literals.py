"""Values of calls: cut apart where brackets and quotes allow, and read as Java or JavaScript."""

import re
from typing import Any

OPENING, CLOSING, QUOTES = "([{", ")]}", "\"'`"
MAX_LITERAL = 4000  # characters; the patterns below are slow on longer text
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
JAVA_LIST = re.compile(
    r"(?s)(?:new\s+[\w.<>?, ]+\[\s*\]\s*\{(.*)\}|(?:Arrays\.asList|List\.of|Set\.of)\s*\((.*)\))"
)
JAVA_WRAPPED = re.compile(r"(?s)new\s+(?:ArrayList|LinkedList|HashSet)\s*<[^>]*>\s*\((.*)\)")
JAVA_MAP = re.compile(r"(?s)new\s+(?:Linked)?HashMap\s*<.*?>\s*\(\s*\)\s*(?:\{\s*\{(.*)\}\s*\})?")
JAVA_PAIRS = re.compile(r"(?s)Map\.of\s*\((.*)\)")


def cut(text: str, mark: str) -> list[str]:
    """Parts between `mark`s that stand outside quotes and brackets, stripped; [] for blank text.

    ValueError for a bracket or quote that is not closed.
    """
    parts, start, depth, quote, escaped = [], 0, [], "", False
    for place, sign in enumerate(text):
        if quote:
            if not escaped and sign == quote:
                quote = ""
            escaped = sign == "\\" and not escaped
        elif sign in QUOTES:
            quote = sign
        elif sign in OPENING:
            depth.append(CLOSING[OPENING.index(sign)])
        elif sign in CLOSING:
            if not depth or depth.pop() != sign:
                raise ValueError(f"{sign} closes nothing in {text[:80]!r}")
        elif sign == mark and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    if quote or depth:
        raise ValueError(f"{quote or depth[-1]} is missing in {text[:80]!r}")
    last = text[start:].strip()
    return [*parts, last] if last or parts else []


def read(text: str, language: str) -> Any:
    """A literal of `language` ("java", "javascript") as JSON; anything else as its own text."""
    text = text.strip()
    plain = {"true": True, "false": False, "null": None, "undefined": None}
    if text in plain:
        return plain[text]
    if len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES:
        return _unescaped(text[1:-1])
    if len(text) > MAX_LITERAL:
        return text
    try:
        number = re.fullmatch(rf"({NUMBER.pattern})([lLfFdD]?)", text)
        if number:
            whole = re.fullmatch(r"[+-]?\d+", number[1]) and number[2] not in set("fFdD")
            return int(number[1]) if whole else float(number[1])
        return _javascript(text) if language == "javascript" else _java(text)
    except (ValueError, RecursionError):  # brackets that do not close, numbers without end
        return text


def _javascript(text: str) -> Any:
    if text[:1] == "[" and text[-1:] == "]":
        return [read(part, "javascript") for part in cut(text[1:-1], ",") if part]
    if text[:1] == "{" and text[-1:] == "}":
        return _pairs([cut(part, ":") for part in cut(text[1:-1], ",") if part], "javascript", text)
    return text


def _java(text: str) -> Any:
    found = JAVA_LIST.fullmatch(text)
    if found:
        inner = found[1] if found[1] is not None else found[2]
        return [read(part, "java") for part in cut(inner, ",") if part]
    found = JAVA_WRAPPED.fullmatch(text)
    if found:
        inner = read(found[1], "java") if found[1].strip() else []
        return inner if isinstance(inner, list) else text
    found = JAVA_MAP.fullmatch(text)
    if found:
        puts = [part for part in cut(found[1] or "", ";") if part]
        inside = [re.fullmatch(r"(?s)put\s*\((.*)\)", put) for put in puts]
        if not all(inside):
            return text
        return _pairs([cut(put[1], ",") for put in inside if put], "java", text)
    found = JAVA_PAIRS.fullmatch(text)
    if found:
        flat = cut(found[1], ",")
        return _pairs([flat[i : i + 2] for i in range(0, len(flat), 2)], "java", text)
    return text


def _pairs(pairs: list[list[str]], language: str, text: str) -> Any:
    if any(len(pair) != 2 for pair in pairs):
        return text
    return {str(read(key, language)): read(value, language) for key, value in pairs}


def _unescaped(text: str) -> str:
    signs = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"(?s)\\(.)", lambda found: signs.get(found[1], found[1]), text)
