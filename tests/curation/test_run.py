"""Runs of a recipe: the same bytes whoever works and whoever dies, every record accounted for."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from megatron_ring.config import ConfigError
from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.curation.collect import Columns
from megatron_ring.curation import recipe, run
from megatron_ring.curation.record import Rejection
from tests.curation.runs import SMOKE, ids, lines, load, outcome, rejected, simple, write_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke recipe, run once by one process."""
    folder = tmp_path_factory.mktemp("smoke") / "out"
    return run.run(load(output=folder))


def test_every_record_is_kept_or_rejected_with_its_reason(smoke):
    """Oracle: smoke.jsonl, read by eye."""
    out = smoke.output
    told = {
        one["stage"]: (one["read"], one["kept"], one["rejected"]) for one in smoke.report["stages"]
    }
    assert told == {
        "read": (35, 32, {"malformed_json": 1, "no_prompt": 1, "not_an_object": 1}),
        "exact": (32, 31, {"duplicate": 1}),
        "check_tools": (31, 31, {}),
        "minhash": (31, 30, {"near_duplicate": 1}),
    }
    assert ids(out, "sums") == [f"sums/q{n}" for n in [*range(24), 25, 27]]
    assert ids(out, "chat") == [f"chat/{n}" for n in (1, 2, 3, 4)]
    (gone,) = rejected(out, "exact")
    assert (gone["id"], gone["source"], gone["stage"]) == ("sums/q24", "sums", "exact")
    assert (gone["reason"], gone["evidence"]) == ("duplicate", "same prompt as sums/q0")
    assert gone["record"]["messages"][1] == {"role": "assistant", "content": "Three."}
    places = [one["evidence"].split(": ")[0] for one in rejected(out, "read")]
    assert [Path(place).name for place in places] == [
        f"smoke.jsonl:{number}" for number in (6, 13, 32)
    ]
    first = lines(out / "kept/sums.jsonl")[0]
    assert (first["source"], first["domain"], first["topic"]) == ("sums", "math", "sums")
    assert smoke.report["sources"]["sums"]["kept"] == 26


def test_card_names_recipe_versions_and_inputs(smoke):
    card = json.loads((smoke.output / "card.json").read_text())
    assert CurateConfig.model_validate(card["recipe"]).stages[2].threshold == 0.7
    file = Path(card["inputs"][0]["path"])
    assert card["inputs"][0]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card["versions"]["datatrove"].startswith("0.10")
    assert card["date"][:2] == "20"


@pytest.mark.parametrize("overrides", [("workers=2",), ("workers=3", "records_per_file=4")])
def test_workers_change_nothing(overrides, smoke, tmp_path):
    other = run.run(load(*overrides, output=tmp_path / "out"))
    if len(overrides) == 1:
        assert outcome(other.output) == outcome(smoke.output)
    else:  # cut into files of four
        parts = [lines(path) for path in sorted(other.output.glob("kept/sums*.jsonl"))]
        assert [len(part) for part in parts] == [4] * 6 + [2]
        assert [one for part in parts for one in part] == lines(smoke.output / "kept/sums.jsonl")


def test_shards_of_another_size_decide_the_same(smoke, tmp_path):
    other = run.run(load("records_per_shard=1000", output=tmp_path / "out"))
    assert (other.output / "kept/sums.jsonl").read_bytes() == (
        smoke.output / "kept/sums.jsonl"
    ).read_bytes()
    assert rejected(other.output, "minhash") == rejected(smoke.output, "minhash")


class Said(run.Teller):
    """Keeps what a run says."""

    def __init__(self):
        self.lines, self.segments = [], []

    def say(self, line):
        self.lines.append(line)

    def begin(self, name, records, finished, count):
        self.segments.append((name, records, finished))


def test_finished_work_is_not_done_again(tmp_path):
    config = load(output=tmp_path / "out")
    run.run(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/work").rglob("*.json*")}
    said, began = Said(), time.perf_counter()
    run.run(config, said)
    assert time.perf_counter() - began < 1
    assert said.lines == [
        f"{name}: finished before" for name in ("00-read", "01-exact", "02-minhash")
    ]
    assert said.segments == []
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_lost_shard_alone_is_done_again(tmp_path):
    config = load(output=tmp_path / "out")
    whole = outcome(run.run(config).output)
    folder = tmp_path / "out" / "work" / "02-minhash"
    (folder / "done.json").unlink()
    (folder / "counts/00002.json").unlink()
    others = {path: path.stat().st_mtime_ns for path in folder.glob("counts/*.json")}
    said = Said()
    assert outcome(run.run(config, said).output) == whole
    assert said.segments == [("02-minhash", 31, 24)]  # 7 records of shard 2 are missing
    assert others == {path: path.stat().st_mtime_ns for path in others}


@pytest.mark.parametrize(
    ("change", "begins", "why"),
    [
        ("stages.2.threshold=0.95", "01-exact", "minhash.threshold was 0.7, is 0.95"),
        ("stages.1.results=ignore", "01-exact", 'check_tools.results was "require", is "ignore"'),
        ("stages.0.prefer=longest", "00-read", 'exact.prefer was "first", is "longest"'),
        ("records_per_shard=5", "00-read", "input changed"),
    ],
)
def test_another_recipe_goes_on_from_what_is_another(change, begins, why, tmp_path):
    run.run(load(output=tmp_path / "out"))
    said = Said()
    again = run.run(load(change, output=tmp_path / "out"), said)
    fresh = run.run(load(change, output=tmp_path / "fresh"))
    assert outcome(again.output) == outcome(fresh.output)
    told = f"the recipe is another from {begins} on ({why}): done again from there"
    assert said.lines[0] == told


def test_another_input_and_another_stages_file_are_noticed(tmp_path, monkeypatch):
    file = write_rows(tmp_path / "rows.jsonl", 30)
    config = simple(tmp_path / "out", file, stages=[{"stage": "exact"}], records_per_shard=10)
    first = run.run(config)
    os.utime(file)  # the same content
    said = Said()
    run.run(config, said)
    assert said.lines == ["00-read: finished before", "01-exact: finished before"]
    write_rows(file, 31)
    said = Said()
    assert run.run(config, said).counts["read"].read == first.counts["read"].read + 1
    assert "from 00-read on (input changed)" in said.lines[0]
    monkeypatch.setattr("megatron_ring.curation.work._digest_code", lambda stage: "another")
    said = Said()
    run.run(config, said)
    assert "from 00-read on (code of exact changed)" in said.lines[0]


def test_fewer_stages_leave_nothing_of_the_others(tmp_path):
    run.run(load(output=tmp_path / "out"))
    run.run(load("stages=[{stage: check_tools}]", output=tmp_path / "out"))
    fresh = run.run(load("stages=[{stage: check_tools}]", output=tmp_path / "fresh"))
    assert outcome(tmp_path / "out") == outcome(fresh.output)
    assert not (tmp_path / "out/rejected/exact").exists()
    assert sorted(p.name for p in (tmp_path / "out/work").glob("0*")) == ["00-read"]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="has other files in it and no run; choose another"):
        run.run(load(output=tmp_path))


def test_two_runs_in_a_folder_are_refused(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from megatron_ring.curation import work, segment\n"
        "with work.claimed(segment.Paths(Path(sys.argv[1]))):\n"
        "    print('in', flush=True)\n    time.sleep(60)\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "out"], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(ConfigError, match="another run is at work there"):
            run.run(load(output=tmp_path / "out"))
    finally:
        first.kill()
        first.wait()
    run.run(load(output=tmp_path / "out"))


def test_files_that_were_changed_are_noticed(tmp_path):
    config = load(output=tmp_path / "out")
    run.run(config)
    file = tmp_path / "out/rejected/read/00000.jsonl"
    file.write_text(file.read_text() * 2)
    message = r"rejected/read holds 4 records, 3 were counted; .* remove work/ in it and run again"
    with pytest.raises(ValueError, match=message):
        run.run(config)


def test_counts_that_do_not_add_up_are_an_error(tmp_path):
    config = load(output=tmp_path / "out")
    run.run(config)
    file = tmp_path / "out" / "work" / "01-exact/done.json"
    told = json.loads(file.read_text())
    told["stages"]["exact"]["kept"] = 30
    file.write_text(json.dumps(told))
    message = "stage exact read 32 records, but kept 30 and rejected 1, 31 in all; remove work/"
    with pytest.raises(ValueError, match=message):
        run.run(config)


class Faulty:
    """A stage with a bug, which meets it in the tenth record."""

    def __init__(self, options):
        pass

    def apply(self, record):
        if record["id"].endswith("/10"):
            raise KeyError("no such thing")
        return record


def test_an_error_of_a_stage_names_the_record(tmp_path, monkeypatch):
    options, _ = recipe.STAGES["check_tools"]
    monkeypatch.setitem(recipe.STAGES, "check_tools", (options, Faulty))
    recipe._make.cache_clear()
    file = write_rows(tmp_path / "rows.jsonl", 30)
    config = simple(tmp_path / "out", file, stages=[{"stage": "check_tools"}], records_per_shard=4)
    with pytest.raises(KeyError) as raised:
        run.run(config)
    assert raised.value.__notes__ == ["stage check_tools, record rows/10"]
    done = sorted(path.name for path in (tmp_path / "out" / "work" / "00-read/counts").iterdir())
    assert done == ["00000.json", "00001.json"]  # what was finished stays
    monkeypatch.undo()
    recipe._make.cache_clear()
    assert run.run(config).counts["check_tools"].kept == 30


def test_ids_that_come_twice_are_told_apart(tmp_path):
    """A source's own ids need not be unique; no record goes instead of another."""
    file = tmp_path / "rows.jsonl"
    texts = ["one", "two", "one", "two", "three"]
    rows = [{"id": "x", "prompt": text, "response": "yes"} for text in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = simple(tmp_path / "out", file, stages=[{"stage": "exact"}], records_per_shard=2)
    columns = config.sources[0].columns.model_copy(update={"id": "id"})
    source = config.sources[0].model_copy(update={"columns": columns})
    run.run(config.model_copy(update={"sources": [source]}))
    kept = [one["messages"][0]["content"] for one in lines(tmp_path / "out/kept/rows.jsonl")]
    assert kept == ["one", "two", "three"]
    evidence = [one["evidence"] for one in rejected(tmp_path / "out", "exact")]
    assert evidence == ["same prompt as rows/x", "same prompt as rows/x#2"]


def test_first_records_are_tried_and_nothing_is_written(tmp_path):
    config = load("stages.0.prefer=longest", output=tmp_path / "out")
    sums, chat = run.try_out(config)
    assert (sums.source, sums.num_rows, sums.num_shards, sums.fate) == ("sums", 31, 5, "kept")
    assert sums.before["id"] == "sums/q0" and chat.after["id"] == "chat/1"
    assert not (tmp_path / "out").exists()
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    (tmp_path / "none.jsonl").write_text("")
    tried = run.try_out(simple(tmp_path / "out", tmp_path / "bad.jsonl", tmp_path / "none.jsonl"))
    assert tried[0].fate.startswith("read rejects it: not_an_object: ")
    assert tried[1].fate == "nothing in it"


def test_parquet_holds_the_same_records(smoke, tmp_path):
    other = run.run(load("format=parquet", output=tmp_path / "out"))
    rows = pq.read_table(other.output / "kept/sums.parquet").to_pylist()
    wanted = lines(smoke.output / "kept/sums.jsonl")
    for row, record in zip(rows, wanted, strict=True):
        turns = [{k: v for k, v in turn.items() if v is not None} for turn in row["messages"]]
        assert turns == record["messages"]
        for key in ("id", "source", "domain", "licence"):
            assert row[key] == record[key]
    again = run.run(load("format=parquet", "workers=2", output=tmp_path / "again"))
    assert outcome(again.output) == outcome(other.output)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_what_is_kept_can_be_packed(format, packed, tmp_path):
    """tools/pack.py reads pack.yaml unchanged; tokens per source as when packed from JSONL."""
    from tools import pack

    result = run.run(load(f"format={format}", output=tmp_path / "out"))
    tokenizer = packed.parent / "small.model"
    arguments = [str(result.output / "pack.yaml"), f"tokenizer={tokenizer}", "row_tokens=256"]
    assert pack.main([*arguments, f"output={tmp_path / 'packed'}"]) == 0
    manifest = json.loads((tmp_path / "packed/manifest.json").read_text())
    assert [source["documents"] for source in manifest["sources"]] == [26, 4]


def start(config_file, *overrides):
    command = [sys.executable, "tools/curate.py", "run", str(config_file), *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def num_finished(output):
    """Shards; not by rglob, which fails when a folder it has just seen is renamed."""
    return len(list((output / "work").glob("*/counts/*.json")))


def kill_again_and_again(tmp_path, times, seed):
    """Kill runs at random moments, whoever of them is met; the last goes to its end."""
    file = write_rows(tmp_path / "rows.jsonl", 800)
    text = (
        f"sources: [{{path: {file}, columns: {{prompt: prompt, response: response}}}}]\n"
        "stages: [{stage: exact}, {stage: check_tools}, {stage: minhash, threshold: 0.5}]\n"
        "records_per_shard: 25\n"
    )
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(text)
    calm = start(recipe_file, f"output={tmp_path / 'calm'}")
    assert calm.wait() == 0, calm.stdout.read().decode()
    total = num_finished(tmp_path / "calm")
    rng, moments = random.Random(seed), []
    for number, target in enumerate(sorted(rng.sample(range(total), times))):
        process = start(recipe_file, f"output={tmp_path / 'out'}", f"workers={1 + number % 2}")
        while num_finished(tmp_path / "out") < target:
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.001)
        moment = rng.uniform(0, 0.03)  # about the time of a shard
        time.sleep(moment)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        moments.append(num_finished(tmp_path / "out"))
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, f"workers outlived the run that was killed: {alive}"
    last = start(recipe_file, f"output={tmp_path / 'out'}", "workers=2")
    said = last.communicate()[0].decode()
    assert last.returncode == 0, said
    assert outcome(tmp_path / "out") == outcome(tmp_path / "calm"), moments
    assert not list((tmp_path / "out").rglob("*.half"))
    print(f"killed when so many of {total} shards were finished:", moments)


def test_sigkill_at_random_moments_changes_nothing(tmp_path):
    kill_again_and_again(tmp_path, times=3, seed=1)


@pytest.mark.slow
def test_sigkill_more_often(tmp_path):
    """More of them: pytest -m slow -k sigkill_more tests/curation -s"""
    kill_again_and_again(tmp_path, times=15, seed=2)


class Deadly:
    """Kills its process at the first record of one shard, once; like a kernel short of memory."""

    def __init__(self, options):
        pass

    def apply(self, record):
        flag = Path(record["extra"]["flag"])
        if record["id"] in ("rows/9", "rows/25") and not (flag / record["id"][5:]).exists():
            (flag / record["id"][5:]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return record


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    """The table of stages is the worker's own, so it is told there which class to run."""
    file = write_rows(tmp_path / "rows.jsonl", 40)
    script = tmp_path / "deadly.py"
    script.write_text(
        "import sys\n"
        "from megatron_ring import config\n"
        "from megatron_ring.config.curation import CurateConfig\n"
        "from megatron_ring.curation import recipe, run\n"
        "from tests.curation.test_run import Deadly\n"
        "recipe.STAGES['check_tools'] = (recipe.STAGES['check_tools'][0], Deadly)\n"
        "if __name__ == '__main__':\n"
        "    run.run(config.load(CurateConfig, sys.argv[1:2], []))\n"
    )
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(
        f"sources: [{{path: {file}, columns: {{prompt: prompt, response: response}}, "
        f"constants: {{flag: {tmp_path}}}}}]\n"
        "stages: [{stage: check_tools}]\nworkers: 2\nrecords_per_shard: 4\n"
        f"output: {tmp_path / 'out'}\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, recipe_file], check=True, cwd=ROOT, env=environment)
    assert (tmp_path / "9").exists() and (tmp_path / "25").exists()
    assert ids(tmp_path / "out", "rows") == [f"rows/{n}" for n in range(1, 41)]


def test_workers_that_keep_dying_end_the_run(tmp_path, monkeypatch):
    from megatron_ring.curation.executors import Local

    local = Local([], tasks=3, workers=2, logging_dir=str(tmp_path))
    monkeypatch.setattr(
        local, "_run_pool", lambda ranks: set(ranks[1:]) if len(ranks) > 1 else set()
    )
    message = "workers were killed, and none of 1 shards was finished since; they may lack memory"
    with pytest.raises(ValueError, match=message):
        local.run()


def test_a_worker_of_another_recipe_does_not_write(tmp_path):
    """As Slurm's would that was not told in time."""
    from megatron_ring.curation.segment import Job

    config = load(output=tmp_path / "out")
    run.run(config)
    (tmp_path / "out" / "work" / "00-read/counts/00000.json").unlink()
    job = Job(config.model_dump_json(), 0, "fingerprint of yesterday", str(tmp_path / "out"))
    with pytest.raises(ValueError, match="00-read is another recipe's by now; this worker ends"):
        job.do(0)


def test_import_is_fast():
    """Nothing that runs need not have is imported: no torch, no datatrove, no datasets."""
    code = (
        "import sys, megatron_ring.curation.run\n"
        "print(sorted({'torch', 'datatrove', 'datasets', 'ray'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert said.stdout == "[]\n", said.stderr


def test_rejections_of_stages_unknown_to_a_global_stage(tmp_path, monkeypatch):
    class Wild:
        def __init__(self, options):
            pass

        def summarise(self, record):
            return 0

        def decide(self, summaries):
            return {"nobody": Rejection("x", "y")}

    options, _ = recipe.GLOBAL_STAGES["exact"]
    monkeypatch.setitem(recipe.GLOBAL_STAGES, "exact", (options, Wild))
    recipe._make.cache_clear()
    with pytest.raises(ValueError, match="stage exact rejects 1 records, 0 of them known"):
        run.run(load(output=tmp_path / "out"))
    recipe._make.cache_clear()


def test_a_mix_is_written_beside(tmp_path):
    stages = (
        "stages=[{stage: exact}, {stage: mix, quotas: "
        "{maths: {take: 5, where: {domain: [math]}}, rest: {take: 3}}}]"
    )
    result = run.run(load(stages, output=tmp_path / "out"))
    assert result.counts["mix"].kept == 8
    taken = {name: len(lines(tmp_path / f"out/mix/{name}.jsonl")) for name in ("maths", "rest")}
    assert taken == {"maths": 5, "rest": 3}
    shutil.rmtree(tmp_path / "out/work")  # free to be removed
    assert len(ids(tmp_path / "out", "sums")) + len(ids(tmp_path / "out", "chat")) == 8
    with pytest.raises(ConfigError, match="stages.0 is mix, with exact behind it; .* comes last"):
        load("stages=[{stage: mix, quotas: {a: {take: 1}}}, {stage: exact}]", output=tmp_path)


def test_smoke_recipe_says_how_it_is_run():
    assert "tools/curate.py run tests/curation/smoke.yaml" in SMOKE.read_text()


def test_a_mix_takes_records_whose_ids_come_twice(tmp_path):
    """The mix is what is kept, and the decision is the run's."""
    file = tmp_path / "rows.jsonl"
    rows = [{"id": n % 2, "prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"id": "id", "prompt": "prompt", "response": "response"}
    mix = {"stage": "mix", "quotas": {"all": {"take": 5}}}
    config = simple(tmp_path / "out", file, stages=[mix], records_per_shard=2)
    source = config.sources[0].model_copy(update={"columns": Columns(**columns)})
    run.run(config.model_copy(update={"sources": [source]}))
    mixed = lines(tmp_path / "out/mix/all.jsonl")
    assert mixed == lines(tmp_path / "out/kept/rows.jsonl") and len(mixed) == 5


def test_a_mix_of_another_recipe_is_gone_and_a_lost_file_is_written_again(tmp_path):
    mixed = "stages=[{stage: mix, quotas: {a: {take: 5}}}]"
    run.run(load(mixed, output=tmp_path / "out"))
    file = tmp_path / "out/mix/a.jsonl"
    before = file.read_bytes()
    file.unlink()
    run.run(load(mixed, output=tmp_path / "out"))
    assert file.read_bytes() == before
    run.run(load(mixed.replace("a:", "b:"), output=tmp_path / "out"))
    assert {path.name for path in file.parent.iterdir()} == {
        *("b.jsonl", "queue.jsonl", "pack.yaml", "report.json")
    }
    run.run(load("stages=[]", output=tmp_path / "out"))
    assert not file.parent.exists()


def test_the_first_records_are_tried_without_filling_quotas(tmp_path):
    stage = "stages=[{stage: mix, when_short: error, quotas: {a: {take: 20}}}]"
    assert [one.fate for one in run.try_out(load(stage, output=tmp_path))] == ["kept", "kept"]


def test_work_that_was_removed_is_done_again(tmp_path):
    """As errors and the documentation say that it may be."""
    first = run.run(load(output=tmp_path / "out"))
    before = outcome(first.output)
    shutil.rmtree(tmp_path / "out/work")
    assert outcome(run.run(load(output=tmp_path / "out")).output) == before
    shutil.rmtree(tmp_path / "out/work")
    run.run(load("stages=[]", output=tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out/rejected").iterdir()] == ["read"]
    with pytest.raises(ConfigError, match="card.json is a file; name a folder"):
        run.run(load(output=tmp_path / "out/card.json"))


def test_what_a_stage_writes_itself_does_not_make_it_another(tmp_path):
    judge = {"endpoint": "http://127.0.0.1:9/v1", "model": "m", "cache": str(tmp_path / "cache")}
    stages = [{"stage": "label", "judge": {**judge, "below": 0.0}}]
    config = simple(tmp_path / "out", write_rows(tmp_path / "rows.jsonl", 3), stages=stages)
    run.run(config)
    counts = tmp_path / "out" / "work" / "00-read/counts/00000.json"
    before = counts.stat().st_mtime_ns
    (tmp_path / "cache/answer.json").write_text("{}")
    run.run(config)
    assert counts.stat().st_mtime_ns == before


def test_a_long_regular_expression_is_no_file(tmp_path):
    stages = [{"stage": "purify", "figures": {"patterns": ["see figure " + "x" * 300]}}]
    config = simple(tmp_path / "out", write_rows(tmp_path / "rows.jsonl", 3), stages=stages)
    assert run.run(config).counts["purify"].kept == 3
