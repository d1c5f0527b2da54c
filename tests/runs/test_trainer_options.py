"""Trainer options on the command line do what Lightning says of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from ickd_pl import Digits, DistillationModule, get_model
from ickd_pl.data.batch import Batch
from tests.runs.helpers import QUIET, cli, fit_args, load

ROOT = Path("out")
STUDENT = "--model.student=resnet8"
RUN = ROOT / "digits/resnet8/vanilla/seed_0"


@pytest.mark.parametrize(("limit", "steps"), [("1", 1), ("1.0", 4), ("0.5", 2), ("3", 3)])
def test_a_whole_number_is_a_number_of_batches(limit: str, steps: int) -> None:
    words = [STUDENT, f"--trainer.limit_train_batches={limit}", "--trainer.limit_val_batches=1"]
    assert cli(*fit_args(ROOT, [*words, "--data.init_args.eval_batch_size=20"])).status == 0
    assert load(RUN / "checkpoints/last.ckpt")["global_step"] == steps
    with (RUN / "metrics.csv").open(newline="") as file:
        accuracy = float(next(csv.DictReader(file))["test/acc1"])
    assert (accuracy / 5) % 1 == pytest.approx(0, abs=1e-4), "of 20 images"
    stored = yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]
    assert (stored["limit_train_batches"], stored["limit_val_batches"]) == (yaml.safe_load(limit), 1)
    assert type(stored["limit_train_batches"]) is type(yaml.safe_load(limit))
    assert "already finished" in "".join(outputs(cli(*fit_args(ROOT, [*words, "--data.init_args.eval_batch_size=20"]))))


@pytest.mark.parametrize(
    ("option", "needle"),
    [
        (
            "overfit_batches=0.001",
            "0.001 of the 4 batches of train_dataloader is less than one batch: give overfit_batches",
        ),
        ("num_nodes=2", "trainer.num_nodes 2: nothing says which node this is: start the command by torchrun or SLURM"),
    ],
)
def test_options_that_cannot_work(option: str, needle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_RANK", raising=False)
    outcome = cli(*fit_args(ROOT, [STUDENT, f"--trainer.{option}"]))
    assert outcome.status == 2 and needle in outcome.err


def outputs(outcome: Any) -> tuple[str, str]:
    assert outcome.status == 0, outcome
    return outcome.out, outcome.err


def test_one_batch_is_tested_and_predicted() -> None:
    words = [STUDENT, "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    assert cli(*fit_args(ROOT, words)).status == 0
    path, sizes = RUN / "checkpoints/last.ckpt", ["--data.eval_batch_size=30", *QUIET]
    assert cli("predict", "--ckpt_path", path, "--trainer.limit_predict_batches=2", *sizes).status == 0
    assert len((RUN / "predictions.csv").read_text().splitlines()) == 1 + 60
    nothing = cli("predict", "--ckpt_path", path, "--trainer.limit_predict_batches=0", *sizes)
    assert nothing.status == 2 and "there are no images to predict" in nothing.err
    outcome = cli("test", "--ckpt_path", path, "--trainer.limit_test_batches=1", *sizes)
    (line,) = [line for line in outcome.out.splitlines() if "test/acc1" in line]
    accuracy = float(line.strip(" │|").split()[-1])
    assert (accuracy * 30 / 100) % 1 == pytest.approx(0, abs=1e-3) or (accuracy * 30 / 100) % 1 > 1 - 1e-3


class Watch(pl.Callback):
    """Keeps the training batches of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[Batch]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs.append([])

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.epochs[-1].append(batch)


def test_overfitting_takes_the_same_images_in_every_epoch(tmp_path: Path) -> None:
    watch = Watch()
    trainer = pl.Trainer(
        max_epochs=3, overfit_batches=2, callbacks=[watch], accelerator="cpu", default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(DistillationModule("resnet8", num_classes=10), Digits(train_size=100, batch_size=8))
    order = [torch.cat([batch.index for batch in epoch]) for epoch in watch.epochs]
    assert len(order) == 3 and all(len(each) == 16 for each in order)
    assert torch.equal(order[0], order[1]) and torch.equal(order[0], order[2])
    assert len(torch.cat([batch.label for batch in watch.epochs[0]]).unique()) > 3, "not sorted by class"
    assert not torch.equal(watch.epochs[0][0].image, watch.epochs[1][0].image), "crops are drawn anew"


class Kept(pl.loggers.Logger):
    """Keeps what it is given."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.given.append(params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(each) for key, each in value.items())
    return all(map(plain, value)) if type(value) is list else value is None or type(value) in (bool, int, float, str)


def test_every_logger_gets_the_settings_once(tmp_path: Path) -> None:
    from ickd_pl.strategies import KD  # type: ignore[attr-defined]

    loggers = [Kept(), Kept()]
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=loggers, accelerator="cpu",
        default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    strategies = [KD(0.5), KD(temperature=2.0)]
    module = DistillationModule("resnet8", get_model("resnet8", 10), strategies=strategies, num_classes=10, seed=1)  # type: ignore[arg-type]
    trainer.fit(module, Digits(train_size=20, batch_size=8, seed=2))
    for logger in loggers:
        (given,) = logger.given
        assert plain(given), given
        assert given["strategies"]["kd_2"]["temperature"] == 2.0 and given["strategies"]["kd"]["weight"] == 0.5
        assert (given["seed"], given["data"]["seed"], given["data"]["name"]) == (1, 2, "Digits")
        assert given["student"] == given["teacher"] == "resnet8" and given["lr"] == 0.05


def test_the_csv_logger_has_settings_and_metrics() -> None:
    words = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.limit_train_batches=1"]
    assert cli(*fit_args(ROOT, [STUDENT, *words])).status == 0
    (stored,) = Path("logs").rglob("hparams.yaml")
    settings = yaml.safe_load(stored.read_text())
    assert settings["student"] == "resnet8" and settings["lr"] == 0.05 and settings["milestones"] == [2]
    assert settings["data"]["name"] == "Digits" and settings["data"]["batch_size"] == 32
    text = (stored.parent / "metrics.csv").read_text()
    assert {"loss/total", "test/acc1", "train/acc1", "lr"} <= set(text.splitlines()[0].split(","))
