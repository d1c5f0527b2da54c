"""Accuracy of short runs on scikit-learn's digits: mixed precision must not be worse than float32."""

from __future__ import annotations

import copy
import importlib.util
import statistics
from functools import partial

import pytorch_lightning as pl
from torch import nn

from gpu_checks.record import NotMeasured, Record, Values
from gpu_checks.steps import use_float32
from ickd_pl import Digits, DistillationModule
from ickd_pl.strategies import ICKD, KD

# Of the mean over the seeds, in points; one run's spread is about one.
WORSE = 3.0


def run(record: Record) -> None:
    if importlib.util.find_spec("sklearn") is None:
        return record.skip("digits", "scikit-learn is not installed")
    use_float32("default")
    teacher: list[nn.Module] = []
    record.check("teacher", partial(_train_teacher, record, teacher))
    means: dict[str, float] = {}
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        # A tiny run trains one batch, after which accuracies mean nothing.
        bound = None if record.tiny or precision == "32-true" else {"worse_than_float32": WORSE}
        part = partial(_train_students, record, teacher, precision, means)
        record.check("ICKD and KD", part, {"precision": precision}, bound, needs_cuda=precision == "16-mixed")
    return None


def _train_teacher(record: Record, made: list[nn.Module]) -> Values:
    module = DistillationModule("resnet20", num_classes=10, milestones=_milestones(record))
    accuracy = _train(record, module, "32-true", 0)
    made.append(module.student.cpu().eval().requires_grad_(False))
    return {"acc1": accuracy}


def _train_students(record: Record, teacher: list[nn.Module], precision: str, means: dict[str, float]) -> Values:
    if not teacher:
        raise NotMeasured("the teacher's training failed")
    found = []
    for seed in range(1 if record.tiny else 3):
        module = DistillationModule(
            "resnet8", copy.deepcopy(teacher[0]), strategies=[ICKD(), KD()], num_classes=10, seed=seed,
            milestones=_milestones(record),
        )  # fmt: skip
        found.append(_train(record, module, precision, seed))
    means[precision] = statistics.mean(found)
    worse = means["32-true"] - means[precision] if "32-true" in means else float("nan")
    return {"acc1": found, "mean": round(means[precision], 2), "worse_than_float32": round(worse, 2)}


def _milestones(record: Record) -> list[int]:
    return [] if record.tiny else [8, 9, 11]


def _train(record: Record, module: DistillationModule, precision: str, seed: int) -> float:
    trainer = pl.Trainer(
        accelerator="gpu" if record.cuda else "cpu", devices=1, precision=precision,  # type: ignore[arg-type]
        max_epochs=1 if record.tiny else 12, limit_train_batches=1 if record.tiny else 1.0, logger=False,
        limit_val_batches=1 if record.tiny else 1.0, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Digits(seed=seed))
    return round(float(trainer.callback_metrics["test/acc1"]), 2)
