"""A step under torch.compile: the teacher, both networks, or losses and networks together."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gpu_checks.captured import COMPILED, fitted
from gpu_checks.record import Record, Values
from gpu_checks.steps import BASELINE, Setting, Step
from gpu_checks.timing import against, timed
from ickd_pl import Batch

PAIRS = ("resnet20_resnet8", "resnet32x4_resnet8x4")
KINDS = ("teacher", "networks", "step", "step as a graph")


def run(record: Record) -> None:
    low = Setting("bf16-mixed, channels_last", "tf32", torch.bfloat16, channels_last=True)
    setting = BASELINE if record.tiny else low
    if not record.tiny:
        for pair in PAIRS:
            named = {"pair": pair, "method": "ickd"}
            part = partial(fitted, record, named, COMPILED, True, {})
            record.check("captured fit", part, {**named, "how": COMPILED})
    for pair in PAIRS[:1] if record.tiny else PAIRS:
        named = {"pair": pair, "method": "ickd", "setting": setting.name}
        eager = record.check("not compiled", partial(_eager, record, pair, setting), named)
        for kind in KINDS[::2] if record.tiny else KINDS:
            part = partial(_compiled, record, pair, setting, kind, eager)
            record.check("torch.compile", part, {**named, "compiled": kind}, {"loss_difference": 1e-2})


def _eager(record: Record, pair: str, setting: Setting) -> Values:
    return timed(record, Step(record, pair, "ickd", setting))


def _compiled(record: Record, pair: str, setting: Setting, kind: str, eager: Values) -> Values:
    """The step's time, and how far its loss is from that of the same step, not compiled."""
    torch.compiler.reset()
    plain, step = Step(record, pair, "ickd", setting), CompiledStep(record, pair, setting, kind)
    batch = step.next_batch()
    with torch.autocast(record.device.type, setting.amp, enabled=setting.amp is not None):
        expected, found = (each.loss(batch).detach().float() for each in (plain, step))
    difference = float((found - expected).abs() / expected.abs())
    return against(eager, timed(record, step)) | {"loss_difference": difference}


class CompiledStep(Step):
    """A step of ICKD, part of which is compiled; tiny, it is traced only, since a compilation takes half a minute."""

    def __init__(self, record: Record, pair: str, setting: Setting, kind: str) -> None:
        super().__init__(record, pair, "ickd", setting)
        backend = "eager" if record.tiny else "inductor"
        mode = "reduce-overhead" if kind == "step as a graph" else None
        self._losses = self._plain_losses
        if kind.startswith("step"):
            self._losses = torch.compile(self._plain_losses, backend=backend, mode=mode)
        networks = {"teacher": [self.module.teacher], "networks": [self.module.teacher, self.module.student]}
        for network in networks.get(kind, []):
            if network is not None:
                network.features = torch.compile(network.features, backend=backend)  # type: ignore[method-assign]

    def _plain_losses(self, image: Tensor, label: Tensor, index: Tensor) -> Tensor:
        return self.module.losses(Batch(image, label, index))[0]

    def loss(self, batch: Batch) -> Tensor:
        return self._losses(*batch)
