"""The command line of synthesis: what it prints, and what it leaves alone."""

import json
import re

import pytest

from tests.curation import scripted, synthetic
from tools import synthesize

ROOT = scripted.ROOT


def call(capsys, *arguments):
    """Exit status and what was printed."""
    status = synthesize.main(list(map(str, arguments)))
    return status, capsys.readouterr().out


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a recipe that was run."""
    folder = tmp_path_factory.mktemp("done")
    with scripted.serve(folder, script="tests.curation.synthetic:writes_and_solves") as server:
        tree = synthetic.recipe(folder, server.url, total=8, rounds=1)
        (folder / "recipe.yaml").write_text(json.dumps(tree))
        assert synthesize.main(["run", str(folder / "recipe.yaml")]) == 0
    return folder


def test_run_prints_progress_the_funnel_and_what_comes_next(done, capsys):
    status, said = call(capsys, "run", done / "recipe.yaml", "total=9")
    assert status == 0
    assert "another recipe from here on (total: 8 -> 9); finished rounds stay" in said
    assert re.search(r"round 1: \d+ kept of \d+ requests, finished before", said)
    report = json.loads((done / "out/report.json").read_text())
    total = report["total"]
    numbers = rf"│ +{total['requests']} │ +{total['replies']} │"
    assert re.search(rf"all +{numbers}", said) and "no_agreement" in said
    solved = report["used"]["solve"]
    assert f"solve: {solved['requests']} replies, {solved['input_tokens']:,} tokens read" in said
    flat = said.replace("\n", "")
    assert f"python tools/synthesize.py show {done / 'out'}" in flat
    assert f"python tools/curate.py run {done / 'out'}/source.yaml STAGES.yaml" in flat


def test_progress_tells_steps_requests_and_tokens(tmp_path, capsys):
    with scripted.serve(tmp_path, script="tests.curation.synthetic:writes_and_solves") as server:
        tree = synthetic.recipe(tmp_path, server.url, total=4, rounds=1)
        tree["writer"]["prices"] = tree["domain"]["solver"]["prices"] = {"output": 1e6}
        (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
        status, said = call(capsys, "run", tmp_path / "recipe.yaml")
        written = server.ledger.tokens()[1]
    assert status == 0
    assert re.search(r"round 1: writing: 8 of 8, 8 requests, \d+ tokens written", said)
    number = len(server.ledger)
    told = rf"round 1: verifying: (\d+) of \1, {number} requests, {written:,} tokens written, cost"
    assert re.search(told, said)


def test_dry_run_shows_cells_and_the_first_request_and_sends_nothing(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps(synthetic.recipe(tmp_path)))
    status, said = call(capsys, "run", tmp_path / "recipe.yaml", "total=6", "--dry-run")
    assert status == 0  # nobody is at that address
    assert '"total": 6' in said and "seeds: 12 read, 0 unreadable" in said
    assert re.search(r"math/high_school/functions:easy +│ +2 │ +1 │ +2", said)
    assert "the first of 12 requests, of write" in said
    assert "user: Write one new problem" in said and "Topic: High school: sets and logic" in said
    assert re.search(r"<problem>\nHow much is \d+ and \d+ together\?\n</problem>", said)
    assert not (tmp_path / "out").exists()


def test_status_of_a_run_and_of_none(done, tmp_path, capsys):
    status, said = call(capsys, "status", done / "out")
    assert status == 0 and "the funnel" in said and "round 1" in said
    status, said = call(capsys, "status", tmp_path)
    assert status == 1 and f"{tmp_path} has no run in it" in said.replace("\n", "")
    (tmp_path / "work").mkdir()
    status, said = call(capsys, "status", tmp_path)
    assert status == 0 and "0 rounds finished, nothing written yet" in said


def test_show_prints_what_was_rejected_by_reason_and_cell(done, capsys):
    path = done / "out/rounds/01/rejected.jsonl"
    rejected = [json.loads(line) for line in path.read_text().splitlines()]
    status, said = call(capsys, "show", done / "out")
    assert status == 0 and f"5 of {len(rejected)} rejected" in said
    ours = [one for one in rejected if one["reason"] == "no_agreement"]
    status, said = call(capsys, "show", done / "out", "--reason", "no_agreement", "-n", "1")
    assert status == 0 and f"1 of {len(ours)} rejected" in said
    assert ours[0]["evidence"] in said.replace("\n", "")
    assert f"user: {ours[0]['record']['messages'][0]['content']}" in said
    cell = rejected[0]["cell"]
    number = sum(one["cell"] == cell for one in rejected)
    status, said = call(capsys, "show", done / "out", "--cell", cell, "-n", "0")
    assert status == 0 and f"0 of {number} rejected" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["show", "OUT", "--reason", "boredom"],
            "nothing was rejected with reason 'boredom'; there",
        ),
        (["show", "OUT", "--cell", "x"], "nothing was rejected with cell 'x'; there are: math/"),
        (["show", "OUT", "-n", "many"], "-n 'many' is no number of records"),
        (["show"], "give one folder that synthesize.py run wrote, not 0"),
        (["status", "nowhere"], "there is no folder nowhere"),
        (["make"], "unknown command 'make'; known: run, status, show, schema"),
        (["run", "RECIPE", "totals=3"], "unknown config key totals; did you mean total?"),
        (["run", "RECIPE", "name=a/b"], "name: 'a/b' begins ids; letters, digits, . _ and - are"),
        (["run", "RECIPE", "domain.agree=9"], "domain: agree=9 of solutions=4 can never be"),
        (["run", "RECIPE", "seed=2"], "its rounds were made by another recipe (seed: 1234 -> 2)"),
    ],
)
def test_errors_of_the_user_are_told_in_one_line(done, capsys, arguments, said):
    there = {"OUT": done / "out", "RECIPE": done / "recipe.yaml"}
    status, printed = call(capsys, *(there.get(one, one) for one in arguments))
    assert status == 1 and f"error: {said}" in printed.replace("\n", "") or said in printed


def test_the_page_shows_the_funnel_and_needs_no_network(done):
    text = (done / "out/funnel.html").read_text()
    report = json.loads((done / "out/report.json").read_text())
    assert f"{report['total']['kept']} of " in text and "problems in 1 rounds" in text
    drawn = re.search(r'"x":\[([\d,]+)\],"y":\["requests"', text) or re.search(
        r'"x":\[([\d,]+)\],"type":"funnel"', text
    )
    wanted = [report["total"][key] for key in ("requests", "replies", "drafts", "new", "kept")]
    assert drawn and list(map(int, drawn[1].split(","))) == wanted
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', text)


def test_the_schema_is_the_one_in_the_repository(capsys):
    """Made by: python tools/synthesize.py schema > configs/curate/synthesis/schema.json"""
    _, said = call(capsys, "schema")
    assert said == (ROOT / "configs/curate/synthesis/schema.json").read_text()


def test_the_recipe_of_mathematics_is_one(tmp_path, capsys):
    folder = tmp_path / "curated/kept"
    folder.mkdir(parents=True)
    record = {
        "id": "x/1",
        "messages": [{"role": "user", "content": "How much is it?"}],
        "domain": "math",
        "level": "university",
        "topic": "topology",
    }
    (folder / "x.jsonl").write_text(json.dumps(record) + "\n")
    recipe = ROOT / "configs/curate/synthesis/maths.yaml"
    keys = [f"data={tmp_path}", f"output={tmp_path / 'out'}"]
    keys += [f"{of}.replies={tmp_path / 'replies'}" for of in ("writer", "domain.solver")]
    status, said = call(capsys, "run", recipe, *keys, "--dry-run")
    assert status == 0 and "the first of 8,000 requests" in said
