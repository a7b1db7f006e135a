"""Blends: quotas, no prompt twice, all records accounted for, and folders that pack as they are."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.preference import BlendConfig, PairSource, StructureConfig
from megatron_ring.config.loading import build, load
from megatron_ring.curation.corrupt_tags import COUNTED_AS, KINDS
from megatron_ring.curation.preference.blend import Blend
from megatron_ring.curation.preference.offers import read_offers
from megatron_ring.curation.preference.structure import Structure
from megatron_ring.curation.preference.writing import write_blend
from megatron_ring.data.rows import Rows
from megatron_ring.data.tokenizer import train_sentencepiece
from megatron_ring.think import tag_errors
from tools import pack

ROOT = Path(__file__).parents[2]
LONG = (
    "One could also count all the apples, pears and plums on each table of the house, from the "
    "cellar up to the attic, write them down in a long list, and ask a friend to add what is there "
    "while somebody else reads the numbers out aloud, slowly, until both agree on the sum"
)


def answer(number: int, of: str = "It is the sum of both.") -> str:
    return f"<think>\n{of}\n</think>\n\nSo \\boxed{{{number}}}."


def record(number: int, *rules: str, response: bool = False, **keys: Any) -> dict[str, Any]:
    """What is number + 1: a right answer, and one more for each rule."""
    said = {
        "wrong": answer(number),
        "longer": answer(number + 1, of=f"{LONG}, {number} and one."),
        "repetitive": answer(number + 1, of="Wait, that is not it, I think, not at all. " * 20),
    }
    messages = [{"role": "user", "content": f"What is {number} + 1?"}]
    if response:
        messages.append({"role": "assistant", "content": answer(number + 1)})
    texts = [answer(number + 1), *(said[rule] for rule in rules)] if rules else []
    candidates = [{"number": n, "text": text} for n, text in enumerate(texts)]
    made = {"id": f"sums/{number}", "messages": messages, "answer": str(number + 1)}
    # Corpora with damaged tags say so; of a pair it would say something else.
    return {
        **made,
        "domain": "math",
        "damage": "empty",
        "extra": {"candidates": candidates},
        **keys,
    }


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def options(tmp_path: Path, **tree: Any) -> BlendConfig:
    return build(BlendConfig, {"output": str(tmp_path / "out"), **tree})


def blended(given: BlendConfig) -> tuple[dict[str, Any], dict[str, list[dict]]]:
    """The report, and the pairs by part; every record is accounted for."""
    work = Blend(given)
    work.plan()
    report = write_blend(work)
    folder = Path(given.output)
    assert report == json.loads((folder / "report.json").read_text())
    left = lines(folder / "left_out.jsonl")
    made = {}
    for name, told in report["parts"].items():
        own = Counter(one["reason"] for one in left if one["part"] == name)
        assert told["left_out"] == own
        assert told["records_read"] == told["records_used"] + own.total()
        path = folder / f"{name}.jsonl"
        made[name] = lines(path) if path.exists() else []
        assert told["made"] == len(made[name]) == sum(c["made"] for c in told["by"].values())
        assert told["short"] == told["asked"] - told["made"]
        assert len({pair["id"] for pair in made[name]}) == len(made[name])
    return report, made


def prompts(pairs: list[dict]) -> set[str]:
    return {pair["messages"][-1]["content"] for pair in pairs}


@pytest.fixture
def mixed(tmp_path: Path) -> BlendConfig:
    """60 prompts for general pairs, 50 for structural ones, of which 20 are the same."""
    rng = random.Random(1)
    rules = ("wrong", "longer", "repetitive")
    sampled = [record(n, *rng.sample(rules, rng.randint(1, 3))) for n in range(60)]
    chats = [record(n, response=True) for n in range(40, 90)]
    return options(
        tmp_path,
        general={"sources": [{"path": write(tmp_path / "sampled.jsonl", sampled)}], "take": 40},
        structure={"sources": [{"path": write(tmp_path / "chats.jsonl", chats)}], "take": 42},
    )


def test_quotas_are_filled_and_no_prompt_is_used_twice(mixed: BlendConfig) -> None:
    report, made = blended(mixed)
    assert Counter(pair["rule"] for pair in made["general"]) == {
        "wrong": 20,
        "longer": 10,
        "repetitive": 10,
    }
    assert Counter(pair["damage"] for pair in made["structure"]) == dict.fromkeys(KINDS, 7)
    assert len(prompts(made["general"])) == 40 and len(prompts(made["structure"])) == 42
    assert not prompts(made["general"]) & prompts(made["structure"])
    assert report["parts"]["general"]["answers_judged"]["wrong"] > 20
    # 42 of the structural prompts must come from 50, so that 12 or more of the 20 shared are taken.
    assert report["parts"]["general"]["left_out"]["other_part"] >= 1
    for one in lines(Path(mixed.output) / "left_out.jsonl"):
        assert re.fullmatch(r".*(sampled|chats)\.jsonl:\d+", one["place"])


def test_pairs_say_what_they_are(mixed: BlendConfig) -> None:
    _, made = blended(mixed)
    for pair in made["general"]:
        number = int(pair["messages"][0]["content"].split()[2])
        assert pair["answer"] == str(number + 1) and pair["domain"] == "math"
        assert pair["id"] == f"sums/{number}" and pair["source"] == "sampled"
        assert not {"extra", "damage"} & set(pair) and len(pair["messages"]) == 1
        assert pair["chosen"] == answer(number + 1)
        told = pair["preference"]
        given = {
            "wrong": r"'\d+', not '\d+'",
            "longer": ".* at least 1.5 times",
            "repetitive": ".*:",
        }
        assert re.match(given[pair["rule"]], told["evidence"])
        wrong = pair["rejected"] == answer(number)
        assert wrong == (pair["rule"] == "wrong")
        assert told["chosen"] == 0 and told["rejected"] > 0
    for pair in made["structure"]:
        assert pair["preference"]["chosen"] == "reference"
        assert tag_errors(pair["chosen"]) == []
        assert tag_errors(pair["rejected"]) == [COUNTED_AS[pair["damage"]]]


def test_spans_point_at_the_structure(mixed: BlendConfig) -> None:
    _, made = blended(mixed)
    seen: dict[str, set] = {}
    for pair in made["structure"]:
        marked = [
            tuple(pair[side][start:stop] for start, stop in pair["format_spans"][side])
            for side in ("chosen", "rejected")
        ]
        seen.setdefault(pair["damage"], set()).add(tuple(marked))
    # "It is ... both." is the thought, "So \boxed{..}." the answer.
    assert seen["missing_open"] == {(("<think>",), ("I",))}
    assert seen["missing_close"] == {(("</think>",), ("S",))}
    assert seen["empty"] == {(("I", "</think>"), ("</think>", "S"))}
    assert seen["answer_inside"] == {(("</think>",), ("S", "</think>"))}
    for chosen, rejected in seen["misplaced"] | seen["redundant"]:
        assert "<think>" in rejected or "</think>" in rejected
        assert chosen != rejected


def test_the_same_seed_gives_the_same_bytes(mixed: BlendConfig, tmp_path: Path) -> None:
    def made(name: str, **keys: Any) -> dict[str, bytes]:
        folder = tmp_path / name
        blended(mixed.model_copy(update={"output": str(folder), **keys}))
        names = ("general.jsonl", "structure.jsonl", "left_out.jsonl")
        return {name: (folder / name).read_bytes() for name in names}

    first, again, other = made("a"), made("b"), made("c", seed=2)
    assert first == again
    assert all(first[name] != other[name] for name in first)
    # What a prompt gives depends on it and not on its neighbours.
    pairs = {pair["id"]: pair for pair in lines(tmp_path / "a" / "structure.jsonl")}
    path = Path(mixed.structure.sources[0].path)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    made("d")
    again = {pair["id"]: pair for pair in lines(tmp_path / "d" / "structure.jsonl")}
    assert again == pairs and list(again) != list(pairs)


def test_the_place_of_damage_follows_seed_and_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [record(n, response=True) for n in range(30)])
    part = StructureConfig.model_validate({"sources": [{"path": path}]})
    text = answer(1, of="One two three four five six seven eight nine ten.")

    def damaged(seed: int) -> list[str]:
        maker = Structure(part, seed)
        offers = read_offers(PairSource(path=path))
        return [maker.damage(offer, text, "misplaced")[0] for offer in offers]

    assert damaged(1) == damaged(1) != damaged(2)
    assert len(set(damaged(1))) > 5


def test_a_blend_packs_as_it_is(mixed: BlendConfig, tmp_path: Path) -> None:
    blended(mixed)
    texts = (answer(n) + f" What is {n} + 1? {LONG} Wait, not at all." for n in range(300))
    train_sentencepiece(texts, tmp_path / "small.model", vocab_size=400)
    keys = [f"tokenizer={tmp_path / 'small.model'}", f"output={tmp_path / 'packed'}"]
    manifest = str(tmp_path / "out" / "pack.yaml")
    assert pack.main([manifest, *keys, "row_tokens=1024"]) == 0
    rows = Rows.open(tmp_path / "packed")
    assert [one["name"] for one in rows.manifest["sources"]] == ["general", "structure"]
    assert (tmp_path / "packed" / "rejected.jsonl").read_text() == ""
    marked, documents = Counter[int](), Counter[int]()
    for number in range(rows.num_rows):
        row = rows.row(number)
        for n in range(row.num_documents):
            here = slice(row.cu_seqlens[n], row.cu_seqlens[n + 1])
            documents[row.sources[n]] += 1
            marked[row.sources[n]] += int((row.format_S[here] & row.mask_S[here]).sum())
    assert documents == {0: 80, 1: 84}
    tokens = sum(
        len(pair["format_spans"][side])
        for pair in lines(tmp_path / "out" / "structure.jsonl")
        for side in ("chosen", "rejected")
    )
    # Each mark is a tag of a few tokens, or the one token that a character is in.
    assert tokens <= marked[1] <= 9 * tokens


def test_what_is_short_is_made_up_for_or_told(tmp_path: Path) -> None:
    rows = [record(n, "wrong", "longer") for n in range(30)]
    path = write(tmp_path / "x.jsonl", rows)

    def made(**keys: Any) -> tuple[dict[str, int], int]:
        general = {"sources": [{"path": path}], "take": 20}
        report, _ = blended(options(tmp_path, general=general, **keys))
        told = report["parts"]["general"]
        return {rule: cell["made"] for rule, cell in told["by"].items()}, told["short"]

    counts, short = made(when_short="take_all")
    assert (counts, short) == ({"wrong": 10, "longer": 5, "repetitive": 0}, 5)
    counts, short = made()
    assert counts["repetitive"] == 0 and sum(counts.values()) == 20 and short == 0
    assert counts["wrong"] >= 10 and counts["longer"] >= 5
    with pytest.raises(
        ConfigError, match=r"general\.repetitive has 0 of 5; give more sources, low"
    ):
        made(when_short="error")


def test_more_pairs_of_a_prompt_come_after_all_prompts(tmp_path: Path) -> None:
    rows = [record(n, "wrong", "longer", "repetitive", response=True) for n in range(10)]
    source = {"sources": [{"path": write(tmp_path / "x.jsonl", rows)}]}

    def made(take: int, each: int, **more: Any) -> dict[str, list[dict]]:
        general = {**source, "take": take, "pairs_per_prompt": each}
        return blended(options(tmp_path, general=general, **more))[1]

    assert len(made(20, 1)["general"]) == 10
    pairs = made(10, 3)["general"]
    assert len(prompts(pairs)) == 10
    pairs = made(25, 3)["general"]
    assert len(pairs) == 25 and len(prompts(pairs)) == 10
    assert len({(pair["messages"][0]["content"], pair["rejected"]) for pair in pairs}) == 25
    assert max(Counter(pair["messages"][0]["content"] for pair in pairs).values()) == 3
    both = made(12, 3, structure={**source, "take": 4})
    assert len(both["general"]) == 12 and len(both["structure"]) == 4
    assert not prompts(both["general"]) & prompts(both["structure"])


def test_all_that_can_be_made_without_a_number(tmp_path: Path) -> None:
    rows = [record(n, "wrong") for n in range(5)] + [record(n, response=True) for n in range(7, 10)]
    source = {"sources": [{"path": write(tmp_path / "x.jsonl", rows)}]}
    report, made = blended(options(tmp_path, general=source))
    assert len(made["general"]) == 5
    assert report["parts"]["general"]["left_out"] == {"no_candidates": 3}
    _, made = blended(options(tmp_path, structure=source))
    # The model's own right answers are damaged as well.
    assert [pair["preference"]["chosen"] for pair in made["structure"]] == [0] * 5 + [
        "reference"
    ] * 3
    assert not (tmp_path / "out" / "general.jsonl").exists()  # of the blend before
    manifest = yaml.safe_load((tmp_path / "out" / "pack.yaml").read_text())
    assert manifest == {
        "kind": "pairs",
        "sources": [
            {
                "path": str(tmp_path / "out" / "structure.jsonl"),
                "name": "structure",
                "format_spans": "format_spans",
            }
        ],
    }


def test_the_same_prompt_counts_once(tmp_path: Path) -> None:
    rows = [record(1, "wrong"), record(1, "wrong", id="again"), record(2, "wrong", answer=None)]
    rows[1]["messages"][0]["content"] = " what  is 1 + 1?"
    rows[2].pop("answer")
    path = write(tmp_path / "x.jsonl", rows)
    _, made = blended(options(tmp_path, general={"sources": [{"path": path}]}))
    assert [pair["id"] for pair in made["general"]] == ["sums/1"]
    twice, unknown = lines(tmp_path / "out" / "left_out.jsonl")
    assert (twice["reason"], twice["evidence"]) == ("same_prompt", f"as that of {path}:1")
    assert (unknown["id"], unknown["reason"]) == ("sums/2", "unknown")


def test_samples_of_a_model_with_what_they_answer(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    chats = [
        record(1, response=True),
        {**record(2, response=True), "messages": [*turns, *record(2, response=True)["messages"]]},
        *({"messages": [{"role": "user", "content": text}, *turns]} for text in ("A", "B")),
    ]
    asked = write(tmp_path / "chats.jsonl", chats)
    said = [("What is 1 + 1?", answer(2)), ("What is 2 + 1?", answer(9) + "<|endoftext|>")]
    said += [("What is 1 + 1?", answer(5)), ("Hi", "Hello!")]
    samples = write(tmp_path / "s.jsonl", [{"prompt": p, "answer": a} for p, a in said])
    offers = list(read_offers(PairSource(path=samples, of=asked)))
    assert [one.place for one in offers] == [f"{samples}:1", f"{samples}:2", f"{samples}:4"]
    one, two, several = offers
    assert [each["text"] for each in one.candidates] == [answer(2), answer(5)]
    assert (one.id, one.reference, one.record["answer"]) == ("sums/1", answer(2), "2")
    assert [turn["content"] for turn in two.record["messages"]] == [
        "Hi",
        "Hello!",
        "What is 2 + 1?",
    ]
    assert two.candidates == [{"number": 0, "text": answer(9)}]
    assert several.fault is not None and several.fault.reason == "ambiguous_prompt"
    assert several.fault.evidence == f"{asked}:3 and {asked}:4 end in the question 'Hi'"
    general = {"sources": [{"path": samples, "of": asked}], "shares": {"wrong": 1}}
    _, made = blended(options(tmp_path, general=general))
    assert [pair["preference"]["chosen"] for pair in made["general"]] == [0, "reference"]
    # Alone they have no right answers.
    alone = list(read_offers(PairSource(path=samples)))
    assert [len(each.candidates) for each in alone] == [2, 1, 1]
    assert alone[0].record["messages"] == [{"role": "user", "content": "What is 1 + 1?"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"x\.jsonl:2: not a line of JSON: "),
        ("[1]", r"x\.jsonl:2: a JSON list; \{\"messages\": \[\.\.\.\]\} \(a record\) or "),
        ('{"text": 1}', r"x\.jsonl:2: no turns with role and content \(its keys: text\)"),
        ('{"messages": []}', r"x\.jsonl:2: no turns with role and content \(its keys: messages\)"),
        ('{"messages": [{"content": "x"}]}', r"x\.jsonl:2: no turns with role and content"),
        ('{"messages": [{"role": "user", "content": 3}]}', r"x\.jsonl:2: no turns with role"),
        (
            '{"messages": [{"role": "assistant", "content": "x"}]}',
            r":2: no turn comes before the a",
        ),
        (
            '{"messages": [{"role": "user"}], "extra": {"candidates": "x"}}',
            r"x\.jsonl:2: extra\.candidates is no list of answers",
        ),
        (
            '{"messages": [{"role": "user"}], "extra": {"candidates": [{"answer": "x"}]}}',
            r'x\.jsonl:2: extra\.candidates\.0 is no \{"text": "\.\.\.", "finish": "stop"\}',
        ),
        (
            '{"messages": [{"role": "u"}], "extra": {"candidates": [{"text": "", "score": []}]}}',
            r"x\.jsonl:2: extra\.candidates\.0\.score=\[\] is no number",
        ),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(record(1, "wrong")) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=message):
        list(read_offers(PairSource(path=str(path))))


def test_sources_that_are_none(tmp_path: Path) -> None:
    def complaint(path: str, **keys: Any) -> str:
        with pytest.raises(ConfigError) as error:
            list(read_offers(PairSource(path=path, **keys)))
        return str(error.value)

    nowhere = str(tmp_path / "*.jsonl")
    assert complaint(nowhere) == f"path={nowhere}: there is no such file"
    empty = write(tmp_path / "empty", [])
    assert complaint(empty) == f"path={empty} is empty"
    records = write(tmp_path / "records", [record(1)])
    assert complaint(records, of=records) == (
        f"path={records} has records, which need no `of`; it is for samples"
    )
    samples = write(tmp_path / "samples", [{"prompt": "2+2?", "answer": "4"}])
    assert complaint(samples, of=records) == (
        f"{samples}:1: {records} has no question '2+2?'; name the file that the prompts are from"
    )
    other = write(tmp_path / "other", [{"question": "2+2?"}])
    assert complaint(other).startswith(f"{other}:1: neither record nor sample (its keys: question)")


def test_records_that_cannot_be_pairs_are_left_out(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": "x", "tool_calls": [{"type": "function"}]}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [
        {"messages": [turns[0], called]},
        {"messages": [*turns, turns[1]]},
        {"messages": turns},
        record(3, response=True),
    ]
    source = {"sources": [{"path": write(tmp_path / "x.jsonl", rows)}]}
    report, _ = blended(options(tmp_path, structure=source))
    assert report["parts"]["structure"]["left_out"] == {"no_answer": 1, "bad_prompt": 1, "tags": 1}
    left = lines(tmp_path / "out" / "left_out.jsonl")
    assert left[1]["evidence"] == "it begins or ends with the assistant's turn: user, assistant"
    assert left[2]["evidence"] == "reference: tags no tags"
    with pytest.raises(
        ConfigError, match=r"no pair could be made: general: \{'no_candidates': 3, '"
    ):
        Blend(options(tmp_path, general=source)).plan()


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    source = {"sources": [{"path": write(tmp_path / "x.jsonl", [record(3, response=True)])}]}
    given = options(tmp_path, structure=source)
    (tmp_path / "out").mkdir()
    for name, message in [
        ("pack.yaml", "has another pack.yaml in it; choose another folder"),
        ("general.jsonl", "has a general.jsonl that no blend wrote; choose another folder"),
    ]:
        (tmp_path / "out" / name).write_text("mine")
        with pytest.raises(ConfigError, match=message):
            blended(given)
        (tmp_path / "out" / name).unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file; name a folder"):
        blended(given.model_copy(update={"output": str(tmp_path / "file")}))
    blended(given)
    blended(given)


def test_the_recipe_of_the_report() -> None:
    recipe = load(BlendConfig, [str(ROOT / "configs/curate/preference.yaml")], [])
    assert recipe.general is not None and recipe.structure is not None
    assert (recipe.general.take, recipe.structure.take) == (4000, 3000)
    packed = yaml.safe_load((ROOT / "configs/data/preference.yaml").read_text())
    paths = [f"{recipe.output}/general.jsonl", f"{recipe.output}/structure.jsonl"]
    assert [one["path"] for one in packed["sources"]] == paths
    assert packed["sources"][1]["format_spans"] == "format_spans"
    small = load(BlendConfig, [str(ROOT / "configs/quickstart/blend.yaml")], [])
    packed = yaml.safe_load((ROOT / "configs/quickstart/pairs.yaml").read_text())
    assert [Path(one["path"]).parent for one in packed["sources"]] == [Path(small.output)] * 2
    script = (ROOT / "launch/quickstart.sh").read_text()
    assert small.general is not None
    [source] = small.general.sources
    assert source.path == "runs/quickstart/samples.jsonl" and '"$run/samples.jsonl"' in script
