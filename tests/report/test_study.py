"""The page of the study in headless Chromium, and the tool that makes it."""

from pathlib import Path
from typing import Any

import pytest

from megatron_ring.effects.study_report import told
from megatron_ring.report import study as page
from tests.effects.test_study import RECORDS, record
from tests.report.test_page import (
    browser_test,
    complaints,
    draw_all,
    open_page,
    press,
    requests,
)


def test_figures_and_verdicts_are_those_of_the_lines() -> None:
    text = page.render(told(RECORDS))
    row = "<td>1.000 ± 2.733</td><td>-1.000 ± 0.248</td>"
    assert f'<th scope="row">CIO, auto (x 3)</th>{row}' in text
    assert '<em class="good">better</em>' in text
    assert "hidden, complete history, ridge, 3 draws" in text
    assert "better than RCT-only DR in 1 of 1 cells" in text


@browser_test
def test_charts_show_shares_of_the_reference_and_hide_what_is_far_off(
    chrome: Any, tmp_path: Path
) -> None:
    records = [*RECORDS, *(record("naive pooling", seed, 10.0) for seed in range(3))]
    (tmp_path / "page.html").write_text(page.render(told(records)), encoding="utf-8")
    open_page(chrome, tmp_path / "page.html")
    assert draw_all(chrome) == 1
    data = "document.querySelector(\"[data-chart='ridge']\").data"
    assert chrome.execute_script(f"return {data}.map((trace) => trace.name)") == ["CIO, auto"]
    assert chrome.execute_script(f"return [...{data}[0].x]") == pytest.approx([-50])
    press(chrome, "naive pooling")
    names = chrome.execute_script(f"return {data}.map((trace) => trace.name)")
    assert names == ["CIO, auto", "naive pooling"]
    assert chrome.execute_script(f"return [...{data}[1].x]") == pytest.approx([400])
    assert not complaints(chrome)
    assert requests(chrome) == [(tmp_path / "page.html").as_uri()]
