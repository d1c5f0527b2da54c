"""The documentation site builds without a warning, and shows every page."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.runs.helpers import REPOSITORY

DOCS = REPOSITORY / "docs"


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sphinx", "furo", "myst_parser")), reason="needs the extra `docs`"
)
def test_the_site(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-E", "-q", "-d", "trees", str(DOCS), "site"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for page in DOCS.glob("**/*.md"):
        assert (tmp_path / "site" / page.relative_to(DOCS).with_suffix(".html")).is_file(), page
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in ("DistillationModule", "LayerMap", "load_teacher", "crd.CRD", "StepCheckpoint"):
        assert name in api, name
    loaded = [line for line in api.splitlines() if "<script" in line or "stylesheet" in line]
    assert loaded and not [line for line in loaded if "http" in line], "nothing comes from other hosts"
