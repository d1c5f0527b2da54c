"""One benchmark, run once for all tests that read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmark.helpers import quick
from tests.runs.helpers import cli, made_once


@pytest.fixture(scope="package")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shortened quick.yaml, run without interruption. Read only."""

    def bench(folder: Path) -> None:
        file = quick(str(folder / "short.yaml"))
        outcome = cli("bench", "run", "--config", file, "--output", folder / "out")
        assert outcome.status == 0, outcome.err

    return made_once(tmp_path_factory, "bench", bench) / "out"
