"""The published accuracies in the package."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest
import yaml

from ickd_pl.benchmark.published import TEACHER, network_name, published, row_name
from ickd_pl.runs.configs import config_root

ICKD = "ICKD/Cifar100/README.md"


def _rows() -> list[dict[str, str]]:
    text = files("ickd_pl.benchmark").joinpath("published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_the_table_of_ickd_is_whole() -> None:
    rows = [r for r in _rows() if r["source"] == ICKD]
    assert len(rows) == 98 == 14 * 7
    assert len({(r["teacher"], r["student"]) for r in rows}) == 7


def test_no_figure_twice() -> None:
    keys = [(r["method"], r["teacher"], r["student"]) for r in _rows()]
    assert len(keys) == len(set(keys))


def test_epochs_are_those_of_the_sources() -> None:
    unstated = {r["method"] for r in _rows() if r["epoch"] == "unstated"}
    assert unstated == {"ICKD-C (w/o KL)", "ICKD-C (with KL)"}
    assert {r["epoch"] for r in _rows()} == {"last", "unstated"}


@pytest.mark.parametrize(
    ("method", "teacher", "student", "top1", "source"),
    [
        (None, "resnet32x4", "resnet8x4", 79.42, ICKD),
        ("vanilla", "resnet56", "resnet20", 69.06, ICKD),
        ("kd", "resnet32x4", "resnet8x4", 73.33, ICKD),
        ("ickd", "resnet32x4", "resnet8x4", 75.25, ICKD),
        ("ickd_kl", "vgg13", "vgg8", 73.88, ICKD),
        ("fsp", "wrn_40_2", "wrn_16_2", 72.91, ICKD),
        ("crd", "resnet32x4", "resnet8x4", 75.51, "RepDistiller/README.md"),
        ("kd", "vgg13", "MobileNetV2", 67.37, "RepDistiller/README.md"),
    ],
)
def test_known_figures(method: str | None, teacher: str, student: str, top1: float, source: str) -> None:
    found = published(method, teacher, student)
    assert found is not None
    assert (found.top1, found.source) == (top1, source)


def test_not_applicable_and_unknown_have_no_figure() -> None:
    assert published("fsp", "wrn_40_2", "wrn_40_1") is None  # printed as 0.00
    assert published("dkd", "resnet56", "resnet20") is None
    assert published("kd", "resnet20", "resnet8") is None


def test_every_shipped_pair_of_the_papers_has_a_teacher_figure() -> None:
    for path in sorted((config_root() / "pairs").glob("*.yaml")):
        model = yaml.safe_load(path.read_text())["model"]
        if model["student"] != "resnet8":  # the small pair of this project's own benchmarks
            assert published(None, model["teacher"], model["student"]), path.name


def test_every_shipped_method_has_a_row_of_its_own() -> None:
    methods = [p.stem for p in (config_root() / "methods").glob("*.yaml")]
    names = [row_name(m) for m in methods]
    assert len(methods) > 15 and len(set(names)) == len(names)
    assert all(name != method for name, method in zip(names, methods, strict=True))
    assert {r["method"] for r in _rows()} <= {*names, TEACHER}


def test_names() -> None:
    assert row_name("my_method") == "my_method"
    shown = [network_name(n) for n in ("resnet8x4", "wrn_40_2", "vgg13", "MobileNetV2", "resnet_of_mine")]
    assert shown == ["ResNet8x4", "WRN-40-2", "VGG13", "MobileNetV2", "resnet_of_mine"]
