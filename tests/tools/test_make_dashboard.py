"""The dashboard as the library reads it back, against the table it is made of."""

import re
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.report.charts import SECTIONS, Chart
from tools import make_dashboard

interface = pytest.importorskip(
    "wandb_workspaces.workspaces.interface", reason="pip install -e .[dashboard]"
)
internal = pytest.importorskip("wandb_workspaces.workspaces.internal")


def read_back(file: Path) -> Any:
    """The library's own object of what the file holds."""
    return interface.Workspace._from_model(internal.View.model_validate_json(file.read_text()))


def names(panel: Any) -> list[str]:
    return [metric.name for metric in panel.y]


def test_the_file_has_every_chart_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new/dashboard.json"
    make_dashboard.main("team", "project", "name", file)
    assert capsys.readouterr().out == f"wrote {file}\n"
    made = read_back(file)
    assert (made.entity, made.project, made.name) == ("team", "project", "name")
    assert [section.name for section in made.sections] == [
        "SFT",
        "DPO",
        "MoE health",
        "Speed and memory",
        "Spikes and events",
    ]
    for section, table in zip(made.sections, SECTIONS, strict=True):
        assert [panel.title for panel in section.panels] == [chart.title for chart in table.charts]
    panels = {(s.name, p.title): p for s in made.sections for p in s.panels}
    assert names(panels["SFT", "Loss"]) == ["loss", "valid_loss"]
    assert panels["MoE health", "Load of the experts"].media_keys == ["expert_load"]
    assert panels["Speed and memory", "Time of a step by part"].plot_type == "stacked-area"
    assert panels["SFT", "Tokens by source"].plot_type == "pct-area"
    assert panels["SFT", "Gradient norm"].log_y is True
    spikes = panels["Spikes and events", "Loss with spikes and events"]
    assert names(spikes) == ["loss", "spike_loss"]


def test_patterns_choose_the_keys_that_the_report_chooses() -> None:
    found = make_dashboard.panel(Chart("t", "", ("loss/*", "valid_loss/*"))).metric_regex
    keys = ["loss/a", "loss/org/b", "valid_loss/a", "loss", "domain_loss/a", "valid_loss"]
    chosen = [key for key in keys if re.search(found, key)]
    assert chosen == ["loss/a", "loss/org/b", "valid_loss/a"]
    with pytest.raises(ValueError, match="chart 't' mixes keys and patterns, which a panel cannot"):
        make_dashboard.panel(Chart("t", "", ("loss", "loss/*")))


def test_without_a_login_it_becomes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_dashboard, "has_wandb_login", lambda: False)
    make_dashboard.main("", "project", "name")
    said = capsys.readouterr().out
    assert "no wandb login here (`wandb login` makes one), so the dashboard became a file" in said
    assert read_back(tmp_path / "dashboard.json").project == "project"


def test_with_a_login_it_is_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = []

    def upsert(view: Any) -> dict[str, Any]:
        sent.append(view)
        return {"upsertView": {"view": {"id": "1", "name": "nw-abc-v"}}}

    class Api:
        default_entity = "me"

    monkeypatch.setattr(make_dashboard, "has_wandb_login", lambda: True)
    monkeypatch.setattr(interface.internal, "upsert_view2", upsert)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example")
    monkeypatch.setattr("wandb.Api", Api)
    make_dashboard.main("", "project", "name")
    assert [(view.entity, view.project) for view in sent] == [("me", "project")]
    assert "published https://wandb.example/me/project?nw=abc" in capsys.readouterr().out
    Api.default_entity = None
    with pytest.raises(SystemExit, match="the login has no default entity; name one with --entity"):
        make_dashboard.main("", "project", "name")


def test_a_name_the_library_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="(?s)error: .*name.*Emojis are not allowed"):
        make_dashboard.main("", "project", "name \N{ROCKET}", tmp_path / "file.json")


def test_a_file_that_reads_back_differently_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_dashboard.workspace("", "other", "name")._model
    monkeypatch.setattr(internal.View, "model_validate_json", lambda text: other)
    with pytest.raises(SystemExit, match="file.json is not what was written when wandb_workspaces"):
        make_dashboard.main("", "project", "name", tmp_path / "file.json")
