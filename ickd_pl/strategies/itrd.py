"""Information-theoretic representation distillation (ITRD)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ickd_pl.checks import NonNegativeFloat, PositiveFloat
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import expect
from ickd_pl.strategies.components.regressors import LinearEmbedding
from ickd_pl.strategies.components.shapes import check_shapes


def _standardised(x: Tensor) -> Tensor:
    """Each dimension of (B, D) over the batch, with the unbiased deviation; a constant one becomes zeros."""
    centred = x - x.mean(dim=0)
    variance = centred.square().sum(dim=0) / max(len(x) - 1, 1)
    # The smallest number changes no other value, and the gradient stays finite.
    return centred / (variance + torch.finfo(x.dtype).tiny).sqrt()


@full_precision
def correlation_loss(student: Tensor, teacher: Tensor, alpha: float = 1.01) -> Tensor:
    """The logarithm of how far each dimension's correlation between student and teacher is from 1.

    ``log2 of the sum over d of |c_d - 1|^(2 alpha)``, ``c_d`` the sum over the batch of the products of both
    networks' standardised (unbiased deviation) dimension d, divided by B; so ``c_d`` is at most ``(B - 1) / B``.

    [0] Miles, Lopez-Rodriguez, Mikolajczyk, Information Theoretic Representation Distillation, BMVC 2022
    [1] reference code: roymiles/ITRD (commit 5d08c6b), distiller_zoo/IT.py; a dimension that is constant in the
    batch is 0/0 there, and has the correlation 0 here

    Args:
        student: embedded vectors, shape (B, D).
        teacher: shape (B, D); gradients do not flow into it.
        alpha: half of the power.

    Returns:
        A scalar, at least float32; it may be below 0.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(correlation_loss(x.sin(), x.cos()).item(), 3)
        2.417
    """
    check_shapes("correlation_loss", ("student", student, "B D"), ("teacher", teacher, "B D"))
    products = (_standardised(student) * _standardised(teacher.detach())).sum(dim=0) / len(student)
    return (products - 1).abs().pow(2 * alpha).sum().log2()


def _gram(x: Tensor) -> Tensor:
    """Cosines of the rows of (B, D), divided by their trace; a row of zeros has 0 with all."""
    rows = normalize(x, dim=1)
    return _one_trace(rows @ rows.T)


def _one_trace(x: Tensor) -> Tensor:
    return x / x.trace().clamp(min=torch.finfo(x.dtype).tiny)


@full_precision
def mutual_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Entropy of the student's similarities less that shared with the teacher's, by the matrix-based Renyi entropy.

    ``sum of G_s^2 - sum of G_st^2``: ``G_s`` are the cosines between the student's vectors, and ``G_st`` their products
    with the teacher's, each divided by its trace.

    [0] and [1] as in :func:`correlation_loss`

    Args:
        student: shape (B, D).
        teacher: shape (B, any); gradients do not flow into it.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(mutual_loss(x.sin(), x.cos()).item(), 4)
        0.0429
    """
    check_shapes("mutual_loss", ("student", student, "B D"), ("teacher", teacher, "B E"))
    own = _gram(student)
    both = _one_trace(own * _gram(teacher.detach()))
    return own.square().sum() - both.square().sum()


def itrd_loss(
    student: Tensor,
    embedded: Tensor,
    teacher: Tensor,
    correlation_weight: float = 2.0,
    mutual_weight: float = 1.0,
    exponent: float = 1.01,
) -> Tensor:
    """The weighted sum of :func:`correlation_loss` of the embedded vectors and :func:`mutual_loss`.

    Args:
        student: vectors, shape (B, D).
        embedded: the same in the teacher's width, shape (B, E); the mutual term reads it where D is not E.
        teacher: shape (B, E); gradients do not flow into it.
        correlation_weight: factor of the correlation's term.
        mutual_weight: factor of the mutual term.
        exponent: half of the correlation's power.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(4, 3)
        >>> round(itrd_loss(x.sin(), x.sin(), x.cos()).item(), 3)
        4.877
    """
    mutual = mutual_loss(student if student.shape == teacher.shape else embedded, teacher)
    value: Tensor = correlation_weight * correlation_loss(embedded, teacher, exponent) + mutual_weight * mutual
    return value


@dataclass(eq=False)
class ITRD(LossStrategy):
    """Information-theoretic representation distillation (ITRD) on pooled vectors.

    The loss is :func:`itrd_loss`. A trained linear layer brings the student's vector to the teacher's width; the mutual
    term uses it only where the widths differ.

    The defaults are those of the authors' command for wrn_40_2/wrn_16_2; without a command their code has a mutual
    weight of 0.05 and an exponent of 1.5.

    Args:
        weight: factor of the loss.
        correlation_weight: factor of the correlation's term.
        mutual_weight: factor of the mutual term.
        exponent: alpha of the paper, half of the correlation's power.
    """

    weight: NonNegativeFloat = 1.0
    correlation_weight: NonNegativeFloat = 2.0
    mutual_weight: NonNegativeFloat = 1.0
    exponent: PositiveFloat = 1.01

    def vectors_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the pooled feature": net.pooled}

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        return LinearEmbedding(student.pooled[0], teacher.pooled[0])

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        one, other = student.pooled.flatten(1), teacher.pooled.flatten(1)
        embedded = expect(self, adapter, LinearEmbedding)(one)
        return itrd_loss(one, embedded, other, self.correlation_weight, self.mutual_weight, self.exponent)
