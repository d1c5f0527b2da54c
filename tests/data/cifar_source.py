"""A made-up CIFAR in the published layout: no test touches the network."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from ickd_pl.data import CIFAR10, CIFAR100
from ickd_pl.data.sources.facts import Digests
from ickd_pl.data.sources.verify import Split, image_digests, set_digest


def make_source(folder: Path, spec: type, key: str, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked folder in the published layout; torchvision's md5 lists and our digests are set to it."""
    folder.mkdir(parents=True)
    sums, splits = {}, {"train": [], "test": []}
    ours = CIFAR100 if num_classes == 100 else CIFAR10

    def dump(name: str, content: dict[str, object]) -> None:
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for number, (name, _) in enumerate([*spec.train_list, *spec.test_list]):
        labels = [i % num_classes for i in range(2 * num_classes)]
        data = np.random.default_rng(number).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        dump(name, {"data": data, key: labels})
        splits["train" if [name] in [each[:1] for each in spec.train_list] else "test"].append((data, labels))
    dump(spec.meta["filename"], {spec.meta["key"]: [f"name {k}" for k in range(num_classes)]})
    for lists in ("train_list", "test_list"):
        monkeypatch.setattr(spec, lists, [[name, sums[name]] for name, _ in getattr(spec, lists)])
    monkeypatch.setattr(spec, "meta", {**spec.meta, "md5": sums[spec.meta["filename"]]})
    monkeypatch.setattr(ours, "num_test", 2 * num_classes)
    monkeypatch.setattr(ours, "classes", tuple(f"name {k}" for k in range(num_classes)))
    if num_classes == 100:
        monkeypatch.setattr(ours, "digests", digests_of({name: joined(own) for name, own in splits.items()}))
    return folder


def joined(entries: list[tuple[np.ndarray, list[int]]]) -> Split:
    """Images of some files of the official layout."""
    image = np.concatenate([data for data, _ in entries]).reshape(-1, 3, 32, 32)
    return Split(image, np.array([label for _, labels in entries for label in labels], np.uint8))


def digests_of(splits: dict[str, Split]) -> Digests:
    """What a made-up set is verified against."""
    labelled = {name: image_digests(split) for name, split in splits.items()}
    return Digests(
        labelled={name: set_digest(own) for name, own in labelled.items()},
        pixels={name: set_digest(image_digests(split, labelled=False)) for name, split in splits.items()},
        both=set_digest([one for own in labelled.values() for one in own]),
        shared=0,
    )
