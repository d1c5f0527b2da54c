"""Callbacks that change weights, and what a second fit starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelPruning
from torch import nn

from ickd_pl import Digits, DistillationModule, UserError, get_model
from ickd_pl.strategies import CRD, KD  # type: ignore[attr-defined]
from tests.runs.helpers import load


class Halve(pl.Callback):
    """Halves the weights of a network's last layer in one hook."""

    def __init__(self, network: str, hook: str) -> None:
        self.network, self.hook = network, hook

    def __getattribute__(self, name: str) -> Any:
        own = super().__getattribute__
        return own("halve") if name == own("__dict__").get("hook") else own(name)

    @torch.no_grad()
    def halve(self, trainer: pl.Trainer, module: Any, *args: Any, **kwargs: Any) -> None:
        list(getattr(module, self.network).parameters())[-1].mul_(0.5)


def module(**settings: Any) -> DistillationModule:
    taught = get_model("resnet14", 10).eval()
    return DistillationModule("resnet8", taught, num_classes=10, **{"strategies": [KD()], **settings})


def trainer(*callbacks: pl.Callback, epochs: int = 1) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=False,
    )  # fmt: skip


def data() -> Digits:
    return Digits(train_size=40, batch_size=16)


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_end", "on_train_epoch_end"])
def test_a_changed_teacher_is_noticed(hook: str) -> None:
    with pytest.raises(UserError, match=r"^Halve changed the weights or statistics of the frozen teacher: remove it"):
        trainer(Halve("teacher", hook)).fit(module(), data())


def test_pruning_of_the_teacher_or_after_the_evaluation_is_noticed() -> None:
    with pytest.raises(UserError, match=r"^ModelPruning changed the weights or statistics of the frozen teacher"):
        trainer(ModelPruning("l1_unstructured", amount=0.5)).fit(module(), data())
    own = module()
    layers = [(layer, "weight") for layer in own.student.modules() if isinstance(layer, nn.Conv2d)]
    run = trainer(ModelPruning("l1_unstructured", layers, amount=0.5))
    with pytest.raises(UserError, match=r"^ModelPruning changed the student's conv1.weight after its evaluation"):
        run.fit(own, data())


@pytest.mark.parametrize("hook", ["on_validation_epoch_end", "on_train_end"])
def test_weights_are_those_that_were_evaluated(hook: str) -> None:
    own = trainer(Halve("student", hook))
    with pytest.raises(UserError, match=r"^Halve changed the student's .* after its evaluation"):
        own.fit(module(), data())
        own.save_checkpoint("run.ckpt")


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_validation_epoch_start"])
def test_weights_may_change_before_the_evaluation(hook: str) -> None:
    trainer(Halve("student", hook)).fit(module(), data())


def test_averaged_weights_are_evaluated_saved_and_left() -> None:
    own, average = module(lr=0.5), EMAWeightAveraging(decay=0.5)
    run = trainer(average, epochs=2)
    run.fit(own, data())
    run.save_checkpoint("run.ckpt")
    state = load(Path("run.ckpt"))["state_dict"]
    for key, value in own.student.state_dict().items():
        assert torch.equal(state[f"student.{key}"], value)
    measured = float(run.callback_metrics["test/acc1"])
    (again,) = trainer().validate(own, data(), verbose=False)
    assert again["test/acc1"] == pytest.approx(measured)


def test_a_second_fit_starts_anew_and_says_what_it_starts_from() -> None:
    own = module(strategies=[CRD(negatives=8)], num_samples=40)
    first, second = trainer(epochs=2), trainer()
    first.fit(own, data())
    first.save_checkpoint("first.ckpt")
    steps = first.global_step
    own.best_acc1 = 99.0
    second.fit(own, data())
    second.save_checkpoint("second.ckpt")
    assert own.best_acc1 == pytest.approx(float(second.callback_metrics["test/acc1"]))
    assert [load(Path(f))["ickd_pl"]["trained_before"] for f in ("first.ckpt", "second.ckpt")] == [0, steps]
    assert own.trained_steps == steps + second.global_step
    # The same trainer has nothing left to do, and changes nothing.
    second.fit(own, data())
    assert (own.trained_before, own.trained_steps) == (steps, steps + second.global_step)


def test_a_loaded_module_says_what_it_was_trained_before() -> None:
    first, second = trainer(), trainer()
    first.fit(module(), data())
    first.save_checkpoint("first.ckpt")
    loaded = DistillationModule.load_from_checkpoint("first.ckpt", teacher=get_model("resnet14", 10).eval())
    loaded.best_acc1 = 99.0
    trainer().test(loaded, data(), verbose=False)
    second.fit(loaded, data())
    assert loaded.trained_before == first.global_step and loaded.best_acc1 < 99
    # Resuming is one run, whatever the weights were trained before.
    resumed = trainer(epochs=2)
    resumed.fit(loaded, data(), ckpt_path="first.ckpt")
    assert (loaded.trained_before, loaded.trained_steps) == (0, resumed.global_step)
