"""A training step of five methods, without a Trainer: precisions, layouts, memory, host waits; and an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common import build, model_settings, random_images, shipped, untrained_teacher
from gpu_checks.record import Record, Values
from gpu_checks.timing import against, timed, waits_per_call
from ickd_pl import CIFAR100, Batch
from ickd_pl.data.loader import TensorLoader

METHODS = ("ickd", "vanilla", "kd", "nst", "crd")


@dataclass(frozen=True)
class Setting:
    """How a step is computed.

    Attributes:
        name: in the record.
        float32: see :func:`use_float32`.
        amp: dtype of autocast; None: off.
        channels_last: layout of weights and images.
        folded: the teacher's batch norms are part of its convolutions.
        fused: SGD in one kernel.
    """

    name: str
    float32: str = "default"
    amp: torch.dtype | None = None
    channels_last: bool = False
    folded: bool = False
    fused: bool = False


BASELINE = Setting("float32, torch's defaults")
SETTINGS = (
    Setting("float32, TF32 off", "strict"),
    Setting("TF32", "tf32"),
    Setting("TF32, channels_last", "tf32", channels_last=True),
    Setting("TF32, cudnn.benchmark", "benchmark"),
    Setting("bf16-mixed", "tf32", torch.bfloat16),
    Setting("bf16-mixed, channels_last", "tf32", torch.bfloat16, channels_last=True),
    Setting("bf16-mixed, channels_last, folded teacher, fused SGD", "tf32", torch.bfloat16, True, True, True),
    Setting("16-mixed", "tf32", torch.float16),
    Setting("the baseline again"),
)


def use_float32(mode: str) -> None:
    """How products and convolutions in float32 are computed.

    Args:
        mode: ``default`` (torch's and Lightning's: TF32 in cuDNN only), ``strict`` (no TF32), ``tf32`` (wherever it can
            be) or ``benchmark`` (that, and cuDNN chooses by measuring).
    """
    torch.backends.cudnn.benchmark = mode == "benchmark"
    torch.backends.cudnn.allow_tf32 = mode != "strict"
    torch.set_float32_matmul_precision("highest" if mode in ("default", "strict") else "high")


def loader_of(
    record: Record,
    batch_size: int = 0,
    train: bool = True,
    device: torch.device | str = "",
    host: bool = False,
    **options: Any,
) -> TensorLoader:
    """The project's loader over random images; they lie on the record's device unless another is named.

    With ``host`` they lie in host memory and the batches on the record's device.
    """
    pixels, labels = random_images(record.num_images)
    mean, std = CIFAR100.known_constants
    batch_size = batch_size or record.batch_size
    images = pixels if host else pixels.to(device or record.device)
    options = {**options, "device": record.device if host else None}
    return TensorLoader(images, labels, batch_size=batch_size, mean=mean, std=std, train=train, **options)


def endless(loader: TensorLoader) -> Iterator[Batch]:
    """Whole batches, epoch after epoch."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from (batch for batch in loader if len(batch.label) == loader.batch_size)
        epoch += 1


def fold(teacher: nn.Module) -> None:
    """Make every batch norm of a residual network in evaluation mode a part of the convolution before it."""
    for module in list(teacher.modules()):
        for number in (1, 2):
            layer, norm = getattr(module, f"conv{number}", None), getattr(module, f"bn{number}", None)
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, f"conv{number}", fuse_conv_bn_eval(layer, norm))
                setattr(module, f"bn{number}", nn.Identity())
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, nn.Sequential):
            module.downsample = fuse_conv_bn_eval(*shortcut)
    teacher.requires_grad_(False)


class Step:
    """Loader, losses, backward pass and the recipe's SGD, as automatic optimisation runs them.

    Args:
        record: gives the device.
        pair: the networks, as in ``configs/pairs``.
        method: as in ``configs/methods``.
        setting: how it is computed.
        batches: from where they come; None: a loader of its own.
    """

    def __init__(
        self,
        record: Record,
        pair: str,
        method: str,
        setting: Setting = BASELINE,
        batches: Iterator[Batch] | None = None,
    ) -> None:
        use_float32(setting.float32)
        teacher = untrained_teacher(model_settings("pairs", pair)["teacher"])
        if setting.folded:
            fold(teacher)
        module = build(pair, method, teacher, lr=0.01, num_samples=record.num_images)
        self.module, self.setting, self.device = module.to(record.device), setting, record.device
        if setting.channels_last:
            self.module.to(memory_format=torch.channels_last)
        self.optimizer = self._optimizer()
        self.batches = batches or endless(loader_of(record))
        scale = setting.amp is torch.float16 and record.cuda
        self.scaler = torch.amp.GradScaler(record.device.type, enabled=scale)

    def _optimizer(self) -> torch.optim.SGD:
        recipe: torch.optim.SGD = self.module.configure_optimizers()["optimizer"]
        if not self.setting.fused:
            return recipe
        chosen = {name: recipe.defaults[name] for name in ("lr", "momentum", "weight_decay")}
        return torch.optim.SGD(list(self.module.trainable()), **chosen, fused=True)

    def next_batch(self) -> Batch:
        batch = next(self.batches)
        if not self.setting.channels_last:
            return batch
        return batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.module.losses(batch)[0]

    def __call__(self) -> None:
        batch = self.next_batch()
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.setting.amp, enabled=self.setting.amp is not None):
            loss = self.loss(batch)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()


def run(record: Record) -> None:
    batches = endless(loader_of(record))
    for method in METHODS[:: len(METHODS) - 1] if record.tiny else METHODS:
        _check_method(record, method, batches)
    for batch_size in (500,) if record.tiny else (500, 2000):
        part = partial(_evaluation, record, batch_size)
        record.check("evaluation", part, {"pair": record.pair, "batch_size": batch_size})
    part = partial(_evaluation_waits, record)
    record.check("host waits of an evaluation step", part, None, {"waits": 0}, needs_cuda=True)
    others = set(shipped("methods")) - set(METHODS) if record.pair.startswith("resnet20") else ()
    for method in sorted(others):
        part = partial(_step_waits, record, method, batches)
        expected = None if method == "kdsvd" else {"waits": 0}
        record.check("host waits of a step", part, {"pair": record.pair, "method": method}, expected, needs_cuda=True)


def _check_method(record: Record, method: str, batches: Iterator[Batch]) -> None:
    named = {"pair": record.pair, "method": method}
    first = partial(_timed_step, record, method, BASELINE, batches, {})
    baseline = record.check("step", first, {**named, "setting": BASELINE.name})
    for setting in SETTINGS[5:6] if record.tiny else SETTINGS:
        if setting.folded and method in ("vanilla", "kd"):
            continue
        part = partial(_timed_step, record, method, setting, batches, baseline)
        half = setting.amp is torch.float16  # which autocast on a CPU is no model of
        record.check("step", part, {**named, "setting": setting.name}, needs_cuda=half)
    part = partial(_step_waits, record, method, batches)
    record.check("host waits of a step", part, named, {"waits": 0}, needs_cuda=True)
    part = partial(_growth, record, method, batches)
    record.check("memory does not grow", part, named, {"grown_bytes": 0}, needs_cuda=True)


def _timed_step(record: Record, method: str, setting: Setting, batches: Iterator[Batch], baseline: Values) -> Values:
    before = torch.cuda.memory_allocated() if record.cuda else 0
    found = timed(record, Step(record, record.pair, method, setting, batches))
    if record.cuda:
        found["peak_MiB"] = (torch.cuda.max_memory_allocated() - before) >> 20
    return against(baseline, found) | {"images_per_s": round(1e3 * record.batch_size / found["ms"])}


def _step_waits(record: Record, method: str, batches: Iterator[Batch]) -> Values:
    """Of ten steps on one batch: the first of an epoch may wait."""
    batch = next(batches)
    return waits_per_call(Step(record, record.pair, method, BASELINE, iter(lambda: batch, None)), 10)


def _growth(record: Record, method: str, batches: Iterator[Batch]) -> Values:
    """Bytes that the second ten steps leave behind."""
    step, held = Step(record, record.pair, method, BASELINE, batches), []
    for _ in range(2):
        for _ in range(10):
            step()
        held.append(torch.cuda.memory_allocated())
    return {"grown_bytes": held[1] - held[0]}


def _evaluation(record: Record, batch_size: int) -> Values:
    """Milliseconds for as many images as CIFAR-100's test set has."""
    module = build(record.pair, "vanilla").to(record.device).eval()
    loader = loader_of(record, batch_size, train=False)

    def once() -> None:
        with torch.inference_mode():
            for number, batch in enumerate(loader):
                if number * batch_size >= 10_000:
                    break
                module.validation_step(batch, number)

    use_float32("default")
    return timed(record, once, steps=1, rounds=3, warmup=1)


def _evaluation_waits(record: Record) -> Values:
    module = build(record.pair, "vanilla").to(record.device).eval()
    batch = next(iter(loader_of(record, 100, train=False)))
    with torch.inference_mode():
        return waits_per_call(lambda: module.validation_step(batch, 0), 5)
