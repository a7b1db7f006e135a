"""References to figures that are not in the text.

A figure is missing where the text embeds an image, or speaks of one as seen: "in the diagram",
"as shown below", "如图". It is not where one is to be made ("draw a diagram"), imagined, or where
the word means something else: figure out, the figure 42, the image of a map, 函数图像, 图书馆.
"""

import re

from megatron_ring.config.curation.purify import FiguresConfig
from megatron_ring.curation.purify.text import draws, excerpt, without_code

_IMAGE = re.compile(
    r"!\[[^\]\n]{0,120}\]\(|<img\b[^>\n]{0,120}|\\includegraphics\b|<image\d*>"
    r"|\[(?:image|img|figure|picture)(?:\s?:[^\]\n]{1,200})?\](?!\()|data:image/\w+",
    re.IGNORECASE,
)
_DRAWN = re.compile(r"\[asy\][^\n]*|<asy>|\\begin\{(?:asy|tikzpicture|pspicture|circuitikz)\}")

# What can be seen, and where. A graph or an image is also a thing of mathematics, so they need
# more words around them than a diagram does.
_SEEN = r"(?:figures?|diagrams?|pictures?|illustrations?|drawings?|screenshots?|photo(?:graph)?s?)"
_DRAWING = r"(?:figures?|diagrams?|illustrations?|screenshots?)"
_CHART = r"(?:(?:bar|pie|line|flow)[ -]?(?:charts?|graphs?)|charts?|scatter ?plots?|histograms?)"
_ANY = rf"(?:{_SEEN}|{_CHART}|graphs?|plots?|images?|maps?|sketch(?:es)?|circuits?)"
_NEAR = r"(?:attached|accompanying|adjoining|adjacent|following|given|provided|enclosed)"
_SHOWN = r"(?:shown|pictured|depicted|displayed|drawn|illustrated)"
_DISPLAYED = _SHOWN.replace("|drawn", "")  # balls are drawn, too
_WHERE = r"(?:above|below|here|(?:(?:to|on|at) the|at) (?:right|left)|opposite)"
_SHAPE = (
    r"(?:triangles?|squares?|rectangles?|circles?|polygons?|regions?|circuits?|quadrilaterals?"
    r"|solids?|angles?|trapezoids?|grids?|pyramids?|maps?|spinners?|shapes?)"
)
_NOT_SEEN = r"(?! of (?:speech|merit|the (?:map|function|homomorphism|morphism))| chase)"
_ENGLISH = "|".join(
    [
        rf"\b(?:in|from|on|see|per|by|use|using) (?:the|this|these|our) {_NEAR} {_ANY}\b"
        rf"{_NOT_SEEN}",
        rf"\b(?:in|from|on|see|per|use|using) (?:the|this|our) (?:{_DRAWING}|{_CHART})\b"
        rf"{_NOT_SEEN}",
        r"\b(?:in|from|see) (?:the|this) picture\b(?! of)",
        rf"\b(?:the|this|these|those|which|of) (?:(?!big)\w+ )?{_ANY} (?:is |are |as )?"
        rf"(?:{_SHOWN} )?{_WHERE}\b",
        rf"\b(?:the|this|each|a) (?:\w+ )?{_ANY}\b[^.?!\n]{{0,80}} (?:is|are) {_DISPLAYED}"
        rf"(?: {_WHERE}| in\b|[.,;])",
        rf"\b(?:the|this) (?:\w+ )?{_ANY} {_SHOWN}\b",
        rf"\b(?:the|this|these) (?:{_NEAR} )?(?:{_SEEN}|{_CHART}|graph|image|plot)"
        r" (?:shows?|depicts?)\b",
        rf"\b(?:the|this|an?) (?:attached|accompanying|adjoining|enclosed) {_ANY}",
        r"\b(?:the|this) following (?:figure|diagram|picture|image|graph|chart|map)(?!s| chase)\b",
        rf"\b(?:looking|look) at (?:the|this) (?:{_ANY})\b{_NOT_SEEN}",
        rf"\b(?:according|refer|referring) to (?:the|this) (?:{_ANY})\b{_NOT_SEEN}",
        rf"\b(?<!Pascal's ){_SHAPE} (?:is )?(?:pictured|shown)(?: {_WHERE})?"
        r"(?=[.,;?\n]| has| have| is)",
        rf"\bas {_SHOWN} in (?:the )?{_ANY}",
        r"\bnot (?:drawn )?to scale\b",
        rf"\b(?:cannot|can't|can not|don't|unable to) see (?:the|any|this|your) {_ANY}\b",
        rf"\b(?:no|the) {_ANY} (?:was|is|were|isn't|wasn't) (?:not )?(?:provided|attached|given)",
    ]
)
_NUMBERED = r"\b(?:Figures?|FIGURE|[Ff]igs?\.|Diagram) ?\(?\d{1,3}(?:\.\d+)?[a-z]?\b"

_NOT_ZH = "(?!书|形|像|案|纸|灵|论|谋|例|腾|标|解|们|新)"
_CHINESE = "|".join(
    [
        rf"(?<![例比])如(?:下|上|右|左|附|题)?图{_NOT_ZH}",
        rf"(?<![以])(?:[下上右左附]|下面的|上面的|题)图{_NOT_ZH}",
        r"(?<![地企试画作构导草视拼插挂蓝以此该])图 ?[（(]?(?:\d{1,2}(?! ?[个条种张幅])"
        r"|[甲乙丙丁])[)）]?",
        rf"(?<![地意草向视导构])图中{_NOT_ZH}",
        r"由图(?:可知|可得|可见|可以|示|象可)",
        r"(?:这是|下面是|为|如)[^。，\n]{0,24}示意图",
        r"(?:下面|上面|以下|上述|下列|所给|给出)的?(?:图片|图表|示意图|照片)",
        r"(?:没有|未|并未)(?:提供|给出|附上?)[^。，\n]{0,6}图",
        r"(?:看不到|看不见|无法看到|无法查看)[^。，\n]{0,6}图",
        rf"[见据]附?图{_NOT_ZH}|(?:观察|根据|读)图{_NOT_ZH}",
        r"图片中|图示(?:的|中|为)",
    ]
)
_REFERENCE = re.compile(f"(?i:{_ENGLISH})|{_NUMBERED}|{_CHINESE}")
# A first look that is much cheaper than the pattern itself.
_HINT = re.compile(
    r"(?i)figure|fig\.|figs\.|diagram|picture|illustrat|drawing|screenshot|photo|chart|plot|graph"
    r"|image|map|sketch|histogram|shown|to scale|circuit|图"
)
_GRAPH_THEORY = re.compile(r"顶点|有向图|无向图|图论|最短路|邻接|连通图|二分图")
# A chart may be a table, and a table is text.
_TABLE = re.compile(r"\\begin\{(?:tabular|array)|^[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)+", re.MULTILINE)
_OF_TABLE = re.compile(r"(?i)chart|图表")
_ZH_IN_GRAPH = re.compile("图中")


def image(prompt: str, response: str, options: FiguresConfig) -> str | None:
    """An image is embedded: Markdown, HTML, \\includegraphics, a placeholder."""
    for text in (prompt, response):
        found = _IMAGE.search(without_code(text)) if "[" in text or "<" in text else None
        found = found or (_IMAGE.search(without_code(text)) if "\\includegr" in text else None)
        if found:
            return excerpt(text, *found.span())
    return None


def drawn(prompt: str, response: str, options: FiguresConfig) -> str | None:
    """A figure is drawn in the text: Asymptote or TikZ, outside code blocks."""
    texts = {"keep": [], "response": [response], "both": [prompt, response]}[options.drawn]
    for text in texts:
        found = _DRAWN.search(without_code(text)) if "asy" in text or "\\begin{" in text else None
        if found:
            return excerpt(text, *found.span())
    return None


def make_reference(options: FiguresConfig) -> re.Pattern[str]:
    """The pattern of references, with the user's own."""
    return re.compile("|".join([_REFERENCE.pattern, *options.patterns]))


def reference(prompt: str, response: str, pattern: re.Pattern[str], own: bool) -> str | None:
    """The text speaks of a figure as seen, and none stands in it.

    `own`: the pattern has the user's parts, which the cheap first look does not know.
    """
    if not own and not _HINT.search(prompt) and not _HINT.search(response):
        return None
    if draws(prompt) or draws(response):
        return None
    has_table = _TABLE.search(prompt) or _TABLE.search(response)
    in_graph = _GRAPH_THEORY.search(prompt) or _GRAPH_THEORY.search(response)
    for text in (prompt, response):
        plain = without_code(text)
        for found in pattern.finditer(plain):
            if has_table and _OF_TABLE.search(found[0]):
                continue
            if in_graph and _ZH_IN_GRAPH.fullmatch(found[0]):
                continue
            return excerpt(text, max(found.start() - 20, 0), found.end() + 20)
    return None
