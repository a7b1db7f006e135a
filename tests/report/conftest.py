"""A browser for the tests of pages."""

from collections.abc import Iterator
from typing import Any

import pytest

from tools import bench_report


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    opened = bench_report.browser()
    opened.set_script_timeout(60)
    yield opened
    opened.quit()
