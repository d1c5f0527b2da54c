"""A pack trained from Python, on one or two ranks: ``main([ROOT, DEVICES, MOMENT, SIGNAL])`` starts or continues it."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from ickd_pl.data import Digits
from ickd_pl.runs import FiniteGuard, RunFolder, SignalStop, StepCheckpoint
from ickd_pl.runs.pack_folder import PackRecord, newest_pack
from ickd_pl.runs.signals import Stopped, explain, handled_signals
from ickd_pl.seeding import seeded
from ickd_pl.training.pack import Pack
from tests.runs.faults import sender
from tests.training.packs import make_teacher, member

MEMBERS = {"vanilla": [], "kd": ["kd"], "crd": ["crd"]}


def main(args: list[str]) -> int:
    root, devices, when, *signals = args
    with seeded("pack of two"):
        taught = make_teacher()
    pl.seed_everything(0, verbose=False)
    folders = [RunFolder(Path(root, name)) for name in MEMBERS]
    record = PackRecord(Path(root, "pack.ckpt"), folders, [{} for _ in folders])
    protection = [FiniteGuard(), SignalStop(), StepCheckpoint(1e-6)]
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=int(devices), logger=False, use_distributed_sampler=False,
        callbacks=[sender(when, signals), record, *protection], enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    kept = newest_pack(record.path)
    with handled_signals():
        try:
            pack = Pack([member(names, taught) for names in MEMBERS.values()], list(MEMBERS))
            data = Digits(train_size=72, batch_size=32, eval_batch_size=151)
            trainer.fit(pack, datamodule=data, ckpt_path=kept and kept.path, weights_only=True)
        except Stopped as stop:
            return explain(stop)
    return 0
