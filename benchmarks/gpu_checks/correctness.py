"""Losses and gradients of every packed row and CRD: float32 against float64 on the CPU, mixed precision, folding."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

from common import ROWS, build, model_settings, untrained_teacher
from gpu_checks.record import Record, Values
from gpu_checks.steps import fold, loader_of, use_float32
from ickd_pl import Batch, DistillationModule

# Relative: of the loss, and of the gradient's norm.
FLOAT32 = {"loss": 1e-4, "gradient": 1e-3}
MIXED = {"loss": 0.05, "gradient": 0.3}
# On another device CRD draws other negatives.
OTHER_DRAWS, OTHER_DRAWS_MIXED = {"loss": 1e-2}, {"loss": 0.05}
SCALE = 1024.0  # of the loss in half precision, whose small gradients would become zero


def run(record: Record) -> None:
    use_float32("strict")
    batch = next(iter(loader_of(record, 8 if record.tiny else 32, device="cpu")))
    for method in (*ROWS, "crd"):
        module = build(record.pair, method, num_samples=record.num_images)
        expected = loss_and_gradient(copy.deepcopy(module).double(), batch, "cpu")
        compared = partial(_differences, expected, module, batch)
        for device in ("cpu", "cuda"):
            name, on_gpu = f"float32 on {device} against float64 on the CPU", device == "cuda"
            bounds = OTHER_DRAWS if method == "crd" and on_gpu else FLOAT32
            record.check(name, partial(compared, device), {"method": method}, bounds, needs_cuda=on_gpu)
        for amp in (torch.bfloat16, torch.float16):
            name, half = f"{amp} autocast on {record.device.type} against float64 on the CPU", amp is torch.float16
            bounds = OTHER_DRAWS_MIXED if method == "crd" and record.cuda else MIXED
            record.check(name, partial(compared, record.device, amp), {"method": method}, bounds, needs_cuda=half)
    record.check("a folded teacher", partial(_folded, record, batch), {}, {"logits": 1e-4})


def loss_and_gradient(
    module: DistillationModule, batch: Batch, device: torch.device | str, amp: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """A batch's loss, (), and the gradient of all that is trained, (P,), both in float64 on the CPU."""
    device = torch.device(device)
    module.to(device)
    dtype = next(module.parameters()).dtype
    on_device = Batch(*(tensor.to(device) for tensor in batch))
    on_device = on_device._replace(image=on_device.image.to(dtype))
    with torch.autocast(device.type, amp, enabled=amp is not None):
        loss = module.losses(on_device)[0]
    (loss * SCALE).backward()  # type: ignore[no-untyped-call]
    parts = [p.grad.double().flatten() / SCALE for p in module.trainable() if p.grad is not None]
    return loss.detach().double().cpu(), torch.cat(parts).cpu()


def _differences(
    expected: tuple[Tensor, Tensor],
    module: DistillationModule,
    batch: Batch,
    device: torch.device | str,
    amp: torch.dtype | None = None,
) -> Values:
    """Relative differences; NaN and infinity stay what they are."""
    found = loss_and_gradient(copy.deepcopy(module), batch, device, amp)
    loss, gradient = (float((a - b).norm() / a.norm()) for a, b in zip(expected, found, strict=True))
    return {"loss": loss, "gradient": gradient}


def _folded(record: Record, batch: Batch) -> Values:
    teacher = untrained_teacher(model_settings("pairs", record.pair)["teacher"]).to(record.device)
    image = batch.image.to(record.device)
    with torch.no_grad():
        expected = teacher(image)
        fold(teacher)
        return {"logits": float((teacher(image) - expected).norm() / expected.norm())}
