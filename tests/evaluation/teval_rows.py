"""Rows in the form of T-Eval's files, made by hand, and a model of embeddings that counts words."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "teval"
ASKED = [{"role": "user", "content": "?"}]
CALL = {"thought": "I look for flats", "name": "Flats.find", "args": {"place": "Ulm", "rooms": 2}}
MARKS = {
    "thought_start": "goal:",
    "thought_end": "\n",
    "action_start": "name:",
    "action_end": "\n",
    "args_start": "args:",
    "args_end": "",
}
KEYS = {"thought": "goal", "action": "name", "args": "args"}
PLAN = [("Flats.find", {"place": "Ulm"}), ("Flats.price", {"id": 1}), ("Mail.send", {"to": "me"})]


def cosines(ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """Of texts as counts of their words; (ours, theirs)."""
    texts = [re.findall(r"\w+", text) or [text] for text in (*ours, *theirs)]
    words = {word: place for place, word in enumerate({word for text in texts for word in text})}
    rows = np.zeros((len(texts), len(words)))
    for row, text in zip(rows, texts, strict=True):
        for word in text:
            row[words[word]] += 1
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows[: len(ours)] @ rows[len(ours) :].T


def plan(*steps: tuple[str, dict[str, Any]], finish: bool = True) -> list[dict[str, Any]]:
    """As ground truths and answers in JSON have it."""
    ends = [("FinishAction", {})] if finish else []
    return [
        {"id": number, "name": name, "args": str(arguments)}
        for number, (name, arguments) in enumerate([*steps, *ends])
    ]


def instruct(form: str, number: int = 1) -> dict[str, Any]:
    """Rows of instruct.json."""
    call = {"action": CALL["name"], "args": CALL["args"]}
    row = {"origin_prompt": ASKED, "ground_truth": call, "meta_data": {"response_format": form}}
    template = KEYS if form == "json" else MARKS
    return {f"{form}{n}": {**row, "template": template} for n in range(number)}


def whole(folder: Path) -> dict[str, int]:
    """Write all eight files; {file: rows}."""
    of_plan = {"meta": {"API_list": ["Flats.find", "Flats.price", "Mail.send"]}}
    of_plan |= {"ground_truth": plan(*PLAN), "origin_prompt": ASKED}
    of_words = {"meta_data": {"response_format": "str"}, "origin_prompt": json.dumps(ASKED)}
    files = {
        "instruct": instruct("json", 2) | instruct("string"),
        "plan_json": {"p0": of_plan},
        "plan_str": {f"p{n}": of_plan for n in range(2)},
        "reason_retrieve_understand_json": {
            f"b{n}": {"ground_truth": CALL, "origin_prompt": ASKED} for n in range(4)
        },
        "reason_str": {"w0": of_words | {"ground_truth": CALL}},
        "retrieve_str": {"w0": of_words | {"ground_truth": json.dumps(CALL)}},
        "review_str": {
            f"v{n}": {"ground_truth": {"answer": "B"}, "origin_prompt": ASKED} for n in range(3)
        },
        "understand_str": {"w0": of_words | {"ground_truth": CALL | {"args": "Ulm"}}},
    }
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}_v2.json").write_text(json.dumps(rows))
    return {name: len(rows) for name, rows in files.items()}
