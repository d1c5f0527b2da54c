"""What our loop costs beside the bare Trainer, on a network whose own step takes next to nothing.

    python benchmarks/loop.py [--steps 400] [--rounds 7] [--threads 1] [--profile]

Both train one linear layer on the means of small images, from the same loader and with the same optimizer, in turns in
one process. ``bare`` is Lightning's Trainer with nothing turned on. ``ours`` is :class:`ickd_pl.DistillationModule`
without a method, ``+ callbacks`` adds the run folder and what ``configs/base.yaml`` turns on, and ``+ bar`` the
progress bar, as on the command line. Printed is the time from the start of one step to the start of the next, of all
rounds, below which a tenth of the steps stay: other programs disturb that least. The last row's ratio to ``bare`` is to
stay below 1.5.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import logging
import pstats
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import random_images
from ickd_pl import DistillationModule
from ickd_pl.data.loader import TensorLoader
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.features import Features
from ickd_pl.runs import EpochRecord, FiniteGuard, RunFolder, SignalStop, StepCheckpoint
from ickd_pl.runs.trainer import CommandLineTrainer

KINDS = ("bare", "ours", "+ callbacks", "+ bar")
WARMUP = 20


class Net(FeatureNet):
    """A linear layer on the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 100)

    def features(self, image: Tensor, preact: bool = False) -> Features:
        pooled = image.mean((2, 3))
        return Features(self.fc(pooled), image, (image,), image, pooled)


class Bare(pl.LightningModule):
    """The shortest module that trains the network by the recipe's SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch.image), batch.label)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, foreach=True)


class Clock(pl.Callback):
    """Seconds of each step after the first ones, from its start to the start of the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if batch_idx > WARMUP:
            self.seconds.append(now - self._last)
        self._last = now


def epoch(kind: str, steps: int, folder: Path) -> list[float]:
    """Train one epoch; seconds of each step."""
    images, labels = random_images(8 * steps)
    loader = TensorLoader(
        images[:, :, :8, :8], labels, batch_size=8, mean=[0.5] * 3, std=[0.25] * 3, train=True, padding=0
    )
    clock, bar = Clock(), kind == "+ bar"
    callbacks: list[pl.Callback] = [clock]
    if kind in KINDS[2:]:
        record = EpochRecord(RunFolder(folder), {})
        callbacks += [record, FiniteGuard(), SignalStop(), StepCheckpoint(5, str(folder / "step.ckpt"))]
    trainer = (CommandLineTrainer if kind in KINDS[2:] else pl.Trainer)(
        max_epochs=1, limit_val_batches=0, accelerator="cpu", logger=False, enable_checkpointing=kind in KINDS[2:],
        enable_progress_bar=bar, enable_model_summary=False, callbacks=callbacks, use_distributed_sampler=False,
        num_sanity_val_steps=0, default_root_dir=folder,
    )  # fmt: skip
    module = Bare() if kind == "bare" else DistillationModule(Net(), image_size=8)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.fit(module, loader)
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="print where the last row's time goes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(epoch, KINDS[-1], arguments.steps, Path(folder))
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)
            return
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(arguments.rounds):
            for kind in KINDS if number % 2 else KINDS[::-1]:
                found[kind] += epoch(kind, arguments.steps, Path(folder) / f"{kind}{number}")
    print("loop           us a step    to bare")
    fast = {kind: 1e6 * sorted(each)[len(each) // 10] for kind, each in found.items()}
    for kind, each in fast.items():
        print(f"{kind:12}{each:12.0f}{each / fast['bare']:11.2f}")


if __name__ == "__main__":
    main()
