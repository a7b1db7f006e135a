"""The page of effects in headless Chromium: what is drawn, and that nothing is fetched."""

from pathlib import Path
from typing import Any

import pytest

from megatron_ring.effects import report
from megatron_ring.effects.report import LOGS, Options
from megatron_ring.report import effects as page
from tests.effects.making import misleading
from tests.report.test_page import (
    NAUGHTY,
    browser_test,
    complaints,
    draw_all,
    open_page,
    press,
    requests,
)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    truth = misleading(randomized=3, history=0, items=4, seed=9, name="truth")
    found = misleading(randomized=3, history=10, items=4)
    return report.build(found, [], Options(bootstraps=3), truth)


@browser_test
def test_the_page_draws_all_without_complaints_or_requests(
    chrome: Any, told: dict[str, Any], tmp_path: Path
) -> None:
    named = {**told["interventions"][0], "name": NAUGHTY, "about": NAUGHTY}
    rows = [{**row, "title": NAUGHTY + row["title"]} for row in named["rows"]]
    text = page.render({**told, "interventions": [{**named, "rows": rows}]}, NAUGHTY)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    open_page(chrome, tmp_path / "page.html")
    assert draw_all(chrome) == 3
    element = "document.querySelector(\"[data-chart='effects-0']\")"
    for column, name in enumerate(told["columns"]):
        x = chrome.execute_script(f"return [...{element}.data[{column}].x]")
        cells = [row["cells"][column]["value"] for row in told["interventions"][0]["rows"]]
        assert x == pytest.approx([100 * value for value in cells]), name
    press(chrome, LOGS)
    assert chrome.execute_script(f"return {element}.data.length") == 4
    y = chrome.execute_script(
        "return [...document.querySelector(\"[data-chart='bias-0']\").data[1].y]"
    )
    assert y == pytest.approx([100 * one["1"] for one in named["bias"].values()])
    assert chrome.execute_script("return document.querySelector('h2').textContent") == NAUGHTY
    assert not complaints(chrome)
    assert requests(chrome) == [(tmp_path / "page.html").as_uri()]
