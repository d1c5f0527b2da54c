"""A packed member equals its solo run for every argument in the module's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ickd_pl import DistillationModule, LayerMap, UserError, get_model
from ickd_pl.seeding import seeded
from ickd_pl.strategies import KD, SP  # type: ignore[attr-defined]
from ickd_pl.training.pack import Pack
from tests.training.packs import assert_solo, make_teacher, packed, solo

SIGNATURE = inspect.signature(DistillationModule).parameters
LAYERS = LayerMap(stem="conv1", stages=("conv1", "bn1"), final="bn1", pooled="fc:in")


def tapped(role: str) -> dict[str, Any]:
    with seeded("tapped", role):
        return {role: get_model("resnet8", 10), f"{role}_layers": LAYERS}


# Arguments that may differ between members. Functions, because every run needs a new network.
EQUAL: dict[str, Callable[[], dict[str, Any]]] = {
    "student": lambda: {"student": "resnet14"},
    "student_layers": lambda: tapped("student"),
    "strategies": lambda: {"strategies": [SP(weight=2.0)]},
    "ce_weight": lambda: {"ce_weight": 0.3},
    "num_samples": lambda: {"num_samples": 71},  # no method here has a memory bank
    "seed": lambda: {"seed": 5},
    "lr": lambda: {"lr": 0.01},
    "momentum": lambda: {"momentum": 0.5},
    "weight_decay": lambda: {"weight_decay": 0.01},
    "milestones": lambda: {"milestones": [1]},
    "teacher_floor": lambda: {"teacher_floor": 0.0},
}
# Arguments that all members must share, and the message for a member that differs.
REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "cuda_graphs": (
        lambda: {"cuda_graphs": False},
        "the members of a pack compute alike: cuda_graphs is True, but False for other",
    ),
    "num_classes": (lambda: {"num_classes": 4, "strategies": []}, "share their data: num_classes is 10"),
    "image_size": (lambda: {"image_size": 64}, "share their data: image_size is 32"),
    "teacher": (lambda: {"teacher": "resnet20"}, "share one teacher"),
    "teacher_weights": (lambda: {"teacher": "resnet14", "teacher_weights": "other.pth"}, "share one teacher"),
    **{
        name: (lambda name=name, value=value: {name: value}, f"compute alike: {name} is {not value}")
        for name, value in (("channels_last", True), ("fold_teacher", False), ("compile", True), ("tf32", True))
    },
    "teacher_normalization": (
        lambda: {"teacher_normalization": {"mean": [0.5] * 3, "std": [0.25] * 3}},
        "compute alike: teacher_normalization is auto, but",
    ),
    # Each member has its own hooked network, even with the same layers.
    "teacher_layers": (lambda: tapped("teacher"), "share one teacher"),
}


def module(taught: nn.Module, **settings: Any) -> DistillationModule:
    return DistillationModule(
        **{"student": "resnet8", "teacher": taught, "strategies": [KD()], "num_classes": 10, **settings}
    )


def test_every_argument_is_in_one_of_the_tables() -> None:
    missing = SIGNATURE.keys() - EQUAL.keys() - REFUSED.keys()
    assert not missing, (
        f"DistillationModule has {sorted(missing)}, for which no pack is tried here: add to EQUAL a value other than "
        "the default, or to REFUSED a value and what a pack says of a member that has it"
    )
    assert EQUAL.keys() | REFUSED.keys() == SIGNATURE.keys() and not EQUAL.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", [*EQUAL, *REFUSED])
def test_the_tables_have_values_other_than_the_defaults(name: str) -> None:
    settings = EQUAL[name]() if name in EQUAL else REFUSED[name][0]()
    assert settings[name] != SIGNATURE[name].default and settings[name] != "resnet8"


def test_members_that_differ_in_one_argument_are_their_solo_runs() -> None:
    taught = make_teacher()
    packed(Path("pack"), {"plain": module(taught), **{name: module(taught, **own()) for name, own in EQUAL.items()}})
    start = Path("solo")
    solo(start, "plain", module(taught))
    for name, own in EQUAL.items():
        solo(start, name, module(taught, **own()))
        assert_solo(Path("pack") / name, start / name)
    assert_solo(Path("pack/plain"), start / "plain")


@pytest.mark.parametrize("name", REFUSED)
def test_members_that_cannot_differ_are_refused(name: str) -> None:
    taught, (own, says) = make_teacher(), REFUSED[name]
    with pytest.raises(UserError, match=says):
        Pack([module(taught), module(taught, **own())], ["plain", "other"])
