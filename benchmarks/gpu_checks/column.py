"""A column of the table: hours of its packed rows for all epochs, projected from measured steps and an evaluation."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch

from common import CLASSES, ROWS, members, model_settings
from gpu_checks.record import Record, Values
from gpu_checks.steps import use_float32
from gpu_checks.timing import against
from gpu_checks.trainer import timed_fit
from ickd_pl import DistillationModule
from ickd_pl.training.pack import Pack

EPOCHS, STEPS = 240, 782


class Way(NamedTuple):
    """How the rows are computed: by name; the last ones are to be the fastest."""

    name: str
    settings: dict[str, Any]
    fused: bool = False
    precision: str = "bf16-mixed"


FAST = {"channels_last": True, "fold_teacher": True}
WAYS = (
    Way("float32", {}, precision="32-true"),
    Way("float32, captured", {"cuda_graphs": True}, precision="32-true"),
    Way("bf16-mixed, captured", {"cuda_graphs": True}),
    Way("fast.yaml, captured", {**FAST, "cuda_graphs": True}),
    Way("fast.yaml, captured, fused", {**FAST, "cuda_graphs": True}, fused=True),
    Way("float32, captured, fused", {"cuda_graphs": True}, fused=True, precision="32-true"),
)


def run(record: Record) -> None:
    use_float32("tf32")
    rows = ROWS[:3] if record.tiny else ROWS
    first: Values = {}
    for way in WAYS[::4] if record.tiny else WAYS:
        named = {"pair": record.pair, "members": len(rows), "way": way.name}
        found = record.check("packed rows", partial(_rows, record, rows, way, first), named)
        first = first or found
    way = WAYS[2]
    record.check("the teacher", partial(_teacher, record, way), {"pair": record.pair, "way": way.name})


def _rows(record: Record, rows: tuple[str, ...], way: Way, first: Values) -> Values:
    modules = members(record.pair, rows, lr=0.01, num_samples=record.num_images, **way.settings)
    return against(first, _projected(record, Pack(modules, list(rows), fused=way.fused), way))


def _teacher(record: Record, way: Way) -> Values:
    """The teacher's own training."""
    name = model_settings("pairs", record.pair)["teacher"]
    module = DistillationModule(name, None, num_classes=CLASSES, num_samples=record.num_images, **way.settings)
    return _projected(record, module, way)


def _projected(record: Record, module: Any, way: Way) -> Values:
    if record.cuda:
        torch.cuda.reset_peak_memory_stats()
    found = timed_fit(record, module, steps=100, warmup=20, evaluate=True, keep=True, precision=way.precision)
    hours = EPOCHS * (STEPS * found["ms"] / 1e3 + found["evaluation_s"]) / 3600
    return (
        found
        | {"hours": round(hours, 3)}
        | ({"peak_MiB": torch.cuda.max_memory_allocated() >> 20} if record.cuda else {})
    )
