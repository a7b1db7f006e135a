"""Science against a model that does what it is told: what is kept, and every reason why not."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.science import ScienceConfig
from megatron_ring.config.curation.synthesis import SynthesisConfig
from megatron_ring.config.loading import build
from megatron_ring.curation.endpoint import read_choice
from megatron_ring.curation.generate import Reply
from megatron_ring.curation.record import Record, Rejection
from megatron_ring.curation.shards import read_json, read_lines
from megatron_ring.curation.synthesis import plan, rounds
from megatron_ring.curation.synthesis.domain import Cell
from megatron_ring.curation.synthesis.models import Models
from megatron_ring.curation.synthesis.science import Science, read_topics
from tests.curation import scripted

WORDS = ("compute", "analyse", "recall")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[scripted.Serving]:
    folder = tmp_path_factory.mktemp("server")
    with scripted.serve(folder, script="tests.curation.scientific:script") as serving:
        yield serving


class Run:
    """Science with options, against the server."""

    def __init__(self, server: scripted.Serving, folder: Path, **options: Any) -> None:
        own = {"endpoint": server.url, "model": "m", "replies": folder, "retry_wait_s": 0}
        own["max_tokens"] = 500
        judge = {**own, **options.pop("judge", {})}
        given = {"solutions": 4, "agree": 3, "min_chars": 3, **options}
        self.models = Models()
        config = build(ScienceConfig, {"solver": own, "judge": judge, **given})
        self.domain = Science(config, self.models)

    def verify(self, *problems: str) -> list[Record | Rejection]:
        drafts = [Record(id=p, messages=[{"role": "user", "content": p}]) for p in problems]
        return self.models.gather([self.domain.verify(draft) for draft in drafts])

    def admit(self, *cells: Cell) -> list[Rejection | None]:
        return self.models.gather([self.domain.admit(cell) for cell in cells])


@pytest.fixture
def run(server: scripted.Serving, tmp_path: Path) -> Iterator[Any]:
    made = []

    def start(folder: str = "replies", **options: Any) -> Run:
        made.append(Run(server, tmp_path / folder, **options))
        return made[-1]

    yield start
    for one in made:
        one.models.close()
        one.domain.pool.close()


def said_by_judge(server: scripted.Serving, marked: str) -> list[str]:
    """What a judge was asked, of texts that hold `marked`."""
    asked = [line["body"]["messages"][-1]["content"] for line in server.ledger.lines]
    return [text for text in asked if marked in text and "one of these words" in text]


def test_a_kept_problem(run: Any) -> None:
    (found,) = run().verify("kept <<judge compute>> <<solve 5 m/s; 18 km/h; 5.0; 7 m/s>>")
    assert found["answer"] in ("5 m/s", "18 km/h")
    assert [turn["role"] for turn in found["messages"]] == ["user"]
    assert found["extra"]["judge"] == "compute"
    agreement = found["extra"]["agreement"]
    assert (agreement["votes"], agreement["asked"], agreement["without"]) == (3, 4, 0)
    assert sorted(votes for _, votes in agreement["answers"]) == [1, 3]
    assert len(found["extra"]["candidates"]) == 3


@pytest.mark.parametrize(
    ("problem", "reason", "evidence"),
    [
        ("<<judge recall>>", "recall_problem", "the judge says recall"),
        ("<<judge incomplete>>", "incomplete", "the judge says incomplete"),
        ("<<judge hm>>", "undecided", "the judge says no class, twice"),
        ("<<judge compute or recall>>", "undecided", "the judge says no class, twice"),
        ("<<solve 5 m; 5 s; 5 kg; 6 m>>", "no_agreement", "of 4: .*1 x '5 m'.*; 3 must agree"),
        ("<<solve 5 m; 5 m; 5 s; 5 s>>", "no_agreement", "of 4: 2 x '5 m', 2 x '5 s'; 0 without"),
    ],
)
def test_reasons(run: Any, problem: str, reason: str, evidence: str) -> None:
    (found,) = run().verify(f"rejected {problem}")
    assert isinstance(found, Rejection), found
    assert found.reason == reason and re.search(evidence, found.evidence), found.evidence


def test_a_judge_is_asked_again_and_then_may_be_passed_over(
    run: Any, server: scripted.Serving
) -> None:
    found = run().verify("again <<judge hm, analyse>>", "again <<judge hm>>")
    assert found[0]["extra"]["judge"] == "analyse" and found[1].reason == "undecided"
    # Greedy first, then as the model samples; and not asked again where it has chosen.
    for problem in ("again <<judge hm, analyse>>", "again <<judge hm>>"):
        bodies = [line["body"] for line in server.ledger.lines]
        asked = [b for b in bodies if problem in b["messages"][-1]["content"]]
        asked = [b for b in asked if "one of these words" in b["messages"][-1]["content"]]
        assert sorted(b["temperature"] for b in asked) == [0.0, 0.6]
        assert len({b["messages"][-1]["content"] for b in asked}) == 1
    assert len(said_by_judge(server, "kept <<judge compute>>")) <= 1
    (kept,) = run(judge={"undecided": "keep"}).verify("again <<judge hm>>")
    assert kept["extra"]["judge"] == "undecided"


def test_judges_may_be_left_out(run: Any, server: scripted.Serving) -> None:
    own = run(judge_problems=False, judge_topics=False)
    (found,) = own.verify("unjudged <<judge recall>>")
    assert found["answer"] == "5 m/s" and "judge" not in found["extra"]
    assert own.admit(Cell("physics/optics", "unjudged <<judge recall>>", "easy")) == [None]
    assert said_by_judge(server, "unjudged") == []


def test_the_order_of_classes_is_each_questions_own(run: Any, server: scripted.Serving) -> None:
    topics = [f"position {number} <<judge first>>" for number in range(30)]
    cells = [Cell("physics/optics", topic, "easy") for topic in topics]
    own = run()
    found = own.admit(*cells)
    # A judge that always takes the first gives the three classes about as often: 10 each,
    # and fewer than 3 of one by a chance of 1 in 3,000.
    rejected = sum(why is not None for why in found)
    assert 3 <= rejected <= 17
    asked = {text for text in said_by_judge(server, "position ")}
    orders = Counter(re.findall(r"^(\w+): (?:work|reason|know)", t, re.M)[0] for t in asked)
    assert set(orders) == set(WORDS) and orders["recall"] == rejected
    for text in asked:
        listed = re.findall(r"^(\w+): (?:work|reason|know)", text, re.M)
        assert text.endswith(f"nothing else: {', '.join(listed)}.")
    # Whoever asks again asks the same, and pays nothing; another seed has other orders.
    before = len(server.ledger.lines)
    again = run()
    assert again.admit(*cells) == found and len(server.ledger.lines) == before
    assert run(judge={"seed": 5}).admit(*cells) != found


def test_topics_that_recall_are_left_out(run: Any) -> None:
    cells = [
        Cell("physics/optics", f"Physics: optics <<judge {word}>>", "hard")
        for word in ("compute", "analyse", "recall", "hm")
    ]
    name = "Physics: optics <<judge %s>>: the judge says %s"
    assert run().admit(*cells) == [
        None,
        None,
        Rejection("recall_topic", name % ("recall", "recall")),
        Rejection("undecided", name % ("hm", "no class, twice")),
    ]
    assert run(judge={"undecided": "keep"}).admit(cells[3]) == [None]


def test_a_refusal_is_no_verdict(run: Any) -> None:
    own = run()
    good = Cell("physics/optics", "served", "hard")
    bad = Cell("physics/optics", "refused [[http_400]]", "hard")
    # Marks hold only at the end of a message, so the refusal is ordered through the topic.
    found = own.admit(good, bad)
    assert found[0] is None
    assert found[1].reason == "refused" and "HTTP 400" in found[1].evidence


def test_subtopics_take_turns(run: Any) -> None:
    about = "Optics: <<topics 1. Lenses; ** Mirrors **; Topics:; lenses; Optics; Prisms>>"
    own = run(subtopics={"number": 2}, judge_topics=False)
    cell = Cell("physics/optics", about, "easy")
    assert own.admit(cell) == [None]
    shown = [own.domain.request(cell, [], n).messages[0]["content"] for n in range(3)]
    topics = [re.search(r"Topic: .*>>(.*)", text)[1] for text in shown]
    assert topics == [", Lenses", ", Mirrors", ", Lenses"]
    # Two levels: each of two has the same two below it, but for itself.
    deep = run(subtopics={"number": 2, "depth": 2}, judge_topics=False)
    assert deep.admit(cell) == [None]
    shown = [deep.domain.request(cell, [], n).messages[0]["content"] for n in range(4)]
    assert [re.search(r"Topic: .*>>(.*)", text)[1] for text in shown] == [
        ", Lenses, Mirrors",
        ", Lenses, Prisms",
        ", Mirrors, Lenses",
        ", Mirrors, Prisms",
    ]


def test_of_subtopics_those_that_compute_stay(run: Any) -> None:
    own = run(subtopics={})
    cell = Cell("biology/genetics", "Genes: <<topics names by heart; crossing>>", "easy")
    assert own.admit(cell) == [None]
    shown = {own.domain.request(cell, [], n).messages[0]["content"] for n in range(4)}
    assert len(shown) == 1 and ", crossing" in shown.pop()
    none = Cell("biology/genetics", "Genes: <<topics names by heart; terms by heart>>", "easy")
    (why,) = own.admit(none)
    assert why.reason == "recall_topic" and why.evidence.count("the judge says recall") == 2


@pytest.mark.parametrize(
    ("text", "finish", "names"),
    [
        ("<think>a\nb</think>\n- Lenses.\n\n2) Lens makers", "stop", ["Lenses", "Lens makers"]),
        ("Lenses\nHalf a na", "length", ["Lenses"]),
        ("Here they are:\nlenses\nLENSES\n" + "long " * 20, "stop", ["lenses"]),
        ("Optics\nPhysics", "stop", []),
        ("", "stop", []),
    ],
)
def test_names_of_topics(text: str, finish: str, names: list[str]) -> None:
    assert read_topics(Reply(text=text, finish_reason=finish, card={}), "Physics: optics") == names


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("compute", "compute"),
        ("<think>recall? or compute</think>\n\n**Analyse**.\n\nBecause it computes", "analyse"),
        ("The final answer is: Recall", "recall"),
        ("\\boxed{compute}", "compute"),
        ("<think>compute", None),  # a thought that did not end
        ("compute or analyse", None),
        ("It is not recall", None),
        ("computer", None),
        ("", None),
    ],
)
def test_one_word_of_a_list(said: str, word: str | None) -> None:
    assert read_choice(said, WORDS) == word


def test_math_verify_decides_on_formulas(run: Any) -> None:
    (found,) = run().verify("A spring <<solve mg/k; \\frac{mg}{k}; \\frac{g m}{k}; 2mg/k>>")
    assert found["extra"]["agreement"]["votes"] == 3


def recipe(server: scripted.Serving, folder: Path, **keys: Any) -> SynthesisConfig:
    model = {"endpoint": server.url, "model": "m", "replies": str(folder / "replies")}
    model |= {"retry_wait_s": 0, "max_tokens": 500}
    domain = {"kind": "science", "solver": model, "judge": model, "solutions": 3, "agree": 2}
    domain |= {"difficulties": {"easy": 1, "hard": 1}, **keys.pop("domain", {})}
    tree = {"output": str(folder / "out"), "writer": model, "domain": domain, "total": 4}
    tree |= {"topics": {"physics/optics": 1, "physics/acoustics": 1}, "rounds": 2}
    tree["expected_yield"] = 1.0
    return build(SynthesisConfig, {**tree, **keys})


def test_rounds_of_science(server: scripted.Serving, tmp_path: Path) -> None:
    report = rounds.run(recipe(server, tmp_path))
    assert report["total"]["kept"] == 4 and report["left_out"] == {}
    assert report["used"]["judge"]["requests"] == 4 + 4  # cells, problems
    for record in read_lines(tmp_path / "out/kept.jsonl"):
        assert record["domain"] == "physics" and record["topic"] in ("optics", "acoustics")
        assert record["answer"] == "5 m/s" and record["extra"]["judge"] == "compute"
        assert record["extra"]["difficulty"] in ("easy", "hard")
        assert record["extra"]["agreement"]["votes"] == 3
    before = (tmp_path / "out/report.json").read_bytes()
    asked = len(server.ledger.lines)
    rounds.run(recipe(server, tmp_path))
    assert (tmp_path / "out/report.json").read_bytes() == before
    assert len(server.ledger.lines) == asked


def test_cells_that_recall_leave_their_share_to_others(
    server: scripted.Serving, tmp_path: Path
) -> None:
    both = {"difficulties": {"easy": 1, "by heart": 1}}
    report = rounds.run(recipe(server, tmp_path, domain=both))
    names = {f"physics/{topic}:by heart": topic for topic in ("acoustics", "optics")}
    assert list(report["left_out"]) == list(names)
    for name, (reason, evidence) in report["left_out"].items():
        assert reason == "recall_topic" and names[name] in evidence
    assert {n: c["wanted"] for n, c in report["cells"].items()} == {
        "physics/acoustics:easy": 2,
        "physics/optics:easy": 2,
    }
    assert report["total"]["kept"] == 4
    assert read_json(tmp_path / "out/report.json")["left_out"] == report["left_out"]
    message = (
        r"of 2 cells .* none is wanted, as physics/acoustics:by heart: recall_topic, Physics: "
    )
    with pytest.raises(ConfigError, match=f"{message}.* another judge"):
        none = {"difficulties": {"by heart": 1}}
        rounds.run(recipe(server, tmp_path, domain=none, output=str(tmp_path / "none")))


def test_quotas_without_some() -> None:
    wanted = {"a": 5, "b": 3, "c": 1}  # without b 7.5 and 1.5
    quotas = [plan.Quota(Cell(name, name), 0.25, 0.0, count) for name, count in wanted.items()]
    assert [(q.cell.path, q.wanted) for q in plan.without(quotas, {"b"})] == [
        ("a", 8),
        ("c", 1),
    ]  # 7.5 and 1.5
    assert plan.without(quotas, {}) == quotas and plan.without(quotas, "abc") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.5}, r"tolerance=0.5: "),
        ({"domains": []}, r"domains=\[\]: "),
        ({"subtopics": {"depth": 4}}, r"subtopics.depth=4: "),
        ({"judge": {"undecided": "ask"}}, r"judge.undecided='ask': "),
        ({"agree": 11}, r"agree=11 of solutions=10 can never be; lower agree"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    model = {"endpoint": "http://x", "model": "m", "replies": "r"}
    given = {"solver": model, **options, "judge": {**model, **options.get("judge", {})}}
    with pytest.raises(ConfigError, match=message):
        build(ScienceConfig, given)
