"""What is wrong with the think tags of an answer, from its text alone."""

import re

TAG = re.compile(r"</?think>")
ERRORS = ("missing_open", "missing_close", "redundant", "misplaced", "empty")


def tag_errors(answer: str) -> list[str]:
    """Names out of ERRORS, in their order; [] for `<think>thought</think>answer`.

    missing_open, missing_close: there is no such tag (both, when nothing is marked as a thought).
    redundant: a tag occurs more than once. misplaced: text or a closing tag stands before the
    opening one. empty: nothing between the tags, or nothing after them. Where the prompt already
    ends in `<think>`, put that before the answer; an answer cut short has `missing_close`.
    """
    tags = list(TAG.finditer(answer))
    opens = [tag for tag in tags if tag.group() == "<think>"]
    closes = [tag for tag in tags if tag.group() == "</think>"]
    wrong = {
        "missing_open": not opens,
        "missing_close": not closes,
        "redundant": len(opens) > 1 or len(closes) > 1,
        "misplaced": bool(opens) and answer[: opens[0].start()].strip() != "",
        "empty": False,
    }
    after = [tag for tag in closes if opens and tag.start() > opens[0].start()]
    if after:
        wrong["empty"] = _blank(answer[opens[0].end() : after[0].start()])
    if closes:
        wrong["empty"] |= _blank(answer[closes[0].end() :])
    return [name for name in ERRORS if wrong[name]]


def _blank(text: str) -> bool:
    return not TAG.sub("", text).strip()
