"""Tiny packs and the solo runs of their members, on Digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from ickd_pl import Digits, DistillationModule, get_model
from ickd_pl.runs import EpochRecord, RunFolder
from ickd_pl.runs.pack_folder import PackRecord
from ickd_pl.strategies.base import discover
from ickd_pl.training.pack import Pack
from tests.runs.helpers import assert_equal, load, rows_of


def data(batch_size: int = 32) -> Digits:
    return Digits(train_size=72, batch_size=batch_size)  # a smaller last batch


def make_teacher() -> nn.Module:
    return get_model("resnet14", 10).eval().requires_grad_(False)


def member(names: list[str], taught: nn.Module, seed: int = 0, **settings: Any) -> DistillationModule:
    strategies = [discover()[name]() for name in names]
    return DistillationModule(
        "resnet8", taught if names else None, strategies=strategies, num_classes=10, num_samples=72, seed=seed,
        **{"milestones": [1], **settings},
    )  # fmt: skip


def trainer(record: pl.Callback, epochs: int = 2, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, logger=False, callbacks=[record], enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, accelerator="cpu", use_distributed_sampler=False, **settings,
    )  # fmt: skip


def solo(root: Path, name: str, module: DistillationModule, **settings: Any) -> None:
    trainer(EpochRecord(RunFolder(root / name), {}), **settings).fit(module, data())


def packed(
    root: Path, modules: dict[str, DistillationModule], options: dict[str, Any] | None = None, **settings: Any
) -> Pack:
    pack = Pack(list(modules.values()), list(modules), **options or {})
    folders = [RunFolder(root / name) for name in modules]
    trainer(PackRecord(root / "pack.ckpt", folders, [{} for _ in folders]), **settings).fit(pack, data())
    return pack


def without_times(folder: Path) -> dict[str, Any]:
    """A run's checkpoint without the seconds, the counters of Lightning's loops, and a name that is None."""
    content = load(folder / "checkpoints" / "last.ckpt")
    content["callbacks"]["EpochRecord"].pop("seconds")
    for row in content["callbacks"]["EpochRecord"]["rows"]:
        row.pop("seconds")
    del content["loops"]
    assert content.pop("hparams_name", None) is None
    return content


def assert_solo(one: Path, other: Path) -> None:
    """Two checkpoints agree, see ``without_times``."""
    assert_equal(without_times(one), without_times(other), one.name)
    assert rows_of(one) == rows_of(other)
