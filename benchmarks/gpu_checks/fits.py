"""``Trainer.fit`` with the project's loader, record and evaluation: precisions, what costs time, host waits; against a
plain loop over a DataLoader of PIL images."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common import build, random_images, wait_for
from gpu_checks.record import Record, Values
from gpu_checks.steps import use_float32
from gpu_checks.timing import against, host_waits, waits
from gpu_checks.trainer import counted_waits, fit, timed_fit
from ickd_pl import CIFAR100, Batch

PAIRS = ("resnet20_resnet8", "resnet32x4_resnet8x4")


def run(record: Record) -> None:
    use_float32("default")
    for pair in PAIRS[: 1 if record.tiny else 2]:
        named = {"pair": pair, "method": "ickd"}
        plain = record.check("plain loop over PIL images", partial(_plain, record, pair), named)
        for precision in ("32-true", "bf16-mixed", "16-mixed"):
            part = partial(_fitted, record, named, plain, keep=True, precision=precision)
            half = precision == "16-mixed"
            record.check("Trainer.fit", part, {**named, "precision": precision}, needs_cuda=half)
    named = {"pair": PAIRS[0], "method": "ickd"}
    whole = record.check("Trainer.fit, again", partial(_fitted, record, named, {}, keep=True), named)
    others = {
        "without EpochRecord": {},
        "without logging the loss": {"keep": True, "log_loss": False},
        "with a progress bar": {"keep": True, "progress_bar": True},
    }
    for name, options in others.items():
        record.check(f"Trainer.fit {name}", partial(_fitted, record, named, whole, **options), named)
    named = {**named, "method": "vanilla"}
    record.check("Trainer.fit", partial(_fitted, record, named, whole, keep=True), named)
    for bar in (False, True):
        settings = {"pair": PAIRS[0], "method": "ickd", "progress_bar": bar}
        part = partial(_step_waits, record, bar)
        record.check("host waits of a step of a fit", part, settings, {"waits": 0}, needs_cuda=True)
        part = partial(_fit_waits, record, bar)
        record.check("host waits of a fit of 80 steps, 2 evaluations and checkpoints", part, settings, needs_cuda=True)


def _fitted(
    record: Record, named: dict[str, str], baseline: Values, log_loss: bool = True, graphs: bool = False, **options: Any
) -> Values:
    module = build(named["pair"], named["method"], lr=0.01, num_samples=record.num_images, cuda_graphs=graphs)
    if not log_loss:
        log = module.log
        module.log = lambda name, *a, **k: None if name == "loss" else log(name, *a, **k)  # type: ignore[method-assign]
    found = timed_fit(record, module, steps=200, warmup=20, evaluate=True, **options)
    return against(baseline, found) | {"images_per_s": round(1e3 * record.batch_size / found["ms"])}


def _step_waits(record: Record, progress_bar: bool) -> Values:
    module = build(PAIRS[0], "ickd", lr=0.01, num_samples=record.num_images, cuda_graphs=False)
    return counted_waits(record, module, progress_bar=progress_bar)


def _fit_waits(record: Record, progress_bar: bool) -> Values:
    module = build(PAIRS[0], "ickd", lr=0.01, num_samples=record.num_images)
    with host_waits() as found:
        fit(record, module, 40, epochs=2, evaluate=True, keep=True, progress_bar=progress_bar)
    return waits(found, 1)


class _Pictures(Dataset[tuple[Tensor, int, int]]):
    """Random images as most loops load them: one by one, through PIL."""

    def __init__(self, count: int) -> None:
        pixels, labels = random_images(count)
        self._pixels, self._labels = pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(*CIFAR100.known_constants),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index], index


def _plain(record: Record, pair: str) -> Values:
    """A loop as it is often written: workers, and the loss and accuracy of every step read by the host."""
    workers, warmup, steps = (0, 0, 1) if record.tiny else (8, 20, 180)
    loader = DataLoader(_Pictures(record.num_images), record.batch_size, shuffle=True, num_workers=workers)
    module = build(pair, "ickd", lr=0.01, num_samples=record.num_images).to(record.device)
    optimizer = torch.optim.SGD(list(module.trainable()), lr=0.01, momentum=0.9, weight_decay=5e-4)
    began, batches = 0.0, iter(loader)
    for step in range(warmup + steps):
        if step == warmup:
            wait_for(record.device)
            began = time.perf_counter()
        batch = Batch(*(tensor.to(record.device) for tensor in next(batches)))
        loss, _, logits = module.losses(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()
        (logits.argmax(1) == batch.label).float().mean().item()
    wait_for(record.device)
    milliseconds = 1e3 * (time.perf_counter() - began) / steps
    return {"ms": round(milliseconds, 3), "images_per_s": round(1e3 * record.batch_size / milliseconds)}
