"""Every shipped YAML file works on the command line; the files are discovered, not listed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml

from ickd_pl import model_names
from ickd_pl.runs.configs import config_root, find_configs
from ickd_pl.runs.fit import IckdCLI
from ickd_pl.strategies.base import discover
from tests.runs.helpers import TINY

ROOT = config_root()


def shipped(folder: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted((ROOT / folder).glob("*.yaml"))]


# Benchmark files are read by ``bench``, not by ``fit``.
COVERED = {"pairs", "methods", "teachers", "benchmarks"}
OTHERS = [
    pytest.param(path, id=f"{path.parent.name}-{path.stem}")
    for path in sorted(ROOT.rglob("*.yaml"))
    if path.parent.name not in COVERED and path != ROOT / "base.yaml"
]


class Parsed(Exception):
    """Raised with the configuration once the command line is parsed."""


class Parses(IckdCLI):
    """Only parses: builds and runs nothing."""

    def before_instantiate_classes(self) -> None:
        raise Parsed(self.config)


class Built(IckdCLI):
    """Builds data, networks and methods, but no trainer (which needs the teacher's file), and runs nothing."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        return


def parsed(*files: Path, more: tuple[str, ...] = ()) -> Any:
    args = [f"--config={file}" for file in files]
    with pytest.raises(Parsed) as stop:
        Parses(find_configs(["fit", *args, *more]))
    return stop.value.args[0]["fit"]


def plain(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def classes(strategies: list[Any]) -> list[str]:
    return [strategy["class_path"].rpartition(".")[2] for strategy in strategies or []]


def test_there_are_files() -> None:
    for folder in ("pairs", "methods", "teachers", "schedules"):
        assert shipped(folder), folder


def test_every_method_class_has_a_file_of_its_name() -> None:
    names = {path.stem for path in (ROOT / "methods").glob("*.yaml")}
    assert set(discover()) <= names


@pytest.mark.parametrize("pair", shipped("pairs"))
def test_a_pair_parses_with_the_first_methods(pair: Path) -> None:
    own = plain(pair)["model"]
    for method in ("vanilla", "kd", "ickd", "ickd_kl"):
        file = ROOT / "methods" / f"{method}.yaml"
        model = parsed(ROOT / "base.yaml", pair, file)["model"]
        assert {key: model[key] for key in own} == own
        assert classes(model["strategies"]) == classes(plain(file)["model"]["strategies"])
        assert model["lr"] == own.get("lr", 0.05)


@pytest.mark.parametrize("pair", shipped("pairs"))
def test_a_pair_names_known_networks(pair: Path) -> None:
    model = plain(pair)["model"]
    assert pair.stem == f"{model['teacher']}_{model['student']}"
    assert {model["teacher"], model["student"]} <= set(model_names())
    mobile = model["student"].startswith(("MobileNet", "Shuffle"))
    assert model.get("lr", 0.05) == (0.01 if mobile else 0.05)
    if model["teacher_weights"]:
        assert model["teacher_weights"] == f"checkpoints/{model['teacher']}_vanilla/ckpt_epoch_240.pth"


@pytest.mark.parametrize("pair", shipped("pairs"))
def test_every_pairs_teacher_can_be_trained(pair: Path) -> None:
    assert (ROOT / "teachers" / f"{plain(pair)['model']['teacher']}.yaml").is_file()


@pytest.mark.parametrize("method", shipped("methods"))
def test_a_method_builds_and_replaces_the_previous_one(method: Path) -> None:
    """It follows a file with another cross-entropy weight and another list of methods."""
    own = plain(method)["model"]
    assert {"strategies", "ce_weight"} <= own.keys()
    before = ROOT / "methods" / ("ickd_kl.yaml" if method.stem == "kd" else "kd.yaml")
    files = [ROOT / "pairs" / "resnet20_resnet8.yaml", before, method]
    args = [*TINY, *(f"--config={file}" for file in files), "--trainer.max_epochs=1"]
    model = Built(find_configs(["fit", *args])).model
    assert model.ce_weight == own["ce_weight"]
    assert [type(s).__name__ for s in model.strategies] == classes(own["strategies"])
    for strategy, given in zip(model.strategies, own["strategies"], strict=True):
        for name, value in given.get("init_args", {}).items():
            assert getattr(strategy, name) == value, name


@pytest.mark.parametrize("teacher", shipped("teachers"))
def test_a_teacher_trains_alone(teacher: Path) -> None:
    model = parsed(ROOT / "base.yaml", ROOT / "methods" / "kd.yaml", teacher)["model"]
    assert model["student"] == teacher.stem
    assert model["student"] in model_names()
    assert model["teacher"] is None
    assert not model["strategies"]
    assert model["ce_weight"] == 1.0


@pytest.mark.parametrize("file", OTHERS)
def test_every_other_file_parses(file: Path) -> None:
    """Schedules, data sets, demos: their settings are applied, and no milestone is after the last epoch."""
    config = parsed(ROOT / "base.yaml", file, more=("--model.student=resnet8",))
    content = plain(file)
    assert {key: config["trainer"][key] for key in content.get("trainer", {})} == content.get("trainer", {})
    assert {key: config["model"][key] for key in content.get("model", {})} == content.get("model", {})
    if "max_epochs" in content.get("trainer", {}):
        assert all(0 < milestone < config["trainer"]["max_epochs"] for milestone in config["model"]["milestones"])
    if "data" in content:
        assert config["data"]["class_path"].rpartition(".")[2] == content["data"]["class_path"]
        arguments = content["data"].get("init_args", {})
        assert {key: config["data"]["init_args"][key] for key in arguments} == arguments


def test_the_recipe() -> None:
    config = parsed(ROOT / "base.yaml", more=("--model.student=resnet8",))
    assert config["trainer"]["max_epochs"] == 240
    model = config["model"]
    recipe = (model["lr"], model["momentum"], model["weight_decay"], list(model["milestones"]))
    assert recipe == (0.05, 0.9, 5e-4, [150, 180, 210])
    assert config["data"]["init_args"]["batch_size"] == 64
