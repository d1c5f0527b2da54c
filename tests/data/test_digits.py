"""The demo data."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from ickd_pl.data import Digits
from ickd_pl.errors import UserError

pytest.importorskip("sklearn")


def test_digits():
    data = Digits()
    assert (data.name, data.num_classes, data.image_size, data.num_train) == ("digits", 10, 32, 1437)
    data.setup()
    assert data.train_labels.shape == (1437,)
    assert torch.bincount(data.train_labels).min() > 130
    assert data.class_names == list("0123456789")
    image = torch.cat([batch.image for batch in data.test_dataloader()])
    assert image.shape == (360, 3, 32, 32)
    assert torch.cat([batch.label for batch in data.val_dataloader()]).bincount().min() > 20
    train = data._part("train").image
    assert train.dtype == torch.uint8
    assert torch.equal(train[:, 0], train[:, 2])
    assert 0.2 < data.mean[0] < 0.4
    assert data.mean == pytest.approx((train.double() / 255).mean((0, 2, 3)).tolist())


def test_the_images_are_the_digits():
    from sklearn.datasets import load_digits

    source = load_digits()
    test = Digits()._part("test")
    assert test.label.tolist() == source.target[1437:].tolist()
    small = test.image[:, 0].float().view(-1, 8, 4, 8, 4).mean((2, 4)).numpy() / 255 * 16
    matches = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small, source.images[1437:], strict=True)]
    assert min(matches) > 0.9


def test_digits_are_cropped_but_never_mirrored():
    loader = Digits(train_size=50, val_size=20).train_dataloader()
    draws = loader._draw(0)
    assert not draws.flip.any()
    assert draws.offset.max() == 8


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install '\.\[demo\]' in the clone"):
        Digits().setup()


def test_as_text() -> None:
    assert str(Digits(val_size=37, seed=1)) == (
        "Digits(batch_size=64, eval_batch_size=None, val_size=37, train_size=None, seed=1)"
    )
