"""IFEval as a task: prompts of its file, and a grade from its 25 rules.

The prompts come with google-research's instruction_following_eval (input_data.jsonl) and, with
null for every argument that an instruction has not, as google/IFEval on the hub.
"""

import json
from typing import ClassVar

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.evaluation.data import Hub, Row, Source, rows
from megatron_ring.evaluation.ifeval.rules import RULES, follows, follows_loosely
from megatron_ring.evaluation.task import Average, Grade, Item
from megatron_ring.think import split

SOURCE = Source(
    Hub("google/IFEval", "train"),
    needs=("key", "prompt", "instruction_id_list", "kwargs"),
)


class IFEval:
    """An answer is right when every instruction of its prompt is followed to the letter."""

    name = "ifeval"
    title = "IFEval"
    samples = 1
    version = "1"  # of the rules; numbers of another version are not comparable
    # The official numbers: of prompts with all instructions followed, and of instructions.
    averages: ClassVar[dict[str, Average]] = {
        f"instruction_{kind}": Average(part=f"instruction_{kind}", weight="instructions")
        for kind in ("strict", "loose")
    }

    def __init__(self, options: TaskConfig) -> None:
        self.options = options

    def items(self) -> list[Item]:
        """One per prompt, in the file's order. ConfigError as data.rows, or unknown rules."""
        return [self._item(row) for _, row in rows(self.name, self.options, SOURCE)]

    def grade(self, item: Item, text: str) -> Grade:
        """1 for all instructions followed; `detail` is JSON with what each one got.

        {"strict": [bool], "loose": [bool]}, in the order of the prompt's instructions; `parts` are
        the shares of these. The thought is no part of the answer. Verdicts: right, wrong,
        no_answer.
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
            parts={
                "prompt_strict": float(all(strict)),
                "prompt_loose": float(all(loose)),
                "instruction_strict": sum(strict) / len(strict),
                "instruction_loose": sum(loose) / len(loose),
            },
        )

    def _item(self, row: Row) -> Item:
        where = f"tasks.ifeval: key {row['key']}"
        names, arguments = row["instruction_id_list"], []
        if not names or len(names) != len(row["kwargs"]):
            raise ConfigError(f"{where}: {len(names)} instructions, {len(row['kwargs'])} kwargs")
        for name, values in zip(names, row["kwargs"], strict=True):
            of = {key: value for key, value in (values or {}).items() if value is not None}
            if name not in RULES:
                raise ConfigError(
                    f"{where}: no rule for instruction {name}; known: {sorted(RULES)}"
                )
            missing = [key for key in RULES[name][1] if key not in of]
            if missing:
                raise ConfigError(f"{where}: {name} has no {', '.join(missing)}")
            arguments.append(of)
        return Item(
            id=str(row["key"]),
            messages=[{"role": "user", "content": row["prompt"]}],
            gold={"instructions": names, "arguments": arguments},
            facts={"instructions": len(names)},
        )
