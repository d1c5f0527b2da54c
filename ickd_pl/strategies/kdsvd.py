"""Self-supervised knowledge distillation using singular value decomposition (KDSVD)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ickd_pl.checks import NonNegativeFloat, PositiveInt
from ickd_pl.data.batch import Batch
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import check_channels, check_stage_count, incompatible, shape_text
from ickd_pl.strategies.components.shapes import Maps, as_stages

# Singular vectors of the student beyond the teacher's, among which the matching ones are chosen.
EXTRA = 3


class _LeadingVectors(torch.autograd.Function):
    """Leading right singular vectors of (B, M, C) matrices, with a gradient that stays finite.

    The gradient of a singular vector divides by differences of squared singular values; differences of zero, which dead
    channels cause, are left out instead of giving NaN.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        _, values, vh = torch.linalg.svd(x, full_matrices=False)  # (B, R), (B, R, C) with R = min(M, C)
        vectors = vh.transpose(1, 2)  # (B, C, R)
        leading, lead = vectors[:, :, :count].contiguous(), values[:, :count].contiguous()
        ctx.save_for_backward(x, values, vectors)
        ctx.mark_non_differentiable(lead)
        return leading, lead

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0]  # (B, C, count)
        x, values, vectors = ctx.saved_tensors
        count = grad.shape[2]
        squared = values.square()  # (B, R)
        inside = vectors.transpose(1, 2) @ grad  # (B, R, count)
        smallest = (1e-6 * squared[:, :1]).square()[:, None] + torch.finfo(x.dtype).tiny  # (B, 1, 1)
        gaps = squared[:, None, :count] - squared[:, :, None]  # (B, R, count)
        towards = vectors @ (inside * gaps / (gaps.square() + smallest))
        lead = squared[:, None, :count]  # gaps to the directions outside the row space, whose value is 0
        towards = towards + (grad - vectors @ inside) * lead / (lead.square() + smallest)
        gram = towards @ vectors[:, :, :count].transpose(1, 2)  # (B, C, C), gradient of x^T x
        return x @ (gram + gram.transpose(1, 2)), None


def leading_vectors(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading right singular vectors of a map as a matrix of positions by channels, and their singular values.

    Args:
        x: shape (B, C, H, W).
        count: how many.

    Returns:
        Vectors of shape (B, C, count), signed so that their entries sum to 0 or more, and values of shape (B, count)
        as a vector of unit length.
    """
    vectors, values = _LeadingVectors.apply(x.flatten(2).transpose(1, 2), count)
    signs = torch.where(vectors.sum(dim=1, keepdim=True) < 0, -1.0, 1.0).to(vectors)
    return normalize(vectors, dim=1) * signs, normalize(values)


def align(student: Tensor, teacher: Tensor) -> Tensor:
    """For each vector of the teacher the student's vector of largest absolute cosine, with the cosine's sign.

    Args:
        student: shape (B, C, more).
        teacher: shape (B, C, count).

    Returns:
        Shape (B, C, count).
    """
    cosines = student.transpose(1, 2) @ teacher  # (B, more, count)
    best = cosines.abs().argmax(dim=1, keepdim=True)  # (B, 1, count)
    chosen = student.gather(2, best.expand(-1, student.shape[1], -1))
    return chosen * cosines.gather(1, best).sign().detach()


def rbf(a: Tensor, b: Tensor) -> Tensor:
    """``exp(-(a_i - b_j)^2 / 8)`` for all entries of two vectors: (B, C, k) and (B, C', k) to (B, C, C', k)."""
    return (-(a[:, :, None] - b[:, None]).square() / 8).exp()


@full_precision
def kdsvd_loss(student: Maps, teacher: Maps, count: int = 1) -> Tensor:
    """Squared distance of the relations between the singular vectors of consecutive stages, summed, over B.

    A stage's map is a matrix of positions by channels. The teacher gives ``count`` right singular vectors, the student
    three more, from which each of the teacher's takes its nearest; both are scaled by the teacher's singular values.
    The relation of two consecutive stages is :func:`rbf` of their vectors.

    [0] Lee, Kim, Song, Self-supervised Knowledge Distillation using Singular Value Decomposition, ECCV 2018
    [1] reference code: HobbitLong/RepDistiller, distiller_zoo/KDSVD.py

    A singular vector has no sign of its own, but this loss depends on it: with the vectors that a library happens to
    return, its value may change tenfold from one machine to the next. Here the teacher's vectors are signed so that
    their entries sum to 0 or more (for maps after a ReLU the first vector has one sign throughout), and the student's
    follow. Values therefore agree with RepDistiller's only where its library chose the same relative signs. mdistiller
    unfolds the map in another way and gives yet other values.

    Args:
        student: maps, each (B, C, H, W), two or more, shallow to deep.
        teacher: as many maps with the student's channel counts. Gradients do not flow into them.
        count: the teacher's singular vectors per stage.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> round(kdsvd_loss([x.sin(), x.cos()], [x.cos(), x.cos()]).item(), 3)
        0.009
    """
    students, teachers = as_stages(
        "kdsvd_loss", ("student", student, "B C H W"), ("teacher", teacher, "B C H' W'"), least=2
    )
    vectors: list[tuple[Tensor, Tensor]] = []
    for s, t in zip(students, teachers, strict=True):
        v_t, scale = leading_vectors(t.detach(), count)  # (B, C, count), (B, count)
        v_s = align(leading_vectors(s, count + EXTRA)[0], v_t)  # (B, C, count)
        vectors.append((v_s * scale[:, None], v_t * scale[:, None]))
    loss = students[0].new_zeros(())
    for (s0, t0), (s1, t1) in pairwise(vectors):
        loss = loss + (rbf(s1, s0) - rbf(t1, t0)).square().sum() / len(s0)
    return loss


@dataclass(eq=False)
class KDSVD(LossStrategy):
    """Singular value decomposition (KDSVD) of every stage (see :func:`kdsvd_loss`); RepDistiller's ``feat[1:-1]``.

    No figure of this method is in RepDistiller's table and its script has no weight for it. The gradient of close
    singular values, NaN in RepDistiller's code, is left out.

    ICKD's resnet, wrn and ResNet50 list one feature per block and drop the extra ones where the counts differ, so the
    consecutive features are different ones (equal only for networks with one block per stage, such as resnet8x4). This
    follows RepDistiller.

    Args:
        weight: factor of the loss; 1 in mdistiller.
        count: the teacher's singular vectors per stage.
    """

    capturable = False  # the decomposition on a GPU waits for the host

    weight: NonNegativeFloat = 1.0
    count: PositiveInt = 1

    def maps_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return net.stage_ends()

    def check(self, student: FeatureShapes, teacher: FeatureShapes) -> None:
        check_stage_count(self, student, teacher)
        pairs = list(zip(student.stages, teacher.stages, strict=True))
        check_channels(self, student, teacher, [(f"stage {n}", s, t) for n, (s, t) in enumerate(pairs, start=1)])
        need = self.count + EXTRA
        for number, (s, t) in enumerate(pairs, start=1):
            if min(s[0], s[1] * s[2], t[1] * t[2]) < need:
                why = f"stage {number}, {shape_text(s)} against {shape_text(t)}, has fewer than {need} singular vectors"
                raise incompatible(self, student, teacher, why)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        return kdsvd_loss(student.stages, teacher.stages, self.count)
