"""One benchmark, run once for all tests that look at what it left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.benchmark.helpers import quick
from tests.runs.helpers import cli


@pytest.fixture(scope="package")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """quick.yaml, shortened, run without a break. To be read only."""
    folder = tmp_path_factory.mktemp("bench")
    before = Path.cwd()
    os.chdir(folder)
    try:
        outcome = cli("bench", "run", "--config", quick(), "--output", folder / "out")
    finally:
        os.chdir(before)
    assert outcome.status == 0, outcome.err
    return folder / "out"
