"""Runs whose every answer is known, made once."""

from pathlib import Path

import pytest

from tests.evaluation.comparing import make_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of comparing.MODELS; not to be changed."""
    return make_runs(tmp_path_factory.mktemp("runs"))
