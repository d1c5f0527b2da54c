"""A data set is the same, in the same order, whatever form its images come in."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ickd_pl.data import CIFAR10, CIFAR100
from ickd_pl.data.sources import parquet
from ickd_pl.errors import UserError
from ickd_pl.training.fingerprint import data_hash
from tests.data.sources.made_up import FORMS, MadeUp, make, npz, tree

REAL = Path(os.environ.get("ICKD_CIFAR100", "nowhere"))


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    return make(tmp_path / "src", monkeypatch)


def loaded(root: Path, archive: Path | None) -> CIFAR100:
    data = CIFAR100(str(root), download=False, archive=archive)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("form", FORMS)
def test_the_same_whatever_the_form(form: str, made_up: MadeUp, tmp_path: Path) -> None:
    official = loaded(tmp_path / "official", made_up.official)
    path = FORMS[form](tmp_path / "a name that says nothing", made_up.splits)
    other = loaded(tmp_path / "data", path)
    assert data_hash(other) == data_hash(official)
    assert other.class_names == official.class_names
    first, second = (next(iter(each.train_dataloader())) for each in (official, other))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert [file.name for file in (tmp_path / "data").glob("[!.]*")] == ["cifar100-prepared.npz"]


def test_the_second_start_reads_the_prepared_file(
    made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root = tree(tmp_path / "images", made_up.splits), tmp_path / "data"
    before = data_hash(loaded(root, path))
    decoding = "ickd_pl.data.sources.png.decode_png"
    with monkeypatch.context() as patch:
        patch.setattr(decoding, lambda *_: pytest.fail("decoded again"))
        assert data_hash(loaded(root, path)) == before
        assert data_hash(loaded(root, None)) == before  # the prepared file is enough
        assert data_hash(loaded(tmp_path / "other", root / "cifar100-prepared.npz")) == before
        os.utime(next(path.rglob("*.png")))
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            loaded(root, path)
    damaged = bytearray((root / "cifar100-prepared.npz").read_bytes())
    damaged[5000] ^= 1
    (root / "cifar100-prepared.npz").write_bytes(damaged)
    with pytest.raises(UserError, match=r"cifar100-prepared\.npz is damaged \(.*\): delete it"):
        loaded(root, None)


def test_a_changed_source_is_read_and_refused(made_up: MadeUp, tmp_path: Path) -> None:
    path, root = tree(tmp_path / "images", made_up.splits), tmp_path / "data"
    loaded(root, path)
    next(path.rglob("*.png")).unlink()
    with pytest.raises(UserError, match=r"199 training images, expected 200|199 test images, expected 200"):
        loaded(root, path)


def test_without_prepare_data(made_up: MadeUp, tmp_path: Path) -> None:
    path = tree(tmp_path / "images", made_up.splits)
    with pytest.raises(UserError, match=r"cifar100-prepared\.npz is missing\. Call prepare_data"):
        CIFAR100(str(tmp_path / "data"), archive=path).setup()


def test_cifar10_from_another_form_is_not_verified_and_says_so(
    made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (("num_available", 200), ("num_test", 200), ("classes", CIFAR100.classes), ("num_classes", 100)):
        monkeypatch.setattr(CIFAR10, name, value)
    path = tree(tmp_path / "images", made_up.splits)
    data = CIFAR10(str(tmp_path / "data"), archive=path)
    data.prepare_data()
    with caplog.at_level("INFO", "pytorch_lightning"):
        data.setup("test")
    assert "test images of CIFAR10 are not verified" in caplog.text
    next(path.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="is not CIFAR10 as published: 199 "):
        CIFAR10(str(tmp_path / "data"), archive=path).prepare_data()


def test_what_is_none_of_the_forms(made_up: MadeUp, tmp_path: Path) -> None:
    cases = {
        "empty": "a folder with nothing",
        "other": "a folder with train",
        "text": "a file that starts with b'no im",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "text").write_text("no images")
    for name, came in cases.items():
        with pytest.raises(UserError, match=f"{name} must be the official archive or its folder, .* got {came}"):
            loaded(tmp_path / "data", tmp_path / name)
    (tmp_path / "one").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is one parquet file: give the folder"):
        loaded(tmp_path / "data", tmp_path / "one")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe cannot be read \(a pipe"):
        loaded(tmp_path / "data", tmp_path / "pipe")
    assert not (tmp_path / "data").exists()


def test_parquet_without_pyarrow(made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train.parquet").write_bytes(b"PAR1")
    assert parquet.parquet_files(tmp_path / "images")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install '\.\[parquet\]' in the clone"):
        loaded(tmp_path / "data", tmp_path / "images")


@pytest.mark.skipif(not REAL.exists(), reason="CIFAR-100 itself (ICKD_CIFAR100: a folder of PNG files) is not here")
def test_the_real_one(tmp_path: Path) -> None:
    """Verified, and fast from the second time on, in a process of its own."""
    whole = loaded(tmp_path, REAL)
    assert (len(whole.train_labels), whole.train_labels[:4].tolist()) == (50_000, [27, 91, 88, 40])
    program = (
        "import sys, time; from ickd_pl.data import CIFAR100; begun = time.perf_counter(); "
        "data = CIFAR100(sys.argv[1], archive=sys.argv[2]); data.prepare_data(); data.setup(); "
        "print(time.perf_counter() - begun)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(REAL)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5


def test_a_tree_stays_one_whatever_lies_beside_it(made_up: MadeUp, tmp_path: Path) -> None:
    """Its folders may be named in capitals; in an archive its top folder may be that of the official files."""
    path = tree(tmp_path / "cifar-100-python", made_up.splits)
    (path / "meta").write_bytes(b"names")
    before = data_hash(loaded(tmp_path / "a", path))
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(path, path.name)
    assert data_hash(loaded(tmp_path / "b", tmp_path / "tar")) == before
    for old, new in (("train", "TRAIN"), ("test", "Test")):
        (path / old).rename(path / new)
    assert data_hash(loaded(tmp_path / "c", path)) == before
    with zipfile.ZipFile(tmp_path / "zip", "w") as bundle:
        for file in path.rglob("*.png"):
            bundle.write(file, file.relative_to(path))
    assert data_hash(loaded(tmp_path / "d", tmp_path / "zip")) == before


def test_labels_as_keras_has_them(made_up: MadeUp, tmp_path: Path) -> None:
    with np.load(npz(tmp_path / "a", made_up.splits)) as content:
        changed = {key: value[:, None] if key[0] == "y" else value for key, value in content.items()}
    with (tmp_path / "b").open("wb") as file:
        np.savez(file, **changed)
    assert data_hash(loaded(tmp_path / "c", tmp_path / "b")) == data_hash(loaded(tmp_path / "d", tmp_path / "a"))


def test_classes_by_number_and_channels_in_reverse(made_up: MadeUp, tmp_path: Path) -> None:
    path = tree(tmp_path / "images", made_up.splits)
    for split in ("train", "test"):
        (path / split / "name 7").rename(path / split / "7")
    with pytest.raises(UserError, match=r"7 is not a class of CIFAR100; classes have their names .*, it is name 7\.$"):
        loaded(tmp_path / "data", path)
    reverse = {name: split._replace(image=split.image[:, ::-1]) for name, split in made_up.splits.items()}
    with pytest.raises(UserError, match=r"test images and their labels are right, but channels are in reverse order"):
        loaded(tmp_path / "data", npz(tmp_path / "b", reverse))
