"""The numbers of RepDistiller's, ICKD's and mdistiller's scripts, written out once: classes and files must agree."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ickd_pl.strategies import discover, from_spec
from ickd_pl.strategies.ab import ab_loss
from ickd_pl.strategies.at import at_loss
from ickd_pl.strategies.dkd import dkd_loss
from ickd_pl.strategies.kd import kd_loss
from ickd_pl.strategies.kdsvd import kdsvd_loss
from ickd_pl.strategies.pkt import pkt_loss
from ickd_pl.strategies.rkd import rkd_loss

ROOT = Path(__file__).parents[2]

KD = {"weight": 1, "temperature": 4, "standardise": False}
DKD = {"weight": 1, "alpha": 1, "beta": 8, "temperature": 4, "warmup_epochs": 20, "standardise": False}
CRD = {"weight": 0.8, "dim": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5, "mode": "exact"}

# File of configs/methods -> weight of the cross entropy, and for every class its arguments. FT's pretrain_lr is left
# out: the original's depends on the student.
TABLE: dict[str, tuple[float, dict[str, dict[str, Any]]]] = {
    "vanilla": (1, {}),
    "kd": (0.1, {"KD": {**KD, "weight": 0.9}}),
    "fitnet": (1, {"FitNet": {"weight": 100, "hint_layer": 2}}),
    "at": (1, {"AT": {"weight": 1000, "power": 2}}),
    "sp": (1, {"SP": {"weight": 3000}}),
    "cc": (1, {"CC": {"weight": 0.02, "dim": 128}}),
    "vid": (1, {"VID": {"weight": 1, "init_variance": 5}}),
    "rkd": (1, {"RKD": {"weight": 1, "distance_weight": 25, "angle_weight": 50}}),
    "pkt": (1, {"PKT": {"weight": 30000}}),
    "ab": (1, {"AB": {"weight": 1, "margin": 1, "pretrain_epochs": 30, "pretrain_lr": None}}),
    "ft": (1, {"FT": {"weight": 200, "rate": 0.5, "pretrain_epochs": 30}}),
    "fsp": (1, {"FSP": {"weight": 50, "pretrain_epochs": 30, "pretrain_lr": None}}),
    "nst": (1, {"NST": {"weight": 50}}),
    "crd": (1, {"CRD": CRD}),
    "crd_kd": (1, {"CRD": CRD, "KD": KD}),
    "kdsvd": (1, {"KDSVD": {"weight": 1, "count": 1}}),
    "ickd": (1, {"ICKD": {"weight": 2.5}}),
    "ickd_kl": (1, {"ICKD": {"weight": 2.5}, "KD": KD}),
    "dkd": (1, {"DKD": DKD}),
    "kd_ls": (0.1, {"KD": {"weight": 9, "temperature": 2, "standardise": True}}),
    "dkd_ls": (1, {"DKD": {**DKD, "weight": 9, "temperature": 2, "standardise": True}}),
    "nkd": (1, {"NKD": {"weight": 1, "gamma": 3.5, "temperature": 3}}),
    "wsld": (1, {"WSLD": {"weight": 2.25, "temperature": 4}}),
    "ttm": (1, {"TTM": {"weight": 45, "exponent": 0.1}}),
    "wttm": (1, {"WTTM": {"weight": 4, "exponent": 0.2}}),
    "rld": (1, {"RLD": {**DKD, "confidence_temperature": 1}}),
    "dist": (1, {"DIST": {"weight": 2, "beta": 1, "gamma": 1, "temperature": 4}}),
    "ofa": (1, {"OFA": {"weight": 1, "power": 1, "temperature": 1}}),
    "reviewkd": (1, {"ReviewKD": {"weight": 1, "warmup_epochs": 20}}),
    "itrd": (1, {"ITRD": {"weight": 1, "correlation_weight": 2, "mutual_weight": 1, "exponent": 1.01}}),
}

FUNCTIONS: list[tuple[Callable[..., Any], dict[str, float]]] = [
    (kd_loss, {"temperature": 4}),
    (at_loss, {"power": 2}),
    (rkd_loss, {"distance_weight": 25, "angle_weight": 50}),
    (pkt_loss, {"eps": 1e-7}),
    (ab_loss, {"margin": 1}),
    (kdsvd_loss, {"count": 1}),
    (dkd_loss, {"alpha": 1, "beta": 8, "temperature": 4}),
]


def named(spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class's name and all its arguments, those that were not given too."""
    name = spec["class_path"].rpartition(".")[2]
    return name, {key: value for key, value in spec["init_args"].items() if (name, key) != ("FT", "pretrain_lr")}


@pytest.mark.parametrize("file", TABLE)
def test_configuration(file: str) -> None:
    model = yaml.safe_load((ROOT / f"configs/methods/{file}.yaml").read_text())["model"]
    strategies = [named(from_spec(spec).spec()) for spec in model["strategies"]]
    assert (model["ce_weight"], strategies) == (TABLE[file][0], list(TABLE[file][1].items()))


@pytest.mark.parametrize("file", [file for file, (_, given) in TABLE.items() if len(given) == 1 and file in discover()])
def test_class(file: str) -> None:
    """Alone, a class has its row's numbers; only KD's row, with less cross entropy, is not KD beside another method."""
    ((name, expected),) = TABLE[file][1].items()
    built = discover()[file]()  # type: ignore[call-arg]
    assert named(built.spec()) == (name, {**expected, "weight": 1} if name == "KD" else expected)


@pytest.mark.parametrize(("function", "expected"), FUNCTIONS, ids=[function.__name__ for function, _ in FUNCTIONS])
def test_function(function: Callable[..., Any], expected: dict[str, float]) -> None:
    given = inspect.signature(function).parameters
    assert {name: p.default for name, p in given.items() if p.default is not p.empty} == expected
