"""Teacher and student share nothing: a teacher that has parts of the student is a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ickd_pl import Digits, DistillationModule, LayerMap, UserError, get_model
from ickd_pl.strategies import KD
from ickd_pl.training.build import share
from ickd_pl.training.pack import Pack

LAYERS = LayerMap(stem="conv1", stages=("conv1", "bn1"), final="bn1", pooled="fc:in")


def same_object() -> dict[str, Any]:
    net = get_model("resnet8", 10)
    return {"student": net, "teacher": net}


def same_object_with_layers() -> dict[str, Any]:
    return {**same_object(), "student_layers": LAYERS, "teacher_layers": LAYERS}


def same_stage() -> dict[str, Any]:
    nets = same_object()
    nets["teacher"] = get_model("resnet8", 10)
    nets["teacher"].layer1 = nets["student"].layer1
    return nets


def same_memory() -> dict[str, Any]:
    nets = same_object()
    nets["teacher"] = get_model("resnet8", 10)
    nets["teacher"].fc.weight = nn.Parameter(nets["student"].fc.weight.detach())
    return nets


SHARING: list[Callable[[], dict[str, Any]]] = [same_object, same_object_with_layers, same_stage, same_memory]


@pytest.mark.parametrize(("nets", "packed"), [*((nets, False) for nets in SHARING), (same_object, True)])
def test_the_teacher_stays_as_it_was(nets: Callable[[], dict[str, Any]], packed: bool) -> None:
    given = nets()
    before = {key: value.clone() for key, value in given["teacher"].state_dict().items()}
    module = DistillationModule(**given, strategies=[KD()], num_classes=10)
    assert module.teacher is not None and not share(module.teacher, module.student)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    start = module.student.state_dict()["net.fc.weight" if "student_layers" in given else "fc.weight"].clone()
    trainer.fit(Pack([module]) if packed else module, Digits(train_size=24, batch_size=12))
    after = {key.removeprefix("net."): value for key, value in module.teacher.state_dict().items()}
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    end = module.student.state_dict()["net.fc.weight" if "student_layers" in given else "fc.weight"]
    assert not torch.equal(start, end)
    assert all(parameter.requires_grad for parameter in module.student.parameters())


def test_a_teacher_of_its_own_is_not_copied() -> None:
    teacher = get_model("resnet8", 10)
    assert DistillationModule("resnet8", teacher, strategies=[KD()], num_classes=10).teacher is teacher


def test_members_of_a_pack_share_no_student() -> None:
    net, other = get_model("resnet8", 10), get_model("resnet14", 10)

    def taught(student: Any, teacher: Any) -> DistillationModule:
        return DistillationModule(student, teacher, strategies=[KD()], num_classes=10)

    with pytest.raises(UserError, match="the teacher of a shares parts with the student of b"):
        Pack([taught("resnet8", net), taught(net, other)], ["a", "b"])
    with pytest.raises(UserError, match="the student of b shares parts with the student of a"):
        Pack([taught(net, other), taught(net, other)], ["a", "b"])
    Pack([taught("resnet8", net), taught("resnet8", net)], ["a", "b"])
