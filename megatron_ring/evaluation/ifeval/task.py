"""IFEval as a task: prompts of its file, and a grade from its 25 rules.

The prompts come with google-research's instruction_following_eval (input_data.jsonl) and, with
null for every argument that an instruction has not, as google/IFEval on the hub.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.evaluation.ifeval.rules import RULES, follows, follows_loosely
from megatron_ring.evaluation.json_lines import given, read_lines
from megatron_ring.evaluation.task import Grade, Item
from megatron_ring.think import split

NEEDED = "ifeval wants the prompts of IFEval, input_data.jsonl of instruction_following_eval"


class IFEval:
    """An answer is right when every instruction of its prompt is followed to the letter."""

    name = "ifeval"
    title = "IFEval"
    samples = 1
    version = "1"  # of the rules; numbers of another version are not comparable

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def items(self) -> list[Item]:
        """One per prompt, in the file's order. ConfigError as read_lines, or unknown rules."""
        needs = ("key", "prompt", "instruction_id_list", "kwargs")
        rows = read_lines(given(self.path, self.name, NEEDED), needs, NEEDED)
        return [self._item(row) for row in rows]

    def grade(self, item: Item, text: str) -> Grade:
        """1 for all instructions followed; `detail` is JSON with what each one got.

        {"strict": [bool], "loose": [bool]}, in the order of the prompt's instructions. The thought
        is no part of the answer. Verdicts: right, wrong, no_answer.
        """
        answer = split(text).answer.strip()
        pairs = list(zip(item.gold["instructions"], item.gold["arguments"], strict=True))
        strict = [follows(answer, name, of) for name, of in pairs]
        loose = [follows_loosely(answer, name, of) for name, of in pairs]
        verdict = "right" if all(strict) else "wrong"
        return Grade(
            score=float(all(strict)),
            verdict=verdict if answer else "no_answer",
            extracted=answer,
            detail=json.dumps({"strict": strict, "loose": loose}),
        )

    def _item(self, row: dict[str, Any]) -> Item:
        where = f"{self.path} key {row['key']}"
        names, arguments = row["instruction_id_list"], []
        if len(names) != len(row["kwargs"]):
            raise ConfigError(
                f"{where}: {len(names)} instructions, {len(row['kwargs'])} kwargs; {NEEDED}"
            )
        for name, values in zip(names, row["kwargs"], strict=True):
            of = {key: value for key, value in (values or {}).items() if value is not None}
            if name not in RULES:
                raise ConfigError(
                    f"{where}: no rule for instruction {name}; known: {sorted(RULES)}"
                )
            missing = [key for key in RULES[name][1] if key not in of]
            if missing:
                raise ConfigError(f"{where}: {name} has no {', '.join(missing)}; {NEEDED}")
            arguments.append(of)
        return Item(
            id=str(row["key"]),
            messages=[{"role": "user", "content": row["prompt"]}],
            gold={"instructions": names, "arguments": arguments},
            facts={"instructions": len(names)},
        )


def accuracies(grades: Sequence[Grade]) -> dict[str, float]:
    """The four shares the paper reports, 0 to 1, of grades by IFEval.grade; {} for none.

    prompt_strict, prompt_loose: of prompts with all instructions followed. instruction_strict,
    instruction_loose: of instructions.
    """
    if not grades:
        return {}
    found = {}
    seen = [json.loads(grade.detail) for grade in grades]
    for kind in ("strict", "loose"):
        lists = [each[kind] for each in seen]
        found[f"prompt_{kind}"] = sum(map(all, lists)) / len(lists)
        found[f"instruction_{kind}"] = sum(map(sum, lists)) / sum(map(len, lists))
    return found
