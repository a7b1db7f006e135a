"""The page of a comparison in headless Chromium: what is drawn, and that nothing is fetched."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.evaluation.compare import reading, tables, writing
from megatron_ring.evaluation.compare.cells import Frame
from megatron_ring.evaluation.run import Teller
from megatron_ring.report import comparison
from tests.evaluation.comparing import make_runs
from tests.report.test_page import (
    NAUGHTY,
    browser_test,
    complaints,
    data_of,
    draw_all,
    open_page,
    press,
    requests,
    until,
)

PLOT = "document.querySelector(\"[data-chart='{name}']\")"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three columns, one of two seeds, with a name that is no HTML."""
    folder = make_runs(tmp_path_factory.mktemp("runs"))
    shutil.rmtree(folder / "dpo/replies")
    path = folder / "dpo/samples/gsm8k.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["text"] += NAUGHTY
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folders = {
        "base": [folder / "base"],
        NAUGHTY: [folder / "sft", folder / "sft2"],
        "dpo": [folder / "dpo"],
    }
    frame = Frame(reading.read(folders), reading.baselines(list(folders), "previous"))
    told = tables.build(frame, Teller())
    shown = writing.write(frame, told, folder / "tables", 5)
    told["notes"] = [f"{NAUGHTY} is a note."]
    file = folder / "page.html"
    file.write_text(comparison.render(told, shown, NAUGHTY), encoding="utf-8")
    return file


def plot(chrome: Any, name: str, what: str) -> Any:
    """An expression `what` of the plot's element, called p, once it is drawn."""
    element = PLOT.format(name=name)
    chrome.execute_script(f"{element}.scrollIntoView({{block: 'center'}})")
    until(chrome, f"return {element}.layout !== undefined")
    return chrome.execute_script(f"const p = {element}; return {what}")


@browser_test
@pytest.mark.parametrize("size", [(1440, 900), (800, 900)])
def test_all_is_drawn_without_complaints_or_requests(
    chrome: Any, made: Path, size: tuple[int, int]
) -> None:
    open_page(chrome, made, *size)
    # Scores, differences, lengths; errors twice; won and lost of two pairs; three topics.
    assert draw_all(chrome) == 3 + 2 + 2 + 3
    blank = chrome.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(p => "
        "![...p.querySelectorAll('.scatterlayer path, .barlayer path')].some(e => "
        "(e.getAttribute('d') || '').length > 10)).map(p => p.dataset.chart)"
    )
    assert blank == []
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert chrome.execute_script(overflow) <= 0
    assert complaints(chrome) == []
    assert requests(chrome) == [made.as_uri()]


@browser_test
def test_charts_have_the_numbers(chrome: Any, made: Path) -> None:
    """Those of comparing.DOES; the middle column is the mean of two seeds."""
    open_page(chrome, made)
    ys = plot(chrome, "scores", "p.data.map(t => t.y)")
    assert [len(values) for values in ys] == [6, 6, 6]
    assert [values[1] for values in ys] == [37.5, 62.5, 75]  # GSM8K
    ends = plot(chrome, "scores", "[p.data[0].error_y.array[1], p.data[0].error_y.arrayminus[1]]")
    assert ends == pytest.approx([69.43 - 37.5, 37.5 - 13.68], abs=0.01)  # Wilson's
    assert plot(chrome, "deltas", "p.data.map(t => t.x.length)") == [0, 6, 6]
    assert plot(chrome, "deltas", "p.data[1].x[1]") == 25  # of +37.5 and +12.5
    assert plot(chrome, "errors", "p.data.map(t => t.customdata[0])") == [
        *([2, 15], [2, 32], [1, 15])
    ]
    kinds = plot(chrome, "errors", "p.data[0].x")
    assert kinds[0] == "any error" and kinds[-1] == "truncated"
    assert plot(chrome, "errors-by-task", "p.data[0].x") == ["MATH-500", "GSM8K", "MMLU"]
    # base to sft: an item is right where both seeds are; 2 and 3 are won, 1 and 4 lost.
    won = plot(chrome, "won-0", "p.data.map(t => [t.name, ...t.x])")
    assert won == [["lost", 0, -2, -2], ["won", 2, 2, 0]]
    assert plot(chrome, "topic-0", "p.data[2].x") == [100, 50]  # level 1, level 2
    assert complaints(chrome) == []


@browser_test
def test_names_and_answers_are_shown_as_they_are(chrome: Any, made: Path) -> None:
    open_page(chrome, made)
    assert chrome.title == chrome.find_element("css selector", "h1").text == NAUGHTY
    names = [e.text for e in chrome.find_elements("css selector", "#runs .name")]
    assert names == ["base", NAUGHTY, "dpo"]
    heads = chrome.find_elements("css selector", "#scores thead th")
    assert heads[2].text == f"{NAUGHTY}\n2 seeds, Δ to base"
    notes = [e.text for e in chrome.find_elements("css selector", "#about li")]
    assert notes == [f"{NAUGHTY} is a note."]
    chrome.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    texts = [e.text for e in chrome.find_elements("css selector", ".side pre")]
    assert any(text.endswith("\\boxed{5}" + NAUGHTY) for text in texts)
    said = [e.text for e in chrome.find_elements("css selector", "#items .said")]
    assert said[0] == "base: wrong" and said[1] == f"{NAUGHTY}: right"
    assert chrome.find_elements("css selector", "main img, svg img") == []
    assert complaints(chrome) == []


@browser_test
def test_cells_have_values_marks_and_seeds(chrome: Any, made: Path) -> None:
    open_page(chrome, made)
    rows = chrome.find_elements("css selector", "#scores > .compared tbody tr")
    cells = [e.text for e in rows[1].find_elements("css selector", "th, td")]
    assert cells[0] == "GSM8K\n8 items"
    assert cells[1] == "37.5 (13.7 to 69.4)\n5 tokens"
    assert cells[2].startswith(
        "62.5 (0.0 to 100.0)\n+25.0 (-100.0 to +100.0)\n2 seeds: 50.0 to 75.0"
    )
    band = rows[1].find_elements("css selector", "td .range i")[0]
    assert band.get_attribute("style") == "left: 13.68%; width: 55.74%;"
    assert rows[-1].get_attribute("class") == "mean"


def test_what_is_sure_is_marked_as_good_or_bad() -> None:
    delta = {"value": 0.25, "low": 0.1, "high": 0.4, "sure": True}
    cell = {"value": 0.5, "low": 0.4, "high": 0.6, "seeds": [], "tokens": None, "delta": delta}
    told = {"columns": [{"name": "a", "runs": ["x"]}], "against": [None]}
    row = {"title": "t", "of": "", "kind": "benchmark", "cells": [cell | {"part": 1, "whole": 2}]}
    for said, kind in ((comparison._score, "good"), (comparison._rate, "bad")):
        text = comparison._table(told, [row], said)
        assert f'<em class="{kind}">+25.0 ▲</em> <span>(+10.0 to +40.0)</span>' in text
    delta |= {"sure": False, "value": -0.25}
    text = comparison._table(told, [row], comparison._score)
    assert '<em class="unsure">-25.0</em>' in text


@browser_test
def test_columns_are_hidden_and_shown(chrome: Any, made: Path) -> None:
    open_page(chrome, made)
    names = "p.data.map(t => t.name)"
    assert len(plot(chrome, "scores", names)) == 3
    press(chrome, "base")
    assert len(plot(chrome, "scores", names)) == 2 and "base" not in plot(chrome, "scores", names)
    press(chrome, "base")
    assert len(plot(chrome, "scores", names)) == 3
    assert complaints(chrome) == []


@browser_test
def test_it_follows_the_browser_into_the_dark(chrome: Any, made: Path) -> None:
    seen = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        open_page(chrome, made)
        colours = "[getComputedStyle(document.body).backgroundColor, p.layout.font.color]"
        seen.append(plot(chrome, "scores", colours))
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seen == [["rgb(246, 247, 249)", "#1d2430"], ["rgb(18, 21, 27)", "#e4e8ef"]]


def test_no_name_ends_the_data(made: Path) -> None:
    told = json.loads(data_of(made))
    assert told["columns"] == ["base", NAUGHTY, "dpo"]
    assert told["pairs"][0]["tasks"][1]["won"] == 2  # counts, no ids
