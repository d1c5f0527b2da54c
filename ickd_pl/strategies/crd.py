"""Contrastive representation distillation (CRD)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from ickd_pl.checks import NonNegativeFloat, PositiveFloat, PositiveInt, from_to, whole_number
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.errors import UserError
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies.base import LossStrategy, full_precision
from ickd_pl.strategies.components.compatibility import expect
from ickd_pl.strategies.components.negatives import ClassTable, Draws
from ickd_pl.strategies.components.regressors import LinearEmbedding
from ickd_pl.strategies.components.shapes import check_shapes

EPS = 1e-7
Mode = Literal["exact", "relax"]


@full_precision
def crd_loss(student_scores: Tensor, teacher_scores: Tensor, num_samples: int) -> Tensor:
    """Noise-contrastive loss of the student's and of the teacher's side, summed; each is averaged over the batch.

    With K negatives, ``c = K / num_samples`` and x a row of scores, one side is
    ``-log(x_0 / (x_0 + c)) - sum_k log(c / (x_k + c))``, with 1e-7 added to both denominators.

    [0] Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, https://arxiv.org/abs/1910.10699
    [1] reference code: HobbitLong/RepDistiller, crd/criterion.py and crd/memory.py

    Args:
        student_scores: shape (B, 1 + K), ``exp(similarity / temperature)`` of the student's embedding with the
            teacher's memory over a constant; the positive comes first.
        teacher_scores: likewise, of the teacher's embedding with the student's memory.
        num_samples: size of the memory.

    Returns:
        A scalar, at least float32.

    Example:
        >>> import torch
        >>> scores = torch.full((2, 3), 0.5)
        >>> round(crd_loss(scores, scores, num_samples=100).item(), 4)
        13.1108
    """
    check_shapes("crd_loss", ("student_scores", student_scores, "B 1+K"), ("teacher_scores", teacher_scores, "B 1+K"))
    whole_number("crd_loss", 1, num_samples=num_samples)
    loss = student_scores.new_zeros(())
    for x in (student_scores, teacher_scores):
        noise = (x.shape[1] - 1) / num_samples
        positive, negative = x[:, 0], x[:, 1:]
        terms = (positive / (positive + noise + EPS)).log().sum() + (noise / (negative + noise + EPS)).log().sum()
        loss = loss - terms / len(x)
    return loss


class ContrastMemory(nn.Module):
    """Embeddings of student and teacher, and a memory of the last embeddings of every training image.

    Negatives are a function of (seed, calls so far, rank) alone, all kept in the state dict, so a resumed run draws
    what the uninterrupted one would have drawn.

    Args:
        student_dim, teacher_dim: widths of the pooled features.
        num_samples, num_classes: of the training data.
        settings: the strategy, for its hyper-parameters.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    constants: Tensor
    seed: Tensor
    calls: Tensor

    def __init__(self, student_dim: int, teacher_dim: int, num_samples: int, num_classes: int, settings: CRD) -> None:
        super().__init__()
        self.negatives, self.temperature = settings.negatives, settings.temperature
        self.momentum, self.mode = settings.momentum, settings.mode
        self.embed_student = LinearEmbedding(student_dim, settings.dim)
        self.embed_teacher = LinearEmbedding(teacher_dim, settings.dim)
        self.table = ClassTable(num_samples, num_classes)
        bound = 1 / math.sqrt(settings.dim / 3)
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(num_samples, settings.dim).uniform_(-bound, bound))
        self.register_buffer("constants", torch.full((2,), -1.0))
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(
        self, student: Tensor, teacher: Tensor, index: Tensor, label: Tensor, contrast: Tensor | None = None
    ) -> Tensor:
        """Loss of a batch; in training mode the memory is then updated with its embeddings.

        Args:
            student: pooled features, shape (B, D).
            teacher: pooled features, shape (B, D').
            index: positions among the training images, shape (B,); -1 for a padding sample, which changes nothing.
            label: shape (B,).
            contrast: shape (B, 1 + K), the positive first; drawn where None.
        """
        if contrast is None:
            contrast = self.draw(index, label)
        return self._contrast(self.embed_student(student), self.embed_teacher(teacher), index, contrast)

    def draw(self, index: Tensor, label: Tensor) -> Tensor:
        """Positives and negatives for the current call, shape (B, 1 + K)."""
        if not self.table.ready:
            raise RuntimeError("CRD does not know the labels of the training images: they come from the data module")
        draws = Draws(self.seed, self.calls, _rank())
        negatives = self.table.others(label, self.negatives, draws)
        positives = index.clamp_min(0) if self.mode == "exact" else self.table.same(label, draws)
        return torch.cat([positives[:, None], negatives], dim=1)

    @full_precision
    def _contrast(self, student: Tensor, teacher: Tensor, index: Tensor, contrast: Tensor) -> Tensor:
        student, teacher = normalize(student), normalize(teacher)  # (B, dim)
        with torch.no_grad():
            # The gradient is taken at once: the memory changes below, and a copy of it for later costs more.
            loss, grad_s, grad_t = self._loss_and_gradients(student, teacher, index, contrast)
            if self.training:
                self._remember(index, student, teacher)
                self.calls.add_(1)
        # The value of `loss`, with its gradient.
        s, t = student - student.detach(), teacher - teacher.detach()
        return loss + (s * grad_s).sum() + (t * grad_t).sum()

    def _loss_and_gradients(
        self, student: Tensor, teacher: Tensor, index: Tensor, contrast: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of unit embeddings, both (B, dim), against the memory as it stands, and its gradients."""
        sides = ((student, self.teacher_memory), (teacher, self.student_memory))
        scores = [self._scores(embedding, memory, contrast) for embedding, memory in sides]
        size = len(self.student_memory)
        constants = torch.where(self.calls == 0, self._means(scores, index) * size, self.constants)
        if self.training:
            self.constants.copy_(constants)
        scores = [x.div_(constant) for x, constant in zip(scores, constants, strict=True)]
        loss = crd_loss(scores[0], scores[1], size)
        grads = [self._gradient(x, memory, contrast) for x, (_, memory) in zip(scores, sides, strict=True)]
        return loss, grads[0], grads[1]

    def _scores(self, embedding: Tensor, memory: Tensor, contrast: Tensor) -> Tensor:
        """``exp(similarity / temperature)`` with the memory's rows ``contrast``: (B, dim) to (B, 1 + K)."""
        # One product with the whole memory, (B, N), is much faster than gathering (B, 1 + K, dim) rows.
        return (embedding @ memory.T).gather(1, contrast).div_(self.temperature).exp_()

    def _gradient(self, scores: Tensor, memory: Tensor, contrast: Tensor) -> Tensor:
        """Gradient of one side of :func:`crd_loss` with respect to the embedding, (B, dim); overwrites the scores.

        With x a score and c as there, ``x / (x + c) / (B * temperature)`` is the derivative with respect to the
        similarity with a negative, and that less ``1 / (B * temperature)`` the one with respect to the positive.
        """
        noise = (scores.shape[1] - 1) / len(memory) + EPS
        slope = scores.div_(scores + noise)
        slope[:, 0] -= 1
        slope /= len(slope) * self.temperature
        return slope.new_zeros(len(slope), len(memory)).scatter_add_(1, contrast, slope) @ memory

    def _means(self, scores: list[Tensor], index: Tensor) -> Tensor:
        """Mean scores of both sides over the images of all ranks, shape (2,)."""
        real = (index >= 0).to(scores[0])  # (B,)
        sums = torch.stack([*(x.sum(1) @ real for x in scores), real.sum() * scores[0].shape[1]])
        if _ranks() > 1:
            _add_ranks(sums)
        return sums[:2] / sums[2]

    def _remember(self, index: Tensor, student: Tensor, teacher: Tensor) -> None:
        if _ranks() > 1:
            index, student, teacher = _from_all_ranks(index, student, teacher)
        real = index >= 0
        # Without waiting for the device: a padding sample writes what some real image writes, to the same row.
        stand_in = index.argmax().view(1)
        rows = torch.where(real, index, index[stand_in].clamp_min(0))
        for memory, new in ((self.student_memory, student), (self.teacher_memory, teacher)):
            old = memory[rows]
            taken = torch.where(real[:, None], new, new[stand_in]).to(memory)
            moved = normalize(self.momentum * old + (1 - self.momentum) * taken)
            memory[rows] = torch.where(real.any(), moved, old)


@dataclass(eq=False)
class CRD(LossStrategy):
    """Contrastive representation distillation (CRD) with a memory of all training images (see :func:`crd_loss`).

    Both pooled features are embedded by trained linear layers, the teacher's too. The student's embedding is compared
    with the teacher's memory and the other way round. Scores are divided by constants fixed by the first batch.
    Negatives are images of other classes; ``mode`` chooses the positive.

    Negatives are drawn on the device from the batch's indices and a table of labels, not by the data loader as in the
    original. Each process draws its own; the memories are updated with the embeddings of all processes, and
    the constants are means over them.

    Args:
        weight: factor of the loss; 0.8 in RepDistiller's script, for all pairs.
        dim: width of the embeddings.
        negatives: K, images of other classes for each image.
        temperature: divides the similarities.
        momentum: share of the old embedding when the memory is updated.
        mode: the positive is the image itself (``exact``) or any image of its class (``relax``).
    """

    needs_index = True
    needs_labels = True

    weight: NonNegativeFloat = 0.8
    dim: PositiveInt = 128
    negatives: PositiveInt = 16384
    temperature: PositiveFloat = 0.07
    momentum: Annotated[float, from_to(0, 1)] = 0.5
    mode: Mode = "exact"

    def vectors_of(self, net: FeatureShapes) -> dict[str, tuple[int, ...]]:
        return {"the pooled feature": net.pooled}

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        if data.num_samples is None:
            raise UserError(
                "CRD keeps a memory of every training image and must know how many there are: set num_samples "
                "(model.num_samples; on the command line it comes from the data)"
            )
        return ContrastMemory(student.pooled[0], teacher.pooled[0], data.num_samples, data.num_classes, self)

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        memory = expect(self, adapter, ContrastMemory)
        loss: Tensor = memory(student.pooled, teacher.pooled.detach(), batch.index, batch.label)
        return loss

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the labels of the training images from the data module."""
        module: Any = pl_module
        table = expect(self, module.adapter_of(self), ContrastMemory).table
        labels = getattr(getattr(trainer, "datamodule", None), "train_labels", None)
        if labels is not None:
            table.fill(torch.as_tensor(labels))
        elif not table.ready:
            raise UserError(
                "CRD needs the labels of all training images: give the trainer a data module with train_labels"
            )


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _ranks() > 1 else 0


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _add_ranks(sums: Tensor) -> None:
    dist.all_reduce(sums)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _from_all_ranks(index: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """The indices and rows of all ranks, in the order of the ranks; shorter ranks are padded (index -1)."""
    longest = torch.tensor(len(index), device=index.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - len(index)
    padded = [torch.cat([index, index.new_full((missing,), -1)])]
    padded += [torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) for x in rows]
    gathered = []
    for x in padded:
        parts = [torch.empty_like(x) for _ in range(_ranks())]
        dist.all_gather(parts, x.contiguous())
        gathered.append(torch.cat(parts))
    return tuple(gathered)
