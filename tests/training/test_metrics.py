"""Accuracies of an evaluation."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from ickd_pl import Batch
from ickd_pl.training.metrics import Accuracies


@pytest.mark.parametrize("num_classes", [4, 10])
def test_accuracies_are_those_of_torchmetrics(num_classes: int) -> None:
    """Bit for bit, over batches of several sizes, with padding."""
    own, draw = Accuracies(num_classes), torch.Generator().manual_seed(1)
    top = (1, 5) if num_classes > 5 else (1,)
    theirs = {k: MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in top}
    for size in (7, 5, 3):
        logits = torch.randn(size, num_classes, generator=draw).bfloat16()
        label, index = torch.randint(0, num_classes, (size,), generator=draw), torch.arange(size) - int(size == 3)
        own.update(logits, Batch(torch.zeros(0), label, index))
        for metric in theirs.values():
            metric.update(logits[index >= 0].float(), label[index >= 0])
    expected = {f"acc{k}": 100 * float(metric.compute()) for k, metric in theirs.items()}
    assert own.percentages() == expected and 0 < expected["acc1"] < 100


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_only_what_came_since_the_last_call_counts() -> None:
    own, right = Accuracies(10), torch.eye(10)
    padding = Batch(torch.zeros(0), torch.arange(10), torch.full((10,), -1))
    with torch.inference_mode():
        own.update(right, padding._replace(index=torch.arange(10)))
        assert own.percentages() == {"acc1": 100, "acc5": 100}
    own.update(right, padding)
    assert own.percentages() == {"acc1": 0, "acc5": 0}
    assert own.state_dict() == {}  # checkpoints hold nothing of it
