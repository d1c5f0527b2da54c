"""No step of training or evaluation waits for the device: the host reads no tensor's value, whatever the method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from ickd_pl import Digits, DistillationModule, LossStrategy, get_model
from ickd_pl.runs import EpochRecord, FiniteGuard, RunFolder, SignalStop, StepCheckpoint
from ickd_pl.strategies import discover
from ickd_pl.training.pack import Pack
from ickd_pl.training.pack_members import why_alone
from tests.runs.host_waits import HostWaits

METHODS = discover()
# Its singular values are computed in steps that the host has to follow.
WAITS = {"kdsvd"}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


each_method = pytest.mark.parametrize("name", sorted(METHODS.keys() - WAITS))


def strategy(name: str) -> LossStrategy:
    """A method with its defaults; a first stage is cut to one epoch."""
    cls = METHODS[name]
    return cls(pretrain_epochs=1) if cls().pretrain_epochs else cls()  # type: ignore[call-arg]


def member(*names: str) -> DistillationModule:
    teacher = get_model("resnet8", 10).requires_grad_(False) if names else None
    return DistillationModule(
        "resnet8", teacher, strategies=[strategy(name) for name in names], num_classes=10, num_samples=24, lr=0.01
    )


def pack() -> Pack:
    """Vanilla and every method that can be packed, on one teacher."""
    fits = {name for name in METHODS if why_alone([strategy(name)]) is None}
    members = [member(), *(member(name) for name in sorted(fits - WAITS))]
    for each in members[2:]:
        each.share_teacher(members[1])
    return Pack(members)


def data() -> Digits:
    return Digits(train_size=24, batch_size=6, eval_batch_size=80)


def trainer(root: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    # On a GPU they wait on purpose, every two seconds.
    guards = (
        [FiniteGuard(), SignalStop(), StepCheckpoint(5, str(root / "step.ckpt"))] if "devices" not in options else []
    )
    settings = {"accelerator": "cpu", "num_sanity_val_steps": 0, "limit_val_batches": 3, "max_epochs": 1, **options}
    return pl.Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        use_distributed_sampler=False, callbacks=[*callbacks, *guards], **settings,
    )  # fmt: skip


class Forbid(pl.Callback):
    """Makes every wait for the GPU an error, in the steps that HostWaits counts."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx and not trainer.is_last_batch else "default")

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx else "default")

    def _allow(self, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    on_train_epoch_end = on_validation_start = on_validation_epoch_end = on_exception = _allow


@pytest.mark.filterwarnings("ignore")
@each_method
def test_no_step_of_a_method_waits(name: str, tmp_path: Path) -> None:
    waits, module = HostWaits(), member(name)
    trainer(tmp_path, waits, EpochRecord(RunFolder(tmp_path / "run"), {})).fit(module, data())
    assert waits.steps >= 2 * (1 + module.stages.epochs) and waits.evaluated >= 2
    assert waits.found == []


@pytest.mark.filterwarnings("ignore")
def test_no_step_of_a_pack_waits(tmp_path: Path) -> None:
    waits, module = HostWaits(), pack()
    trainer(tmp_path, waits).fit(module, data())
    assert len(module.names) > 8 and waits.steps == waits.evaluated == 2
    assert waits.found == []


@needs_gpu
@pytest.mark.filterwarnings("ignore")
@each_method
def test_no_step_of_a_method_waits_for_a_gpu(name: str, tmp_path: Path) -> None:
    record = EpochRecord(RunFolder(tmp_path / "run"), {})
    trainer(tmp_path, Forbid(), record, accelerator="gpu", devices=1).fit(member(name), data())


@needs_gpu
@pytest.mark.filterwarnings("ignore")
def test_no_step_of_a_pack_waits_for_a_gpu(tmp_path: Path) -> None:
    trainer(tmp_path, Forbid(), accelerator="gpu", devices=1).fit(pack(), data())
