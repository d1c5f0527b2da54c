"""``data check`` says what a copy of CIFAR is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ickd_pl.data import CIFAR100
from tests.data.sources.made_up import make, tree, zipped
from tests.runs.helpers import cli


def test_a_copy_is_described_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = make(tmp_path / "src", monkeypatch)
    digests = CIFAR100.digests
    assert digests is not None
    for path in (made_up.official, zipped(tmp_path / "images", made_up.splits)):
        done = cli("data", "check", path)
        assert done.status == 0, done.err
        assert "), as published" in done.out and f"digest {digests.labelled['test']}" in done.out
        assert "0 test images equal a training image" in done.out
    path = tree(tmp_path / "tree", made_up.splits)
    next(path.rglob("*.png")).unlink()
    done = cli("data", "check", path)
    assert done.status == 2 and "is not CIFAR100 as published: 199" in done.err and len(done.err.splitlines()) == 1
    done = cli("data", "check", "nowhere")
    assert done.status == 2 and "nowhere does not exist" in done.err


def test_repeated_images_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = make(tmp_path / "src", monkeypatch)
    monkeypatch.setattr(CIFAR100, "digests", None)
    train, test = made_up.splits["train"], made_up.splits["test"]
    train.image[0] = train.image[1]
    test.image[:3] = train.image[5]
    done = cli("data", "check", tree(tmp_path / "tree", made_up.splits))
    assert "not verified" in done.out
    assert "1 training images are there more than once" in done.out
    assert "1 test images are there more than once" in done.out
    assert "3 test images equal a training image" in done.out
