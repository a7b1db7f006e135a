"""Answers that end before they are done.

The generation card knows best (finish_reason=length). Where there is none, the ending tells: a
thought or a code fence or a formula left open, a last word that cannot be the last. An answer may
well end without a full stop: in a number, a unit, a formula, code, a list, a verdict, a signature.
"""

import re

from megatron_ring import think
from megatron_ring.config.curation.purify import TruncationConfig
from megatron_ring.curation.purify.mathematics import reads_as_prose, unclosed
from megatron_ring.curation.purify.text import SYMBOLS, excerpt, is_code, reply_of, without_code

# Lower-case words behind which a sentence must go on.
_GO_ON = frozenset(
    "a an the and or but nor if because since although though while whereas unless until than "
    "of to from with by for into onto upon between among via per at as is are was were be been "
    "am has have had does did can could will would shall should may might must cannot their its "
    "our your my his which whose whom where when that such these those every each some any no "
    "both either neither another very equals contains becomes gives means yields so then thus "
    "therefore hence also not we they it's let's get obtain given using called whether about there "
    "substituting dividing multiplying applying consider".split()
)
_GO_ON_ZH = re.compile(
    "(?:因此|因为|所以|然后|得|但是|而且|并且|由于|如果|那么|于是|以及|或者|含有|具有|等于|得到|根据|通过|对于|关于|"
    "可得|可知|其中|首先|其次|最后|即|与|和|为|是|的|在|把|被|对|从|由|或|且|但|及|向|将|而|则|设|又|比|没|就|不)$"
)
_JUDGEMENT_ZH = re.compile("是[^，。]{1,20}的$|(?:正确|错误|成立|存在|可以|不行|相同|不同)的$")
_CLAUSE = re.compile(
    r"^\s*(?:With|Since|Because|If|When|While|Although|As|Given) "
    r"(?:(?!\\\[|\$\$| (?:and|so|then|gives?|have|has|get) )[^,]){1,60}$"
)
_VERDICT = re.compile(
    r"(?i)\b(?:so|therefore|thus|hence|answer|total|result|conclusion|finally|consequently"
    r"|altogether|q\.?e\.?d)\b|答|因此|所以|综上|故|证毕|选|共"
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|equals?|has|have|can|cannot|will|need)\b|=|\d|[是为有选毕等得]"
)
_SIGNED = re.compile(r"(?i)\b(?:yours?|sincerely|regards|respect|love|cheers)\b")
_ENDS_OPEN = re.compile(
    r"(?<!正确)(?<!错误)(?<!正 确)[;；]$|(?<!\{\} )\+$|[,:(\[{=×÷<≤≥、，：（【《“‘「&\\]$"
    r"|(?<=[\w)] )[-*/−]$|\w-$|\\[a-zA-Z]*$"
)
_CODE_ENDS_OPEN = re.compile(r"[,:(\[{=\\&|]$|(?<!\{\} )\+$")
_LIST_ITEM = re.compile(r"^\s*(?:[-*•+]|\d{1,3}[.)、]|\(\w\)|[a-zA-Z][.)])\s")
_EMPTY_ITEM = re.compile(
    r"^\s*(?:[-*•]|\d{1,3}[.)、]|(?:\*\*)?(?:Step|步骤) ?\d+[:：.]?(?:\*\*)?)\s*$"
)
_HEADING = re.compile(r"^\s*#{1,6} [^\s()][^()]{0,80}$")
_EMPHASIS = re.compile(r"(?:^|\s)\*\*(?![\s*])(?:(?!\*\*).)*$")
_STOP = re.compile(r"[.!?。！？…∎□■][\"'”’」』)）\]*_]*$")
_ASKED = (
    (re.compile(r"\\boxed"), re.compile(r"\\(?:boxed|fbox)\b"), "\\boxed{…}"),
    (re.compile(r"####"), re.compile(r"####\s*\S"), "####"),
    (
        re.compile(r"[\"'“`]\**(?:Final )?Answer:"),
        re.compile(r"(?im)^\W*(?:the )?(?:final )?answer\b\W*\S"),
        "a line Answer:",
    ),
)
_TAIL = 4000  # characters behind which an ending is looked at


def length(reason: str | None, options: TruncationConfig) -> str | None:
    """The server said so."""
    return f"finish_reason={reason}" if reason in options.finish_reasons else None


def open_thought(response: str) -> str | None:
    """A thought is opened and not closed."""
    if not think.split(response).closed:
        return f"<think> is not closed; ends with {_end(response)}"
    return None


def answer(prompt: str, response: str) -> str | None:
    """Nothing follows the thought, or the form of answer the prompt asks for is not there."""
    reply = reply_of(response)
    if not reply.strip():
        return "no reply behind </think>" if think.tags(response) else "the response is empty"
    for asks, has, what in _ASKED:
        if asks.search(prompt) and not has.search(reply):
            return f"asked for {what}, the reply has none; ends with {_end(reply)}"
    return None


def fence(response: str) -> str | None:
    """A block of code is opened in the reply and not closed."""
    opened = None
    for found in re.finditer(r"(?m)^[ \t>]*(```+|~~~+)(.*)$", reply_of(response)):
        if opened is None:
            if "`" not in found[2]:
                opened = found
        elif found[1].startswith(opened[1]) and not found[2].strip():
            opened = None
    return f"{opened[0].strip()} is not closed" if opened else None


def formula(response: str) -> str | None:
    """A formula is opened in the last paragraph, the text ends in it and not in a full stop."""
    reply = _from_paragraph(reply_of(response))
    text = without_code(reply).rstrip()
    if not text or is_code(reply):
        return None
    start = unclosed(text)
    if start is None:
        return None
    rest = text[start:]
    # A line, or a sentence in words, that was ended behind the open delimiter is no cut.
    if rest.startswith(("$", "\\(")) and not rest.startswith("$$") and "\n" in rest:
        return None
    if _STOP.search(text) and reads_as_prose(rest):
        return None
    return f"formula not closed: {excerpt(text, max(start, len(text) - 60), len(text))}"


def ending(response: str, options: TruncationConfig) -> str | None:
    """The last line cannot be the last: a word, an operator, a list or a sentence to go on."""
    reply = reply_of(response).rstrip()
    tail = reply[-_TAIL:]
    if not tail or tail.endswith(("```", "~~~")) or re.search(r"https?://\S+$", tail):
        return None
    lines = tail.split("\n")
    last = lines[-1].strip()
    stop = bool(_STOP.search(last))
    code = is_code(reply)
    open_list = len(reply) < 100_000 and reply.lstrip()[:1] in "{[" and _depth(reply) > 0
    why = None
    if open_list and not stop:
        why = "a bracket is open"
    elif re.search(r"(?:^|\s)\"$", last) and last.count('"') % 2:
        why = "a quotation is open"
    elif (
        not stop
        and not (last.endswith(";") and SYMBOLS.search(last[:-1]))
        and (_CODE_ENDS_OPEN if code else _ENDS_OPEN).search(last)
    ):
        why = "the text must go on"
    elif not code:
        why = _line_open(lines, stop) or (None if stop else _sentence_open(tail, last, options))
    return f"{why}: {_end(reply)}" if why else None


def _line_open(lines: list[str], stop: bool) -> str | None:
    last = lines[-1].strip()
    if _EMPTY_ITEM.match(last):
        # A number with a full stop is an answer where nothing is numbered before it.
        if last[:1].isdigit() and not any(_LIST_ITEM.match(x) for x in lines[:-1]):
            return None
        return "an item without text"
    if (
        _HEADING.match(last)
        and len(lines) > 1
        and not lines[-2].strip()
        and not last.startswith("####")
    ):
        return "a heading without text"
    if last.startswith("|") and len(lines) > 2 and not last.endswith("|"):
        if lines[-2].strip().startswith("|") and lines[-2].rstrip().endswith("|"):
            return "a row of a table is open"
    if not stop and _EMPHASIS.search(last):
        return "emphasis is open"
    opened = last.rfind("(")
    if not stop and opened > last.rfind(")") and reads_as_prose(last[opened:]):
        return "a parenthesis is open"
    return None


def _sentence_open(tail: str, last: str, options: TruncationConfig) -> str | None:
    plain = last.rstrip("*_\"'”’ ")
    words = re.findall(r"[A-Za-z'’-]+|\d+", plain)
    if len(words) >= 3 and plain.endswith(words[-1]) and _goes_on(words[-1]):
        return "the last word must go on"
    if len(plain) >= 8 and _GO_ON_ZH.search(plain) and not _JUDGEMENT_ZH.search(plain):
        return "the last word must go on"
    if _CLAUSE.match(re.split(r"[.!?]\s", last)[-1]):
        return "a clause without what follows from it"
    if _LIST_ITEM.match(last) or last.startswith(("|", "#", ">")) or last.endswith(("$", "`")):
        return None
    # Prose whose other sentences end in full stops, and whose last does not, and is no verdict.
    sentence = re.split(r"[.!?](?=\s)|[。！？]", last)[-1]
    has_stops = len(sentence) < len(last) or bool(re.search(r"[.!?。！？][\"”)]?\s", tail))
    if not has_stops or (_VERDICT.search(sentence) and _VERB.search(sentence)):
        return None
    if _SIGNED.search(sentence) or "//" in sentence:
        return None
    if (
        re.search(r"(?:^|[ ,(])[a-z'’-]+$", sentence)
        and len(sentence.split()) >= options.prose_words
    ):
        return "a long sentence without its end"
    chinese = sum("\u3400" <= c <= "\u9fff" for c in sentence)
    if re.search("[\u3400-\u9fff]$", sentence) and chinese >= options.prose_characters:
        return "a long sentence without its end"
    return None


def _goes_on(word: str) -> bool:
    # A is an answer, and I a Roman number.
    return word.lower() in _GO_ON and (len(word) > 1 or word.islower())


def _from_paragraph(text: str) -> str:
    """The end of `text`, from an empty line on, so that no formula is entered in its middle."""
    if len(text) <= _TAIL:
        return text
    tail = text[-_TAIL:]
    return tail[tail.find("\n\n") + 1 :]


def _depth(text: str) -> int:
    """Brackets of JSON that are open at the end; those in strings do not count."""
    bare = re.sub(r'"(?:[^"\\\n]|\\.)*(?:"|$)', "", text)
    return sum(bare.count(c) for c in "{[") - sum(bare.count(c) for c in "}]")


def _end(text: str) -> str:
    return repr(" ".join(text[-200:].split())[-60:])
