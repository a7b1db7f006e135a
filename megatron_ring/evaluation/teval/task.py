"""T-Eval as a task: prompts of its English files, and a grade from its rules.

Format and rules are those of open-compass/T-Eval, commit 58f2240 (teval/evaluators, and
teval/utils/convert_results.py for the overall score). What differs:
- An empty answer, or an empty thought in one, is worth 0; T-Eval embeds the empty text.
- Nothing is cut at marks of chat templates, which an endpoint does not send.
- Shares of right arguments are exact, where T-Eval adds 1e-5 to what it divides by.
- The role `function` is told as `user`, and turns of one role are one, as T-Eval does for models
  without that role.
"""

import json
import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.evaluation.data import Source, files
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Average, Grade, Item
from megatron_ring.evaluation.teval import planning
from megatron_ring.evaluation.teval.grading import Grader
from megatron_ring.evaluation.teval.reading import bare, value
from megatron_ring.evaluation.teval.similarity import Embedder
from megatron_ring.think import split

BOTH = "reason_retrieve_understand_json"  # T-Eval's file of three abilities at once
FILES = (
    "instruct",
    "plan_json",
    "plan_str",
    BOTH,
    "reason_str",
    "retrieve_str",
    "review_str",
    "understand_str",
)
NAMED = re.compile(rf"(?:^|/)({'|'.join(FILES)})(?:_v\d+)?(?:_subset)?\.json$")
SOURCE = Source(
    inside=NAMED.pattern,
    advice="the folder or .zip of T-Eval's data (data of lovesnowbest/T-Eval on the hub), with "
    f"{', '.join(f'{name}_v2.json' for name in FILES)}, or each _v2_subset.json",
)
# Names that a template gives to the keys of an object, or to the marks in a text.
MARKS = {
    "json": ("thought", "action", "args"),
    "str": [f"{what}_{end}" for what in ("thought", "action", "args") for end in ("start", "end")],
}
LEFT_OUT = ("plan_json", "plan_str", "reason_str")  # where there are no embeddings
# T-Eval's score: of abilities alike, each half in JSON and half in words; review is in words alone.
# An item of BOTH is worth the mean of its abilities.
SHARES = dict.fromkeys(("instruct_json", "instruct_str", *FILES[1:]), 1.0)
SHARES |= {BOTH: 3.0, "review_str": 2.0}


class TEval:
    """As megatron_ring.evaluation.task.Task.

    Without grading.embeddings, plan and reason are asked all the same and not graded: they are no
    part of the score, which is the mean of the other four abilities, and the title says so.
    """

    name = "teval"
    samples = 1
    version = "1"

    def __init__(self, options: TaskConfig, means: Means) -> None:
        self.options = options
        model = means.options.embeddings
        self.embedder = Embedder(model) if model else None
        self.title = "T-Eval" if model else "T-Eval without plan and reason"
        self.grader = Grader(self.embedder.cosines if self.embedder else None)
        self.averages = averages(whole=bool(model))

    def items(self) -> list[Item]:
        """All items, file by file. ConfigError for files that are not there, or other ones."""
        if self.embedder:
            self.embedder.load()
        told = f"tasks.teval.file={self.options.file}"
        found: dict[str, str] = {}
        items = []
        for path, content in files(self.name, self.options, SOURCE):
            named = NAMED.search(path)
            if named is None:
                raise ConfigError(f"{told}: {path} is one file; wanted is {SOURCE.advice}")
            if named[1] in found:
                raise ConfigError(
                    f"{told}: {found[named[1]]} and {path} are both {named[1]}; leave one"
                )
            found[named[1]] = path
            items += self._of(path, named[1], content)
        if missing := [name for name in FILES if name not in found]:
            raise ConfigError(f"{told}: no file of {', '.join(missing)}; wanted is {SOURCE.advice}")
        return items

    def grade(self, item: Item, text: str) -> Grade:
        """What an answer is worth, from 0 to 1. The thought is no part of it.

        `parts` has a number for each ability that the item is of, and `readable`. Verdicts: right
        (1), partly, wrong (0), unreadable (not in the form that was asked for), no_answer, and
        not_graded for plan and reason where there are no embeddings.
        """
        kind = item.facts["kind"]
        if self.embedder is None and kind in LEFT_OUT:
            told = "needs grading.embeddings; no part of the score"
            return Grade(score=0.0, verdict="not_graded", detail=told)
        answer = bare(split(text).answer)
        found = self.grader.graded(kind, item.gold, answer)
        score = found.score
        verdict = "right" if score > 1 - 1e-6 else "partly" if score > 0 else "wrong"
        if not found.readable:
            verdict = "unreadable" if answer else "no_answer"
        return Grade(
            score=min(score, 1.0),
            verdict=verdict,
            extracted=answer,
            detail=found.detail,
            parts={**found.parts, "readable": float(found.readable)},
        )

    def _of(self, path: str, name: str, content: bytes) -> list[Item]:
        told = f"tasks.teval.file={self.options.file}: {path}"
        try:
            rows = json.loads(content)
        except ValueError as error:
            raise ConfigError(f"{told} cannot be read: {error}") from None
        if not isinstance(rows, dict):
            raise ConfigError(f"{told}: an object of rows is wanted; is it T-Eval's?")
        items = []
        for key, row in rows.items():
            try:
                items.append(item_of(name, key, row))
            except (KeyError, TypeError, ValueError) as error:
                what = f"no {error}" if isinstance(error, KeyError) else error
                raise ConfigError(f"{told}: {key}: {what}; is it T-Eval's?") from None
        return items


def averages(whole: bool) -> dict[str, Average]:
    """T-Eval's numbers; not `whole`: without plan and reason."""
    shares = {kind: share for kind, share in SHARES.items() if whole or kind not in LEFT_OUT}
    if not whole:
        shares[BOTH] = 2.0
    found = {"score": Average(fact="kind", groups=[([one], n) for one, n in shares.items()])}
    for part in ("instruct", "instruct_format", "instruct_args", "plan"):
        ability = part.partition("_")[0]
        halves = [([f"{ability}_{form}"], 0.5) for form in ("json", "str")]
        found[part] = Average(part=part, fact="kind", groups=halves)
    for part in ("reason", "retrieve", "understand"):
        halves = [([f"{part}_str"], 0.5), ([BOTH], 0.5)]
        found[part] = Average(part=part, fact="kind", groups=halves)
        found[f"{part}_json"] = Average(part=part, fact="kind", groups=[([BOTH], 1.0)])
    return found


def item_of(name: str, key: str, row: Mapping[str, Any]) -> Item:
    """A row of the file `name`. KeyError, TypeError or ValueError where it is another's."""
    truth, kind = row["ground_truth"], name
    if name == "instruct":
        form = {"json": "json", "string": "str"}[row["meta_data"]["response_format"]]
        kind = f"instruct_{form}"
        template = {mark: row["template"][mark] for mark in MARKS[form]}
        gold = {"template": template, "call": {key: truth[key] for key in ("action", "args")}}
    elif name.startswith("plan"):
        steps = [vars(step) for step in planning.steps_in_json(truth)]
        gold = {"steps": steps, "functions": list(row["meta"]["API_list"])}
    elif name == "review_str":
        gold = {"outcome": truth["answer"]}
    else:
        gold = {"call": call_of(truth, as_text=name != BOTH)}
    return Item(
        id=f"{name}/{key}",
        messages=turns(row["origin_prompt"]),
        gold=gold,
        facts={"kind": kind},
    )


def call_of(truth: Any, as_text: bool) -> dict[str, Any] | None:
    """Thought, name and arguments of a ground truth; what is not there is empty.

    None where it cannot be read: all answers are worth 0 then, as in T-Eval.
    """
    try:
        found = value(truth, "{", "}")
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    arguments = found.get("args", "" if as_text else {})
    if as_text:
        arguments = str(arguments)
    elif not isinstance(arguments, dict):
        arguments = {}
    texts = {part: str(found.get(part, "")) for part in ("thought", "name")}
    return {**texts, "args": arguments}


def turns(prompt: Any) -> list[dict[str, str]]:
    """Chat turns of a prompt, which some files have as JSON."""
    given = json.loads(prompt) if isinstance(prompt, str) else prompt
    told = [("user" if t["role"] == "function" else t["role"], t["content"]) for t in given]
    return [
        {"role": role, "content": "\n".join(content for _, content in some)}
        for role, some in groupby(told, key=lambda turn: turn[0])
    ]
