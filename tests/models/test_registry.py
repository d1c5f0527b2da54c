"""Names and sizes of the networks."""

from __future__ import annotations

import pytest
import torch

from ickd_pl.errors import UserError
from ickd_pl.models import get_model, model_names, register

PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "ResNet50": 23_705_252,
    "MobileNetV2": 812_836,
    "ShuffleV1": 949_258,
    "ShuffleV2": 1_355_528,
}


def test_no_name_is_lost() -> None:
    assert set(PARAMETERS) <= set(model_names())


@pytest.mark.parametrize("name", model_names())
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        net = get_model(name)
    count = sum(p.numel() for p in net.parameters())
    where = "PARAMETERS in tests/models/test_registry.py, where the paper or the original code has as many"
    assert name in PARAMETERS, f'a new network: add "{name}": {count:_} to {where}'
    assert count == PARAMETERS[name]
    assert net.name == name


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="two networks are called resnet8"):
        register("resnet8", get_model)  # type: ignore[arg-type]


def test_unknown_name_lists_near_ones() -> None:
    with pytest.raises(UserError, match=r"unknown network 'resnet9': did you mean .*resnet8"):
        get_model("resnet9")


@pytest.mark.parametrize("num_classes", [0, -1])
def test_classes_are_needed(num_classes: int) -> None:
    with pytest.raises(UserError, match=f"num_classes must be at least 1, got {num_classes}"):
        get_model("resnet8", num_classes)
