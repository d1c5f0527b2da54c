"""The packed rows of the table under a Trainer: precisions, size, memory and host waits, against as many solo runs."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from common import ROWS, members
from gpu_checks.record import NotMeasured, Record, Values
from gpu_checks.steps import BASELINE, SETTINGS, Setting, fold, use_float32
from gpu_checks.trainer import counted_waits, timed_fit
from ickd_pl.training.pack import Pack

NAMES = {
    "TF32",
    "TF32, channels_last",
    "bf16-mixed",
    "bf16-mixed, channels_last",
    "bf16-mixed, channels_last, folded teacher, fused SGD",
}


def run(record: Record) -> None:
    rows = ("vanilla", "kd", "ickd") if record.tiny else ROWS
    named = {"pair": record.pair, "members": len(rows)}
    alone = record.check("the same rows alone", partial(_alone, record, rows), {**named, "setting": BASELINE.name})
    settings = (BASELINE, *(setting for setting in SETTINGS if setting.name in NAMES))
    for setting in settings[:: 4 if record.tiny else 1]:
        part = partial(_packed, record, rows, setting, alone)
        record.check("packed step", part, {**named, "setting": _without_sgd(setting)})
    for count in (1,) if record.tiny else (1, 4, 8):
        part = partial(_packed, record, rows[-count:], BASELINE, {})
        record.check("packed step", part, {**named, "members": count, "setting": BASELINE.name})
    part = partial(_waits, record, rows)
    record.check("host waits of a packed step", part, named, {"waits": 0}, needs_cuda=True)


def _without_sgd(setting: Setting) -> str:
    """The setting's name: a pack brings its own SGD."""
    return setting.name.removesuffix(", fused SGD")


def _pack(record: Record, rows: tuple[str, ...], setting: Setting) -> Pack:
    use_float32(setting.float32)
    modules = members(record.pair, rows, lr=0.01, num_samples=record.num_images, cuda_graphs=False)
    teacher = next((module.teacher for module in modules if module.teacher is not None), None)
    if setting.folded and isinstance(teacher, nn.Module):
        fold(teacher)
    pack = Pack(modules, list(rows))
    if setting.channels_last:
        pack.to(memory_format=torch.channels_last)
    return pack


def _packed(record: Record, rows: tuple[str, ...], setting: Setting, alone: Values) -> Values:
    precision = "32-true" if setting.amp is None else "bf16-mixed"
    if record.cuda:
        torch.cuda.reset_peak_memory_stats()
    found = timed_fit(record, _pack(record, rows, setting), steps=10, precision=precision)
    if alone:
        found["speedup"] = round(alone["ms"] / found["ms"], 3)
    found["images_per_s"] = round(1e3 * len(rows) * record.batch_size / found["ms"])
    return found | ({"peak_MiB": torch.cuda.max_memory_allocated() >> 20} if record.cuda else {})


def _alone(record: Record, rows: tuple[str, ...]) -> Values:
    """The sum of the rows' steps, each under a Trainer of its own."""
    use_float32("default")
    each: dict[str, float] = {}
    alone = members(record.pair, rows, lr=0.01, num_samples=record.num_images, cuda_graphs=False)
    for row, module in zip(rows, alone, strict=True):
        if record.seconds_left() < 5 and not record.tiny:
            raise NotMeasured(f"out of time after {len(each)} of {len(rows)} rows")
        each[row] = timed_fit(record, module, steps=10)["ms"]
    return {"ms": round(sum(each.values()), 3), "each": each}


def _waits(record: Record, rows: tuple[str, ...]) -> Values:
    return counted_waits(record, _pack(record, rows, BASELINE))
