"""Where an answer's thought begins and ends, and what is wrong with its tags: for all the program.

An answer is `<think>thought</think>reply`. Only these two spellings are tags, as for the engines
that serve such models: `<Think>`, `<think >` and `<thinking>` are text. A tag quoted as Markdown
code is text as well, in the thought and in the reply:

- inline code on one line: `<think>` between backticks, one or more;
- a fenced block (``` or ~~~ at the beginning of a line).

Marks in thoughts are careless: a program breaks off, a backtick stands alone. To lose the end of a
thought would be worse than to miss a quotation. So, until the thought has ended, a block that
nobody closes hides nothing, and in code `</think>` is text only if the same code opens it, or a
quotation mark or backtick stands right beside it.

A chat template may end the prompt with `<think>` ("primed"): then the answer begins in its thought.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
TAG = re.compile(r"</?think>")  # every such text, also where it is quoted
ERRORS = ("missing_open", "missing_close", "redundant", "misplaced", "empty")
QUOTES = {"'", '"', "`"}
TRUNCATED = "truncated"  # no error of the model's: apart from ERRORS

_TOKEN = re.compile(
    r"(?P<tag></?think>)"
    # A block begins with its line, or behind words where it names a language, as models write it.
    r"|(?:(?:(?m:^)|(?<=think>))[ \t>]*|(?<!`)(?=```\w))(?P<fence>`{3,}|~{3,})"
    r"[ \t]*+[^\s`<]*+[ \t]*+(?=\n|\Z)"
    r"|(?<!`)(?P<ticks>`+)(?!`)(?P<code>[^\n]*?[^`\n])(?P=ticks)(?!`)"
)


class Tag(NamedTuple):
    """A tag that is structure: characters [start, stop) of the text; (0, 0) in the prompt."""

    opens: bool
    start: int
    stop: int


@dataclass(frozen=True)
class Parts:
    """An answer taken apart. White space is kept."""

    thought: str | None  # None: nothing is marked as a thought; with the tags between its ends
    answer: str  # what follows the last </think>; "" while a thought is open
    closed: bool  # no thought is open at the end


def split(text: str, primed: bool = False) -> Parts:
    """Thought and reply. `primed`: the prompt ends in `<think>`, which `text` does not repeat.

    The thought lasts from the first opening tag (the beginning where a closing tag comes first) to
    the last closing tag, so that nested thoughts are one. Words before the opening tag are neither.
    """
    found = tags(text, primed)
    if not found:
        return Parts(None, text, True)
    start = found[0].stop if found[0].opens else 0
    if found[-1].opens:
        return Parts(text[start:], "", False)
    return Parts(text[start : found[-1].start], text[found[-1].stop :], True)


def answer_of(text: str, primed: bool = False) -> str:
    """The reply alone; "" while the thought is open."""
    return split(text, primed).answer


def join(thought: str | None, answer: str) -> str:
    """An answer as training data have it; without a thought, the reply as it is."""
    if thought is None or not thought.strip():
        return answer
    return f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n{answer}"


def tag_errors(
    text: str, primed: bool = False, truncated: bool = False, calls: bool = False
) -> list[str]:
    """Names out of ERRORS, in their order; [] for `<think>thought</think>answer`.

    missing_open, missing_close: there is no such tag (both, when nothing is marked as a thought).
    redundant: a tag occurs more than once; `primed`, any opening tag is one too many. misplaced:
    text or a closing tag stands before the opening one. empty: nothing between the tags, or nothing
    after them and no tool `calls` either.

    `truncated`: the answer was cut at max_tokens. Then "truncated" ends the list, and what may only
    have been cut off (the closing tag, all of the reply) is no error.
    """
    found = tags(text, primed)
    opens = [tag for tag in found if tag.opens]
    closes = [tag for tag in found if not tag.opens]
    wrong = {
        "missing_open": not opens,
        "missing_close": not closes and not truncated,
        "redundant": len(opens) > 1 or len(closes) > 1,
        "misplaced": bool(opens) and text[: opens[0].start].strip() != "",
        "empty": False,
    }
    if truncated and not found and OPEN.startswith(text.strip()):
        wrong["missing_open"] = False  # cut within its first tag, or before it
    after = [tag for tag in closes if opens and tag.start >= opens[0].stop]
    if after:
        wrong["empty"] = _blank(text[opens[0].stop : after[0].start])
    if closes and not truncated and not calls:
        wrong["empty"] |= _blank(text[closes[0].stop :])
    return [name for name in ERRORS if wrong[name]] + [TRUNCATED] * truncated


def is_plain(text: str) -> bool:
    """`<think>thought</think>reply` with no other tag, quoted ones included.

    Data for training are to be so: engines end a thought at its first `</think>`, quoted or not.
    """
    return len(TAG.findall(text)) == 2 and not tag_errors(text)


def tags(text: str, primed: bool = False) -> list[Tag]:
    """The tags that are structure, in order; first the prompt's where the answer is `primed`."""
    found = [Tag(True, 0, 0)] * primed
    place, never_closed = 0 if "think>" in text else len(text), set()
    while (token := _TOKEN.search(text, place)) is not None:
        replying = bool(found) and not found[-1].opens
        place = token.end()
        if token["tag"] is not None:
            found.append(Tag(token["tag"] == OPEN, *token.span()))
        elif token["fence"] is not None:
            end = None if token["fence"] in never_closed else _end_of_block(text, token)
            if end is None:
                never_closed.add(token["fence"])  # nor are those behind it: not searched again
                place = len(text) if replying else place
            else:
                place = end if replying else _end_of_thought(text, place, end)
        elif token["ticks"] == "``" and "''" in token["code"]:
            place = token.end("ticks")  # quotation marks, as LaTeX has them
        elif not replying:
            place = _end_of_thought(text, *token.span())
    return found


def _end_of_block(text: str, fence: re.Match[str]) -> int | None:
    mark, least = re.escape(fence["fence"][0]), len(fence["fence"])
    closing = rf"(?m:^)[ \t>]*{mark}{{{least},}}[ \t]*(?=\n|\Z|</?think>)"
    end = re.compile(closing).search(text, fence.end())
    return end.end() if end else None


def _end_of_thought(text: str, start: int, stop: int) -> int:
    """Where in code [start, stop) of a thought `</think>` ends it; `stop` where none does."""
    depth = 0
    for tag in TAG.finditer(text, start, stop):
        if tag.group() == OPEN:
            depth += 1
        elif depth:
            depth -= 1
        elif not {text[tag.start() - 1 : tag.start()], text[tag.end() : tag.end() + 1]} & QUOTES:
            return tag.start()
    return stop


def _blank(text: str) -> bool:
    return not TAG.sub("", text).strip()
