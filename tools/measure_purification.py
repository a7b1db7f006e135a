"""False alarms, recall on seeded damage, agreement with KaTeX, and speed of purification.

DATA_FOLDER holds gsm8k/{train,test}.jsonl (question, answer) and
math_hendrycks_test5000/math_test_5000.jsonl (problem, solution), as their authors publish them:

\b
    python tools/measure_purification.py DATA_FOLDER
    python tools/measure_purification.py DATA_FOLDER --katex katex.min.js

A false alarm is a clean solution that is dropped by any rule but figures_drawn, which is right
about the solutions of MATH that draw in Asymptote; they are counted beside. Every false alarm is
printed.
--katex takes the file of the npm package katex and needs `pip install mini-racer`: each formula of
MATH, and a damaged copy of it, is shown to both.
"""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.config.curation.purify import PurifyConfig
from megatron_ring.curation.purify.latex import Scanner
from megatron_ring.curation.purify.mathematics import (
    INNER_ENVIRONMENTS,
    TOP_ENVIRONMENTS,
    formulas,
)
from megatron_ring.curation.purify.purify import RULES, Purify
from megatron_ring.curation.purify.text import without_code_or_drawings
from megatron_ring.curation.record import Record

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def record(name: str, prompt: str, response: str) -> Record:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"id": name, "messages": turns}


def clean_records(folder: Path) -> Iterator[Record]:
    """The 7,473 + 1,319 solutions of GSM8K and the 5,000 of MATH's test."""
    files = [
        ("gsm8k/train.jsonl", "question", "answer"),
        ("gsm8k/test.jsonl", "question", "answer"),
        ("math_hendrycks_test5000/math_test_5000.jsonl", "problem", "solution"),
    ]
    for path, prompt, response in files:
        for number, line in enumerate((folder / path).open(encoding="utf-8")):
            row = json.loads(line)
            yield record(f"{path}/{number}", row[prompt], row[response])


def false_alarms(stage: Purify, records: list[Record]) -> None:
    """Prints counts by rule and every alarm that is no drawn figure."""
    rules: Counter[str] = Counter()
    alarms, dropped, counted = [], 0, {"all": 0, "12.5K": 0}
    for item in records:
        found = list(stage.findings(item))
        rules.update({one.reason for one in found})
        dropped += bool(found)
        others = [one for one in found if one.reason != "figures_drawn"]
        if others:
            alarms.append((item["id"], others))
            counted["all"] += 1
            counted["12.5K"] += not item["id"].startswith("gsm8k/test")
    most = sum(not item["id"].startswith("gsm8k/test") for item in records)
    print(f"clean solutions: {len(records)}; dropped {dropped}, by rule {dict(rules)}")
    print(f"false alarms: {counted['all']} = {counted['all'] / len(records):.3%}")
    print(f"  without GSM8K's test: {counted['12.5K']} of {most} = {counted['12.5K'] / most:.3%}")
    for name, found in alarms:
        print(f"    {name}: " + "; ".join(f"{one.reason}: {one.evidence}" for one in found))


def damage(stage: Purify, records: list[Record], seed: int) -> None:
    """Prints how many cut and looping copies are found, of each tenth clean MATH solution."""
    rng = random.Random(seed)
    families: dict[str, list[bool]] = {"cut anywhere": [], "cut behind a word": [], "loop": []}
    for item in records[::10]:
        text = item["messages"][1]["content"]
        if not item["id"].startswith("math") or len(text) < 200 or "[asy]" in text:
            continue
        prompt = item["messages"][0]["content"]
        words = [m.end() for m in re.finditer(r"[a-z]{2,}(?= )", text[20:-20])]
        sentences = [m for m in re.finditer(r"[A-Z][^.!?\n]{30,}[.!?](?=\s)", text)]
        cuts = {"cut anywhere": rng.randrange(40, len(text) - 20)}
        if words:
            cuts["cut behind a word"] = 20 + rng.choice(words)
        for kind, at in cuts.items():
            reasons = {one.reason for one in stage.findings(record("x", prompt, text[:at]))}
            families[kind].append(any(r.startswith(("truncation", "latex")) for r in reasons))
        if sentences:
            again = rng.choice(sentences)
            looped = text[: again.end()] + f" {again[0]}" * rng.randint(5, 20)
            looped += text[again.end() :]
            reasons = {one.reason for one in stage.findings(record("x", prompt, looped))}
            families["loop"].append(any(r.startswith("repetition") for r in reasons))
    for kind, found in families.items():
        print(f"{kind}: {sum(found)} of {len(found)} found = {sum(found) / len(found):.1%}")


def speed(records: list[Record]) -> None:
    """Prints records a second on one core: the stage, and each rule alone."""
    characters = sum(len(turn["content"]) for item in records for turn in item["messages"])
    print(f"speed over {len(records)} records of {characters / len(records):.0f} characters:")
    latex = [rule for rule in RULES if rule.startswith("latex")]
    choices = {"all rules": [], "latex, all rules": [r for r in RULES if r not in latex]}
    choices |= {rule: [r for r in RULES if r != rule] for rule in RULES if rule not in latex}
    for name, off in choices.items():
        stage = Purify(PurifyConfig(off=off))
        start = time.process_time()
        for item in records:
            stage.apply(item)
        taken = time.process_time() - start
        print(f"  {name}: {len(records) / taken:,.0f} records/s")


def damaged(formula: str, rng: random.Random) -> tuple[str, str] | None:
    """(kind, a damaged copy) or None where that kind has nothing to damage."""
    kind = rng.choice(["brace", "right", "script", "name", "environment"])
    pattern = {
        "brace": r"(?<!\\)[{}]",
        "right": r"\\right(?![a-z])\s*(?:\\[a-zA-Z]+|\\.|.)",
        "script": r"[\^_](?:\{[^{}]*\}|\w)",
        "name": r"(?<=\\)[a-zA-Z]{4,}",
        "environment": r"(?<=\\end\{)\w+",
    }[kind]
    places = list(re.finditer(pattern, formula))
    if not places:
        return None
    at = rng.choice(places)
    new = {"brace": "", "right": "", "script": at[0] + at[0], "environment": at[0] + "x"}
    letter = rng.randrange(1, max(len(at[0]) - 1, 2))
    swapped = at[0][:letter] + at[0][letter : letter + 2][::-1] + at[0][letter + 2 :]
    text = formula[: at.start()] + new.get(kind, swapped) + formula[at.end() :]
    return None if text == formula else (kind, text)


def compare_with_katex(records: list[Record], katex: Path, seed: int) -> None:
    """Prints verdicts of KaTeX and of the scanner on MATH's formulas, clean and damaged."""
    from py_mini_racer import MiniRacer

    rng, seen = random.Random(seed), {}
    for item in records:
        if item["id"].startswith("math"):
            for one in formulas(without_code_or_drawings(item["messages"][1]["content"])):
                if one.closed:
                    seen[one.inner] = one.opener not in ("$", "\\(")
    known = TOP_ENVIRONMENTS | INNER_ENVIRONMENTS
    verdicts: Counter[tuple[str, str, str]] = Counter()
    seconds, differing = Counter(), []
    racer = MiniRacer()
    racer.eval(katex.read_text(encoding="utf-8"))
    racer.eval(
        "function check(s, display) { try { katex.renderToString(s, {throwOnError: true, "
        "displayMode: display, strict: 'ignore'}); return ''; } catch (e) { return e.message; } }"
    )

    def timed(who: str, check: Callable[[], object]) -> str:
        start = time.perf_counter()
        bad = bool(check())
        seconds[who] += time.perf_counter() - start
        return "invalid" if bad else "valid"

    for formula, display in rng.sample(sorted(seen.items()), min(5000, len(seen))):
        for kind, text in filter(None, [("clean", formula), damaged(formula, rng)]):
            theirs = timed("KaTeX", lambda t=text, d=display: racer.call("check", t, d))
            ours = timed("ours", lambda t=text: Scanner(t, frozenset(), known).run())
            verdicts[kind, theirs, ours] += 1
            if theirs != ours:
                differing.append(f"    {kind}, KaTeX {theirs}, ours {ours}: {text[:120]!r}")
    racer.close()  # without it the process does not end
    for (kind, theirs, ours), count in sorted(verdicts.items()):
        print(f"{kind}: KaTeX {theirs}, ours {ours}: {count}")
    print("\n".join(differing))
    for who, total in seconds.items():
        print(f"{who}: {total / sum(verdicts.values()) * 1e3:.3f} ms a formula")


@app.command(help=__doc__)
def main(
    data_folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    katex: Annotated[Path | None, typer.Option(help="katex.min.js")] = None,
    seed: Annotated[int, typer.Option(help="of the damage")] = 0,
) -> None:
    records = list(clean_records(data_folder))
    stage = Purify(PurifyConfig())
    false_alarms(stage, records)
    damage(stage, records, seed)
    speed(records)
    if katex:
        compare_with_katex(records, katex, seed)


if __name__ == "__main__":
    app()
