"""wandb offline and TensorBoard for real: what they have written is read back."""

import json
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from megatron_ring import journal, trackers
from megatron_ring.config import ConfigError
from tests.test_journal import LINE
from tests.test_metrics import load


def wandb_log(file):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB) after seven bytes."""
    data, at, record = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B", data[:7]
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:  # no room for another head: the block ends in zeros
            at += left
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


def wandb_runs(folder):
    """(run id, config, history) of every offline run below a folder, oldest first."""
    runs = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        run_id, settings, history = None, {}, []
        for record in wandb_log(file):
            if record.HasField("run"):
                run_id = record.run.run_id
                for item in record.run.config.update:
                    settings[item.key] = json.loads(item.value_json)
            if record.HasField("history"):
                items = record.history.item
                keys = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                history.append(keys)
        runs.append((run_id, settings, history))
    return runs


def written(folder, enough):
    """The runs below a folder once they are `enough`: wandb's own process may still be writing."""
    deadline = time.monotonic() + 30
    while not enough(runs := wandb_runs(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return runs


def test_wandb_offline_for_real(alone, tmp_path, monkeypatch):
    """Without login or network: wandb's own messages hold config and history, under one id.

    No secret of the environment is in any file of the run folder.
    """
    secrets = {"WANDB_API_KEY": "5ec2e7" * 6 + "abcd", "HUB_TOKEN": "hub-t0ken-in-the-environment"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    made = load(f"run.dir={tmp_path / 'run'}", "log.wandb=offline", "optim.lr=0.125")
    (tmp_path / "run").mkdir()
    for done in (1, 2):
        with journal.opened(made, 9, done - 1) as log:
            log.step({"step": done} | LINE | {"loss": 3.0 - done})

    first, second = written(tmp_path / "run", lambda runs: all(history for _, _, history in runs))
    assert first[0] == second[0] == (tmp_path / "run/wandb_id").read_text()
    for _, settings, _ in (first, second):
        assert settings["optim"]["lr"] == 0.125
        assert settings["model"]["num_experts"] == 8
    assert [line["loss"] for line in first[2]] == [2.0]
    assert [(line["_step"], line["loss"], line["lr"]) for line in second[2]] == [(2, 1.0, 1e-3)]

    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        for secret in secrets.values():
            assert secret.encode() not in path.read_bytes(), path


def test_auto_is_offline_without_a_login(alone, tmp_path, monkeypatch):
    import wandb

    modes = []
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where `wandb login` leaves its .netrc
    monkeypatch.setattr(wandb, "init", lambda **options: modes.append(options["mode"]))
    trackers._start_wandb(load(f"run.dir={tmp_path}", "log.wandb=auto"), print)
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password a-key\n")
    netrc.chmod(0o600)
    trackers._start_wandb(load(f"run.dir={tmp_path}", "log.wandb=auto"), print)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    trackers._start_wandb(load(f"run.dir={tmp_path}", "log.wandb=auto"), print)
    assert modes == ["offline", "online", "offline"]
    assert trackers.opened(load("log.wandb=disabled"), 0, print) == []


def test_a_login_without_a_way_to_the_server(alone, tmp_path, monkeypatch, capfd):
    """auto: a warning, and on offline; online: an error. Nobody is told the server's password."""
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "5ec2e7" * 6 + "abcd")
    monkeypatch.setenv("WANDB_BASE_URL", "http://me:5ecret@127.0.0.1:9")  # nobody listens
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    wandb.teardown()  # what tests before have set
    made = load(f"run.dir={tmp_path}", "log.wandb=auto")
    with journal.opened(made, 1, 0) as log:
        log.step({"step": 1} | LINE)
    [(run_id, _, history)] = written(tmp_path, lambda runs: bool(runs[0][2]))
    assert run_id == (tmp_path / "wandb_id").read_text()
    assert [(line["_step"], line["loss"]) for line in history if "loss" in line] == [(1, 2.5)]
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    [warning] = [event["text"] for event in told if event["kind"] == "warning"]
    assert warning.startswith("wandb: CommError: ")
    assert warning.endswith(
        f"; on with log.wandb=offline (`wandb sync` sends what {tmp_path} keeps)"
    )
    with pytest.raises(ConfigError) as error:
        trackers.opened(load(f"run.dir={tmp_path}", "log.wandb=online"), 0, print)
    said = str(error.value)
    assert said.startswith("log.wandb=online, but wandb: CommError: ")
    assert said.endswith("; log.wandb=offline keeps the numbers")
    wandb.teardown()
    assert "5ec" not in said + "".join(capfd.readouterr())
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or not re.search(rb"5ecret|5ec2e7", path.read_bytes()), path


def test_the_heat_map_is_a_picture_in_wandb(alone, tmp_path):
    made = load(f"run.dir={tmp_path / 'run'}", "log.wandb=offline")
    (tmp_path / "run").mkdir()
    with journal.opened(made, 1, 0) as log:
        log.step({"step": 1} | LINE, [[1.0, 0.25, 4.0]] * 2)
    there = lambda runs: any("expert_load.path" in line for line in runs[0][2])  # noqa: E731
    [(_, _, history)] = written(tmp_path / "run", there)
    [picture] = [line for line in history if "expert_load.path" in line]
    assert (picture["expert_load.width"], picture["expert_load.height"]) == (24, 16)
    [file] = (tmp_path / "run").rglob(picture["expert_load.path"])
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_colours_by_hand():
    """Those of the report's page, a cell 8 × 8 pixels; halfway to orange is twice a fair share."""
    image = trackers.coloured([[1.0, 3.0, 2.0], [100.0, 0.0, 1.0]])
    assert image.shape == (16, 24, 3) and image.dtype == np.uint8
    page = (Path(trackers.__file__).parent / "report/page.js").read_text()
    white = re.search(r'dark \? "#\w+" : "#(\w+)"', page)[1]
    blue, orange = re.search(r'\[0, "#(\w+)"\], \[1 / 3, middle\], \[1, "#(\w+)"\]', page).groups()
    cells = [[image[y, x].tobytes().hex() for x in (0, 15, 23)] for y in (0, 15)]
    half = bytes(round((0xF3F4F6 >> s & 255) / 2 + (0xE0712F >> s & 255) / 2) for s in (16, 8, 0))
    assert cells == [[white, orange, half.hex()], [orange, blue, white]]


def test_tensorboard_holds_each_step_once(alone, tmp_path):
    """Killed after step 5, resumed from 3 with other numbers: the later ones count."""
    made = load(f"run.dir={tmp_path}", "log.wandb=disabled", "log.tensorboard=true")
    with journal.opened(made, 9, 0) as log:
        for done in range(1, 6):
            log.step({"step": done} | LINE | {"loss": float(done)})
    with journal.opened(made, 9, 3) as log:
        for done in range(4, 7):
            log.step({"step": done} | LINE | {"loss": 10.0 * done}, [[1.0, 2.0]])
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    seen = {scalar.step: scalar.value for scalar in events.Scalars("loss")}
    assert seen == {1: 1, 2: 2, 3: 3, 4: 40, 5: 50, 6: 60}
    assert [image.step for image in events.Images("expert_load")] == [4, 5, 6]


def test_tensorboard_that_is_not_there_is_told(monkeypatch):
    made = load("log.tensorboard=true")
    trackers.check(made)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        trackers.check(made)
    assert str(error.value) == (
        "log.tensorboard=true needs a package that is not installed: pip install tensorboard"
    )
