"""Weights of every format are read, every bad file is a UserError with its path, and no file runs code."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ickd_pl.errors import UserError
from ickd_pl.models import get_model
from ickd_pl.weights import load_student, load_teacher, read_file, read_state_dict

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    """Weights that differ from any initialisation."""
    net = get_model("resnet8", 10)
    generator = torch.Generator().manual_seed(5)
    return {
        key: torch.rand(value.shape, generator=generator) + 0.1 if value.is_floating_point() else value + 3
        for key, value in net.state_dict().items()
    }


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def plain_dict(state: State, path: Path) -> None:
    torch.save({"epoch": 240, "model": state, "best_acc": 60.25}, path)


def legacy(state: State, path: Path) -> None:
    torch.save({"epoch": 240, "model": state, "best_acc": 60.25}, path, _use_new_zipfile_serialization=False)


def regular_save(state: State, path: Path) -> None:
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"epoch": 40, "model": state, "accuracy": torch.tensor(60.0), "optimizer": optimizer}, path)


def with_arguments(state: State, path: Path) -> None:
    options = argparse.Namespace(lr=0.05, trial="1", milestones=[150, 180], nested=argparse.Namespace(a=None))
    torch.save({"opt": options, "model": state}, path)


def with_arguments_legacy(state: State, path: Path) -> None:
    torch.save({"opt": argparse.Namespace(lr=0.05), "model": state}, path, _use_new_zipfile_serialization=False)


def module_prefix(state: State, path: Path) -> None:
    torch.save({"model": prefixed(state, "module.")}, path)


def checkpoint(state: State, path: Path) -> None:
    adapters = {"adapters.ickd.conv.weight": torch.zeros(2)}
    torch.save({"state_dict": {**prefixed(state, "student."), **adapters}, "epoch": 3}, path)


def bare(state: State, path: Path) -> None:
    torch.save(state, path)


def safetensors(state: State, path: Path) -> None:
    save_file(state, path)


FORMATS: list[tuple[Callable[[State, Path], None], str]] = [
    (plain_dict, "w.pth"),
    (legacy, "w.pth"),
    (regular_save, "w.pth"),
    (with_arguments, "w.pth"),
    (with_arguments_legacy, "w.pth"),
    (module_prefix, "w.pth"),
    (checkpoint, "w.ckpt"),
    (bare, "w.pt"),
    (safetensors, "w.safetensors"),
]


@pytest.mark.parametrize(("save", "name"), [pytest.param(*f, id=f[0].__name__) for f in FORMATS])
def test_formats(state: State, save: Callable[[State, Path], None], name: str) -> None:
    save(state, Path(name))
    net = load_teacher("resnet8", name, 10)
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_reading_leaves_the_random_stream_alone(state: State) -> None:
    plain_dict(state, Path("w.pth"))
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_teacher("resnet8", "w.pth", 10)
    assert torch.equal(torch.rand(1), expected)


# -- damaged files -------------------------------------------------------------


@pytest.mark.parametrize("save", [plain_dict, legacy, safetensors], ids=lambda f: f.__name__)
@pytest.mark.parametrize("how", ["empty", "one byte", "half", "but one byte"])
def test_cut_files(state: State, save: Callable[[State, Path], None], how: str) -> None:
    path = Path("cut.safetensors" if save is safetensors else "cut.pth")
    save(state, path)
    content = path.read_bytes()
    length = {"empty": 0, "one byte": 1, "half": len(content) // 2, "but one byte": len(content) - 1}[how]
    path.write_bytes(content[:length])
    with pytest.raises(UserError, match=path.name.replace(".", r"\.")):
        load_teacher("resnet8", path, 10)


def test_a_flipped_bit_in_the_numbers_is_found(state: State) -> None:
    path = Path("flipped.pth")
    plain_dict(state, path)
    content = bytearray(path.read_bytes())
    start = content.index(state["layer3.0.conv2.weight"].numpy().tobytes()[:64])
    content[start + 7] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch alone does not see it
    with pytest.raises(UserError, match=r"flipped\.pth is damaged"):
        load_teacher("resnet8", path, 10)


def test_every_tenth_of_the_file_is_guarded(state: State) -> None:
    """A flip anywhere is found, or falls between the records, where it changes no number."""
    path = Path("flipped.pth")
    plain_dict(state, path)
    good = path.read_bytes()
    for start in range(0, len(good), len(good) // 40):
        path.write_bytes(good[:start] + bytes([good[start] ^ 16]) + good[start + 1 :])
        try:
            read = read_state_dict(path)
        except UserError:
            continue
        assert all(torch.equal(read[key], state[key]) for key in state), start


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ([1, 2], "holds no network weights"),
        (torch.zeros(2), "holds a Tensor"),
        ({}, "holds no network weights"),
        ({"epoch": 3, "accuracy": 1.0}, "it has epoch (int), accuracy (float)"),
        ({"conv1.weight": np.zeros(2)}, "expected a dict of tensors, at any depth; it has conv1.weight (no tensor)"),
        ({"model": {}}, "holds no network weights"),
        ({"model": {"a": 1}}, "holds no network weights"),
        ({"state_dict": {"student.a": 1}}, "holds no network weights"),
        ({1: torch.zeros(2)}, ""),
        ({"model": {1: torch.zeros(2)}}, ""),
        ({"state_dict": {1: torch.zeros(2)}}, ""),
    ],
)
def test_files_without_weights(content: Any, needle: str) -> None:
    torch.save(content, "other.pth")
    with pytest.raises(UserError, match=r"other\.pth") as caught:
        load_teacher("resnet8", "other.pth", 10)
    assert needle in str(caught.value)


def test_the_likely_cause_of_other_shapes(state: State) -> None:
    """Only where rows are missing or too many, it may be the number of classes."""
    for key, shape, cause in (
        ("fc.weight", (7, 64), "likely cause: it was trained for another number of classes"),
        ("conv1.weight", (3, 16, 3, 3), "likely cause: it is the file of another network"),
    ):
        torch.save({**state, key: torch.zeros(shape)}, "other.pth")
        with pytest.raises(UserError, match=cause):
            load_teacher("resnet8", "other.pth", 10)


def test_no_file_and_no_weights_file() -> None:
    with pytest.raises(UserError, match=r"none\.pth does not exist: .*`ickd teachers train NETWORK` makes one"):
        load_teacher("resnet8", "none.pth", 10)
    Path("folder.pth").mkdir()
    with pytest.raises(UserError, match=r"folder\.pth is a folder"):
        load_teacher("resnet8", "folder.pth", 10)
    Path("page.pth").write_text("<html>404 Not Found</html>")
    with pytest.raises(UserError, match=r"page\.pth is damaged or not a weights file"):
        load_teacher("resnet8", "page.pth", 10)
    with zipfile.ZipFile("archive.pth", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(UserError, match=r"archive\.pth"):
        load_teacher("resnet8", "archive.pth", 10)


# -- files of something else ---------------------------------------------------


def test_another_network(state: State) -> None:
    plain_dict(state, Path("w.pth"))
    with pytest.raises(UserError, match=r"w\.pth does not fit resnet14: \d+ missing keys .*another network"):
        load_teacher("resnet14", "w.pth", 10)
    with pytest.raises(UserError, match=r"w\.pth does not fit resnet8x4: .*other shapes.*another network"):
        load_teacher("resnet8x4", "w.pth", 10)
    with pytest.raises(UserError, match=r"unknown network .*resnet8"):
        load_teacher("resnet9", "w.pth", 10)


def test_a_missing_and_an_unexpected_key(state: State) -> None:
    plain_dict({key: value for key, value in state.items() if key != "bn1.running_mean"}, Path("w.pth"))
    with pytest.raises(UserError, match=r"w\.pth .*1 missing keys \(bn1\.running_mean\)"):
        load_teacher("resnet8", "w.pth", 10)
    plain_dict({**state, "extra.weight": torch.zeros(1)}, Path("w.pth"))
    with pytest.raises(UserError, match=r"w\.pth .*1 unexpected keys \(extra\.weight\)"):
        load_teacher("resnet8", "w.pth", 10)


def test_another_number_of_classes(state: State) -> None:
    plain_dict(state, Path("w.pth"))
    with pytest.raises(UserError, match=r"w\.pth .*\(100, 64\).*\(10, 64\).*number of classes"):
        load_teacher("resnet8", "w.pth", 100)


def test_a_refused_file_changes_nothing(state: State) -> None:
    from ickd_pl.weights import load_weights

    net = get_model("resnet8", 10)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plain_dict({**state, "fc.bias": torch.zeros(11)}, Path("w.pth"))
    with pytest.raises(UserError):
        load_weights(net, "w.pth", "resnet8")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_load_student_needs_a_checkpoint_of_this_project(state: State) -> None:
    plain_dict(state, Path("w.pth"))
    with pytest.raises(UserError, match=r"w\.pth is not a checkpoint of ickd_pl"):
        load_student("w.pth")


# -- hostile files -------------------------------------------------------------


class Touch:
    """Pickles into a call that creates a file when it is unpickled without restriction."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "system":
            return os.system, ("touch hacked",)
        if self.how == "eval":
            return eval, ("open('hacked', 'w').close()",)
        return Path.touch, (Path("hacked"),)


def zip_format(content: Any, path: Path) -> None:
    torch.save(content, path)


def legacy_format(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def old_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def new_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("how", ["system", "eval", "path"])
@pytest.mark.parametrize("save", [zip_format, legacy_format, old_pickle, new_pickle], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["hostile.pth", "hostile.ckpt", "hostile.safetensors"])
def test_a_file_never_runs_code(
    state: State, monkeypatch: pytest.MonkeyPatch, how: str, save: Callable[[Any, Path], None], name: str
) -> None:
    # Where a user has switched torch's own guard off, this reader still holds.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    save({"model": state, "opt": Touch(how)}, Path(name))
    for read in (read_file, load_student, lambda path: load_teacher("resnet8", path, 10)):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read(name)
    assert not Path("hacked").exists()


@pytest.mark.parametrize("how", ["system", "eval"])
def test_stored_arguments_cannot_run_code(state: State, how: str) -> None:
    torch.save({"model": state, "opt": argparse.Namespace(lr=1, note=Touch(how))}, "hostile.pth")
    with pytest.raises(UserError, match=r"hostile\.pth is refused: it wants to run code"):
        load_teacher("resnet8", "hostile.pth", 10)
    assert not Path("hacked").exists()


def test_the_hostile_files_are_hostile() -> None:
    """Checks the tests above: without restriction the marker file is created."""
    torch.save({"opt": Touch("eval")}, "hostile.pth")
    torch.load("hostile.pth", weights_only=False)
    assert Path("hacked").exists()


def test_files_that_do_not_count_batches_are_read(state: State) -> None:
    plain_dict({key: value for key, value in state.items() if "num_batches_tracked" not in key}, Path("w.pth"))
    net = load_teacher("resnet8", "w.pth", 10)
    assert torch.equal(net.state_dict()["fc.weight"], state["fc.weight"])


def test_negative_variances(state: State) -> None:
    plain_dict({**state, "bn1.running_var": -state["bn1.running_var"]}, Path("w.pth"))
    with pytest.raises(UserError, match=r"w\.pth holds negative variances \(bn1\.running_var\)"):
        load_teacher("resnet8", "w.pth", 10)


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        (lambda value: value.to_sparse(), "sparse"),
        (lambda value: value.to("meta"), "meta"),
        (lambda value: value.long(), "int64"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (lambda value: value * float("nan"), "NaN or infinite"),
    ],
)
def test_values_that_are_not_weights(state: State, change: Callable[[Tensor], Tensor], needle: str) -> None:
    plain_dict({**state, "fc.weight": change(state["fc.weight"])}, Path("w.pth"))
    with pytest.raises(UserError, match=r"w\.pth holds .*fc\.weight") as caught:
        load_teacher("resnet8", "w.pth", 10)
    assert needle in str(caught.value)
