"""A teacher trained with another mean and std sees images that are normalised its own way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ickd_pl import DistillationModule, UserError, get_model
from ickd_pl.data.augment import constants, normalise
from ickd_pl.strategies import KD
from ickd_pl.training.teacher_images import TeacherImages
from ickd_pl.weights.student import normalisation_of
from tests.runs.helpers import Run, cli, fit_args, load, student_args
from tests.training.packs import assert_solo, make_teacher, member, packed, solo

OWN = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}


class Data:
    """What is read of a data module."""

    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)


def pixels() -> Tensor:
    return torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_images_are_those_of_the_other_constants() -> None:
    given = normalise(pixels(), constants(Data.mean, Data.std))
    wanted = normalise(pixels(), constants(OWN["mean"], OWN["std"]))
    images = TeacherImages(None)
    images.prepare(OWN, Data())
    assert torch.allclose(images(given), wanted, atol=2e-6, rtol=0)
    assert images(given.double()).dtype == torch.float64 and images(given.bfloat16()).dtype == torch.bfloat16
    for choice in ("auto", "data", {"mean": list(Data.mean), "std": list(Data.std)}):
        images.prepare(choice, Data())
        assert images(given) is given


def test_the_file_says_its_own(teacher: Run) -> None:
    stated = normalisation_of(teacher.last)
    assert stated is not None and stated[0] == load(teacher.last)["Digits"]["mean"]
    images = TeacherImages(str(teacher.last))
    images.prepare("auto", Data())
    given = normalise(pixels(), constants(Data.mean, Data.std))
    assert torch.allclose(images(given), normalise(pixels(), constants(*stated)), atol=2e-5, rtol=1e-5)
    images.prepare("auto", None)  # the data's are unknown
    assert images(given) is given
    torch.save({"model": get_model("resnet8", 10).state_dict()}, "plain.pth")
    assert normalisation_of("plain.pth") is None
    torch.save({"model": {}, "config": {"mean": [0.5] * 3, "std": [0.0] * 3}}, "damaged.pth")
    with pytest.raises(UserError, match=r"damaged\.pth: its mean .* cannot be used \(every std must be"):
        normalisation_of("damaged.pth")


@pytest.mark.parametrize("form", ["safetensors", "repdistiller"])
def test_exports_say_it(teacher: Run, form: str) -> None:
    assert cli("export", "--ckpt_path", teacher.last, "--format", form, "--output", f"{form}.file").status == 2
    suffix = {"safetensors": ".safetensors", "repdistiller": ".pth"}[form]
    assert cli("export", "--ckpt_path", teacher.last, "--format", form, "--output", f"teacher{suffix}").status == 0
    assert normalisation_of(f"teacher{suffix}") == normalisation_of(teacher.last)


@pytest.mark.parametrize(
    "value",
    ["yes", 3, {}, {"mean": [0.5] * 3}, {"mean": [0.5] * 2, "std": [1.0] * 3}, {"mean": [0.5] * 3, "std": [0.0, 1, 1]}],
)
def test_values_that_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="teacher_normalization: expected auto, data or"):
        DistillationModule("resnet8", num_classes=10, teacher_normalization=value)


def test_a_number_that_python_does_not_write_out() -> None:
    value = {"mean": [10**5000, 0, 0], "std": [1.0] * 3}
    with pytest.raises(UserError, match="above 0, got a dict with very large numbers"):
        DistillationModule("resnet8", num_classes=10, teacher_normalization=value)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ([128.0] * 3, [64.0] * 3, "they are not of pixels scaled to 0..1: divide them by 255"),
        ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7], "divide them by 255"),
        ([0.5] * 3, [63.0] * 3, "divide them by 255"),
        ([-0.5, 0.5, 0.5], [0.5] * 3, "every mean must be from 0 to 1"),
        ([0.5] * 3, [1e-320, 1, 1], "every std must be from 1e-06 to 1"),
        ([0.5] * 3, [1e-30, 1, 1], "every std must be from 1e-06 to 1"),
        ([10**400, 0, 0], [1.0] * 3, "std above 0, got"),
        ([0.5] * 3, [True] * 3, "std above 0, got"),
        ([float("nan")] * 3, [1.0] * 3, "std above 0, got"),
    ],
)
def test_numbers_that_are_not_of_pixels_scaled_to_0_to_1(
    mean: list[float], std: list[float], said: str, teacher: Run
) -> None:
    with pytest.raises(
        UserError, match=rf"^teacher_normalization: expected auto, data or .*{re.escape(said)}"
    ) as caught:
        DistillationModule("resnet8", num_classes=10, teacher_normalization={"mean": mean, "std": std})
    assert "\n" not in str(caught.value)
    torch.save({"model": {}, "config": {"mean": mean, "std": std}}, "wrong.pth")
    with pytest.raises(UserError, match=r"wrong\.pth: its mean .*set model\.teacher_normalization$") as caught:
        normalisation_of("wrong.pth")
    assert said.startswith("std above 0") or said in str(caught.value)


def test_verify_names_its_own_option(teacher: Run) -> None:
    verify = ["teachers", "verify", "resnet20", "--data", "Digits"]
    for value in ("{mean: [128, 128, 128], std: [64, 64, 64]}", f"{{mean: [{10**400}, 0, 0], std: [1, 1, 1]}}"):
        done = cli(*verify, "--file", teacher.last, "--normalization", value)
        assert done.status == 2 and len(done.err.splitlines()) == 1
        assert "--normalization: expected auto, data or" in done.err and "teacher_normalization" not in done.err
    state = load(teacher.last)["state_dict"]
    weights = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    torch.save({"model": weights, "config": {"mean": [128.0] * 3, "std": [64.0] * 3}}, "bytes.pth")
    done = cli(*verify, "--file", "bytes.pth")
    assert done.status == 2 and "divide them by 255): set --normalization" in done.err


@pytest.mark.parametrize("kind", [tuple, torch.tensor, lambda values: torch.tensor(values).view(1, 3, 1, 1)])
def test_a_file_may_say_it_as_a_tuple_or_a_tensor(kind: Any) -> None:
    torch.save({"model": {}, "config": {"mean": kind([0.5, 0.25, 0.75]), "std": kind([0.5, 0.25, 1.0])}}, "kind.pth")
    assert normalisation_of("kind.pth") == ([0.5, 0.25, 0.75], [0.5, 0.25, 1.0])


def test_data_that_say_nothing() -> None:
    images = TeacherImages(None)
    with pytest.raises(UserError, match="teacher_normalization needs the mean and std with which the data module"):
        images.prepare(OWN, object())
    images.prepare("data", object())


def test_only_the_teacher_sees_them() -> None:
    net = get_model("resnet8", 10).eval()
    module = DistillationModule(
        "resnet8", net, strategies=[KD()], num_classes=10, teacher_normalization="data", fold_teacher=False
    )
    module.teacher_weights.images.prepare(OWN, Data())
    module.teacher_weights.images._prepared = ("data", None)  # as a trainer with these data would
    given = normalise(pixels(), constants(Data.mean, Data.std))
    wanted = net.features(module.teacher_weights.images(given)).logits
    assert torch.equal(module.teacher_features(given, preact=False).logits, wanted)
    assert not torch.allclose(wanted, net.features(given).logits, atol=1e-3)


class Seen(Exception):
    """What a network was given instead of an image of zeros."""


def seen(*args: Any) -> float:
    raise Seen(args[-1](torch.zeros(1, 3, 1, 1)).flatten().tolist())


def test_the_floor_and_verify_measure_it_with_its_images(teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = normalisation_of(teacher.last)
    assert stated is not None
    monkeypatch.setattr("ickd_pl.training.teacher.accuracy", seen)
    monkeypatch.setattr("ickd_pl.teachers.train.accuracy", seen)
    setting = f"{{mean: {OWN['mean']}, std: {OWN['std']}}}"
    wanted = [(mean - own) / std for mean, own, std in zip(stated[0], OWN["mean"], OWN["std"], strict=True)]
    floor = student_args(teacher, "kd", "--model.teacher_floor=2")
    verify = ["teachers", "verify", "resnet20", "--file", teacher.last, "--data", "Digits"]
    for words, option in ((fit_args(Path("out"), floor), "--model.teacher_normalization"), (verify, "--normalization")):
        for value, shift in ((setting, wanted), ("data", [0.0] * 3), ("auto", [0.0] * 3)):
            with pytest.raises(Seen) as caught:
                cli(*words, f"{option}={value}")
            assert caught.value.args[0] == pytest.approx(shift, abs=1e-6)
    bad = cli(*verify, "--normalization", "often")
    assert bad.status == 2 and "expected auto, data or" in bad.err


def test_a_run_and_its_record(teacher: Run) -> None:
    own = f"--model.teacher_normalization={{mean: {OWN['mean']}, std: {OWN['std']}}}"
    done = cli(*fit_args(Path("out"), student_args(teacher, "kd", own)))
    assert done.status == 0, done.err
    (last,) = Path("out").rglob("last.ckpt")
    assert load(last)["hyper_parameters"]["teacher_normalization"] == OWN
    assert DistillationModule.load_from_checkpoint(last).hparams["teacher_normalization"] == OWN
    other = cli(*fit_args(Path("out"), student_args(teacher, "kd")))
    assert other.status == 2 and "model.teacher_normalization" in other.err


def test_a_member_of_a_pack_is_its_solo_run() -> None:
    net = make_teacher()
    for root, settings in (("data", {}), ("own", {"teacher_normalization": OWN})):
        packed(Path(root, "pack"), {name: member([name], net, **settings) for name in ("kd", "sp")})
        solo(Path(root, "solo"), "kd", member(["kd"], net, **settings))
        assert_solo(Path(root, "pack", "kd"), Path(root, "solo", "kd"))
    one, two = (load(next(Path(root, "solo").rglob("last.ckpt")))["state_dict"] for root in ("data", "own"))
    assert any(not torch.equal(one[key], two[key]) for key in one)
