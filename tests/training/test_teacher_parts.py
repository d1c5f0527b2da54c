"""No part of a checkpoint holds the teacher, whatever averages weights, and a run with such a callback continues."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from torch import Tensor, nn

from ickd_pl import Digits, DistillationModule, get_model
from ickd_pl.seeding import seeded
from ickd_pl.strategies import ICKD, KD
from ickd_pl.training.pack import Pack
from ickd_pl.training.teacher_parts import put_back, take_out


class Average(pl.Callback):
    """Keeps the module's state, and a copy of the module, at several depths."""

    def __init__(self) -> None:
        self.module: Any = None
        self.loaded = False

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.module, self.copy = pl_module, copy.deepcopy(pl_module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        wrapped = {f"module.{key}": value for key, value in self.copy.items()}
        return {"live": self.module.state_dict(), "deep": [(wrapped, 3)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["live"])
        assert {key[7:] for key in state["deep"][0][0]} == set(self.copy)
        self.loaded = True


AVERAGING: dict[str, Callable[[], pl.Callback]] = {
    "own": Average,
}
if hasattr(callbacks, "EMAWeightAveraging"):
    AVERAGING["EMA"] = lambda: callbacks.EMAWeightAveraging(decay=0.9)


def module(pack: bool) -> pl.LightningModule:
    with seeded("teacher"):
        teacher = get_model("resnet8", 10).eval()
    members = [
        DistillationModule("resnet8", teacher, strategies=[method], num_classes=10, milestones=[1])
        for method in ([ICKD(), KD()] if pack else [ICKD()])
    ]
    return Pack(members) if pack else members[0]


class Save(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint("middle.ckpt")


def fit(pack: bool, *used: pl.Callback, **kwargs: Any) -> pl.LightningModule:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, callbacks=list(used), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=1,
    )  # fmt: skip
    net = module(pack)
    trainer.fit(net, Digits(train_size=24, batch_size=12), **kwargs)
    return net


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(inner, f"{path}.{key}")


@pytest.mark.parametrize(("name", "pack"), [*((name, False) for name in AVERAGING), ("own", True)])
def test_without_the_teacher_and_continued(name: str, pack: bool) -> None:
    whole = fit(pack, AVERAGING[name](), Save()).state_dict()
    content = torch.load("middle.ckpt", weights_only=True)
    found = dict(tensors(content))
    assert not [path for path in found if "teacher" in path.split(".")]
    assert len([path for path in found if path.endswith("student.fc.weight")]) >= 2, "the average is in the file"
    again = fit(pack, callback := AVERAGING[name](), ckpt_path="middle.ckpt", weights_only=True).state_dict()
    # At the end the callback writes its average of the teacher, with its rounding, into the teacher.
    assert all(torch.equal(value, again[key]) for key, value in whole.items() if "teacher." not in key)
    assert not isinstance(callback, Average) or callback.loaded


def test_what_callbacks_still_use_is_not_changed() -> None:
    teacher = nn.Linear(2, 3)
    kept = {"module.teacher.weight": teacher.weight.detach().clone(), "student.teacher.weight": torch.ones(3, 2)}
    checkpoint: dict[str, Any] = {"state_dict": {}, "callbacks": {"A": kept, "B": {"mine": teacher.weight}, "C": 3}}
    parts = take_out(checkpoint, teacher)
    assert list(kept) == ["module.teacher.weight", "student.teacher.weight"]
    assert list(checkpoint["callbacks"]["A"]) == ["student.teacher.weight"], "a part of the student"
    assert checkpoint["callbacks"]["B"] == {} and checkpoint["callbacks"]["C"] == 3
    put_back(checkpoint, parts, teacher)
    assert torch.equal(checkpoint["callbacks"]["A"]["module.teacher.weight"], teacher.weight)
    assert torch.equal(checkpoint["callbacks"]["B"]["mine"], teacher.weight)


@pytest.mark.parametrize(
    "parts",
    [3, [3], [{"path": 1, "keys": {}}], [{"path": ["no"], "keys": {"a": "weight"}}], [{"path": ["a", 9], "keys": {}}]],
)
def test_parts_in_a_file_may_be_anything(parts: Any) -> None:
    checkpoint: dict[str, Any] = {"a": [1]}
    put_back(checkpoint, parts, nn.Linear(2, 3))
    assert checkpoint == {"a": [1]}
