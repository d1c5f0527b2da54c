"""Distributed training: one rank trains as no rank does, and two GPUs as one does."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from common import build
from gpu_checks.record import NotMeasured, Record, Values
from gpu_checks.steps import use_float32
from gpu_checks.trainer import fit

STEPS = 3


def run(record: Record) -> None:
    use_float32("strict")
    backend = "NCCL" if record.cuda else "gloo"
    # Kernels on a GPU may add in any order.
    bound = {"difference": 1e-4 if record.cuda else 0.0}
    # Two first: one rank's process group stays, and with it its port.
    part = partial(_two_ranks, record)
    name = "two ranks over NCCL, batch norms together, against no DDP"
    record.check(name, part, {"method": "ickd"}, {"difference": 1e-3}, needs_cuda=True)
    for method in ("ickd", "crd"):
        part = partial(_difference, record, method, strategy="ddp")
        record.check(f"one rank over {backend} against no DDP", part, {"method": method}, bound)


def _two_ranks(record: Record) -> Values:
    if torch.cuda.device_count() < 2:
        raise NotMeasured("one GPU")
    # Spawned, so that this process and its record stay alone.
    return _difference(record, "ickd", strategy="ddp_spawn", devices=2, sync_batchnorm=True)


def _difference(record: Record, method: str, **options: Any) -> Values:
    """Relative difference of the trained weights, and how far the training moved them."""
    before, plain = _trained(record, method), _trained(record, method, batches=STEPS)
    found = _trained(record, method, batches=STEPS, **options)
    return {"difference": float((found - plain).norm() / plain.norm()), "moved": float((plain - before).norm())}


def _trained(record: Record, method: str, batches: int = 0, **options: Any) -> Tensor:
    """The student's weights after some steps, (P,), on the CPU."""
    module = build(record.pair, method, lr=0.01, num_samples=record.num_images)
    if batches:
        fit(record, module, batches, **options)
    return torch.cat([p.detach().cpu().flatten() for p in module.student.parameters()])
