"""Callbacks that change settings: the change is used and recorded, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from torch.optim import Optimizer

from ickd_pl import Digits, DistillationModule, UserError, get_model
from ickd_pl.runs import EpochRecord, RunFolder
from ickd_pl.runs.pack_folder import PackRecord
from ickd_pl.seeding import seeded
from ickd_pl.strategies import KD  # type: ignore[attr-defined]
from ickd_pl.training.pack import Pack
from tests.runs.helpers import assert_same_run, cli, fit_args, load, rows_of

HOOKS = (
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_epoch_end",
)
Act = Callable[[pl.Trainer, Any], object]


class Change(pl.Callback):
    """Acts in one hook, from one epoch on."""

    def __init__(self, hook: str, act: Act, epoch: int = 0, last: int = 99) -> None:
        self._hook, self._act, self._epochs = hook, act, range(epoch, last + 1)


def _hook(name: str) -> Callable[..., None]:
    def run(self: Change, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if self._hook == name and trainer.current_epoch in self._epochs:
            self._act(trainer, pl_module)

    return run


for _name in HOOKS:
    setattr(Change, _name, _hook(_name))


def group(trainer: pl.Trainer) -> dict[str, Any]:
    optimizer: Optimizer = trainer.optimizers[0]
    return optimizer.param_groups[0]


def module(**settings: Any) -> DistillationModule:
    with seeded(0):
        taught = get_model("resnet14", 10).eval()
    return DistillationModule(
        "resnet8", taught, strategies=[KD()], num_classes=10, **{"milestones": [2], "lr": 0.05, **settings}
    )


def trainer(*callbacks: pl.Callback, epochs: int = 2, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **{"enable_checkpointing": False, **settings},
    )  # fmt: skip


def fit(name: str, *callbacks: pl.Callback, ckpt_path: Path | None = None, **settings: Any) -> Path:
    """Run a fit in a run folder; the folder."""
    record = EpochRecord(RunFolder(Path(name)), {})
    own = trainer(*callbacks, record, **{"enable_checkpointing": True, **settings})
    own.fit(module(), Digits(train_size=40, batch_size=16), ckpt_path=ckpt_path)
    return Path(name)


def columns(path: Path, *names: str) -> list[list[str]]:
    return [[row.get(name, "") for name in names] for row in rows_of(path)]


BEFORE: dict[str, tuple[str, Act, str]] = {
    "lr": ("on_train_start", lambda t, m: group(t).update(lr=0.3), "model.lr from 0.05 to 0.3"),
    "weight decay": ("on_fit_start", lambda t, m: group(t).update(weight_decay=0.0), "model.weight_decay from 0.0005"),
    "hparams": ("setup", lambda t, m: m.hparams.update(lr=0.3), "model.lr from 0.05 to 0.3"),
    "ce_weight": ("setup", lambda t, m: setattr(m, "ce_weight", 0.5), "model.ce_weight from 1.0 to 0.5"),
    "weight": ("on_fit_start", lambda t, m: setattr(m.strategies[0], "weight", 2.0), "model.kd.weight from 1.0 to 2.0"),
    "batch": ("setup", lambda t, m: setattr(t.datamodule, "batch_size", 8), "data.batch_size from 16 to 8"),  # type: ignore[attr-defined]
    "accumulate": (
        "on_train_start",
        lambda t, m: setattr(t, "accumulate_grad_batches", 2),
        "trainer.accumulate_grad_batches from 1 to 2",
    ),
    "epochs": ("on_fit_start", lambda t, m: setattr(t.fit_loop, "max_epochs", 5), "trainer.max_epochs from 2 to 5"),
    "frozen": ("on_train_start", lambda t, m: group(t)["params"].pop(), "optimizer.parameters from"),
}


@pytest.mark.parametrize("what", BEFORE)
def test_a_change_before_training_is_refused(what: str) -> None:
    hook, act, message = BEFORE[what]
    with pytest.raises(UserError, match=f"^Change changed {message}.* before training.*: remove it") as caught:
        trainer(Change(hook, act)).fit(module(), Digits(train_size=40, batch_size=16))
    assert "\n" not in str(caught.value)


def test_finders_are_refused_with_what_they_found() -> None:
    with pytest.raises(
        UserError, match=r"LearningRateFinder changed model.lr from 0.05 to (\S+) .*set model.lr to \1$"
    ):
        trainer(LearningRateFinder(num_training_steps=16), epochs=4).fit(module(), Digits(train_size=40, batch_size=8))
    with pytest.raises(UserError, match=r"BatchSizeFinder changed data.batch_size from 16 to 8 before training"):
        trainer(BatchSizeFinder(max_trials=1, init_val=8)).fit(module(), Digits(train_size=40, batch_size=16))
    with pytest.raises(UserError, match=r"StochasticWeightAveraging changed trainer.max_epochs from 2 to 3"):
        trainer(StochasticWeightAveraging(0.01)).fit(module(), Digits(train_size=40, batch_size=16))


DURING: dict[str, tuple[str, Act, str, list[str]]] = {
    "lr": ("on_train_epoch_start", lambda t, m: group(t).update(lr=0.25), "lr", ["0.05", "0.25", "0.25"]),
    "lr_end": ("on_train_batch_start", lambda t, m: group(t).update(lr=0.25), "lr_end", ["", "0.25", "0.005"]),
    "momentum": (
        "on_train_epoch_end",
        lambda t, m: group(t).update(momentum=0.5),
        "set/model.momentum",
        ["", "", "0.5"],
    ),
    "ce_weight": (
        "on_train_epoch_start",
        lambda t, m: setattr(m, "ce_weight", 0.5),
        "set/model.ce_weight",
        ["", "0.5", "0.5"],
    ),
    "weight": (
        "on_train_epoch_start",
        lambda t, m: setattr(m.strategies[0], "weight", 2.0),
        "set/model.kd.weight",
        ["", "2.0", "2.0"],
    ),
}


@pytest.mark.parametrize("what", DURING)
def test_a_change_during_training_is_recorded(what: str) -> None:
    hook, act, column, values = DURING[what]
    path = fit("run", Change(hook, act, epoch=1, last=1 if what == "lr_end" else 99), epochs=3)
    assert [row[0] for row in columns(path, column)] == values
    # The hyper-parameters say how the run began.
    assert load(path / "checkpoints" / "last.ckpt")["hyper_parameters"]["ce_weight"] == 1.0


def test_accumulation_by_a_schedule_is_used_and_recorded() -> None:
    path = fit("run", GradientAccumulationScheduler({0: 1, 1: 3}), epochs=2)
    assert columns(path, "set/trainer.accumulate_grad_batches") == [[""], ["3.0"]]
    assert load(path / "checkpoints" / "last.ckpt")["global_step"] == 3 + 1


IGNORED: dict[str, Act] = {
    "model.lr from 0.05 to 0.3": lambda t, m: m.hparams.update(lr=0.3),
    "data.batch_size from 16 to 8": lambda t, m: setattr(t.datamodule, "batch_size", 8),  # type: ignore[attr-defined]
    "trainer.gradient_clip_algorithm from None to 'value'": lambda t, m: setattr(t, "gradient_clip_algorithm", "value"),
}


@pytest.mark.parametrize("message", IGNORED)
def test_a_change_that_is_not_used_or_not_a_number_is_refused(message: str) -> None:
    with pytest.raises(UserError, match=f"^Change changed {message} during training"):
        fit("run", Change("on_train_epoch_end", IGNORED[message]))


def test_a_resumed_run_uses_the_changed_values() -> None:
    """The change is made once, in the first epoch, so that a resumed run has it only from the checkpoint."""

    def change(trainer: pl.Trainer, module: Any) -> None:
        module.ce_weight, module.strategies[0].weight = 0.5, 2.0
        trainer.accumulate_grad_batches = 2
        group(trainer)["momentum"] = 0.5

    whole = fit("whole", Change("on_train_epoch_end", change, last=0), epochs=3)
    finder = LearningRateFinder()
    with pytest.warns(UserWarning, match="LearningRateFinder is left out"):
        resumed = fit("resumed", finder, ckpt_path=whole / "checkpoints" / "previous.ckpt", epochs=3)
    assert finder.optimal_lr is None
    assert_same_run(whole, resumed)
    assert columns(resumed, "set/model.kd.weight")[-1] == ["2.0"]


def test_changes_of_a_checkpoint_that_are_no_settings_are_ignored() -> None:
    """Only numbers, and only for settings that the run has."""
    path = fit("run", Change("on_train_epoch_start", lambda t, m: setattr(m, "ce_weight", 0.5)))
    last = path / "checkpoints" / "last.ckpt"
    content = load(path / "checkpoints" / "previous.ckpt")
    state = content["callbacks"]["SettingsRecord"]
    state["changed"] |= {"model.forward": 1, "trainer.fit": 2, "model.kd.loss": 3, "model.ce_weight": "x", "model.x": 4}
    state["row"] |= {"=cmd": 1}
    state["columns"] += ["model.x", 7]
    torch.save(content, last)
    own = module()
    trainer().fit(own, Digits(train_size=40, batch_size=16), ckpt_path=last)
    assert own.ce_weight == 1.0 and callable(own.forward) and callable(own.strategies[0].loss)
    assert set(own.in_force) == {"lr", "set/model.ce_weight"} and not hasattr(own, "x")


def test_members_of_a_pack_record_their_own_changes() -> None:
    taught = get_model("resnet14", 10).eval()
    members = [DistillationModule("resnet8", taught, strategies=[KD()], num_classes=10, lr=lr) for lr in (0.05, 0.1)]
    act = Change("on_train_epoch_start", lambda t, m: setattr(list(m)[1], "ce_weight", 0.5), epoch=1)
    folders = [RunFolder(Path(name)) for name in "ab"]
    own = trainer(act, PackRecord(Path("pack.ckpt"), folders, [{}, {}]), enable_checkpointing=True)
    own.fit(Pack(members, ["a", "b"]), Digits(train_size=40, batch_size=16))
    assert columns(Path("a"), "lr", "set/model.ce_weight") == [["0.05", ""], ["0.05", ""]]
    assert columns(Path("b"), "lr", "set/model.ce_weight") == [["0.1", ""], ["0.1", "0.5"]]


def test_what_python_changes_before_fit_is_recorded() -> None:
    own, data, first = module(), Digits(train_size=40, batch_size=16), trainer(epochs=1)
    own.ce_weight, own.strategies[0].weight, data.batch_size = 0.5, 2.0, 20  # type: ignore[attr-defined]
    own.hparams["lr"] = 0.01
    first.fit(own, data)
    first.save_checkpoint("run.ckpt")
    content = load(Path("run.ckpt"))
    settings = content["hyper_parameters"]
    assert (settings["ce_weight"], settings["lr"], own.in_force["lr"]) == (0.5, 0.01, 0.01)
    assert settings["strategies"][0]["init_args"]["weight"] == 2.0
    assert content["ickd_pl"]["data"]["init_args"]["batch_size"] == 20 and content["global_step"] == 2


def test_an_optimizer_of_a_subclass_begins_with_its_own_options() -> None:
    class Own(DistillationModule):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(list(self.trainable())[::-1], lr=0.001, weight_decay=0.1)

    own, act = (
        Own("resnet8", num_classes=10),
        Change("on_train_epoch_end", lambda t, m: group(t).update(weight_decay=0.2)),
    )
    trainer(act).fit(own, Digits(train_size=40, batch_size=16))
    assert own.in_force == {"lr": 0.001, "set/model.weight_decay": 0.2}


def test_the_command_line_ends_in_one_line(tmp_path: Path) -> None:
    args = ["--model.student=resnet8", "--trainer.callbacks+=BatchSizeFinder", "--trainer.callbacks.max_trials=1"]
    outcome = cli(*fit_args(tmp_path, [*args, "--trainer.callbacks.init_val=8"]))
    assert outcome.status == 2 and outcome.err.count("error: ") == 1
    assert "error: BatchSizeFinder changed data.batch_size from 32 to 8 before training" in outcome.err
    assert not list(tmp_path.rglob("*.ckpt"))
