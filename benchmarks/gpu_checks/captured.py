"""Captured steps and fused packs under a Trainer: time, host waits, and whether they train as others do."""

from __future__ import annotations

import random
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from common import ROWS, build, members, untrained_teacher
from gpu_checks.record import Record, Values
from gpu_checks.steps import use_float32
from gpu_checks.timing import against
from gpu_checks.trainer import counted_waits, fit, timed_fit
from ickd_pl import Batch, DistillationModule, Features, get_model
from ickd_pl.strategies import KD
from ickd_pl.training.fused import FusedStudents
from ickd_pl.training.pack import Pack

METHODS = ("ickd", "vanilla", "kd", "nst")
FAST = {"channels_last": True, "fold_teacher": True, "tf32": True}
# How a captured step is computed: precision and settings of the module.
HOW: dict[str, tuple[str, dict[str, bool]]] = {
    "float32": ("32-true", {}),
    "TF32": ("32-true", {"tf32": True}),
    "TF32, channels_last": ("32-true", FAST),
    "bf16-mixed": ("bf16-mixed", {}),
    "fast.yaml": ("bf16-mixed", FAST),
}
COMPILED = "fast.yaml, compiled"
# A step of the pack: fused, captured.
WAYS = ((False, True), (True, True), (False, False), (True, False))


def run(record: Record) -> None:
    use_float32("tf32")
    named = {"pair": record.pair, "method": "ickd"}
    for precision in ("32-true", "bf16-mixed")[: 1 if record.tiny else 2]:
        part = partial(_difference, record, {**named, "precision": precision})
        settings = {**named, "precision": precision}
        record.check("captured weights after 30 steps", part, settings, {"difference": 1e-4}, needs_cuda=True)
    for method in (Looks, Draws):
        part = partial(_eager_after_all, record, method)
        record.check("a method that cannot be captured", part, {"method": method.__name__}, {"not_warned": 0})
    part = partial(_waits, record, partial(_module, record, named, True))
    record.check("host waits of a captured step", part, named, {"waits": 0}, needs_cuda=True)
    eager = record.check("fit", partial(fitted, record, named, "float32", False, {}), {**named, "how": "float32"})
    for method in METHODS[:1] if record.tiny else METHODS:
        hows = list(HOW) if method == "ickd" else ["fast.yaml"]
        for how in hows[: 1 if record.tiny else None]:
            named = {"pair": record.pair, "method": method}
            part = partial(fitted, record, named, how, True, eager if method == "ickd" else {})
            record.check("captured fit", part, {**named, "how": how})
    record.check("bad gradients that reach other fused students", partial(_leaks, record), {}, {"leaks": 0})
    rows = ROWS[:3] if record.tiny else ROWS
    first: Values = {}
    for fused, graphs in WAYS[: 2 if record.tiny else None]:
        for how in ("float32",) if record.tiny or not graphs else ("float32", "fast.yaml"):
            about = {"members": len(rows), "fused": fused, "cuda_graphs": graphs, "how": how}
            part = partial(_packed, record, rows, fused, graphs, how, first)
            found = record.check("packed step", part, {"pair": record.pair, **about})
            first = first or found
    part = partial(_waits, record, partial(_pack, record, rows, False, True))
    record.check("host waits of a captured step of a pack", part, {"pair": record.pair}, {"waits": 0}, needs_cuda=True)


class Looks(KD):
    """Waits for the device."""

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: Any) -> Tensor:
        found = super().loss(student, teacher, batch, adapter)
        return found * (1.0 if float(found) > 0 else 0.0)


class Draws(KD):
    """Draws on the host."""

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: Any) -> Tensor:
        return super().loss(student, teacher, batch, adapter) * random.random()


def _eager_after_all(record: Record, method: type[KD]) -> Values:
    """Whether the fit says so and goes on, as without captured steps."""
    trained = []
    for graphs in (True, False):
        random.seed(0)
        settings: dict[str, Any] = {"lr": 0.01, "num_samples": record.num_images, "cuda_graphs": graphs}
        teacher = untrained_teacher("resnet20")
        module = DistillationModule("resnet8", teacher, strategies=[method()], **settings)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(record, module, 8, deterministic="warn")
        trained.append(_weights(module))
        if graphs:
            said = any("cannot be captured" in str(warning.message) for warning in caught)
    torch.use_deterministic_algorithms(False)
    apart = float((trained[0] - trained[1]).abs().max())
    return {"not_warned": int(record.cuda and not said), "difference": apart}


def _module(record: Record, named: dict[str, str], graphs: bool, **settings: bool) -> DistillationModule:
    arguments: dict[str, Any] = {"cuda_graphs": graphs, **settings}
    return build(named["pair"], named["method"], lr=0.01, num_samples=record.num_images, **arguments)


def fitted(record: Record, named: dict[str, str], how: str, graphs: bool, baseline: Values) -> Values:
    precision, settings = ("bf16-mixed", {**FAST, "compile": True}) if how == COMPILED else HOW[how]
    module, steps = _module(record, named, graphs, **settings), 150 if graphs else 40
    return against(baseline, timed_fit(record, module, steps=steps, warmup=20, precision=precision))


def _difference(record: Record, named: dict[str, str]) -> Values:
    """How far captured and eager weights are apart, over how far training has moved them; and two eager runs.

    With cuDNN's deterministic algorithms: others add in another order in each run, which 30 steps make a percent of.
    """
    torch.backends.cudnn.deterministic = True
    try:
        return _compared(record, named)
    finally:
        torch.backends.cudnn.deterministic = False


def _compared(record: Record, named: dict[str, str]) -> Values:

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


def _pack(record: Record, rows: tuple[str, ...], fused: bool, graphs: bool, **settings: bool) -> Pack:
    arguments: dict[str, Any] = {"cuda_graphs": graphs, **settings}
    modules = members(record.pair, rows, lr=0.01, num_samples=record.num_images, **arguments)
    return Pack(modules, list(rows), fused=fused)


def _packed(record: Record, rows: tuple[str, ...], fused: bool, graphs: bool, how: str, first: Values) -> Values:
    precision, settings = HOW[how]
    pack, steps = _pack(record, rows, fused, graphs, **settings), 50 if graphs else 5
    if record.cuda:
        torch.cuda.reset_peak_memory_stats()
    found = against(first, timed_fit(record, pack, steps=steps, warmup=8, precision=precision))
    return found | ({"peak_MiB": torch.cuda.max_memory_allocated() >> 20} if record.cuda else {})


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
