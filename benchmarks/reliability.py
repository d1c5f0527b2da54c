"""What the protection of a run costs: the guards and step checkpoints of ``ickd_pl.runs`` beside the same run without.

    python benchmarks/reliability.py [--steps 60] [--rounds 5] [--networks linear resnet] [--threads 1]

Both runs take turns in one process: in each round one epoch without and one with the three callbacks. Measured is the
time from the start of one step to the start of the next, of all rounds, below which a tenth of the steps stay: other
programs disturb that least. The first steps of an epoch do not count. ``resnet`` is KD of resnet8x4 (teacher) and
resnet8 (student) on batches of 64; ``linear`` is one linear layer, whose step is as short as a step of Lightning can
be. The last column counts where the host reads a tensor's value within a step; on a GPU it would wait there. Before it
is the time of one step checkpoint, which comes every five minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import random_images, untrained_teacher
from ickd_pl import DistillationModule
from ickd_pl.data.loader import TensorLoader
from ickd_pl.runs import EpochRecord, FiniteGuard, RunFolder, SignalStop, StepCheckpoint
from ickd_pl.strategies import from_spec
from tests.runs.host_waits import HostWaits

SKIPPED = 5


class Linear(pl.LightningModule):
    """The shortest step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class Same:
    """Yields the same batch for ever."""

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.ones(4, 8)


class Clock(pl.Callback):
    """Seconds of each step, from its start to the start of the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if batch_idx > SKIPPED:
            self.seconds.append(now - self._last)
        self._last = now


def make(name: str) -> tuple[pl.LightningModule, Any]:
    """A new module, and a loader of endless batches."""
    if name == "linear":
        return Linear(), Same()
    module = DistillationModule(
        "resnet8", untrained_teacher("resnet8x4"), strategies=[from_spec({"class_path": "KD"})], num_classes=100
    )
    images, labels = random_images(64 * 200)
    return module, TensorLoader(images, labels, batch_size=64, mean=[0.5] * 3, std=[0.25] * 3, train=True)


def epoch(name: str, steps: int, protected: bool, folder: Path, *more: pl.Callback) -> pl.Trainer:
    """Train one epoch of so many steps."""
    module, loader = make(name)
    callbacks: list[pl.Callback] = [*more]
    if protected:
        record = [EpochRecord(RunFolder(folder))] if name != "linear" else []
        callbacks += [*record, FiniteGuard(), SignalStop(), StepCheckpoint(5, str(folder / "step.ckpt"))]
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=steps, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_checkpointing=protected, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, loader)
    return trainer


class Save(pl.Callback):
    """Measures step checkpoints."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if 1 < trainer.global_step < 7:
            own = next(c for c in trainer.callbacks if isinstance(c, StepCheckpoint))  # type: ignore[attr-defined]
            began = time.perf_counter()
            own.save(trainer)
            self.seconds.append(time.perf_counter() - began)


def fast(seconds: list[float]) -> float:
    """The time that a tenth of the steps stay below: what other programs of the machine add does not count."""
    return sorted(seconds)[len(seconds) // 10]


def measure(name: str, steps: int, rounds: int, folder: Path) -> str:
    """One row of the table."""
    clocks = {False: Clock(), True: Clock()}
    for number in range(rounds):
        for protected in (False, True) if number % 2 else (True, False):
            epoch(name, steps, protected, folder, clocks[protected])
    without, with_them = (1000 * fast(clocks[protected].seconds) for protected in (False, True))
    waits, save = HostWaits(skip=SKIPPED), Save()
    epoch(name, SKIPPED + 10, True, folder, waits)
    epoch(name, 10, True, folder, save)
    return (
        f"{name:10}{without:14.3f}{with_them:14.3f}{with_them - without:12.3f}{100 * (with_them / without - 1):11.2f}"
        f"{1000 * statistics.median(save.seconds):16.1f}{len(waits.found) / waits.steps:13.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=("linear", "resnet"), default=["linear", "resnet"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    import logging

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)
    titles = (
        ("without ms", 14),
        ("with ms", 14),
        ("more ms", 12),
        ("percent", 11),
        ("checkpoint ms", 16),
        ("host reads", 13),
    )
    print("network   " + "".join(f"{title:>{width}}" for title, width in titles))
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.networks:
            # A step of the linear layer is a thousand times shorter.
            steps = arguments.steps * (20 if name == "linear" else 1)
            print(measure(name, steps, arguments.rounds, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
