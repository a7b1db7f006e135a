"""FLOPs by hand and against published sizes, expert load by counting, and what a log holds."""

import json
import struct
import time

import numpy as np
import pytest
import torch
from wandb.proto.wandb_internal_pb2 import Record

from megatron_ring import config, losses, metrics, parallel, platform, step
from megatron_ring.config import Config, ModelConfig
from megatron_ring.data.rows import make_row
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages
from megatron_ring.step import Counts
from tests.model.layouts import GOLDEN, random_documents

TINY = GOLDEN / "ling_lite_tiny"
LING_LITE = ModelConfig(
    vocab_size=126464,
    hidden_size=2048,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=4,
    intermediate_size=5632,
    moe_intermediate_size=1408,
    num_experts=64,
    num_experts_per_tok=6,
    num_shared_experts=2,
    norm_topk_prob=True,
    norm_head=True,
    rms_norm_eps=1e-6,
    rope_theta=600000,
    max_position_embeddings=16384,
)


HEAD = losses.SFT(["all"])


def load(*overrides):
    return config.load(Config, [], [f"model.hf_config={TINY}", *overrides])


@pytest.fixture
def alone():
    """Process groups of one process."""
    with parallel.process_groups(load().parallel, platform.prepare(), seed=1):
        yield


def test_ling_lite_has_its_published_size():
    """2.235B active weights without embedding and head, 2.494B with the head, 2.753B with both."""
    table = 126464 * 2048
    active = metrics.active_weights(LING_LITE)
    assert round(active / 1e9, 3) == 2.235
    assert round((active + table) / 1e9, 3) == 2.494
    assert round((active + 2 * table) / 1e9, 3) == 2.753


@pytest.mark.parametrize(
    ("length", "gflops"), [(4096, 16.4), (8192, 17.8), (16384, 20.6), (32768, 26.2)]
)
def test_ling_lite_costs_its_published_flops_a_token(length, gflops):
    """One document, all of it supervised, attention's causal half counted once."""
    counts = Counts(units=(length,), supervised=length, tokens=length, square_lengths=length**2)
    per_token = metrics.train_flops(LING_LITE, counts) / length
    assert per_token / 1e9 == pytest.approx(gflops, abs=0.05)


def test_flops_of_a_packed_row_by_hand(alone):
    """Documents of 4 and 6 tokens, 3 labels supervised, 22 tokens of padding.

    A layer: q 64·64, k and v 64·32 each, output 64·64; router 64·8; three experts of 3·64·48;
    the shared MLP 3·64·96. The second layer's kind is dense: 3·64·96 of its own.
    """
    model = load("model.first_k_dense_replace=1").model  # 3 layers: one dense, two routed
    attention, routed = 12288, 512 + 3 * 9216 + 18432
    active = 3 * attention + 2 * routed + 18432
    assert metrics.active_weights(model) == active

    targets = np.array([1, 1, 0, 1, 0, 1], bool)  # the first token is never a label
    documents = [(np.arange(4), targets[:4]), (np.arange(6), targets)]
    counts = Counts.of([make_row(documents, 32, pad_id=0)], HEAD)
    assert counts == Counts((5,), supervised=2 + 3, tokens=10, square_lengths=16 + 36)
    # Scores and weighted sum: 2 products × 2 FLOPs × 64 channels × half of 52 pairs, × 3, 3 layers.
    pairs = 2 * 2 * 64 * (52 / 2) * 3 * 3
    head = 2 * 384 * 64 * 5 * 3
    assert metrics.train_flops(model, counts) == 2 * active * 10 * 3 + pairs + head


def test_expert_load_is_what_an_independent_count_says(alone):
    """The router's own record of choices, counted in numpy over real tokens only."""
    made = load("loss.aux_coeff=0.1", "model.first_k_dense_replace=1")
    (stage,) = stages = build_stages(made, torch.float32, torch.device("cpu"))
    weights.load_first(made, stages)
    expected, tokens = np.zeros((3, 8), int), 0
    for seed in (1, 2):
        row = make_row(random_documents(5, 384, seed), 256, pad_id=0)
        batch = step.to_device(row, torch.device("cpu"))
        stage.router_loss.record = {}
        stage(**batch).sum().backward()
        tokens += row.num_tokens
        for layer, [experts] in stage.router_loss.record.items():
            visits = experts.numpy()[: row.num_tokens].ravel()
            expected[layer - 1] += np.bincount(visits, minlength=8)
    table = metrics.router_table(stages, made.model)
    assert table[:, :-2].tolist() == expected.tolist()
    assert expected.sum() == 2 * 3 * tokens  # two routed layers, three experts a token
    got = metrics.expert_metrics(table, made.model, tokens)
    ratios = expected[1:].max(1) / expected[1:].mean(1)
    assert got["load_max_over_mean"] == pytest.approx(ratios.mean())
    assert got["load_worst_layer"] == pytest.approx(ratios.max())
    assert got["dead_experts"] == (expected[1:] == 0).sum()
    assert 1 - 1e-6 < got["aux_loss"] < 8
    assert not metrics.router_table(stages, made.model).any()  # read means forgotten


def test_balance_by_hand():
    """Loads (4, 0) and (1, 3): max/mean 2 and 1.5; aux and z per token, a mean over layers."""
    table = torch.tensor([[4.0, 0, 20, 2], [1, 3, 10, 4]], dtype=torch.float64)
    model = load("model.num_hidden_layers=2", "model.num_experts=2", "model.num_experts_per_tok=1")
    assert metrics.expert_metrics(table, model.model, tokens=10) == {
        "aux_loss": 1.5,
        "z_loss": pytest.approx(0.3),
        "load_max_over_mean": 1.75,
        "load_worst_layer": 2.0,
        "dead_experts": 1,
    }


def test_a_log_line_covers_all_steps_since_the_last(alone):
    """Two steps in two seconds: means weighted by supervised tokens, rates by tokens."""
    made = load("log.peak_tflops=2")
    meter = metrics.Meter(made, [], HEAD)
    first, second = Counts((10,), 10, 40, 800), Counts((30,), 30, 60, 1200)
    meter.add(first, torch.tensor([[20.0, 10.0]]), seconds=0.5)
    meter.add(second, torch.tensor([[100.0, 30.0]]), seconds=1.5)
    line = meter.read()
    flops = sum(metrics.train_flops(made.model, counts) for counts in (first, second))
    assert line["loss"] == 120 / 40
    assert (line["tokens"], line["supervised"], line["step_seconds"]) == (100, 40, 1.0)
    assert line["tokens_per_second"] == 50.0
    assert line["tflops_per_device"] == pytest.approx(flops / 2 / 1e12)
    assert line["mfu"] == pytest.approx(flops / 2 / 2e12)
    assert line["memory_gib"] > 0.05
    meter.add(first, torch.tensor([[5.0, 10.0]]), seconds=0.25)
    line = meter.read()
    assert (line["loss"], line["tokens"], line["step_seconds"]) == (0.5, 40, 0.25)


def test_without_a_known_peak_there_is_no_mfu(alone):
    meter = metrics.Meter(load(), [], HEAD)
    meter.add(Counts((1,), 1, 1, 1), torch.tensor([[1.0, 1.0]]), seconds=1.0)
    assert "mfu" not in meter.read()


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 PCIe", None),  # 756 TFLOP/s
        ("NVIDIA H100 NVL", None),
        ("NVIDIA L40S", None),
    ],
)
def test_peaks_are_of_modules_that_are_known(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert metrics.peak_tflops(load()) == peak
    assert metrics.peak_tflops(load("log.peak_tflops=5")) == 5


LINE = {"loss": 2.5, "lr": 1e-3, "grad_norm": 1.25, "step_seconds": 0.5, "aux_loss": 1.0}
LINE |= {"tokens_per_second": 1234.0, "load_max_over_mean": 1.5, "memory_gib": 2.0}


def test_lines_to_be_run_again_are_forgotten(alone, tmp_path, capsys):
    """A run killed after step 5 (in the middle of a line) resumes from the checkpoint of 3."""
    file = tmp_path / "metrics.jsonl"
    with metrics.writer(load(f"run.dir={tmp_path}", "log.wandb=disabled"), 9, 0) as log:
        log.valid(0, {"loss": 6.0, "supervised": 100})
        for done in range(1, 6):
            log.step({"step": done} | LINE)
        log.valid(5, {"loss": 5.0, "supervised": 100})
    file.write_text(file.read_text() + '{"step": 6, "lo')
    with metrics.writer(load(f"run.dir={tmp_path}", "log.wandb=disabled"), 9, 3) as log:
        log.step({"step": 4} | LINE | {"loss": 9.0})
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    assert lines[0] == {"step": 0, "valid_loss": 6.0, "valid_supervised": 100}
    assert [(line["step"], line.get("loss")) for line in lines[1:]] == [
        (1, 2.5),
        (2, 2.5),
        (3, 2.5),
        (4, 9.0),
    ]
    assert "step 0: held out, loss 6.0000" in capsys.readouterr().out


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
        with metrics.writer(made, 9, done - 1) as log:
            log.step({"step": done} | LINE | {"loss": 3.0 - done})

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # wandb's own process may still be writing
        first, second = wandb_runs(tmp_path / "run")
        if first[2] and second[2]:
            break
        time.sleep(0.2)
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
    metrics._start_wandb(load(f"run.dir={tmp_path}", "log.wandb=auto"))
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password a-key\n")
    netrc.chmod(0o600)
    metrics._start_wandb(load(f"run.dir={tmp_path}", "log.wandb=auto"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    metrics._start_wandb(load(f"run.dir={tmp_path}", "log.wandb=auto"))
    assert modes == ["offline", "online", "offline"]
    assert metrics._start_wandb(load("log.wandb=disabled")) is None
