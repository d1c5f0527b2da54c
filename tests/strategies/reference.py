"""Values of the original losses on inputs by formula, and checks that many methods share. All in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ickd_pl.features import FeatureShapes

# What RepDistiller's and ICKD's own files give on the inputs below.
VALUES: dict[str, float] = json.loads((Path(__file__).parent / "reference_values.json").read_text())


def s(*shape: int) -> Tensor:
    """The student's input: ``sin(0.7 k + 0.3) + 0.25 cos(2.3 k)`` in row-major order."""
    k = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((0.7 * k + 0.3).sin() + 0.25 * (2.3 * k).cos()).reshape(shape)


def t(*shape: int) -> Tensor:
    """The teacher's input: ``cos(1.1 k - 0.2) + 0.4 sin(0.37 k)`` in row-major order."""
    k = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((1.1 * k - 0.2).cos() + 0.4 * (0.37 * k).sin()).reshape(shape)


def shapes(
    name: str = "net", *, stages: tuple[tuple[int, ...], ...] = ((4, 8, 8), (6, 4, 4)), width: int = 6
) -> FeatureShapes:
    """Shapes of a network with these stages."""
    return FeatureShapes(name, (5,), (4, 8, 8), stages, stages[-1], (width,))


def gradients(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    """The student's gradient; fails where the loss or the gradient is not finite, or the teacher gets one."""
    student, teacher = student.detach().clone().requires_grad_(), teacher.detach().clone().requires_grad_()
    value = loss(student, teacher)
    assert value.shape == () and value.isfinite()
    (grad,) = torch.autograd.grad(value, student, retain_graph=True)
    assert grad.isfinite().all()
    assert torch.autograd.grad(value, teacher, allow_unused=True)[0] is None
    return grad


def check_properties(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> None:
    """Zero for equal features; a gradient for the student, none for the teacher; finite at zeros and for one image."""
    assert abs(loss(teacher, teacher).item()) < 1e-12
    assert gradients(loss, student, teacher).abs().sum() > 0
    gradients(loss, torch.zeros_like(student), teacher)
    gradients(loss, torch.zeros_like(student), torch.zeros_like(teacher))
    gradients(loss, torch.ones_like(student), teacher)
    gradients(loss, student[:1], teacher[:1])
    assert loss(student, teacher).dtype == torch.float64
    check_half(loss, student, teacher)


def check_half(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> None:
    """Half-precision features, under autocast too, are raised before any arithmetic."""
    half = student.bfloat16(), teacher.bfloat16()
    expected = loss(half[0].float(), half[1].float())
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(*half), expected, rtol=1e-6, atol=0)
