"""Mixing: quotas by hand, the same choice whatever the order, and a manifest that packs."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.mix import MixConfig
from megatron_ring.config.loading import build
from megatron_ring.curation.mix import Mix, priority, requested, write_mix
from megatron_ring.curation.record import Record, Rejection
from megatron_ring.data.rows import Rows
from megatron_ring.data.tokenizer import train_sentencepiece
from tools import pack


def record(number: int, domain: str, answered: bool = True, **keys: Any) -> Record:
    messages = [{"role": "user", "content": f"What is {number}?"}]
    if answered:
        messages.append({"role": "assistant", "content": f"It is {number}."})
    made: Record = {"id": f"{domain}/{number}", "messages": messages, "source": f"{domain}-set"}
    return {**made, "domain": domain, "extra": {"kind": "reasoning"}, **keys}


RECORDS = [
    *[record(n, "math", level="primary" if n % 4 else "university") for n in range(40)],
    *[record(n, "code") for n in range(10)],
    *[record(n, "physics") for n in range(3)],
    *[record(n, "poems", extra={}) for n in range(2)],
    record(99, "math", answered=False),
    record(7, "tools", tools=[{"type": "function", "function": {"name": "f"}}]),
]
QUOTAS = {
    "maths": {"take": 20, "where": {"kind": ["reasoning"], "domain": ["math"]}},
    "science": {"take": 5, "where": {"domain": ["physics", "chemistry"]}},
    "tools": {"take": 1, "where": {"kind": ["tools"]}},
}


def decide(records: list[Record], **keys: Any) -> tuple[set[str], dict[str, Rejection], Mix]:
    """Ids taken, what became of the others, and the stage."""
    stage = Mix(MixConfig.model_validate({"quotas": QUOTAS, **keys}))
    rejected = stage.decide([(one["id"], stage.summarise(one)) for one in records])
    return {one["id"] for one in records} - set(rejected), rejected, stage


def test_quotas_by_hand() -> None:
    taken, rejected, stage = decide(RECORDS)
    by_set = [sum(name.startswith(start) for name in taken) for start in ("math", "phys", "tools")]
    assert by_set == [20, 3, 1] and len(taken) == 24
    assert len(taken) + len(rejected) == len(RECORDS)
    assert rejected["code/3"] == Rejection(
        "no_quota", "no quota for kind=reasoning, domain=code, source=code-set"
    )
    assert rejected["poems/0"].evidence == "no quota for domain=poems, source=poems-set"
    assert rejected["math/99"] == Rejection("no_answer", "its prompt is in queue.jsonl")
    over = [one for one in rejected.values() if one.reason == "over_quota"]
    assert len(over) == 20 and over[0].evidence == "maths: 20 of 40 are taken"
    assert stage.report is not None
    assert stage.report.rejected == {"no_answer": 1, "no_quota": 12, "over_quota": 20}
    assert stage.report.lines() == [
        "maths: 20 of 20, 40 there",
        "science: 3 of 5, 3 there; short of 2",
        "tools: 1 of 1, 1 there",
    ]


def test_a_record_belongs_to_the_first_quota_it_fits() -> None:
    quotas = {"all": {"take": 100}, **QUOTAS}
    _, _, stage = decide(RECORDS, quotas=quotas)
    assert [cell.available for cell in stage.report.cells] == [56, 0, 0, 0]


def test_the_choice_depends_on_seed_and_id_alone() -> None:
    taken, _, _ = decide(RECORDS)
    shuffled = list(RECORDS)
    random.Random(0).shuffle(shuffled)
    assert decide(shuffled)[0] == taken
    assert decide(RECORDS, seed=5)[0] != taken
    # The lowest hashes, as a plain sort finds them.
    names = sorted((f"math/{n}" for n in range(40)), key=lambda name: priority(1234, name))
    assert {name for name in taken if name.startswith("math")} == set(names[:20])


def test_a_larger_scale_takes_the_same_and_more() -> None:
    sizes, before = [], set()
    for scale in (0.1, 0.5, 1.0, 2.0):
        taken, _, _ = decide(RECORDS, scale=scale)
        assert before <= taken
        before = taken
        sizes.append(sum(name.startswith("math") for name in taken))
    assert sizes == [2, 10, 20, 40]


def test_shares_divide_a_quota_without_a_rest() -> None:
    quota = {"take": 10, "where": {"domain": ["math"]}, "share_by": "level"}
    shares = {"primary": 2.0, "high_school": 1.0, "university": 1.0}
    keys = {"quotas": {"maths": {**quota, "shares": shares}}}
    asked = requested(MixConfig.model_validate(keys))
    # 5, 2.5 and 2.5: the rest goes by largest remainder, ties by name.
    assert asked == {"maths.primary": 5, "maths.high_school": 3, "maths.university": 2}
    taken, rejected, stage = decide(RECORDS, **keys)
    assert [(c.requested, c.available, c.taken, c.short) for c in stage.report.cells] == [
        (5, 30, 5, 0),
        (3, 0, 0, 3),
        (2, 10, 2, 0),
    ]
    assert len(taken) == 7
    keys["quotas"]["maths"]["shares"] = {"primary": 1.0}
    assert decide(RECORDS, **keys)[1]["math/0"] == Rejection(
        "no_share", "maths has no share for level=university"
    )


def test_the_papers_quotas_scale() -> None:
    quotas = {"code": 195_000, "math": 400_000, "science": 50_000, "qa": 197_000, "tools": 240_000}
    config = {"quotas": {name: {"take": take} for name, take in quotas.items()}, "scale": 0.01}
    asked = requested(MixConfig.model_validate(config))
    assert list(asked.values()) == [1950, 4000, 500, 1970, 2400]


def test_short_quotas_repeat_up_to_a_limit() -> None:
    quotas = {"science": {"take": 5, "where": {"domain": ["physics"]}}}
    _, _, stage = decide(RECORDS, quotas=quotas, when_short="repeat")
    (cell,) = stage.report.cells
    assert (cell.taken, cell.weight, cell.short) == (3, 1.666667, 0)  # 5 / 3
    assert stage.report.lines() == ["science: 3 of 5, 3 there, each seen 1.66667 times"]
    _, _, stage = decide(RECORDS, quotas=quotas, when_short="repeat", max_repeats=1.5)
    (cell,) = stage.report.cells
    assert (cell.weight, cell.short) == (1.5, 1)  # 3 x 1.5 is 4.5, which rounds to 4
    nothing = {"science": {"take": 5, "where": {"domain": ["biology"]}}}
    _, _, stage = decide(RECORDS, quotas=nothing, when_short="repeat")
    assert stage.report.cells[0].weight == 1 and stage.report.cells[0].short == 5


def test_short_quotas_can_stop_the_run() -> None:
    with pytest.raises(ConfigError) as error:
        decide(RECORDS, scale=3.0, when_short="error")
    assert str(error.value) == (
        "quotas are short: maths has 40 of 60 (20 missing); science has 3 of 15 (12 missing); "
        "tools has 1 of 3 (2 missing); collect more, lower scale, or set when_short=take_all or "
        "when_short=repeat"
    )


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_files_hold_what_was_taken_with_its_lineage(tmp_path: Path) -> None:
    config = MixConfig.model_validate({"quotas": QUOTAS, "when_short": "repeat"})
    report = write_mix(lambda: RECORDS, config, tmp_path / "mix")
    taken, _, _ = decide(RECORDS)
    maths = lines(tmp_path / "mix" / "maths.jsonl")
    assert maths == [one for one in RECORDS if one["id"] in taken and one["domain"] == "math"]
    assert lines(tmp_path / "mix" / "queue.jsonl") == [RECORDS[-2]]
    manifest = yaml.safe_load((tmp_path / "mix" / "pack.yaml").read_text())
    assert [(one["name"], one["weight"]) for one in manifest["sources"]] == [
        ("maths", 1.0),
        ("science", 1.666667),
        ("tools", 1.0),
    ]
    told = json.loads((tmp_path / "mix" / "report.json").read_text())
    assert told["rejected"] == {"no_answer": 1, "no_quota": 12, "over_quota": 20}
    assert [cell["taken"] for cell in told["cells"]] == [20, 3, 1]
    assert report.cells[1].short == 0
    assert not list(tmp_path.rglob("*.half"))
    # Mixed again, what was taken is taken.
    kept = [
        one
        for name in ("maths", "science", "tools")
        for one in lines(tmp_path / "mix" / f"{name}.jsonl")
    ]
    write_mix(lambda: kept, config, tmp_path / "again")
    assert lines(tmp_path / "again" / "maths.jsonl") == maths


def test_the_manifest_packs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    turns = [
        {"role": "user", "content": "Call f with 1."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "Done.", "reasoning_content": "It said so."},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    records = [*RECORDS, record(8, "tools", messages=turns, tools=tools)]
    quotas = {**QUOTAS, "tools": {"take": 4, "where": {"kind": ["tools"]}}}
    config = MixConfig.model_validate({"quotas": quotas, "when_short": "repeat"})
    write_mix(lambda: records, config, tmp_path / "mix")
    text = (f"What is {n}? It is {n}. Call f, and it is done." for n in range(400))
    train_sentencepiece(text, tmp_path / "small.model", vocab_size=300)
    manifest = str(tmp_path / "mix" / "pack.yaml")
    keys = [f"tokenizer={tmp_path / 'small.model'}", f"output={tmp_path / 'packed'}"]
    assert pack.main([manifest, *keys, "row_tokens=1024"]) == 0
    rows = Rows.open(tmp_path / "packed")
    sources = {one["name"]: one for one in rows.manifest["sources"]}
    assert list(sources) == ["maths", "science", "tools"]
    assert rows.manifest["num_documents"] == 20 + 3 + 2
    # An epoch shows science 3 x 5/3 and tools 2 x 2 times.
    assert rows.manifest["num_placements"] == 20 + 5 + 4
    assert (tmp_path / "packed" / "rejected.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("quota", "complaint"),
    [
        ({"take": 1, "where": {"subject": ["x"]}}, "unknown label 'subject'; known: kind, domain"),
        ({"take": 1, "share_by": "year", "shares": {"a": 1}}, "unknown label 'year'; known: kind"),
        ({"take": 1, "share_by": "level"}, "share_by and shares come together"),
        ({"take": 1, "shares": {"a": 1}}, "share_by and shares come together"),
        ({"take": 0}, "quotas.q.take=0: input should be greater than 0"),
    ],
)
def test_bad_quotas(quota: dict, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(MixConfig, {"quotas": {"q": quota}})
    assert complaint in str(error.value)


def test_what_cannot_be_mixed(tmp_path: Path) -> None:
    config = MixConfig.model_validate({"quotas": {"x": {"take": 1, "where": {"domain": ["law"]}}}})
    with pytest.raises(
        ConfigError, match="no record fits any of the quotas x: {'no_answer': 1, 'n"
    ):
        write_mix(lambda: RECORDS, config, tmp_path)
    for names in (["queue"], ["a/b", "a_b"]):
        quotas = {"quotas": {name: {"take": 1} for name in names}}
        with pytest.raises(ConfigError, match="would both be written to .*; give one another name"):
            Mix(MixConfig.model_validate(quotas))
