"""A file's network is recognised by its tensors."""

from __future__ import annotations

import pytest
import torch

from ickd_pl.models import get_model, model_names
from ickd_pl.weights.recognise import network_of


@pytest.mark.parametrize("name", model_names())
def test_every_network_is_recognised_for_any_number_of_classes(name: str) -> None:
    with torch.device("meta"):
        state = get_model(name, 7).state_dict()
    assert network_of(state) == name
    assert network_of({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}) == name


def test_unknown_tensors_match_no_network() -> None:
    assert network_of({}) is None
    assert network_of({"fc.weight": torch.zeros(3, 4)}) is None
    state = get_model("resnet8", 10).state_dict()
    assert network_of({**state, "more": torch.zeros(1)}) is None
    assert network_of({**state, "conv1.weight": torch.zeros(17, 3, 3, 3)}) is None


def test_recognition_leaves_the_random_state_unchanged() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    network_of({"fc.weight": torch.zeros(3, 4)})
    assert torch.equal(torch.rand(1), expected)
