"""Calls that a model's answer makes, or why none can be read.

An answer may hold calls as <tool_call>{"name": ..., "arguments": {...}}</tool_call> (how OpenAI's
tool_calls are written down, see as_text), as that JSON alone or in a list, as
{"name": {arguments}}, or as source text, [f(a=1), g(b="x")], bare or in a code block.
"""

import ast
import json
import operator
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ring.evaluation.bfcl.literals import cut
from megatron_ring.evaluation.ifeval import language as languages

TAGGED = re.compile(r"(?s)<tool_call>(.*?)(?:</tool_call>|\Z)")
FENCED = re.compile(r"(?s)```[\w+-]*\n?(.*?)```")
SOURCE_CALL = re.compile(r"(?s)([A-Za-z_$][\w.$]*)\s*\((.*)\)\s*;?")
NAME = re.compile(r"[A-Za-z_$][\w$.-]*")
CALCULATE = {  # no powers, which may be endless
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
MAX_SOURCE = 20_000  # characters; longer text is no list of calls, and the parser is slow on it


@dataclass(frozen=True)
class Source:
    """A value as it was written in Java or JavaScript, not yet read."""

    text: str


@dataclass(frozen=True)
class Call:
    """One call: positional arguments, which BFCL does not allow, are named 0, 1, ..."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Calls:
    """What an answer does. `kind`: calls, none (it says that or why it calls nothing), unreadable,
    silent (no answer at all)."""

    kind: str
    made: Sequence[Call] = ()
    fault: str = ""


def as_text(tool_calls: Sequence[Mapping[str, Any]]) -> str:
    """OpenAI's tool_calls as text for `read_calls`. Arguments that are no JSON stay as they are."""
    lines = []
    for call in tool_calls:
        given = call["function"]["arguments"]
        arguments = given if isinstance(given, str) else json.dumps(given)
        name = json.dumps(call["function"]["name"])
        lines.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(lines)


def read_calls(answer: str, language: str, offered: Sequence[str]) -> Calls:
    """Calls in `answer`, whose values are of `language` (python, java, javascript).

    An answer that looks like a call (a tag, an offered name with a bracket, JSON, a code block of
    calls) is calls or unreadable, never none. None must be prose in a language that is known, or
    an empty list: what is neither is unreadable as well.
    """
    text = answer.strip()
    if not text:
        return Calls("silent")
    tagged = [part.strip() for part in TAGGED.findall(text)]
    blocks = tagged or [part.strip() for part in FENCED.findall(text)] or [text]
    faults, found = [], []
    for block in blocks:
        try:
            found.append(_block(block, language))
        except ValueError as error:
            faults.append(str(error))
    called = [call for block in found for call in block]
    if tagged and faults:
        return Calls("unreadable", fault=faults[0])
    if called and (tagged or not faults):
        return Calls("calls", called)
    if not faults:
        return Calls("none")
    if _looks_like_call(text, offered) or called or not is_prose(text):
        return Calls("unreadable", fault=faults[0])
    return Calls("none")


def is_prose(text: str) -> bool:
    """Words of a language, not noise: a refusal can be told from babble only roughly.

    Half of the signs are letters. Then one word in eight is a small word of the language that fits
    best, of two letters or more, and two of these differ (of up to six words: one in four, and one
    is enough); no word is a quarter of all. Of scripts without such words: ten letters, six of them
    different. A word or two are never prose.
    """
    signs = [sign for sign in text if not sign.isspace()]
    letters = [sign for sign in signs if unicodedata.category(sign)[0] in "LM"]
    if len(letters) < 0.5 * len(signs) or len(letters) < 10:
        return False
    known = languages.detect(text)
    if known is None:
        return False
    if known in languages.SCRIPTS.values():
        own = [sign for sign in letters if languages.SCRIPTS.get(languages.script_of(sign) or "")]
        varied = len(set(own)) >= 6 and len(set(own)) > len(own) / 20
        return varied and len(own) > 0.6 * len(letters)
    words = languages.words_of(text)
    small = next(lists[known] for lists in languages.LISTS.values() if known in lists)
    hits = [word for word in words if word in small and len(word) > 1]
    if len(words) <= 6:
        return len(words) > 2 and len(hits) * 4 >= len(words) and len(set(words)) > 2
    commonest = max(Counter(words).values())
    return len(set(hits)) > 1 and len(hits) * 8 >= len(words) and commonest * 4 <= len(words) + 4


def _looks_like_call(text: str, offered: Sequence[str]) -> bool:
    # A value must stand in the brackets: prose may speak of a function as f() or f(x).
    names = {form for name in offered for form in (name, name.replace(".", "_"))}
    begun = any(re.search(re.escape(name) + r"\s*\([^()]*[=\d\"']", text) for name in names)
    keyed = any(re.search(rf'"{re.escape(name)}"\s*[:,}}]', text) for name in names)
    return begun or keyed or text[0] in "[{" or "<tool_call>" in text or "tool_calls" in text


def _block(block: str, language: str) -> list[Call]:
    """Calls of JSON or source text; ValueError with what is wrong."""
    if len(block) > MAX_SOURCE:
        raise ValueError(f"{len(block)} characters; at most {MAX_SOURCE} are read as calls")
    try:
        try:
            plain = json.loads(block)
        except json.JSONDecodeError:
            return _python(block) if language == "python" else _foreign(block)
        return _of_json(plain)
    except (RecursionError, MemoryError):
        raise ValueError("nested too deeply") from None


def _of_json(plain: Any) -> list[Call]:
    if isinstance(plain, dict) and isinstance(plain.get("tool_calls"), list):
        plain = plain["tool_calls"]
    listed = plain if isinstance(plain, list) else [plain]
    return [call for each in listed for call in _one_of_json(each)]


def _one_of_json(each: Any) -> list[Call]:
    if isinstance(each, dict) and isinstance(each.get("function"), dict):
        each = each["function"]
    if not isinstance(each, dict) or not each:
        raise ValueError(f"no call: {json.dumps(each)[:80]}")
    if isinstance(each.get("name"), str):
        key = "arguments" if "arguments" in each else "parameters"
        given = each.get(key, {})
        given = json.loads(given) if isinstance(given, str) else given
        if not isinstance(given, dict):
            raise ValueError(f"{each['name']}: {key} is no object")
        return [Call(each["name"], given)]
    if all(isinstance(given, dict) and NAME.fullmatch(name) for name, given in each.items()):
        return [Call(name, given) for name, given in each.items()]
    raise ValueError(f"no call: {json.dumps(each)[:80]}")


def _python(block: str) -> list[Call]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in the model's strings
            body = ast.parse(block).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"no Python: {error}") from None
    calls = []
    for statement in body:
        if not isinstance(statement, ast.Expr):
            raise ValueError(f"no call: {ast.unparse(statement)[:80]}")
        value = statement.value
        listed = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
        calls += [_python_call(each) for each in listed]
    return calls


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or any(each.arg is None for each in node.keywords):
        raise ValueError(f"no call: {ast.unparse(node)[:80]}")
    given = {str(place): _python_value(each) for place, each in enumerate(node.args)}
    given |= {each.arg: _python_value(each.value) for each in node.keywords if each.arg}
    return Call(ast.unparse(node.func), given)


def _python_value(node: ast.expr) -> Any:
    """Literals as values, 1/2 as a number, names and the rest as their text."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        pass
    if isinstance(node, ast.List):
        return [_python_value(each) for each in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_python_value(each) for each in node.elts)
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        values = map(_python_value, node.values)
        return {key.value: value for key, value in zip(node.keys, values, strict=True)}
    if isinstance(node, ast.BinOp):
        return _calculated(node)
    return ast.unparse(node)


def _calculated(node: ast.BinOp) -> Any:
    left, right = _python_value(node.left), _python_value(node.right)
    calculate = CALCULATE.get(type(node.op))
    if calculate and all(type(each) in (int, float) for each in (left, right)):
        try:
            return calculate(left, right)
        except ArithmeticError:
            pass
    return ast.unparse(node)


def _foreign(block: str) -> list[Call]:
    """Calls of Java or JavaScript: name(parameter=value, ...), values kept as they are written."""
    inner = block[1:-1] if block[:1] == "[" and block[-1:] == "]" else block
    calls = []
    for text in cut(inner.replace(";\n", ",\n").rstrip(";"), ","):
        found = SOURCE_CALL.fullmatch(text)
        if found is None:
            raise ValueError(f"no call: {text[:80]}")
        calls.append(Call(found[1], _foreign_values(found[2])))
    return calls


def _foreign_values(text: str) -> dict[str, Any]:
    """Values by name. A part without one goes on with the last: new HashMap<String, Object>()."""
    given: dict[str, str] = {}
    key = ""
    for place, part in enumerate(cut(text, ",")):
        named = re.fullmatch(r"(?s)([A-Za-z_$][\w$]*)\s*[=:](?![=:])(.*)", part)
        if named:
            key, given[named[1]] = named[1], named[2].strip()
        elif key:
            given[key] += f", {part}"
        else:
            given[str(place)] = part
    return {key: Source(value) for key, value in given.items()}
