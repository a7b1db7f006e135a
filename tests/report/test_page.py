"""The page in headless Chromium: what is drawn, what buttons do, that nothing is fetched."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ring.report import curves, data, page
from megatron_ring.run_folder import curves as read_curves
from tools import bench_report

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
browser_test = pytest.mark.skipif(
    bool(MISSING), reason=f"no {' and no '.join(MISSING)}: apt-get install chromium chromium-driver"
)
NAUGHTY = '<img src=x onerror="alert(1)"></script>&amp;%{x}'


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    first = bench_report.write_run(folder / "first", 150, seed=0, sources=("math", NAUGHTY))
    with (first / "metrics.jsonl").open("a") as file:
        file.write('{"step": 150, "my_number": 3, "grad_norm": NaN}\n{"step": 151, "lo')
    second = bench_report.write_run(folder / "sec & <b>ond", 120, seed=1)
    text = page.render(data.read([first, second]), NAUGHTY)
    (folder / "page.html").write_text(text, encoding="utf-8")
    return folder / "page.html"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    text = page.render(data.read([bench_report.write_run(folder / "dpo", 120, head="dpo")]), "DPO")
    (folder / "page.html").write_text(text, encoding="utf-8")
    return folder / "page.html"


def open_page(chrome: Any, file: Path, width: int = 1440, height: int = 900) -> None:
    bench_report.resize(chrome, width, height)
    for kind in ("browser", "performance"):
        chrome.get_log(kind)  # what was before is not this page's
    bench_report.seconds_to_open(chrome, file)


def draw_all(chrome: Any) -> int:
    """Scroll through the page, as a reader does; the number of charts on it."""
    height = chrome.execute_script("return document.body.scrollHeight")
    for top in range(0, height, 600):
        chrome.execute_script(f"window.scrollTo(0, {top})")
        chrome.execute_async_script("setTimeout(arguments[0], 60)")
    until(chrome, "return [...document.querySelectorAll('.plot')].every(e => e.layout)")
    return chrome.execute_script("return document.querySelectorAll('.plot').length")


def until(chrome: Any, script: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not chrome.execute_script(script):
        assert time.monotonic() < end, script
        time.sleep(0.02)


def complaints(chrome: Any) -> list[str]:
    """Console messages that are warnings or errors, uncaught exceptions among them."""
    return [line["message"] for line in chrome.get_log("browser")]


def requests(chrome: Any) -> list[str]:
    """What the page asked for, itself and what it carries in it aside."""
    messages = [json.loads(line["message"])["message"] for line in chrome.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"].endswith("BeSent")]
    return [url for url in sent if not url.startswith(("data:", "blob:", "about:"))]


def card(chrome: Any, title: str, index: int = 0) -> Any:
    found = chrome.find_elements("css selector", f".card[data-title='{title}']")[index]
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    until(chrome, f"return {PLOT.format(title=title, index=index)}.layout !== undefined")
    return found


PLOT = "document.querySelectorAll(\".card[data-title='{title}'] .plot\")[{index}]"


def plot(chrome: Any, title: str, what: str, index: int = 0) -> Any:
    """An expression `what` of the plot's element, called p."""
    return chrome.execute_script(
        f"const p = {PLOT.format(title=title, index=index)}; return {what}"
    )


def press(chrome: Any, text: str, within: str = "header") -> None:
    buttons = chrome.find_elements("css selector", f"{within} button")
    next(button for button in buttons if button.text == text).click()


@browser_test
@pytest.mark.parametrize("size", [(1440, 900), (1280, 800)])
def test_two_runs_are_drawn_without_complaints_or_requests(
    chrome: Any, two_runs: Path, size: tuple[int, int]
) -> None:
    open_page(chrome, two_runs, *size)
    expected = json.loads(data_of(two_runs))
    assert draw_all(chrome) == sum(len(section["cards"]) for section in expected["sections"])
    # Every chart has ink: a path of some length, or the image of a heat map.
    blank = chrome.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(p => "
        "![...p.querySelectorAll('.scatterlayer path, .heatmaplayer image')].some(e => "
        "e.tagName === 'image' || (e.getAttribute('d') || '').length > 20))"
        ".map(p => p.parentElement.dataset.title)"
    )
    assert blank == []
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert chrome.execute_script(overflow) <= 0
    assert complaints(chrome) == []
    assert requests(chrome) == [two_runs.as_uri()]


def data_of(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return text[start : text.index("</script>", start)]


@browser_test
def test_names_are_shown_as_they_are(chrome: Any, two_runs: Path) -> None:
    open_page(chrome, two_runs)
    assert chrome.find_element("css selector", "h1").text == NAUGHTY
    assert chrome.title == NAUGHTY
    names = [e.text for e in chrome.find_elements("css selector", "#runs .name")]
    assert names == ["first", "sec & <b>ond"]
    rows = chrome.find_elements("css selector", "#overview > .overview tbody th")
    assert [e.text for e in rows] == names
    card(chrome, "Loss by source")
    legend = [e.text for e in chrome.find_elements("css selector", ".legendtext")]
    assert NAUGHTY in legend
    assert chrome.find_elements("css selector", "main img, svg img") == []


@browser_test
def test_the_x_axis_switches(chrome: Any, two_runs: Path) -> None:
    open_page(chrome, two_runs)
    card(chrome, "Learning rate")
    run = json.loads(data_of(two_runs))["runs"][0]
    steps = run["curves"]["lr"]["steps"]
    assert plot(chrome, "Learning rate", "p.data[0].x") == steps
    for button, axis in (("tokens", "tokens"), ("wall time", "hours")):
        press(chrome, button)
        at, values = run["axes"][axis]
        expected = np.interp(steps, at, values)
        assert plot(chrome, "Learning rate", "p.data[0].x") == pytest.approx(expected, rel=1e-9)
        assert plot(chrome, "Learning rate", "p.layout.xaxis.range[1]") > expected[-1] * 0.99
    press(chrome, "step")
    assert plot(chrome, "Learning rate", "p.data[0].x") == steps
    assert complaints(chrome) == []


@browser_test
def test_runs_means_and_logarithms_toggle(chrome: Any, two_runs: Path) -> None:
    open_page(chrome, two_runs)
    title = "Gradient norm"
    chart = card(chrome, title)
    names = "[...new Set(p.data.map(t => t.name))]"
    assert plot(chrome, title, names) == ["first", "sec &amp; &lt;b&gt;ond"]
    assert plot(chrome, title, "p.data.length") == 4  # of each run the values and their means
    press(chrome, "first")
    assert plot(chrome, title, names) == ["sec &amp; &lt;b&gt;ond"]
    press(chrome, "values")
    assert plot(chrome, title, "p.data.length") == 1
    assert plot(chrome, title, "p.layout.yaxis.type") == "log"  # by the table
    chart.find_element("css selector", "button").click()
    assert plot(chrome, title, "p._fullLayout.yaxis.type") == "linear"
    assert complaints(chrome) == []


@browser_test
def test_the_heat_map_follows_its_slider(chrome: Any, two_runs: Path) -> None:
    open_page(chrome, two_runs)
    title = "Load of the experts"
    chart = card(chrome, title, 1)
    maps = json.loads(data_of(two_runs))["runs"][1]["maps"]
    assert plot(chrome, title, "p.data[0].z", 1) == maps["load"][-1]
    assert plot(chrome, title, "[p.data[0].y[0], p.data[0].y.at(-1)]", 1) == [2, 28]
    slider = chart.find_element("css selector", "input[type=range]")
    move = "arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))"
    chrome.execute_script(move, slider)
    assert plot(chrome, title, "p.data[0].z", 1) == maps["load"][1]
    assert chart.find_element("css selector", "output").text == str(maps["steps"][1])
    assert complaints(chrome) == []


@browser_test
def test_zoom_is_of_all_charts_until_undone(chrome: Any, two_runs: Path) -> None:
    open_page(chrome, two_runs)
    plot(chrome, "Loss", "Plotly.relayout(p, {'xaxis.range[0]': 20, 'xaxis.range[1]': 40})")
    until(
        chrome, f"return {PLOT.format(title='Held-out loss', index=0)}.layout.xaxis.range[1] < 41"
    )
    press(chrome, "whole run")
    assert plot(chrome, "Loss", "p.layout.xaxis.range") == [0, pytest.approx(151.5)]
    assert complaints(chrome) == []


@browser_test
def test_spikes_and_events_are_marked_and_listed(chrome: Any, two_runs: Path) -> None:
    open_page(chrome, two_runs)
    card(chrome, "Loss with spikes and events")
    marks = "p.data.filter(t => t.name === 'spikes').map(t => t.x.length)"
    assert plot(chrome, "Loss with spikes and events", marks) == [5, 5]
    told = plot(
        chrome, "Loss with spikes and events", "p.data.find(t => t.name === 'spikes').text[0]"
    )
    assert "skipped, comes again" in told and "rows " in told and "&lt;img" in told
    rows = "return [...document.querySelectorAll('#events-table tbody tr')].filter(r => !r.hidden)"
    before = chrome.execute_script(rows + ".length")
    kinds = chrome.find_elements("css selector", "#kinds button")
    saved = next(button for button in kinds if button.text.startswith("saved "))
    chrome.execute_script("arguments[0].click()", saved)
    assert chrome.execute_script(rows + ".length") == before - int(saved.text.split()[1])


@browser_test
def test_what_is_not_finite_and_what_is_unknown_is_told(chrome: Any, two_runs: Path) -> None:
    open_page(chrome, two_runs)
    assert "first: 1 not finite (step 150)." in card(chrome, "Gradient norm").text
    assert card(chrome, "my_number").is_displayed()
    assert "second" not in chrome.find_element("css selector", "#overview").text


@browser_test
def test_it_follows_the_browser_into_the_dark(chrome: Any, two_runs: Path) -> None:
    seen = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        open_page(chrome, two_runs)
        colours = "[getComputedStyle(document.body).backgroundColor, p.layout.font.color]"
        seen.append(plot(chrome, "Loss", colours))
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seen == [["rgb(246, 247, 249)", "#1d2430"], ["rgb(18, 21, 27)", "#e4e8ef"]]


@browser_test
def test_preference_runs_have_their_section(chrome: Any, pairs: Path) -> None:
    open_page(chrome, pairs)
    sections = [e.text for e in chrome.find_elements("css selector", "nav a")]
    assert sections == [
        "Overview",
        "DPO",
        "MoE health",
        "Speed and memory",
        "Spikes and events",
        "Events",
    ]
    draw_all(chrome)
    curves_of = "p.data.filter(t => t.showlegend).map(t => t.name)"
    assert plot(chrome, "Rewards", curves_of) == [
        "reward chosen",
        "reward rejected",
        "reward chosen, held out",
        "reward rejected, held out",
    ]
    assert plot(chrome, "Accuracy by source", curves_of)[0] == "chat"
    assert complaints(chrome) == []


def test_a_hundred_thousand_steps_stay_small() -> None:
    keys = ["loss", "loss/a", "loss/b", "lr", "grad_norm", "tokens", "mfu", "aux_loss"]
    values = np.random.default_rng(0).lognormal(size=(100_000, len(keys)))
    lines = [
        {"step": step, "time": 1e9 + step} | dict(zip(keys, row, strict=True))
        for step, row in enumerate(values.tolist(), 1)
    ]
    run = data.Run("long", lines, [], [], {}, read_curves(lines))
    made = data.page_data([run])
    for key in keys:
        curve = made["runs"][0]["curves"][key]
        assert len(curve["steps"]) <= curves.POINTS
        assert curve["count"] == 100_000
        column = values[:, keys.index(key)]
        assert max(curve["values"]) == pytest.approx(column.max(), rel=1e-4)
        assert min(curve["values"]) == pytest.approx(column.min(), rel=1e-4)
    text = page.render([run], "long")
    assert len(page.as_json(made)) < 60_000 * len(keys)
    assert len(text) < 6 * 2**20  # of which 4.6 MiB are plotly.js


def test_nothing_in_the_data_ends_its_element() -> None:
    text = page.as_json({"name": "</script><!--", "none": None})
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><!--", "none": None}
    with pytest.raises(ValueError, match="Out of range float"):
        page.as_json(float("nan"))
