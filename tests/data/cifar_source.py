"""A made-up CIFAR in the published layout: no test touches the network."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest


def make_source(folder: Path, spec: type, key: str, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked folder in the published layout; torchvision's md5 lists are set to it."""
    folder.mkdir(parents=True)
    sums = {}

    def dump(name: str, content: dict[str, object]) -> None:
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for number, (name, _) in enumerate([*spec.train_list, *spec.test_list]):
        labels = [i % num_classes for i in range(2 * num_classes)]
        data = np.random.default_rng(number).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        dump(name, {"data": data, key: labels})
    dump(spec.meta["filename"], {spec.meta["key"]: [f"name {k}" for k in range(num_classes)]})
    for lists in ("train_list", "test_list"):
        monkeypatch.setattr(spec, lists, [[name, sums[name]] for name, _ in getattr(spec, lists)])
    monkeypatch.setattr(spec, "meta", {**spec.meta, "md5": sums[spec.meta["filename"]]})
    return folder
