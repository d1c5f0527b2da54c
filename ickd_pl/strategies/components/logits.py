"""What several methods do with logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ickd_pl.models.features import Features


def standardised(logits: Tensor) -> Tensor:
    """Logits (B, K) less their mean over the classes, divided by their deviation (unbiased, plus 1e-7), for each image.

    Logits that are all equal become zeros, with a gradient of zero.

    [0] Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024
    """
    logits = logits if logits.element_size() >= 4 else logits.float()  # half precision is too coarse for deviations
    centred = logits - logits.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / max(logits.shape[1] - 1, 1)
    # The gradient of a square root at 0 is infinite; the smallest number changes no other value.
    return centred / ((variance + torch.finfo(logits.dtype).tiny).sqrt() + 1e-7)


def logits_of(student: Features, teacher: Features, standardise: bool) -> tuple[Tensor, Tensor]:
    """Both networks' logits, standardised where that is asked for."""
    found = student.logits, teacher.logits
    return (standardised(found[0]), standardised(found[1])) if standardise else found


def binary_kl(teacher_odds: Tensor, student_odds: Tensor) -> Tensor:
    """KL divergence of (p, 1 - p) from the teacher's to the student's, from the log odds of p, (B,); of shape (B,)."""
    one = teacher_odds.sigmoid() * (logsigmoid(teacher_odds) - logsigmoid(student_odds))
    return one + (-teacher_odds).sigmoid() * (logsigmoid(-teacher_odds) - logsigmoid(-student_odds))
