"""CRD in the plain loop: the data set draws the negatives by numpy, the memories are gathered row by row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ladder_parts.literal import Embedding

NEGATIVES, SIZE, TEMPERATURE, MOMENTUM, EPSILON = 16384, 128, 0.07, 0.5, 1e-7


class NegativesByClass:
    """For an image, its own position and as many positions of images of other classes, (1 + NEGATIVES,) int64."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels
        self.others = [np.flatnonzero(labels != label) for label in range(labels.max() + 1)]

    def __call__(self, index: int) -> np.ndarray:
        pool = self.others[self.labels[index]]
        drawn = np.random.choice(pool, NEGATIVES, replace=len(pool) < NEGATIVES)
        return np.hstack((np.asarray([index]), drawn))


class Contrast(nn.Module):
    """Tian, Krishnan, Isola, ICLR 2020. The data set draws, so that the memory's own alias table is never asked."""

    def __init__(self, student: Tensor, teacher: Tensor, count: int) -> None:
        super().__init__()
        self.count = count
        self.embed = nn.ModuleList([Embedding(pooled.shape[1], unit=True, size=SIZE) for pooled in (student, teacher)])
        bound = 1.0 / (SIZE / 3) ** 0.5
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.rand(count, SIZE) * 2 * bound - bound)
        self.scale = [-1.0, -1.0]

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        u, v = self.embed[0](student), self.embed[1](teacher)
        scores = [self._scores(0, self.teacher_memory, u, drawn), self._scores(1, self.student_memory, v, drawn)]
        with torch.no_grad():
            for memory, new in ((self.student_memory, u), (self.teacher_memory, v)):
                mixed = torch.index_select(memory, 0, index) * MOMENTUM + new * (1 - MOMENTUM)
                memory.index_copy_(0, index, mixed / mixed.pow(2).sum(1, keepdim=True).pow(0.5))
        return self._loss(scores[0]) + self._loss(scores[1])

    def _scores(self, side: int, memory: Tensor, anchor: Tensor, drawn: Tensor) -> Tensor:
        rows = torch.index_select(memory, 0, drawn.view(-1)).detach().view(len(anchor), drawn.shape[1], SIZE)
        found = torch.exp(torch.bmm(rows, anchor.view(len(anchor), SIZE, 1)) / TEMPERATURE)
        if self.scale[side] < 0:
            self.scale[side] = found.mean().item() * self.count
        return torch.div(found, self.scale[side]).contiguous()

    def _loss(self, scores: Tensor) -> Tensor:
        noise = NEGATIVES / self.count
        positive, negative = scores.select(1, 0), scores.narrow(1, 1, NEGATIVES)
        first = torch.log(positive / (positive + noise + EPSILON))
        second = torch.log(torch.full_like(negative, noise) / (negative + noise + EPSILON))
        return -(first.sum(0) + second.view(-1, 1).sum(0)).squeeze() / len(scores)
