"""The domain of mathematics: what it asks, what it reads, and whose agreement it counts."""

import sys

import pytest

from megatron_ring.config import ConfigError, build
from megatron_ring.config.curation.maths import MathsConfig
from megatron_ring.curation.collect.equality import MathVerifyPool
from megatron_ring.curation.generate import Reply
from megatron_ring.curation.record import Rejection
from megatron_ring.curation.synthesis.domain import Cell
from megatron_ring.curation.synthesis.maths import Maths
from megatron_ring.curation.synthesis.models import Models
from tests.curation import scripted, synthetic

CELL = Cell("math/high_school/functions", "High school: functions", "hard")
# Takes a question and never answers.
HANGING = [
    sys.executable,
    "-c",
    "import sys, time\nprint('ready', flush=True)\n"
    "for line in sys.stdin:\n print('read', flush=True)\n time.sleep(60)",
]


@pytest.fixture
def models():
    made = Models()
    yield made
    made.close()


def options(folder, url="http://127.0.0.1:9/v1", **keys):
    return build(MathsConfig, {"solver": synthetic.model(folder, url), **keys})


def reply(text, finish="stop"):
    return Reply(text=text, finish_reason=finish, card={"max_tokens": 1000, "model": "m"})


def draft(text):
    return {"id": "x/1", "messages": [{"role": "user", "content": text}], "extra": {"cell": "c"}}


@pytest.fixture
def solved(tmp_path, models):
    """What becomes of a problem whose solver gives these answers; and the requests it took."""
    with scripted.serve(tmp_path, script="tests.curation.synthetic:as_told") as server:

        def solve(answers, pool=None, **keys):
            maths = Maths(options(tmp_path, server.url, **keys), models)
            maths.pool = pool or maths.pool
            before = len(server.ledger)
            problem = draft(f"How many are there in all? (answers: {answers})")
            (found,) = models.gather([maths.verify(problem)])
            return found, len(server.ledger) - before

        yield solve


def test_six_of_ten_keep_a_problem_with_exact_counts(solved):
    found, requests = solved("12, 12, 12, 12, 12, 12, 13, 13, -, cut")
    assert requests == 10 and found["answer"] == "12"
    assert [turn["role"] for turn in found["messages"]] == ["user"]
    kept = found["extra"].pop("candidates")
    assert len({one["number"] for one in kept}) == 6
    for one in kept:
        card = one.pop("card")  # of the solver's reply; the record's own is the writer's
        assert (card["model"], card["finish_reason"]) == ("scripted", "stop")
        assert one == {
            "number": one["number"],
            "text": "<think>\nLet me see.\n</think>\n\nIt is \\boxed{12}",
            "model": "scripted",
            "correct": True,
            "finish": "stop",
        }
    assert found["extra"] == {
        "cell": "c",
        "agreement": {
            "votes": 6,
            "asked": 10,
            "solutions": 10,
            "answers": [["12", 6], ["13", 2]],
            "without": 2,
            "cut": 1,
            "refused": 0,
            "timeouts": 0,
        },
    }


def test_five_of_ten_are_not_enough(solved):
    found, requests = solved("12, 12, 12, 12, 12, 13, 13, 13, 13, -")
    told = "of 10: 5 x '12', 4 x '13'; 1 without one; 6 must agree"
    assert (found, requests) == (Rejection("no_agreement", told), 10)


def test_answers_in_several_forms_are_one(solved):
    forms = "0.5, 1/2, \\frac{1}{2}, \\frac12, 0.50, 5/10, 2, 3, 4, 5"
    found, _ = solved(forms)
    assert found["extra"]["agreement"]["votes"] == 6


def test_no_answer_at_all_is_told_apart(solved):
    found, _ = solved("-, cut, -, -, -, -, -, -, -, -")
    assert found == Rejection("no_answers", "of 10: no answer; 10 without one")


def test_a_comparison_that_hangs_is_a_third_verdict_and_stays_one(solved):
    forms = "x^2+1, x^2+1, x^2+1, x^2+1, x^2+1, 1+x^2, 1+x^2, 1+x^2, 1+x^2, 7"
    with MathVerifyPool(1, 0.2, HANGING) as pool:
        found, requests = solved(forms, pool)
    # 7 is compared with both, and one formula with the other
    told = "of 10: 5 x 'x^2+1', 4 x '1+x^2', 1 x '7'; 0 without one; 3 comparisons took longer"
    assert found == Rejection("timeout", f"{told} than 5 s; 6 must agree")
    assert requests == 10
    again, requests = solved(forms)  # with workers that work
    assert (again, requests) == (found, 0)


def test_too_easy_problems_go_where_that_is_asked_for(solved):
    found, _ = solved("1, 1, 1, 1, 1, 1, 1, 1, 1, 2", max_agree=8)
    assert found.reason == "too_easy"
    assert found.evidence == "of 10: 9 x '1', 1 x '2'; 0 without one; max_agree=8"
    found, _ = solved("1, 1, 1, 1, 1, 1, 1, 1, 2, 3", max_agree=8)
    assert found["extra"]["agreement"]["votes"] == 8


def test_stopping_early_asks_only_what_can_decide(solved):
    early = {"stop_early": True}
    found, requests = solved("1, 1, 1, 1, 1, 1, 2, 3, 4, 5", **early)
    assert requests == 6 and found["extra"]["agreement"]["asked"] == 6
    # 6 asked, 4 agree; 2 more, of which one; 1 more, which decides
    found, requests = solved("1, 1, 1, 2, 1, 3, 1, 4, 1, 5", **early)
    assert requests == 9 and found["extra"]["agreement"]["votes"] == 6
    # After 6 the best has 1, and 4 more cannot make it 6
    found, requests = solved("1, 2, 3, 4, 5, 7, 1, 1, 1, 1", **early)
    assert requests == 6 and found.reason == "no_agreement"
    assert found.evidence.startswith("of 6: ")


def test_fewer_solutions_go_along_where_asked_for(solved):
    found, _ = solved("1, 1, 1, 1, 1, 1, 1, 1, 2, 3", keep_solutions=2)
    assert len(found["extra"]["candidates"]) == 2


def test_a_request_shows_topic_difficulty_and_seeds(tmp_path, models):
    maths = Maths(options(tmp_path), models)
    seeds = [draft("Solve $\\{x\\}=2$, {topic}."), draft("What is 3?")]
    request = maths.request(CELL, seeds, 5)
    (turn,) = request.messages
    assert turn["role"] == "user" and request.purpose == "write"
    assert "Topic: High school: functions\n" in turn["content"]
    assert "among problems of this topic: hard\n" in turn["content"]
    assert "<problem>\nSolve $\\{x\\}=2$, {topic}.\n</problem>" in turn["content"]  # as it is
    assert "<problem>\nWhat is 3?\n</problem>" in turn["content"]
    (bare,) = maths.request(Cell("math/x", "X"), [], 0).messages
    assert "other numbers or names" not in bare["content"]
    assert "{" not in bare["content"]


def test_the_user_may_say_it_in_other_words(tmp_path, models):
    own = {"writing": "About {topic} ({difficulty}): {seeds}", "solving": "{problem} Solve!"}
    (turn,) = Maths(options(tmp_path, **own), models).request(CELL, [], 0).messages
    assert turn["content"] == "About High school: functions (hard): "


def test_seeds_may_be_turns_of_their_own_subjects(tmp_path, models):
    own = {
        "seeds_as": "turns",
        "writing": "{topic}, {difficulty}: {subject}.",
        "subjects": ["nuts"],
    }
    maths = Maths(options(tmp_path, **own), models)
    told = {**draft("How many pears?"), "extra": {"subject": "pears", "difficulty": "easy"}}
    asked = maths.request(CELL, [told, draft("What is 3?")], 0).messages
    assert [turn["role"] for turn in asked] == ["user", "assistant"] * 2 + ["user"]
    assert [turn["content"] for turn in asked] == [
        "High school: functions, easy: pears.",
        "<problem>\nHow many pears?\n</problem>",
        "High school: functions, any: High school: functions.",  # a seed that tells neither
        "<problem>\nWhat is 3?\n</problem>",
        "High school: functions, hard: nuts.",
    ]
    usual = Maths(options(tmp_path, seeds_as="turns"), models).request(CELL, [told], 0).messages
    assert [turn["content"].count("How many pears?") for turn in usual] == [0, 1, 0]


def test_a_subject_is_drawn_for_each_request_and_told(tmp_path, models):
    subjects = ["nuts", "bees", "cups", "keys"]
    maths = Maths(options(tmp_path, subjects=subjects), models)
    drawn = []
    for number in range(40):
        (turn,) = maths.request(CELL, [], number).messages
        (topic,) = [line for line in turn["content"].splitlines() if line.startswith("Topic: ")]
        drawn.append(topic.removeprefix("Topic: High school: functions; "))
        (found,) = maths.parse(reply("<problem>How many are there in all?</problem>"), CELL, number)
        assert found["extra"] == {"subject": drawn[-1]}
    assert set(drawn) == set(subjects)


def test_solved_problems_are_earlier_turns_of_every_solution(tmp_path, models):
    with scripted.serve(tmp_path, script="tests.curation.synthetic:as_told") as server:
        shown = [{"problem": "What is 1 + 1?", "solution": "So \\boxed{2}"}]
        own = {"solved": shown, "solving": "{problem} Now.", "solutions": 2, "agree": 2}
        maths = Maths(options(tmp_path, server.url, **own), models)
        (found,) = models.gather([maths.verify(draft("What? (answers: 7)"))])
        bodies = [line["body"] for line in server.ledger.lines]
    assert found["answer"] == "7" and len(bodies) == 2
    for body in bodies:
        assert body["messages"] == [
            {"role": "user", "content": "What is 1 + 1? Now."},
            {"role": "assistant", "content": "So \\boxed{2}"},
            {"role": "user", "content": "What? (answers: 7) Now."},
        ]


def test_what_a_reply_holds(tmp_path, models):
    maths = Maths(options(tmp_path), models)

    def parse(text, finish="stop"):
        return maths.parse(reply(text, finish), CELL, 0)

    two = "<think>A <problem>first idea that is bad</problem></think>\n<problem>\nWhat is 1 + 1, as"
    two += " a sum?\n</problem> <PROBLEM>And then what is 2 + 2?</PROBLEM>"
    assert [one["messages"] for one in parse(two)] == [
        [{"role": "user", "content": "What is 1 + 1, as a sum?"}],
        [{"role": "user", "content": "And then what is 2 + 2?"}],
    ]
    assert parse("I will not.") == [
        Rejection("no_problem", "no <problem>...</problem> in: I will not.")
    ]
    assert parse("<problem>What is 1 +", "length") == [
        Rejection("cut", "the reply ends at max_tokens=1000")
    ]
    assert parse("<problem>1 + 1?</problem>") == [
        Rejection("length", "6 of 20 to 4000 characters: 1 + 1?")
    ]
    (found,) = parse("<problem>What is 1 + 1, other than \\boxed{2}?</problem>")
    assert found == Rejection("tells_answer", "\\boxed{2} stands in the problem")
    (found,) = parse("<problem>What is the area of the triangle in the figure below?</problem>")
    assert found.reason == "figure" and "figure" in found.evidence


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"agree": 11}, "agree=11 of solutions=10 can never be; lower agree"),
        ({"max_agree": 10}, "max_agree=10 is not from agree=6 to 9, one less than solutions"),
        ({"max_agree": 5}, "max_agree=5 is not from agree=6 to 9"),
        ({"max_agree": 8, "stop_early": True}, "stop_early=true does not know how many.*=8 asks"),
        ({"writing": "Write one."}, r"writing has no \{seeds\} in it"),
        ({"solving": "Solve."}, r"solving has no \{problem\} in it"),
        ({"writing": "{seeds}", "seeds_as": "turns"}, r"with seeds_as=turns .* take \{seeds\} out"),
        ({"writing": "{seeds} {subject}"}, r"writing has \{subject\} in it, but there are no `sub"),
    ],
)
def test_options_that_cannot_be(tmp_path, keys, said):
    with pytest.raises(ConfigError, match=said):
        options(tmp_path, **keys)
