"""Deliberate faults: callbacks for ``--trainer.callbacks+=``, invalid data and damaged files."""

from __future__ import annotations

import os
import resource
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ickd_pl.data import TensorDataModule
from ickd_pl.data.base import Images


class Stopped(RuntimeError):
    """The run was stopped on purpose."""


def no_faults() -> bool:
    """Whether the callbacks do nothing: a run resumes with the same callbacks as before, or is refused."""
    return "NO_FAULTS" in os.environ


class StopBeforeEpoch(pl.Callback):
    """Raise at the start of an epoch (from 0), after the previous epoch's checkpoint has been written."""

    reads_only = True  # a run may go on without it

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch and not no_faults():
            raise Stopped


class KillInEpoch(pl.Callback):
    """Kill the process without any clean-up, after a batch in the middle of an epoch (from 0)."""

    reads_only = True  # a run may go on without it

    def __init__(self, epoch: int, batch: int = 1) -> None:
        self.epoch = epoch
        self.batch = batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == self.batch and not no_faults():
            os.kill(os.getpid(), signal.SIGKILL)


class Pad(pl.Callback):
    """Make every checkpoint so large that writing it takes some time."""

    reads_only = True  # a run may go on without it

    def __init__(self, megabytes: int = 32) -> None:
        self.pad = torch.zeros(megabytes, 2**20, dtype=torch.uint8)

    def state_dict(self) -> dict[str, Any]:
        return {"pad": self.pad}


class LimitFiles(pl.Callback):
    """Simulate a full disk: from an epoch on (from 0), no file of this process can exceed ``size`` bytes."""

    reads_only = True  # a run may go on without it

    def __init__(self, epoch: int, size: int) -> None:
        self.epoch = epoch
        self.size = size

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch and not no_faults():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, as on a full disk, instead of a signal
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


class WrongLabels(TensorDataModule):
    """Two classes, but one image of a split has the label 2."""

    name = "wrong"
    num_classes = 2
    image_size = 32
    num_available = 8

    def __init__(self, wrong: str = "train", batch_size: int = 4, seed: int = 0) -> None:
        self.wrong = wrong
        super().__init__(batch_size=batch_size, seed=seed)

    def _read(self, split: str) -> Images:
        label = torch.arange(8) % 2
        label[3] += split == self.wrong
        return Images(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), label)

    def _read_class_names(self) -> list[str]:
        return ["cat", "dog"]


def damage(path: Path, how: str) -> None:
    """Truncate a file ("empty", "one byte", "50 %", "-1"), or flip a bit of the first tensor in it ("flip")."""
    content = bytearray(path.read_bytes())
    if how == "flip":
        with zipfile.ZipFile(path) as archive:
            (first,) = (member for member in archive.infolist() if member.filename.endswith("/data/0"))
        content[first.header_offset + 30 + len(first.filename) + first.file_size] ^= 64
    else:
        del content[{"empty": 0, "one byte": 1, "50 %": len(content) // 2, "-1": len(content) - 1}[how] :]
    path.write_bytes(content)


class SignalAt(pl.Callback):
    """Send signals to this process (or other processes) at a moment of a fit.

    Args:
        when: a hook of callbacks and how often it runs before: ``on_train_batch_end:7``.
        signals: sent one after the other.
        rank: on which rank.
    """

    reads_only = True  # a run may go on without it

    def __init__(self, when: str, signals: list[str], rank: int = 0) -> None:
        self.hook, _, count = when.partition(":")
        self.left = int(count)
        self.signals = signals
        self.rank = rank

    def _hook(self, name: str, trainer: pl.Trainer) -> None:
        if name != self.hook or trainer.global_rank != self.rank or no_faults():
            return
        if self.left == 0:
            for each in self.signals:
                os.kill(os.getpid(), getattr(signal, each))
        self.left -= 1


def _send(name: str) -> Any:
    def hook(self: SignalAt, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self._hook(name, trainer)

    return hook


for _name in (
    *("setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end"),
    *("on_validation_start", "on_validation_batch_end", "on_validation_end", "on_train_epoch_end", "on_train_end"),
    *("on_save_checkpoint", "on_before_optimizer_step"),
):
    setattr(SignalAt, _name, _send(_name))


class SignalWhileSaving(pl.Callback):
    """Send signals to this process in the middle of writing a checkpoint: before its bytes are flushed to disk, and
    before the file gets its name.

    Args:
        signals: the first of them is sent at the first moment, and so on; the last one again at all that follow.
        skip: number of such moments before the first signal.
    """

    reads_only = True

    def __init__(self, signals: list[str], skip: int = 0) -> None:
        self.signals = signals
        self.skip = skip

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not no_faults():
            os.fsync, os.replace = self._before(os.fsync), self._before(os.replace)

    def _before(self, original: Any) -> Any:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            path = str(Path(f"/proc/self/fd/{first}").readlink()) if isinstance(first, int) else str(first)
            if "last.ckpt" in path or "pack.ckpt" in path:
                if self.skip > 0:
                    self.skip -= 1
                else:
                    os.kill(os.getpid(), getattr(signal, self.signals[0]))
                    self.signals = self.signals[1:] or self.signals
            return original(first, *args, **kwargs)

        return call


def sender(when: str, signals: list[str]) -> pl.Callback:
    """A callback that sends signals at a moment of :class:`SignalAt`, or of ``save:N``: while saving."""
    hook, _, count = when.partition(":")
    return SignalWhileSaving(signals, int(count)) if hook == "save" else SignalAt(when, signals)


class Slow(pl.Callback):
    """Write this process's id to ``folder/<rank>`` after every step, and wait a little."""

    reads_only = True

    def __init__(self, folder: str, seconds: float = 0.7) -> None:
        self.folder = folder
        self.seconds = seconds

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        with Path(self.folder, str(trainer.global_rank)).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if not no_faults():
            time.sleep(self.seconds)


class Poison(pl.Callback):
    """Make something infinite or NaN in one step.

    Args:
        part: ``term``: the first method's loss (without methods the student's logits); ``gradient``: of the first
            weight; ``weight``: the first weight after the update; ``momentum``: the optimizer's for that weight.
        step: number of updates before it.
        value: what it becomes.
        rank: on which rank.
        member: in a pack, which one.
    """

    reads_only = True

    def __init__(self, part: str, step: int, value: float = float("nan"), rank: int = 0, member: int = 0) -> None:
        self.part = part
        self.step = step
        self.value = value
        self.rank = rank
        self.member = member

    def _target(self, trainer: pl.Trainer, module: Any, step: int, *parts: str) -> Any:
        if self.part not in parts or trainer.global_step != step or trainer.global_rank != self.rank or no_faults():
            return None
        return module.members[self.member] if hasattr(module, "members") else module

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        module = self._target(trainer, pl_module, self.step, "term", "gradient")
        if module is None:
            return
        if self.part == "gradient":
            next(p for p in module.parameters() if p.requires_grad).register_hook(lambda g: g * self.value)
        elif getattr(module, "strategies", None):
            strategy = module.strategies[0]
            loss = strategy.loss
            strategy.loss = lambda *args: loss(*args) * self.value
        else:
            module.student.register_forward_hook(lambda *args: args[2] * self.value)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        module = self._target(trainer, pl_module, self.step + 1, "weight", "momentum")
        if module is not None:
            weight = next(p for p in module.parameters() if p.requires_grad)
            if self.part == "momentum":
                weight = next(v for v in trainer.optimizers[0].state[weight].values() if torch.is_tensor(v) and v.dim())
            weight.data.view(-1)[0] = self.value
