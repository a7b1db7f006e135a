"""The domain of code problems, with the real sandbox and a solver behind real HTTP."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.code import CodeConfig
from megatron_ring.config.loading import build
from megatron_ring.curation import sandbox
from megatron_ring.curation.generate import Client, Reply, Request
from megatron_ring.curation.record import Record, Rejection
from megatron_ring.curation.synthesis import code_answers
from megatron_ring.curation.synthesis.code import Code
from megatron_ring.curation.synthesis.domain import Cell, Domain
from tests.curation import coder, scripted
from tests.curation.asking import client
from tests.curation.code_replies import ASSERTS, SOLUTION, STATEMENT, TESTS, reply
from tests.curation.sandboxed import isolated
from tests.curation.scripted import Serving

pytestmark = isolated
CELL = Cell("code/generation", "Code generation", "hard")
LIMITS = {"seconds": 60, "cpu_seconds": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("server")
    with scripted.serve(folder, script="tests.curation.coder:share") as made:
        yield made


@pytest.fixture
def solver(server: Serving, tmp_path: Path) -> Iterator[Client]:
    made = client(server, tmp_path / "replies")
    yield made
    made.close()


def domain(solver: Client, **options: Any) -> Code:
    told = {"solver": solver.options.model_dump(), "limits": LIMITS, "min_tests": 3} | options
    return Code(build(CodeConfig, told), solver)


def draft(made: Code, share: float = 0, **parts: str) -> Record:
    """Of a reply in the usual form; the solver is right in a share of its answers."""
    said = f"{parts.pop('statement', STATEMENT)} [share={share}]"
    (found,) = made.parse(Reply(text=reply(said, **parts), finish_reason="stop", card={}), CELL, 0)
    assert not isinstance(found, Rejection), found
    return found


def fate(made: Code, given: Record, solver: Client) -> Record | Rejection:
    (found,) = solver.gather([made.verify(given)])
    return found


def verify(solver: Client, options: dict[str, Any], **parts: Any) -> Record | Rejection:
    made = domain(solver, **options)
    return fate(made, draft(made, **parts), solver)


def test_draft(solver: Client) -> None:
    made: Domain = domain(solver, subjects=["trees"])
    cut = Reply(text="<think>", finish_reason="length", card={})
    assert [one.reason for one in made.parse(cut, CELL, 0)] == ["cut"]
    (found,) = made.parse(Reply(text=reply(), finish_reason="stop", card={"model": "w"}), CELL, 0)
    content = (
        f"{STATEMENT}\n\nWrite it in Python: `def largest_gap(numbers)`.\n\nIt must satisfy:\n"
        f"```python\n{ASSERTS[0]}\n```"
    )
    assert found == {
        "messages": [{"role": "user", "content": content}],
        "domain": "code",
        "topic": "generation",
        "card": {"model": "w"},
        "extra": {
            "statement": STATEMENT,
            "solution": SOLUTION,
            "tests": TESTS,
            "functions": ["largest_gap"],
            "difficulty": "hard",
            "subject": "trees",
        },
    }


def test_kept_with_what_was_measured(solver: Client) -> None:
    made = domain(solver, solutions=8, max_pass_rate=0.9, keep_solutions=2, max_mutants=4)
    given = draft(made, share=0.5)
    before = str(given)
    found = fate(made, given, solver)
    assert not isinstance(found, Rejection), found
    assert str(given) == before  # drafts are not changed
    requests = [Request(messages=tuple(given["messages"]), sample=n) for n in range(8)]
    replies = solver.gather([solver.ask(one) for one in requests])
    said = [one.text for one in replies]
    right = [n for n, text in enumerate(said) if text == coder.SAID["sound"]]
    assert 0 < len(right) < 8
    extra = dict(found["extra"])
    candidates = extra.pop("candidates")
    assert [one.pop("text") for one in candidates] == [coder.SAID["sound"]] * 2
    assert candidates == [
        {"number": n, "model": "m", "correct": True, "finish": "stop", "card": replies[n].card}
        for n in right[:2]
    ]
    assert extra == given["extra"] | {
        "mutants": 4,
        "mutants_killed": extra["mutants_killed"],
        "pass_rate": len(right) / 8,
        "solutions": 8,
        "verified": True,
    }
    assert 3 <= extra["mutants_killed"] <= 4
    assert {k: v for k, v in found.items() if k != "extra"} == {
        k: v for k, v in given.items() if k != "extra"
    }


def test_a_second_run_asks_and_runs_nothing(
    server: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for _ in range(2):
        solver = client(server, tmp_path / "replies")
        made = domain(solver, solutions=3, max_pass_rate=1, max_mutants=2)
        results.append(fate(made, draft(made, share=0.6), solver))
        solver.close()
        lines = len(server.ledger)
        monkeypatch.setattr(sandbox, "run", lambda *a, **k: pytest.fail("it was run again"))
    assert results[0] == results[1] and len(server.ledger) == lines


@pytest.mark.parametrize(
    ("share", "options", "wanted"),
    [
        (1, {}, Rejection("too_easy", "4 of 4 answers pass, max_pass_rate=0.75")),
        (0, {}, Rejection("never_solved", "0 of 4 answers pass; keep_unsolved=false")),
        (0, {"keep_unsolved": True}, 0.0),
        (1, {"max_pass_rate": 1}, 1.0),
        (1, {"solutions": 0}, None),
    ],
)
def test_rule_of_the_pass_rate(
    solver: Client, share: float, options: dict[str, Any], wanted: Any
) -> None:
    found = verify(solver, {"max_mutants": 0, **options}, share=share)
    if isinstance(wanted, Rejection):
        assert found == wanted
    else:
        assert not isinstance(found, Rejection), found
        assert found["extra"].get("pass_rate") == wanted
        assert (found["extra"]["mutants"], found["extra"]["mutants_killed"]) == (0, 0)


def test_a_solver_that_is_refused(solver: Client) -> None:
    found = verify(solver, {"max_mutants": 0}, statement=f"{STATEMENT} [[http_400]]")
    assert isinstance(found, Rejection)
    assert found.reason == "refused" and "scripted 400" in found.evidence


def test_an_answer_that_was_cut_does_not_pass(solver: Client) -> None:
    found = verify(solver, {"max_mutants": 0}, statement=f"{STATEMENT} [cut]", share=1)
    assert found == Rejection("never_solved", "0 of 4 answers pass; keep_unsolved=false")


WORDS = ["first", "second", "third"]
SOME = """def some(words):
    return list(set(words))"""
UNSOUND = {
    "wrong": (
        {"tests": TESTS.replace("== 5", "== 4")},
        Rejection("solution_fails", "failed: AssertionError"),
    ),
    "raises": (
        {"solution": SOLUTION.replace("best = 0", "best = 1 // 0")},
        Rejection(
            "solution_fails", "failed: ZeroDivisionError: integer division or modulo by zero"
        ),
    ),
    "hangs": (
        {"solution": SOLUTION.replace("    best = 0", "    best = 0\n    while True: pass")},
        Rejection("solution_fails", "timeout: "),
    ),
    "order of a set": (
        {"solution": SOME, "tests": "LATER"},
        Rejection("unstable", "failed: exit code 1 with another order of sets"),
    ),
    "a stub passes": (
        {"tests": "\n".join(f"assert largest_gap([{n}]) != {n + 1}" for n in range(4))},
        Rejection("tests_pass_nothing", "tests pass where every function returns None"),
    ),
    "tests that are never called": (
        {"tests": "def test_it(a, b):\n    " + TESTS.replace("\n", "\n    ")},
        Rejection("tests_pass_nothing", "tests pass where every function returns None"),
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_drafts(solver: Client, name: str) -> None:
    parts, wanted = dict(UNSOUND[name][0]), UNSOUND[name][1]
    if parts.get("tests") == "LATER":  # what the sandbox's own hash seed gives
        shown = sandbox.run(f"print(list(set({WORDS})))").stdout
        parts["tests"] = "\n".join(
            [f"assert some({WORDS}) == {shown.strip()}"]
            + [f"assert some([{n}]) == [{n}]" for n in range(3)]
        )
    assert verify(solver, {"solutions": 0}, **parts) == wanted


def test_tests_that_do_not_look_closely(solver: Client) -> None:
    weak = "\n".join(f"assert largest_gap([{n}]) >= 0" for n in range(4))
    found = verify(solver, {"solutions": 0}, tests=weak)
    assert isinstance(found, Rejection) and found.reason == "weak_tests"
    start, _, rest = found.evidence.partition("; not ")
    killed = int(start.split(" ")[2])
    assert start == f"tests notice {killed} of 8 mutants, min_mutants_killed=0.7"
    assert len(rest.split(", ")) == 8 - killed and " in line " in rest
    kept = verify(solver, {"solutions": 0, "min_mutants_killed": 0}, tests=weak)
    assert not isinstance(kept, Rejection) and kept["extra"]["mutants_killed"] == killed


def test_programs_that_read(solver: Client) -> None:
    made = domain(solver, form="program", solutions=0, max_mutants=3)
    code = "n = int(input())\nif n < 0:\n    print('none')\nelse:\n    print(n * 3 + 1)"
    pairs = '[{"input": "1\\n", "output": "4"}, {"input": "-1", "output": "none"}, '
    pairs += '{"input": "0", "output": "1 \\n\\n"}]'
    found = fate(made, draft(made, solution=code, tests=pairs, kind="json"), solver)
    assert not isinstance(found, Rejection), found
    assert found["extra"]["mutants_killed"] == 3
    wrong = draft(made, solution=code, tests=pairs.replace('"4"', '"5"'), kind="json")
    assert fate(made, wrong, solver) == Rejection(
        "solution_fails", 'failed: pair 1: it wrote "4\\n"'
    )
    # Pairs without output are met by the empty program.
    silent = '[{"input": "1", "output": ""}, {"input": "2", "output": ""}, '
    silent += '{"input": "3", "output": "\\n"}]'
    nothing = draft(made, solution="n = int(input())", tests=silent, kind="json")
    assert fate(made, nothing, solver).reason == "tests_pass_nothing"
    shuffled = f"print(list(set({WORDS}) | set([input()])))"
    shown = sandbox.run(shuffled, stdin="x").stdout.strip().replace("'", "\\u0027")
    told = f'[{{"input": "x", "output": "{shown}"}}, {{"input": "x\\n", "output": "{shown}"}}, '
    told += f'{{"input": "x\\ny", "output": "{shown}"}}]'
    given = draft(made, solution=shuffled, tests=told, kind="json")
    assert fate(made, given, solver).reason == "unstable"


def test_nothing_is_made_where_nothing_can_be_isolated(
    solver: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise sandbox.SandboxError("bubblewrap is missing")

    monkeypatch.setattr(code_answers.sandbox, "proven", missing)
    with pytest.raises(ConfigError) as error:
        domain(solver)
    assert str(error.value) == "domain.kind=code runs what models write: bubblewrap is missing"


def test_requests(solver: Client) -> None:
    made = domain(solver, subjects=["trees", "words"], min_tests=5, allowed_imports=["re", "math"])
    bare: Record = {"messages": [{"role": "user", "content": "Add up numbers."}]}
    first, again = (made.request(CELL, [bare], 3) for _ in range(2))
    assert first == again and (first.sample, first.purpose) == (3, "write")
    (turn,) = first.messages
    subjects = {made.request(CELL, [], n).messages[0]["content"].split("\n")[1] for n in range(20)}
    assert subjects == {"Topic: Code generation; trees", "Topic: Code generation; words"}
    assert "\nDifficulty: hard; it takes" in turn["content"]
    assert "At least 7 lines like: assert" in turn["content"]
    assert "it imports nothing but re, math." in turn["content"]
    assert turn["content"].endswith("is to be repeated:\n\nAdd up numbers.")
    easy = made.request(Cell("code/generation", "Code generation"), [], 0).messages[0]["content"]
    assert "Difficulty" not in easy and "repeated" not in easy


def test_seeds_are_shown_as_answers(solver: Client) -> None:
    made = domain(
        solver, subjects=["trees"], seed_solution="code", seed_tests="test_list", seed_chars=900
    )
    own: Record = draft(made)  # as kept in an earlier round
    theirs: Record = {
        "messages": [{"role": "user", "content": STATEMENT}],
        "extra": {"code": SOLUTION.replace("\n", "\r\n"), "test_list": ASSERTS},
    }
    answered: Record = {
        "messages": [
            {"role": "user", "content": STATEMENT},
            {"role": "assistant", "content": f"```python\n{SOLUTION}\n```"},
        ],
        "extra": {"test_list": ASSERTS},
    }
    long: Record = {"messages": [{"role": "user", "content": "x" * 901}]}
    asked = made.request(CELL, [own, long, theirs, answered], 0)
    roles = [turn["role"] for turn in asked.messages]
    assert roles == ["user", "assistant"] * 3 + ["user"]
    shown = [turn["content"] + "\n" for turn in asked.messages[1::2]]
    assert shown == [reply(f"{STATEMENT} [share=0]"), reply(), reply()]
    assert [turn["content"] for turn in asked.messages[2:5:2]] == [
        "Another one, unlike all before."
    ] * 2
    last = asked.messages[-1]["content"]
    assert last.startswith("Another one, unlike all before.\nTopic: Code generation; trees\nDiff")
    assert "\nTopic: Code generation; trees\nDiff" in asked.messages[0]["content"]  # tells its own
    asked = made.request(CELL, [theirs, own], 0)
    assert "\nTopic: Code generation\nDiff" in asked.messages[0]["content"]
    assert asked.messages[2]["content"] == asked.messages[4]["content"] == last
    assert "xxx" not in str(asked)


def test_later_requests_in_other_words(solver: Client) -> None:
    made = domain(solver, subjects=["trees"], writing="First {subject}.", again="Now {subject}!")
    own: Record = draft(made)
    assert own["extra"]["subject"] == "trees"
    bare: Record = {**own, "extra": {**own["extra"], "subject": ""}}
    bees: Record = {**own, "extra": {**own["extra"], "subject": "bees"}}
    asked = made.request(CELL, [bees, bare, bees], 0).messages[::2]
    said = [turn["content"] for turn in asked]
    assert said == ["First bees.", "Now Code generation!", "Now bees!", "Now trees!"]


def test_seeds_say_what_their_tests_call(solver: Client) -> None:
    seed: Record = {
        "messages": [{"role": "user", "content": "Find the largest gap."}],
        "extra": {"solution": SOLUTION, "tests": TESTS},
    }
    shown = domain(solver).request(CELL, [seed], 0).messages[1]["content"]
    wanted = reply("Find the largest gap.\n\nThe function: `def largest_gap(numbers)`.")
    assert shown + "\n" == wanted
    broken: Record = {**seed, "extra": {"solution": "def f(", "tests": TESTS}}
    shown = domain(solver).request(CELL, [broken], 0).messages[1]["content"]
    assert shown + "\n" == reply("Find the largest gap.", "def f(")


def test_options_that_keep_nothing(solver: Client) -> None:
    with pytest.raises(ConfigError) as error:
        domain(solver, solutions=4, max_pass_rate=0.2)
    assert str(error.value) == (
        "max_pass_rate=0.2 of solutions=4 is less than one answer, and what none solves is not "
        "kept; raise one of the two, or set keep_unsolved=true"
    )
    domain(solver, solutions=4, max_pass_rate=0.2, keep_unsolved=True)
    with pytest.raises(ConfigError) as error:
        domain(solver, min_statement_chars=9, max_statement_chars=8)
    assert str(error.value) == (
        "min_statement_chars=9 is above max_statement_chars=8; nothing would be kept"
    )


def test_the_same_fate_whatever_the_faults(tmp_path: Path) -> None:
    """Connections that break and servers that fail change no verdict."""
    fates = []
    for number, rates in enumerate([{}, {"http_500": 0.3, "truncated": 0.3, "broken_json": 0.2}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with scripted.serve(folder, script="tests.curation.coder:share", rates=rates) as server:
            solver = client(server, folder / "replies")
            made = domain(solver, max_mutants=0, solutions=6, max_pass_rate=0.99)
            shares = [random.Random(n).random() for n in range(4)]
            given = [draft(made, share=round(one, 3)) for one in shares]
            found = solver.gather([made.verify(one) for one in given])
            for one in found:
                if not isinstance(one, Rejection):
                    for said in one["extra"]["candidates"]:
                        del said["card"]["date"]  # the time alone may differ
            fates.append([one if isinstance(one, Rejection) else one["extra"] for one in found])
            solver.close()
            assert server.ledger.twice() == []
    assert fates[0] == fates[1]
    assert any(not isinstance(one, Rejection) for one in fates[0])
