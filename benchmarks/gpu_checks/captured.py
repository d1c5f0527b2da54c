"""Captured steps and fused packs under a Trainer: time, host waits, and whether they train as others do."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from common import ROWS, build, members
from gpu_checks.record import Record, Values
from gpu_checks.steps import use_float32
from gpu_checks.timing import against
from gpu_checks.trainer import counted_waits, fit, timed_fit
from ickd_pl import DistillationModule, get_model
from ickd_pl.training.fused import FusedStudents
from ickd_pl.training.pack import Pack

METHODS = ("ickd", "vanilla", "kd", "nst")
# A step of the pack: fused, captured.
WAYS = ((False, False), (True, False), (False, True), (True, True))


def run(record: Record) -> None:
    use_float32("tf32")
    for method in METHODS[:1] if record.tiny else METHODS:
        for precision in ("32-true", "bf16-mixed")[: 1 if record.tiny else 2]:
            named = {"pair": record.pair, "method": method, "precision": precision}
            part = partial(_difference, record, named)
            record.check("captured weights after 30 steps", part, named, {"difference": 1e-2})
            eager = record.check("fit", partial(_fitted, record, named, False, {}), named)
            record.check("captured fit", partial(_fitted, record, named, True, eager), named)
    named = {"pair": record.pair, "method": "ickd"}
    module = partial(_module, record, named, True)
    part = partial(_waits, record, module)
    record.check("host waits of a captured step", part, named, {"waits": 0}, needs_cuda=True)
    record.check("bad gradients that reach other fused students", partial(_leaks, record), {}, {"leaks": 0})
    rows = ROWS[:3] if record.tiny else ROWS
    first: Values = {}
    for precision in ("32-true", "bf16-mixed")[: 1 if record.tiny else 2]:
        for fused, graphs in WAYS:
            about = {"members": len(rows), "fused": fused, "cuda_graphs": graphs, "precision": precision}
            part = partial(_packed, record, rows, fused, graphs, precision, first)
            found = record.check("packed step", part, {"pair": record.pair, **about})
            first = first or found
    part = partial(_waits, record, partial(_pack, record, rows, True, True))
    record.check("host waits of a captured step of a fused pack", part, named, {"waits": 0}, needs_cuda=True)


def _module(record: Record, named: dict[str, str], graphs: bool) -> DistillationModule:
    return build(named["pair"], named["method"], lr=0.01, num_samples=record.num_images, cuda_graphs=graphs)


def _fitted(record: Record, named: dict[str, str], graphs: bool, baseline: Values) -> Values:
    module = _module(record, named, graphs)
    return against(baseline, timed_fit(record, module, steps=200, warmup=20, precision=named["precision"]))


def _difference(record: Record, named: dict[str, str]) -> Values:
    """How far captured and eager weights are apart, over how far training has moved them; and two eager runs."""

    def trained(graphs: bool) -> tuple[Tensor, Tensor]:
        module = _module(record, named, graphs)
        before = _weights(module)
        settings: dict[str, Any] = {"precision": named["precision"]}
        fit(record, module, 8 if record.tiny else 30, **settings)
        return before, _weights(module)

    before, eager = trained(False)
    moved = float((eager - before).norm())
    others = {"difference": trained(True)[1], "difference_of_eager_runs": trained(False)[1]}
    return {name: float((weights - eager).norm()) / moved for name, weights in others.items()}


def _weights(module: DistillationModule) -> Tensor:
    return torch.cat([p.detach().float().cpu().flatten() for p in module.trainable()])


def _pack(record: Record, rows: tuple[str, ...], fused: bool, graphs: bool) -> Pack:
    modules = members(record.pair, rows, lr=0.01, num_samples=record.num_images, cuda_graphs=graphs)
    return Pack(modules, list(rows), fused=fused)


def _packed(record: Record, rows: tuple[str, ...], fused: bool, graphs: bool, precision: str, first: Values) -> Values:
    pack = _pack(record, rows, fused, graphs)
    return against(first, timed_fit(record, pack, steps=20, warmup=10, precision=precision))


def _waits(record: Record, module: Any) -> Values:
    return counted_waits(record, module())


def _leaks(record: Record) -> Values:
    """Students whose gradients are not finite because another student's are."""
    nets: list[Any] = [get_model("resnet8", 100).to(record.device).train() for _ in range(3)]
    image = torch.randn(8, 3, 32, 32, device=record.device)
    features = FusedStudents(nets).features(image, preact=False)
    losses = [found.logits.square().mean() + found.stages[0].mean() for found in features]
    losses[1] = losses[1] * float("nan")
    torch.autograd.backward(losses)
    finite = [all(bool(p.grad.isfinite().all()) for p in net.parameters()) for net in nets]
    return {"leaks": 2 - finite[0] - finite[2]}
