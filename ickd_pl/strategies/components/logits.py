"""What methods do to logits before they compare them."""

from __future__ import annotations

from torch import Tensor

EPS = 1e-7


def standardised(logits: Tensor) -> Tensor:
    """Logits of each image less their mean and divided by their unbiased deviation over the classes, plus 1e-7.

    A gradient flows through mean and deviation.

    [0] Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024,
        https://arxiv.org/abs/2403.01427
    [1] reference code: sunshangquan/logit-standardization-KD, mdistiller/distillers, at commit f6e5aa5

    Args:
        logits: shape (B, K), at least float32.
    """
    return (logits - logits.mean(1, keepdim=True)) / (EPS + logits.std(1, keepdim=True))
