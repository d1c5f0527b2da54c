"""A made-up CIFAR in every form in which people have it."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from ickd_pl.data import CIFAR100
from ickd_pl.data.sources.verify import Split
from tests.data.cifar_source import joined, make_source


@dataclass
class MadeUp:
    """The images by split, and the official folder with them."""

    splits: dict[str, Split]
    official: Path


def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """A set of 200 training and 200 test images of 100 classes; CIFAR100 takes it for the published one."""
    monkeypatch.setattr(CIFAR100, "num_available", 200)
    official = make_source(folder / "cifar-100-python", datasets.CIFAR100, "fine_labels", 100, monkeypatch)
    data = CIFAR100(str(folder), download=False)
    splits = {}
    for number, name in enumerate(("train", "test")):
        found = data._official(name)
        shuffled = np.random.default_rng(number).permutation(len(found.label))
        splits[name] = joined([(found.image[shuffled].reshape(-1, 3072), found.label[shuffled].tolist())])
    return MadeUp(splits, official)


def files(splits: dict[str, Split], form: str = "PNG", **options: int) -> Iterator[tuple[str, bytes]]:
    """Path below the top folder and content of each image's file."""
    for name, split in splits.items():
        for number, (image, label) in enumerate(zip(split.image, split.label, strict=True)):
            content = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(content, form, **options)
            yield f"{name}/name {label}/{number}.png", content.getvalue()


def tree(path: Path, splits: dict[str, Split], form: str = "PNG", **options: int) -> Path:
    for name, content in files(splits, form, **options):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def zipped(path: Path, splits: dict[str, Split]) -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in files(splits):
            bundle.writestr(f"images/{name}", content)
            bundle.writestr(f"__MACOSX/images/{name}", b"of another program")
    return path


def tarred(path: Path, splits: dict[str, Split]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files(splits):
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def npz(path: Path, splits: dict[str, Split]) -> Path:
    arrays = {"classes": np.array([f"name {k}" for k in range(100)])}
    for name, split in splits.items():
        arrays |= {f"x_{name}": split.image.transpose(0, 2, 3, 1), f"y_{name}": split.label}
        arrays[f"names_{name}"] = np.array([f"{i}.png" for i in range(len(split.label))])
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def parquet(path: Path, splits: dict[str, Split]) -> Path:
    """As Hugging Face has it; test images in two files."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    path.mkdir()
    for name, split in splits.items():
        cells = [{"bytes": content, "path": file} for file, content in files({name: split})]
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        table = pyarrow.table({"img": pyarrow.array(cells, kind), "fine_label": split.label.astype(np.int64)})
        if name == "train":
            pq.write_table(table, path / "train-00000-of-00001.parquet")
            continue
        for part in range(2):
            pq.write_table(table.slice(100 * part, 100), path / f"test-0000{part}-of-00002.parquet")
    return path


FORMS = {"folder": tree, "zip": zipped, "tar": tarred, "npz": npz, "parquet": parquet}
