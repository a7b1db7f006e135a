"""What lm-evaluation-harness is given, read as it reads it; and what it found beside what we did.

The harness itself is not needed: `bodies`, `taken` and `log` do what its release 0.4.13 does.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring.config import ConfigError
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.evaluation import harness
from tests.curation import scripted
from tests.curation.scripted import Serving
from tests.evaluation.evaluating import evaluate, tree

PAIRS = [(1, 2), (2, 91), (3, 4), (4, 5)]
ASKED = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 50, "extra": {}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    script = "tests.evaluation.adding:adds"
    with scripted.serve(tmp_path_factory.mktemp("server"), script=script) as made:
        yield made


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Task and rows, as they were exported."""
    task = yaml.safe_load((folder / "ring_gsm8k.yaml").read_text())
    path = Path(task["dataset_kwargs"]["data_files"][task["test_split"]])
    return task, [json.loads(line) for line in path.read_text().splitlines()]


def bodies(folder: Path) -> list[dict[str, Any]]:
    """The requests of its local-chat-completions with --apply_chat_template."""
    task, rows = read(folder)
    made = []
    for row in rows:
        given = dict(task["generation_kwargs"])
        given.pop("do_sample")
        system = task.get("description", "").replace("{{system}}", row["system"])
        turns = [{"role": "system", "content": system}] if system else []
        made.append(
            {
                "messages": [*turns, {"role": "user", "content": row[task["doc_to_text"]]}],
                "max_tokens": given.pop("max_gen_toks"),
                "temperature": given.pop("temperature"),
                "stop": given.pop("until"),
                **given,
            }
        )
    return made


def taken(task: dict[str, Any], text: str, gold: str) -> dict[str, tuple[str, float]]:
    """By filter what it takes for the answer, and whether exact_match finds it equal."""
    found = {}
    (metric,) = task["metric_list"]
    for one in task["filter_list"]:
        regex, first = one["filter"]
        assert (regex["function"], first) == ("regex", {"function": "take_first"})
        matches = re.findall(regex["regex_pattern"], text) or ["[invalid]"]
        match = matches[regex["group_select"]]
        match = match if isinstance(match, str) else next(filter(None, match))
        plain = [match.strip(), gold]
        for ignored in metric["regexes_to_ignore"]:
            plain = [re.sub(ignored, "", text) for text in plain]
        plain = [text.lower() for text in plain] if metric["ignore_case"] else plain
        found[one["name"]] = match.strip(), float(plain[0] == plain[1])
    return found


def log(folder: Path, texts: dict[str, str], time: str = "2026-11-26T14-21-57.141256") -> None:
    """Its --log_samples, of these answers by id."""
    task, rows = read(folder)
    path = folder / "answers" / "m" / f"samples_ring_gsm8k_{time}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"doc": row, "resps": [[texts[row["id"]]]], "filtered_resps": [answer], "filter": kind}
        | {"exact_match": score}
        for row in rows
        for kind, (answer, score) in taken(task, texts[row["id"]], row["answer"]).items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def said(out: Path) -> dict[str, str]:
    """Our first answers without their thoughts, by id: a server that keeps thoughts apart."""
    lines = map(json.loads, (out / "samples/gsm8k.jsonl").read_text().splitlines())
    first = {line["id"]: line["text"] for line in lines if line["sample"] == 0}
    return {name: text.partition("</think>")[2].strip() for name, text in first.items()}


@pytest.mark.parametrize("system", ["", "Be {{brief}}."])
def test_the_harness_sends_what_we_sent(server: Serving, tmp_path: Path, system: str) -> None:
    before = len(server.ledger)
    generator = {"extra": {"top_k": 5}, "temperature": 0.5}
    evaluate(tree(tmp_path, server.url, PAIRS, system=system, generator=generator))
    ours = [line["body"] for line in server.ledger.lines[before:]]
    (made,) = harness.export(tmp_path / "out", tmp_path / "h")
    assert (made.name, made.items) == ("ring_gsm8k", 4)
    theirs = bodies(tmp_path / "h")
    wanted = [
        {key: value for key, value in body.items() if key not in ("model", "seed")} | {"stop": []}
        for body in ours
    ]
    assert all(wanted.count(body) == 2 for body in theirs) and len(wanted) == 2 * len(theirs)
    task, rows = read(tmp_path / "h")
    assert [row["answer"] for row in rows] == [str(a + b) for a, b in PAIRS]
    assert (task["num_fewshot"], task["doc_to_target"]) == (0, "answer")
    assert task["generation_kwargs"]["do_sample"] and task["metadata"] == {"version": "1"}
    assert "description" in task or not system
    given = f"model=m,base_url={server.url}/chat/completions,num_concurrent=4,timeout=20,seed=1234"
    assert made.command == [
        *("lm_eval", "--model", "local-chat-completions", "--model_args", given),
        *("--include_path", str(tmp_path / "h"), "--tasks", "ring_gsm8k"),
        *("--apply_chat_template", "--log_samples"),
        *("--output_path", str(tmp_path / "h/answers")),
    ]


@pytest.mark.parametrize(
    ("text", "gold", "boxed", "number"),
    [
        ("So \\boxed{18}.", "18", ("18", 1), ("18", 1)),
        ("\\boxed{1} or \\boxed{\\$1,200} of 3", "1200", ("1,200", 1), ("3", 0)),
        ("\\boxed{$1,200.}", "1200", ("1,200", 1), ("$1,200.", 1)),
        ("\\boxed{ 1200.00 }", "1200", ("1200", 1), ("1200.00", 0)),
        ("\\boxed{12.50}", "12.5", ("12.50", 0), ("12.50", 0)),
        ("\\boxed{\\frac{1}{2}}", "2", ("\\frac{1}{2}", 0), ("2", 1)),
        ("\\boxed{\\text{B}}, \\boxed{3", "B", ("\\text{B}", 0), ("3", 0)),
        ("\\boxed{b}", "B", ("b", 1), ("[invalid]", 0)),
        ("The answer is 18.", "18", ("[invalid]", 0), ("18.", 1)),
        ("It is -7", "-7", ("[invalid]", 0), ("-7", 1)),
    ],
)
def test_what_its_filters_take(
    tmp_path: Path, text: str, gold: str, boxed: Any, number: Any
) -> None:
    task = harness.task_of("gsm8k", tmp_path, ASKED, "1")
    assert taken(task, text, gold) == {"boxed": boxed, "flexible-extract": number}


def test_its_answers_beside_ours(server: Serving, tmp_path: Path) -> None:
    """Thoughts are no difference; another text is graded as ours are."""
    evaluate(tree(tmp_path, server.url, PAIRS))
    folder = tmp_path / "h"
    harness.export(tmp_path / "out", folder)
    texts = said(tmp_path / "out") | {"2": "The answer is \\boxed{7.00}", "3": "\\boxed{8}"}
    log(folder, dict.fromkeys(texts, "of an earlier time"), "2026-11-26T14-21-56.9")
    log(folder, texts)
    pairs = harness.compare(tmp_path / "out", folder, "gsm8k")
    assert [pair.id for pair in pairs] == ["0", "1", "2", "3"]
    assert [pair.gold for pair in pairs] == ["3", "93", "7", "9"]
    assert [pair.is_same for pair in pairs[:3]] == [True, True, False]
    assert [pair.grades[1].verdict for pair in pairs[1:]] == ["no_answer", "right", "wrong"]
    for pair in pairs[:2]:
        assert pair.grades[0] == pair.grades[1]
        assert pair.scores["boxed"] == pair.grades[0].score
    assert pairs[2].taken == {"boxed": "7", "flexible-extract": "7.00"}
    assert pairs[2].scores == {"boxed": 1.0, "flexible-extract": 0.0}


def test_what_cannot_be_exported_or_compared(server: Serving, tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "h"

    def refused(function: Any, *given: Any) -> str:
        with pytest.raises(ConfigError) as error:
            function(*given)
        return str(error.value)

    told = refused(harness.export, tmp_path, folder)
    assert told == f"{tmp_path} has no run in it: there is no recipe.yaml"
    given = tree(tmp_path, server.url, PAIRS)
    evaluate(given)
    told = refused(harness.export, out, folder, "mmlu")
    assert told == f"{out}: no samples of mmlu; those of short answers: gsm8k"
    told = refused(harness.compare, out, folder, "gsm8k")
    assert told == (
        f"{folder}/answers has no samples_ring_gsm8k_*.jsonl: run the command that `export` shows, "
        "with --log_samples"
    )
    harness.export(out, folder)
    log(folder, said(out))
    for pairs, counts in [(PAIRS[:3], "run in {} 3, 3 of"), ([*PAIRS[:3], (4, 6)], "{} 4, 3 of")]:
        evaluate(tree(tmp_path, server.url, pairs))
        told = refused(harness.compare, out, folder, "gsm8k")
        assert told.startswith(f"{folder}: the harness was asked 4 items and the run in {out} ")
        assert f"{counts.format(out)} them the same; export and ask again" in told

    path = out / "samples/gsm8k.jsonl"
    path.write_text(path.read_text().replace('"max_tokens": 50, "seed": 1234, "opens', '"opens'))
    told = refused(harness.export, out, folder)
    assert told == f"{out}: gsm8k was not asked through an endpoint; the harness needs one"
    recipe = (out / "recipe.yaml").read_text()
    (out / "recipe.yaml").write_text(recipe.replace("  gsm8k:", "  ifeval:"))
    (out / "samples/ifeval.jsonl").write_text("{}\n")
    told = refused(harness.export, out, folder, "ifeval")
    assert told == "ifeval has no short answers; the harness could not grade it by comparing texts"
    assert refused(harness.export, out, folder).endswith("those of short answers: none")


def test_a_checkpoint_has_no_endpoint_and_it_is_to_be_filled_in(tmp_path: Path) -> None:
    given = {"tasks": {"gsm8k": {}}, "sampler": {"seed": 5}, "output": "out"}
    command = harness._command(EvaluationConfig(**given), "ring_gsm8k", tmp_path)
    told = "model=MODEL,base_url=http://HOST:8000/v1/chat/completions,num_concurrent=64"
    assert command[4].startswith(told) and command[4].endswith("seed=5")
