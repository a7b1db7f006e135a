"""IFEval's 25 instructions: does a text follow one?

The rules are those of the paper (Zhou et al. 2023, arXiv 2311.07911, table 1) as the published
checkers understand them (google-research, instruction_following_eval), written anew. Keywords are
plain text here and patterns there; in the published prompts this is the same.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from megatron_ring.evaluation.ifeval import counting, language

Check = Callable[[str, Mapping[str, Any]], bool]

CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# These find as many as the published patterns, in time linear in a text: models do get stuck.
PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]")
BULLET = re.compile(r"^[^\S\n]*(?:\*[^*\n]|-)", re.MULTILINE)
THIN = re.compile(r"\*([^\n*]*)\*")
BOLD = re.compile(r"\*\*([^\n*]*)\*\*")
DIVIDER = re.compile(r"\s?\*\*\*\s?")
FENCES = ("```json", "```Json", "```JSON", "```")


def compares(number: int, relation: str, wanted: int) -> bool:
    """`relation` is "at least" or "less than"; ValueError when it is neither."""
    if relation == "at least":
        return number >= wanted
    if relation == "less than":
        return number < wanted
    raise ValueError(f"relation {relation!r} is neither 'at least' nor 'less than'")


def has_keywords(text: str, of: Mapping[str, Any]) -> bool:
    return all(word.lower() in text.lower() for word in of["keywords"])


def has_keyword_often(text: str, of: Mapping[str, Any]) -> bool:
    number = text.lower().count(of["keyword"].strip().lower())
    return compares(number, of["relation"], of["frequency"])


def lacks_words(text: str, of: Mapping[str, Any]) -> bool:
    words = "|".join(re.escape(word) for word in of["forbidden_words"])
    return re.search(rf"\b(?:{words})\b", text, re.IGNORECASE) is None


def has_letter_often(text: str, of: Mapping[str, Any]) -> bool:
    number = text.lower().count(of["letter"].lower())
    return compares(number, of["let_relation"], of["let_frequency"])


def is_in_language(text: str, of: Mapping[str, Any]) -> bool:
    return language.detect(text) == of["language"]


def has_sentences(text: str, of: Mapping[str, Any]) -> bool:
    return compares(counting.count_sentences(text), of["relation"], of["num_sentences"])


def has_words(text: str, of: Mapping[str, Any]) -> bool:
    return compares(counting.count_words(text), of["relation"], of["num_words"])


def has_paragraphs(text: str, of: Mapping[str, Any]) -> bool:
    """Paragraphs lie between *** marks; an empty one counts only as a fault, unless outermost."""
    parts = [part.strip() for part in DIVIDER.split(text)]
    if not all(parts[1:-1]):
        return False
    return sum(map(bool, parts)) == of["num_paragraphs"]


def has_first_word(text: str, of: Mapping[str, Any]) -> bool:
    """So many paragraphs between blank lines, and the n-th begins with the word."""
    parts = text.split("\n\n")
    number, nth = sum(bool(part.strip()) for part in parts), of["nth_paragraph"]
    if nth > number or not parts[nth - 1].strip():
        return False
    first = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    word = re.match(r"[^.,?!'\"]*", first)
    return number == of["num_paragraphs"] and word.group().lower() == of["first_word"].lower()


def has_placeholders(text: str, of: Mapping[str, Any]) -> bool:
    return len(PLACEHOLDER.findall(text)) >= of["num_placeholders"]


def has_postscript(text: str, of: Mapping[str, Any]) -> bool:
    """The marker occurs, in any case; P.S. and P.P.S may be written with a space in them."""
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = of["postscript_marker"].strip()
    return re.search(patterns.get(marker, re.escape(marker.lower())), text.lower()) is not None


def has_bullets(text: str, of: Mapping[str, Any]) -> bool:
    return len(BULLET.findall(text)) == of["num_bullets"]


def is_a_choice(text: str, of: Mapping[str, Any]) -> bool:
    return any(choice in text for choice in CHOICES)


def has_highlights(text: str, of: Mapping[str, Any]) -> bool:
    """*marked* and **marked** parts that are not blank."""
    found = THIN.findall(text) + BOLD.findall(text)
    return sum(bool(part.strip()) for part in found) >= of["num_highlights"]


def has_sections(text: str, of: Mapping[str, Any]) -> bool:
    """The splitter and a number, so many times: Section 1."""
    found = re.findall(re.escape(of["section_spliter"].strip()) + r"\s?\d", text)
    return len(found) >= of["num_sections"]


def is_json(text: str, of: Mapping[str, Any]) -> bool:
    bare = text.strip()
    for fence in FENCES:
        bare = bare.removeprefix(fence)
    try:
        json.loads(bare.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text: str, of: Mapping[str, Any]) -> bool:
    """<<Title>> on one line, not blank."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def is_two_responses(text: str, of: Mapping[str, Any]) -> bool:
    """Two texts with ****** between them, not the same; marks around both are allowed."""
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def repeats_prompt(text: str, of: Mapping[str, Any]) -> bool:
    return text.strip().lower().startswith(of["prompt_to_repeat"].strip().lower())


def ends_with(text: str, of: Mapping[str, Any]) -> bool:
    return text.strip().strip('"').lower().endswith(of["end_phrase"].strip().lower())


def has_capital_words(text: str, of: Mapping[str, Any]) -> bool:
    number = counting.count_capital_words(text)
    return compares(number, of["capital_relation"], of["capital_frequency"])


def is_english_in_capitals(text: str, of: Mapping[str, Any]) -> bool:
    return text.isupper() and language.may_be_english(text)


def is_english_in_small_letters(text: str, of: Mapping[str, Any]) -> bool:
    return text.islower() and language.may_be_english(text)


def lacks_commas(text: str, of: Mapping[str, Any]) -> bool:
    return "," not in text


def is_quoted(text: str, of: Mapping[str, Any]) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


# Instruction, its rule, and the arguments it needs.
RULES: dict[str, tuple[Check, tuple[str, ...]]] = {
    "keywords:existence": (has_keywords, ("keywords",)),
    "keywords:frequency": (has_keyword_often, ("keyword", "relation", "frequency")),
    "keywords:forbidden_words": (lacks_words, ("forbidden_words",)),
    "keywords:letter_frequency": (has_letter_often, ("letter", "let_relation", "let_frequency")),
    "language:response_language": (is_in_language, ("language",)),
    "length_constraints:number_sentences": (has_sentences, ("relation", "num_sentences")),
    "length_constraints:number_paragraphs": (has_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_words": (has_words, ("relation", "num_words")),
    "length_constraints:nth_paragraph_first_word": (
        has_first_word,
        ("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "detectable_content:number_placeholders": (has_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (has_postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": (has_bullets, ("num_bullets",)),
    "detectable_format:constrained_response": (is_a_choice, ()),
    "detectable_format:number_highlighted_sections": (has_highlights, ("num_highlights",)),
    "detectable_format:multiple_sections": (has_sections, ("section_spliter", "num_sections")),
    "detectable_format:json_format": (is_json, ()),
    "detectable_format:title": (has_title, ()),
    "combination:two_responses": (is_two_responses, ()),
    "combination:repeat_prompt": (repeats_prompt, ("prompt_to_repeat",)),
    "startend:end_checker": (ends_with, ("end_phrase",)),
    "startend:quotation": (is_quoted, ()),
    "change_case:capital_word_frequency": (
        has_capital_words,
        ("capital_relation", "capital_frequency"),
    ),
    "change_case:english_capital": (is_english_in_capitals, ()),
    "change_case:english_lowercase": (is_english_in_small_letters, ()),
    "punctuation:no_comma": (lacks_commas, ()),
}


def follows(text: str, instruction: str, of: Mapping[str, Any]) -> bool:
    """Is `instruction` followed to the letter? `of` are its arguments. Nothing follows nothing."""
    return bool(text.strip()) and RULES[instruction][0](text, of)


def variants(text: str) -> list[str]:
    """What the loose rule tries: without the first line, the last, both; each without its *."""
    lines = text.split("\n")
    cuts = [lines[1:], lines[:-1], lines[1:-1]]
    texts = [text, *("\n".join(cut).strip() for cut in cuts)]
    return [*texts, *(each.replace("*", "") for each in texts)]


def follows_loosely(text: str, instruction: str, of: Mapping[str, Any]) -> bool:
    """Does the text or a variant of it follow? An intro, an outro or bold marks are forgiven."""
    return any(follows(variant, instruction, of) for variant in variants(text))
