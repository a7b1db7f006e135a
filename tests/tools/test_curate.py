"""The command line of curation: what it prints, and what it leaves alone."""

import io
import re
import shutil

import pytest
from rich.console import Console

from megatron_ring import config
from megatron_ring.config.curation import CurateConfig
from megatron_ring.curation import recipe
from tests.curation.runs import HERE
from tools import curate

SMOKE = [
    str(HERE / "smoke.yaml"),
    f"sources.sums.path={HERE}/smoke.jsonl",
    f"sources.chat.path={HERE}/smoke_chat.jsonl",
]


def call(capsys, *arguments):
    """Exit status and what was printed."""
    status = curate.main(list(map(str, arguments)))
    return status, capsys.readouterr().out


@pytest.fixture
def done(tmp_path, capsys):
    """The folder of a run."""
    assert call(capsys, "run", *SMOKE, f"output={tmp_path / 'out'}")[0] == 0
    return tmp_path / "out"


def test_run_prints_its_progress_and_a_table(tmp_path, capsys):
    status, said = call(capsys, "run", *SMOKE, f"output={tmp_path / 'out'}")
    assert status == 0
    assert re.search(r"00-read: 35 of 35 records, [\d,]+ records/s", said)
    assert re.search(r"exact +│ +32 │ +31 │ 1 duplicate +│", said)
    assert f"python tools/pack.py {tmp_path / 'out'}/pack.yaml tokenizer=" in said.replace("\n", "")
    status, said = call(capsys, "run", *SMOKE, f"output={tmp_path / 'out'}")
    assert status == 0 and "01-exact: finished before" in said


def test_dry_run_shows_records_and_writes_nothing(tmp_path, capsys):
    status, said = call(capsys, "run", *SMOKE, f"output={tmp_path / 'out'}", "--dry-run")
    assert status == 0
    assert '"threshold": 0.7' in said
    assert "sums: 31 records in 5 shards" in said and "user: What is 2 + 1?" in said
    assert "35 records in 6 shards, 3 times through" in said
    assert not (tmp_path / "out").exists()


def test_status_of_a_whole_run_and_of_a_part(done, capsys):
    status, said = call(capsys, "status", done)
    assert status == 0
    assert re.search(r"01-exact +│ exact, check_tools, minhash +│ 6 +│ 6", said)
    assert "near_duplicate" in said
    (done / "work/02-minhash/done.json").unlink()
    (done / "work/02-minhash/counts/00001.json").unlink()
    _, said = call(capsys, "status", done)
    assert re.search(r"02-minhash │ minhash +│ 5 +│ 6", said)
    assert "near_duplicate" not in said


def test_rejected_records_are_shown(done, capsys):
    _, said = call(capsys, "show", done, "--stage", "exact")
    assert "sums/q24: exact, duplicate" in said and "same prompt as sums/q0" in said
    assert "assistant: Three." in said and "1 of 1 rejected records" in said
    _, said = call(capsys, "show", done, "--stage", "read", "--reason", "no_prompt")
    assert "smoke.jsonl:32: " in said and "1 of 1 rejected" in said
    _, said = call(capsys, "show", done, "-n", "2")
    assert "2 of 5 rejected records" in said
    status, said = call(capsys, "show", done, "--stage", "none")
    assert status == 1
    assert "stage 'none' rejected nothing; those that did: exact, minhash, read" in said
    assert "-n 'x' is no number" in call(capsys, "show", done, "-n", "x")[1]
    _, said = call(capsys, "show", done, "--stage", "read", "--reason", "x")
    assert "nothing was rejected for the reason 'x'; there are: " in said and "no_prompt" in said


def test_every_stage_is_listed_with_its_options(capsys):
    _, said = call(capsys, "stages")
    for name, (options, _) in {**recipe.STAGES, **recipe.GLOBAL_STAGES}.items():
        assert re.search(rf"^{name}  ", said, re.MULTILINE)
        assert all(f"    {key}" in said for key in options.model_fields if key != "stage")
    for key in (
        "judge.below [0.6]",
        "quotas.NAME.take ",
        "sources.N.paths",
        "latex.look_at both |",
    ):
        assert f"    {key}" in said  # also those of parts in parts
    assert " repetition_characters | repetition_loop |" in said and "typing" not in said
    assert "check_tools" not in call(capsys, "stages", "minhash")[1]
    assert "unknown stage 'x'; known: " in call(capsys, "stages", "x")[1]


def test_stages_of_the_table_are_those_of_recipes():
    """And each key of each of them is explained."""
    known = {**recipe.STAGES, **recipe.GLOBAL_STAGES}
    schema = CurateConfig.model_json_schema()["properties"]["stages"]["items"]
    assert set(schema["discriminator"]["mapping"]) == set(known)
    for name, (options, stage) in known.items():
        assert options.model_fields["stage"].default == name
        assert hasattr(stage, "decide") == (name in recipe.GLOBAL_STAGES)


def test_schema_is_committed(capsys):
    """Made by: python tools/curate.py schema > configs/curate/schema.json"""
    _, said = call(capsys, "schema")
    assert said == (curate.ROOT / "configs/curate/schema.json").read_text()
    assert said == config.json_schema(CurateConfig)


def test_help_teaches(capsys):
    _, said = call(capsys, "--help")
    for text in ("A recipe:", "tools/pack.py", "slurm.partition", "sources.N.columns.prompt"):
        assert text in said
    assert "[jsonl]" in said and "records_per_shard" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk"], "unknown command 'walk'; known: run, status, show, stages, schema"),
        (["status", "/nowhere"], "there is no folder /nowhere"),
        (["status"], "give one folder that curate.py run wrote, not 0"),
        (["run", "nowhere.yaml"], "there is no config file nowhere.yaml"),
        (["run", *SMOKE, "stages.1.stage=check_tool"], "did you mean check_tools?"),
    ],
)
def test_errors_are_printed(arguments, message, capsys):
    status, said = call(capsys, *arguments)
    assert status == 1
    assert message in said.replace("\n", " ")


def test_status_of_a_folder_without_a_run(tmp_path, capsys):
    assert "has no run in it" in call(capsys, "status", tmp_path)[1].replace("\n", " ")


def test_a_terminal_has_a_bar_with_the_time_that_is_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    teller = curate.ConsoleTeller(console)
    teller.begin("00-read", 100, 40, lambda: 70)
    teller.end()
    said = console.file.getvalue()
    assert "40 of 100 records were finished before" in re.sub(r"\x1b\[[\d;?]*\w", "", said)
    assert "70/100" in said and "records/s" in said


def test_status_when_work_was_removed(done, capsys):
    shutil.rmtree(done / "work")
    status, said = call(capsys, "status", done)
    assert status == 0 and re.search(r"exact +│ +32 │ +31 │ 1 duplicate +│", said)
