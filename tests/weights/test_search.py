"""A network's weights are found under any wrapping, and where several sets of them differ the user chooses."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ickd_pl import UserError, get_model, load_student, load_teacher
from ickd_pl.models.base import FeatureNet
from ickd_pl.weights import load_weights

State = dict[str, Tensor]


def trained(seed: int) -> FeatureNet:
    """A network whose weights differ from any initialisation."""
    net = get_model("resnet8", 10)
    generator = torch.Generator().manual_seed(seed)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return net


NET, OTHER = trained(1), trained(2)
STATE, AVERAGE = NET.state_dict(), OTHER.state_dict()


def prefixed(prefix: str, state: State = STATE) -> State:
    return {prefix + key: value for key, value in state.items()}


def within(name: str) -> State:
    """As if the first stage alone were wrapped."""
    return {key.replace("layer1.", f"layer1.{name}."): value for key, value in STATE.items()}


def counted(prefix: str = "", change: Callable[[Tensor], Tensor] = lambda value: value) -> State:
    """With the counters that a profiler registers in every module."""
    counters = {
        f"{name}.{what}".lstrip("."): torch.zeros(1, dtype=torch.float64)
        for name, _ in NET.named_modules()
        for what in ("total_ops", "total_params")
    }
    return {prefix + key: change(value) for key, value in {**STATE, **counters}.items()}


WRAPPED: dict[str, Callable[[], Any]] = {
    "compiled": lambda: torch.compile(NET).state_dict(),  # type: ignore[attr-defined]
    "a compiled part": lambda: within("_orig_mod"),
    "a parallel part": lambda: within("module"),
    "parallel": lambda: {"net": nn.DataParallel(NET).state_dict()},
    "parallel and compiled": lambda: prefixed("module._orig_mod."),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(NET).state_dict(),
    "in a sequence": lambda: nn.Sequential(NET).state_dict(),
    "of Lightning": lambda: {"state_dict": prefixed("model.net."), "hyper_parameters": {"lr": 0.1}, "epoch": 3},
    "beside another part": lambda: {"state_dict": {**prefixed("backbone."), "head.weight": torch.ones(3, 3)}},
    "beside a teacher": lambda: {
        "state_dict": {**prefixed("student."), **prefixed("teacher.", get_model("resnet8x4", 10).state_dict())}
    },
    "deep": lambda: {"run": {"nets": [{"weights": prefixed("a.b.c.")}]}},
    "counted": counted,
    "counted, in another precision": lambda: counted("net.", lambda v: v.double() if v.is_floating_point() else v),
    "scalars of numpy": lambda: {"model": STATE, "a": np.float64(1), "b": [np.int64(2), np.bool_(True), np.str_("x")]},
    "numbers among the weights": lambda: {**STATE, "epoch": 3, "best": np.float32(1), "note": "x"},
    "the same twice": lambda: {"model": STATE, "ema": {key: value.clone() for key, value in STATE.items()}},
    "parameters": lambda: {"net": dict(NET.named_parameters()) | dict(NET.named_buffers())},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_weights_are_found(wrapping: str) -> None:
    torch.save(WRAPPED[wrapping](), "w.pth")
    read = load_teacher("resnet8", "w.pth", 10).state_dict()
    assert all(torch.equal(read[key], value) for key, value in STATE.items())


def test_an_entry_in_an_unusual_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("pytorch_lightning.utilities.rank_zero_info", said.append)
    for content in ({"model": STATE}, {"state_dict": prefixed("backbone.")}, STATE):
        torch.save(content, "w.pth")
        load_teacher("resnet8", "w.pth", 10)
    assert said == ["weights of resnet8: state_dict.backbone in w.pth"]


TWICE: dict[str, Callable[[], Any]] = {
    "average": lambda: {"model": STATE, "model_ema": {"module": AVERAGE}},
    "Lightning": lambda: {"state_dict": {**prefixed("student."), **prefixed("teacher.", AVERAGE)}},
    "bare": lambda: {**STATE, **prefixed("teacher.", AVERAGE)},
    "averaged": lambda: {**STATE, **prefixed("module.", AVERAGE)},
    "list": lambda: {"nets": [STATE, AVERAGE]},
    "three": lambda: {"a": STATE, "b": {key: value.clone() for key, value in STATE.items()}, "c": AVERAGE},
}


@pytest.mark.parametrize("file", ["w.pth", "w#1.pth"])
@pytest.mark.parametrize("case", TWICE)
def test_nothing_is_guessed_and_the_advice_works(case: str, file: str) -> None:
    torch.save(TWICE[case](), file)
    with pytest.raises(UserError, match="holds weights of resnet8 2 times, and they differ: give ") as caught:
        load_teacher("resnet8", file, 10)
    options = re.findall(r"(\S+#\S+)", str(caught.value).partition(": give ")[2])
    found = [load_teacher("resnet8", option, 10).state_dict()["fc.weight"] for option in options]
    assert len(found) == 2
    assert torch.equal(found[0], STATE["fc.weight"]) and torch.equal(found[1], AVERAGE["fc.weight"])


def test_a_part_of_a_name_is_enough_if_one_entry_has_it() -> None:
    torch.save({"state_dict": {**prefixed("student."), **prefixed("teacher.", AVERAGE)}}, "w.pth")
    read = load_teacher("resnet8", "w.pth#teacher", 10).state_dict()
    assert torch.equal(read["fc.weight"], AVERAGE["fc.weight"])
    with pytest.raises(UserError, match=r"w\.pth has no entry none that fits resnet8: give w\.pth#state_dict\.student"):
        load_teacher("resnet8", "w.pth#none", 10)
    with pytest.raises(UserError, match=r"weights file no\.pth does not exist"):
        load_teacher("resnet8", "no.pth#student", 10)


def test_safetensors_have_entries_too() -> None:
    save_file({**prefixed("student."), **prefixed("ema.", AVERAGE)}, "w.safetensors")
    read = load_teacher("resnet8", "w.safetensors#ema", 10).state_dict()
    assert torch.equal(read["fc.weight"], AVERAGE["fc.weight"])


def test_a_checkpoint_of_this_project_is_its_student(student: Any) -> None:
    content = torch.load(student.last, weights_only=True)
    part = {key: value for key, value in content["state_dict"].items() if key.startswith("student.")}
    average = {key: value + 1 for key, value in part.items()}
    # An adapter of the same architecture never counts.
    content["state_dict"].update({f"adapters.a{key[7:]}": value for key, value in average.items()})
    torch.save({**content, "average": average}, "w.ckpt")
    for read, shift in (
        (load_student("w.ckpt"), 0),
        (load_teacher("resnet8", "w.ckpt", 10), 0),
        (load_student("w.ckpt#average"), 1),
    ):
        assert torch.equal(read.state_dict()["fc.weight"], part["student.fc.weight"] + shift)


def test_weights_of_another_network_are_recognised_behind_a_prefix() -> None:
    torch.save({"state_dict": prefixed("model.", get_model("vgg8", 10).state_dict())}, "w.pth")
    with pytest.raises(UserError, match=r"does not fit resnet8: 47 missing keys .*another network, vgg8"):
        load_teacher("resnet8", "w.pth", 10)


def test_a_single_number_that_may_be_a_weight_is_not_passed_over() -> None:
    torch.save({**STATE, "layer1.relu.weight": torch.zeros(1)}, "w.pth")
    with pytest.raises(UserError, match=r"1 unexpected keys \(layer1\.relu\.weight\)"):
        load_teacher("resnet8", "w.pth", 10)


def test_keys_in_a_message_stay_on_one_line() -> None:
    torch.save({**STATE, "a\n\x1b[31m.weight": torch.zeros(3)}, "w.pth")
    with pytest.raises(UserError) as caught:
        load_teacher("resnet8", "w.pth", 10)
    assert str(caught.value).isprintable()


class Tiny(nn.Module):
    """One parameter, which fits almost anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


def test_the_search_is_bounded() -> None:
    """Many prefixes, many keys below each other, and a file that contains itself."""
    one = torch.zeros(1)
    itself: dict[str, Any] = {"a": one}
    itself["again"] = itself
    for content, accepted in (
        ({"a." * (i % 35) + ("w" if i < 35 else f"y{i}"): one for i in range(20_000)}, False),
        ({f"k{i}.w": one for i in range(20_000)}, True),
        (itself, False),
    ):
        torch.save(content, "w.pth")
        started = time.process_time()
        try:
            load_weights(Tiny(), "w.pth", "Tiny")
            assert accepted
        except UserError:
            assert not accepted
        assert time.process_time() - started < 10
    assert Path("w.pth").exists()


def test_a_list_of_weights_is_chosen_from_by_number(tmp_path: Path) -> None:
    first, second = (get_model("resnet8", 10).state_dict() for _ in range(2))
    torch.save([first, {**second, "fc.bias": second["fc.bias"] + 1}], tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"2 times, and they differ: give \S+two\.pth#0 or \S+two\.pth#1"):
        load_teacher("resnet8", tmp_path / "two.pth", 10)
    net = load_teacher("resnet8", f"{tmp_path / 'two.pth'}#1", 10)
    assert torch.equal(net.state_dict()["fc.bias"], second["fc.bias"] + 1)


def test_names_that_dots_make_equal(tmp_path: Path) -> None:
    first = get_model("resnet8", 10).state_dict()
    torch.save({"a.b": first, "a": {"b": {key: value + 1 for key, value in first.items()}}}, tmp_path / "dots.pth")
    with pytest.raises(UserError, match=r"different weights of resnet8 under a\.b, with dots in some keys"):
        load_teacher("resnet8", tmp_path / "dots.pth", 10)
