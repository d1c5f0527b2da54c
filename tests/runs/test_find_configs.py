"""Shipped configuration files are found from any folder; an autouse fixture runs the tests in a temporary one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ickd_pl.errors import UserError
from ickd_pl.runs.configs import config_root, find_configs


def test_a_shipped_file_is_found_from_elsewhere() -> None:
    assert not Path("configs").exists()
    base = str(config_root() / "base.yaml")
    assert find_configs(["fit", "--config", "configs/base.yaml"]) == ["fit", "--config", base]
    assert find_configs(["fit", "--config=configs/base.yaml"]) == ["fit", "--config", base]
    assert find_configs(["fit", "-c", "base.yaml", "--x=1"]) == ["fit", "-c", base, "--x=1"]


def test_every_shipped_file_is_found_from_elsewhere() -> None:
    files = [p.relative_to(config_root().parent).as_posix() for p in config_root().rglob("*.yaml")]
    assert len(files) > 20
    for file in files:
        assert Path(find_configs(["--config", file])[1]).is_file()


def test_a_local_file_comes_first() -> None:
    Path("configs").mkdir()
    Path("configs/base.yaml").write_text("model: {}\n")
    assert find_configs(["--config", "configs/base.yaml"]) == ["--config", "configs/base.yaml"]


def test_other_arguments_are_unchanged() -> None:
    args = ["test", "--ckpt_path", "configs/base.yaml", "--model.lr=0.1"]
    assert find_configs(args) == args


def test_a_missing_file_hints_at_similar_ones() -> None:
    with pytest.raises(UserError, match=r"configs/bass\.yaml does not exist.*configs/base\.yaml"):
        find_configs(["--config", "configs/bass.yaml"])


def test_an_absolute_path_is_not_looked_up() -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_configs(["--config", "/configs/base.yaml"])
