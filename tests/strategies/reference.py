"""What the methods' tests share, all in float64.

Values of the original losses on inputs by formula; checks that many methods keep; and, for a method's loss as a whole,
features whose fields all differ, adapters whose weights all count, and their layers once more in numpy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies import LossStrategy
from tests.strategies.golden_methods import built

Array = npt.NDArray[np.float64]

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


def full_features(
    seed: int,
    *stages: tuple[int, ...],
    stem: tuple[int, ...] = (3, 8, 8),
    final: tuple[int, ...] = (5, 3, 3),
    width: int = 7,
    size: int = 4,
) -> Features:
    """Every field from a random draw of its own, so that a method which reads another one gives another value."""
    draws = np.random.default_rng(seed)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(draws.standard_normal((size, *shape)))

    maps, before = (tuple(draw(*shape) for shape in stages) for _ in range(2))
    return Features(draw(width), draw(*stem), maps, draw(*final), draw(width), before)


def filled_adapter(strategy: LossStrategy, student: Features, teacher: Features, training: bool = True) -> nn.Module:
    """The method's adapter with random weights, biases and running statistics."""
    adapter = built(strategy, student, teacher)
    assert adapter is not None
    draws = np.random.default_rng(99)
    for name, value in adapter.double().state_dict().items():
        if value.is_floating_point():
            new = torch.from_numpy(draws.standard_normal(tuple(value.shape)))
            value.copy_(new.abs() + 0.5 if name.endswith("running_var") else new)
    return adapter.train(training)


def arrays(module: nn.Module) -> dict[str, Array]:
    """Copies of its parameters and buffers as they are now, by their names."""
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def unit(x: Array, axis: int) -> Array:
    """Vectors of length one along an axis."""
    return x / np.maximum(np.sqrt((x * x).sum(axis, keepdims=True)), 1e-12)


def one_size(a: Tensor, b: Tensor) -> tuple[Array, Array]:
    """Two maps, the larger averaged to the smaller one's size."""
    size = min(a.shape[2], b.shape[2])
    return averaged(a.numpy(), size), averaged(b.numpy(), size)


def averaged(x: Array, size: int) -> Array:
    """Square maps (B, C, H, H) averaged to (B, C, size, size): cell i is of positions iH/size to (i + 1)H/size."""
    edges = [(i * x.shape[2] // size, -(-(i + 1) * x.shape[2] // size)) for i in range(size)]
    rows = [[x[:, :, a:b, c:d].mean((2, 3)) for c, d in edges] for a, b in edges]
    return np.moveaxis(np.array(rows), (0, 1), (2, 3))


def conv(x: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0) -> Array:
    """Convolution of (B, C, H, W) with a weight (O, C, h, w)."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    out: Array = np.einsum("bchwij,ocij->bohw", windows, weight)
    return out if bias is None else out + bias[:, None, None]


def conv_transposed(x: Array, weight: Array, bias: Array, stride: int = 1, padding: int = 1) -> Array:
    """Transposed convolution of (B, C, H, W) with a weight (C, O, h, w)."""
    spread = np.zeros((*x.shape[:2], stride * (x.shape[2] - 1) + 1, stride * (x.shape[3] - 1) + 1))
    spread[:, :, ::stride, ::stride] = x
    turned = weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    return conv(spread, turned, bias, padding=weight.shape[2] - 1 - padding)


def batch_norm(x: Array, values: dict[str, Array], name: str, training: bool) -> Array:
    """Batch norm ``name`` with the weights of ``values``, by the batch's statistics or the running ones."""
    mean, variance = values[f"{name}.running_mean"], values[f"{name}.running_var"]
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    mean, scale, shift = (
        v[:, None, None] for v in (mean, values[f"{name}.weight"] / np.sqrt(variance + 1e-5), values[f"{name}.bias"])
    )
    return (x - mean) * scale + shift


def regressed(x: Array, values: dict[str, Array], size: int, training: bool, name: str = "") -> Array:
    """RepDistiller's regressor to maps of a size: the convolution of its rule, then batch norm; no ReLU."""
    weight, bias = values[f"{name}conv.weight"], values[f"{name}conv.bias"]
    if x.shape[2] == 2 * size:
        assert weight.shape[2:] == (3, 3)
        x = conv(x, weight, bias, stride=2, padding=1)
    elif 2 * x.shape[2] == size:
        assert weight.shape[2:] == (4, 4)
        x = conv_transposed(x, weight, bias, stride=2)
    else:
        assert weight.shape[2:] == (1 + x.shape[2] - size,) * 2
        x = conv(x, weight, bias)
    return batch_norm(x, values, f"{name}bn", training)


def kdsvd_terms(student: Sequence[Tensor], teacher: Sequence[Tensor], count: int) -> Array:
    """KDSVD's loss in its smallest parts, which are all that the signs of singular vectors can change.

    Only the relative sign of a teacher's vector in two consecutive stages matters, for every image, pair of stages and
    vector on its own.

    Returns:
        Shape (2, stages - 1, B, count), over B already: with the signs under which a vector's entries sum to 0 or
        more, and with those of the deeper stage turned. The loss of the former is ``[0].sum()``.
    """
    size, stages = len(student[0]), []
    for pair in zip(student, teacher, strict=True):
        (_, _, rows), (_, values, targets) = (np.linalg.svd(x.flatten(2).transpose(1, 2).numpy()) for x in pair)
        partners, signed = np.empty((2, size, count, rows.shape[2]))
        for b, k in np.ndindex(size, count):
            own = targets[b, k] * (1 if targets[b, k].sum() >= 0 else -1)
            cosines = rows[b, : count + 3] @ own
            best = np.argmax(np.abs(cosines))
            scale = values[b, k] / np.linalg.norm(values[b, :count])
            signed[b, k], partners[b, k] = own * scale, rows[b, best] * np.sign(cosines[best]) * scale
        stages.append((partners, signed))
    terms = np.empty((2, len(stages) - 1, size, count))
    for step, ((s0, t0), (s1, t1)) in enumerate(pairwise(stages)):
        for turn, b, k in np.ndindex(2, size, count):
            sign = 1 - 2 * turn
            relations = [
                np.exp(-((np.subtract.outer(sign * a[b, k], z[b, k])) ** 2) / 8) for a, z in ((s1, s0), (t1, t0))
            ]
            terms[turn, step, b, k] = ((relations[0] - relations[1]) ** 2).sum() / size
    return terms
