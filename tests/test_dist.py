"""The wheel has the modules and the data that they read, and no other file; the sdist has what a clone has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

from tests.runs.helpers import REPOSITORY

BUILD = "import setuptools.build_meta as b; print(b.build_sdist('dist')); print(b.build_wheel('dist'))"
LEFT_OUT = {".git", ".venv", ".venv-floors", ".venv-build", "outputs", "data", "site", "build", "dist", "__pycache__"}


def test_what_is_built(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.pth")  # teachers in checkpoints/ are not of the project
    for path in sorted(REPOSITORY.iterdir()):
        if path.is_file():
            shutil.copy2(path, source)
        elif path.name not in LEFT_OUT and not path.name.endswith(("_cache", ".egg-info")):
            shutil.copytree(path, source / path.name, ignore=ignore)
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = source.glob("dist/*.whl"), source.glob("dist/*.tar.gz")
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = REPOSITORY / "ickd_pl"
    modules = {f"ickd_pl/{path.relative_to(package)}" for path in package.rglob("*.py")}
    data = {"ickd_pl/py.typed", "ickd_pl/manifests/manifest.json"}
    data |= {f"ickd_pl/{path.relative_to(package)}" for end in ("csv", "jinja") for path in package.rglob(f"*.{end}")}
    data |= {f"ickd_pl/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert names == modules | data
    with tarfile.open(sdist) as unpacked:
        files = {name.partition("/")[2] for name in unpacked.getnames()}
    assert {"LICENSE", "Makefile", "CITATION.cff", ".ci/run", "tests/conftest.py", "docs/conf.py", "cli.py"} <= files
    assert not [name for name in files if "__pycache__" in name]
