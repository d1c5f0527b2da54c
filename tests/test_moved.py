"""Old import paths still work, give the same objects, and warn with the new path."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ickd_pl
from ickd_pl import MOVED

DIVIDED = {"arguments", "features"}


def forgotten(monkeypatch: pytest.MonkeyPatch, old: str) -> str:
    """The full old path, as if not imported yet."""
    name = f"ickd_pl.{old}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.mark.parametrize("old", sorted(MOVED.keys() - DIVIDED))
def test_an_old_path_is_the_same_module(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = f"ickd_pl.{MOVED[old]}"
    with pytest.warns(DeprecationWarning, match=f"ickd_pl.{old} is now {new}$"):
        module = import_module(forgotten(monkeypatch, old))
    assert module is import_module(new) and module.__name__ == new == module.__spec__.name


def test_a_split_module_has_the_names_of_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for old in DIVIDED:
        forgotten(monkeypatch, old)
    with pytest.warns(DeprecationWarning, match="models.features and ickd_pl.models.hooked") as caught:
        from ickd_pl.features import Features, FeatureShapes, HookedNet, LayerMap
    assert caught[0].filename == __file__  # the user's line, not one of the import machinery
    own = (ickd_pl.Features, ickd_pl.FeatureShapes, ickd_pl.HookedNet, ickd_pl.LayerMap)
    assert (Features, FeatureShapes, HookedNet, LayerMap) == own
    with pytest.warns(DeprecationWarning):
        from ickd_pl.arguments import above_zero, as_stages, check_shapes, first_stage, unique_names
    assert all(map(callable, (above_zero, as_stages, check_shapes, first_stage, unique_names)))


def test_old_modules_are_attributes_of_the_package_and_others_are_not() -> None:
    program = (
        "import ickd_pl, sys; assert ickd_pl.module.DistillationModule is ickd_pl.DistillationModule; "
        "assert 'ickd_pl.features' not in sys.modules; ickd_pl.feature"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "has no attribute 'feature'" in done.stderr, done.stderr


def test_importing_the_package_gives_no_warning(tmp_path: Path) -> None:
    program = "import ickd_pl.cli; from ickd_pl.strategies import KD; from ickd_pl.correlations import compare"
    args = [sys.executable, "-W", "error:ickd_pl:DeprecationWarning", "-c", program]
    assert subprocess.run(args, capture_output=True, text=True, check=False).stderr == ""


def test_the_package_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "ickd_pl", "fits"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "unknown command fits" in done.stderr
