"""CIFAR out of small made-up archives: no test touches the network."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import tarfile
import time
import urllib.error
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from torchvision import datasets

from ickd_pl.data import CIFAR10, CIFAR100
from ickd_pl.data.sources import official
from ickd_pl.data.sources.official import md5_of
from ickd_pl.errors import UserError
from tests.data.cifar_source import make_source


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR100, "num_available", 200)
    return make_source(tmp_path / "src" / "cifar-100-python", datasets.CIFAR100, "fine_labels", 100, monkeypatch)


@pytest.fixture
def tar(source, tmp_path, monkeypatch):
    path = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(source, "cifar-100-python")
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def check(data: CIFAR100, source: Path) -> None:
    data.prepare_data()
    data.setup()
    entry = pickle.loads((source / "train").read_bytes())
    pairs = [bytes([k]) + image.tobytes() for k, image in zip(entry["fine_labels"], entry["data"], strict=True)]
    pairs.sort(key=lambda one: hashlib.sha256(one).digest())
    image, label = data._part("train")
    assert [bytes([k]) + one.tobytes() for k, one in zip(label.tolist(), image.numpy(), strict=True)] == pairs
    assert len(data._part("test").label) == 200
    assert data.class_names[7] == "name 7"


def test_known_before_anything_is_read(tmp_path):
    data = CIFAR100(str(tmp_path / "none"), val_size=5000)
    assert (data.name, data.num_classes, data.num_train, data.image_size) == ("cifar100", 100, 45_000, 32)
    assert (data.mean, data.std) == ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761])
    ten = CIFAR10(str(tmp_path / "none"))
    assert (ten.name, ten.num_classes, ten.num_train) == ("cifar10", 10, 50_000)
    assert (ten.mean, ten.std) == ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("given", ["folder", "parent", "tar", "root folder", "root tar"])
def test_every_way_to_give_it_locally(source, tar, tmp_path, given):
    root = tmp_path / "data"
    if given == "root folder":
        shutil.copytree(source, root / source.name)
    elif given == "root tar":
        root.mkdir()
        shutil.copy(tar, root)
    archive = {"folder": source, "parent": source.parent, "tar": tar}.get(given)
    check(CIFAR100(str(root), download=False, archive=str(archive) if archive else None), source)
    assert sorted(p.name for p in (root / source.name).iterdir()) == ["meta", "test", "train"]


def test_cifar10_has_five_training_files(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "num_available", 100)
    source = make_source(tmp_path / "cifar-10-batches-py", datasets.CIFAR10, "labels", 10, monkeypatch)
    data = CIFAR10(str(tmp_path), download=False, train_size=50)
    data.prepare_data()
    data.setup()
    assert data.train_labels.bincount().tolist() == [5] * 10
    assert len(pickle.loads((source / "data_batch_5").read_bytes())["labels"]) == 20


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_corrupt_file_is_named_and_an_archive_repairs_it(source, tar, tmp_path, name):
    root = tmp_path / "data"
    shutil.copytree(source, root / source.name)
    bad = root / source.name / name
    content = bytearray(bad.read_bytes())
    expected = hashlib.md5(content).hexdigest()
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    found = hashlib.md5(content).hexdigest()
    with pytest.raises(UserError, match=rf"cifar-100-python/{name} is corrupt: expected md5 {expected}, found {found}"):
        CIFAR100(str(root)).prepare_data()
    if name != "meta":  # which is checked, but not needed
        with pytest.raises(UserError, match=f"{name} is corrupt"):
            CIFAR100(str(root)).setup()
    check(CIFAR100(str(root), download=False, archive=str(tar)), source)


def test_a_corrupt_archive_is_named_and_leaves_nothing_half_done(source, tar, tmp_path, monkeypatch):
    root = tmp_path / "data"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cifar-100-python\.tar\.gz \(.*is corrupt: expected md5"):
        CIFAR100(str(root), archive=str(tar)).prepare_data()
    tar.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"must be the official archive or its folder, .* got a file that starts with"):
        CIFAR100(str(root), archive=str(tar)).prepare_data()
    (source / "test").write_bytes(b"wrong")
    with pytest.raises(UserError, match=r"cifar-100-python \(test\) is corrupt"):
        CIFAR100(str(root), archive=str(source)).prepare_data()
    (source / "test").unlink()
    with pytest.raises(UserError, match="lacks test"):
        CIFAR100(str(root), archive=str(source)).prepare_data()
    assert not (root / source.name / "test").exists()
    with pytest.raises(UserError, match="elsewhere does not exist"):
        CIFAR100(str(root), archive=str(tmp_path / "elsewhere")).prepare_data()


def test_an_archive_writes_nothing_outside_its_folder(source, tmp_path):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(source, "cifar-100-python")
        archive.add(source / "meta", "../../escaped")
        archive.add(source / "meta", "cifar-100-python/extra")
        link = tarfile.TarInfo("cifar-100-python/train")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    root = tmp_path / "a" / "b"
    check(CIFAR100(str(root), download=False, archive=str(path)), source)
    assert not (tmp_path / "escaped").exists()
    assert sorted(p.name for p in (root / source.name).iterdir()) == ["meta", "test", "train"]
    assert not (root / source.name / "train").is_symlink()


@pytest.mark.parametrize("given", ["archive", "root"])
def test_an_archive_with_large_members(source, tmp_path, monkeypatch, given):
    """The published ones have 155 and 31 million bytes. What follows the end of a pickle is not read."""
    for lists, name, size in (("train_list", "train", 15_500_000), ("test_list", "test", 5_000_000)):
        content = (source / name).read_bytes()
        content += bytes(size - len(content))
        (source / name).write_bytes(content)
        monkeypatch.setattr(datasets.CIFAR100, lists, [[name, hashlib.md5(content).hexdigest()]])
    root = tmp_path / "data"
    root.mkdir()
    path = (root if given == "root" else tmp_path) / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(source, "cifar-100-python")
    CIFAR100(str(root), download=False, archive=path if given == "archive" else None).prepare_data()
    assert md5_of(root / source.name / "train") == datasets.CIFAR100.train_list[0][1]


@pytest.fixture
def mirror(tar, monkeypatch):
    """A server on this machine that holds the archive."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tar.parent))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(datasets.CIFAR100, "url", f"http://127.0.0.1:{server.server_port}/{tar.name}")
        yield tar
        server.shutdown()


def test_a_download_is_checked_and_leaves_only_the_files(source, mirror, tmp_path):
    root = tmp_path / "data"
    whole = mirror.read_bytes()
    mirror.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match=r"cannot be downloaded from .*corrupted"):
        CIFAR100(str(root)).prepare_data()
    assert not root.exists()
    mirror.write_bytes(whole)
    check(CIFAR100(str(root)), source)
    assert [p.name for p in root.iterdir()] == ["cifar-100-python"]


def test_a_downloaded_archive_outlives_a_failure_to_take_it(source, mirror, tmp_path, monkeypatch):
    root = tmp_path / "data"
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise UserError("cannot write train.")

        patch.setattr(official, "write_file", fail)
        with pytest.raises(UserError, match=r"cannot write train\. The downloaded archive is kept as .*100-python"):
            CIFAR100(str(root)).prepare_data()
    assert [p.name for p in root.iterdir()] == [mirror.name]
    check(CIFAR100(str(root), download=False), source)


@pytest.mark.parametrize("error", [urllib.error.URLError("unreachable"), RuntimeError("File not found or corrupted.")])
def test_no_network(source, tmp_path, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    with pytest.raises(UserError, match=r"cannot be downloaded .*give archive=, a local cifar-100-python\.tar\.gz"):
        CIFAR100(str(tmp_path / "data")).prepare_data()
    assert not (tmp_path / "data").exists()


def test_a_failed_download_removes_no_folder_of_the_users(source, mirror, tmp_path):
    mirror.write_bytes(b"no archive")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="cannot be downloaded"):
        CIFAR100(str(tmp_path / "mine" / "new" / "data")).prepare_data()
    assert list((tmp_path / "mine").iterdir()) == []


def test_missing_and_not_to_be_downloaded(source, tmp_path):
    with pytest.raises(UserError, match=r"train is missing\. Set download=true, or give archive="):
        CIFAR100(str(tmp_path / "data"), download=False).prepare_data()
    with pytest.raises(UserError, match=r"train cannot be read .* Call prepare_data"):
        CIFAR100(str(tmp_path / "data"), download=False).setup()


def test_what_has_the_wrong_md5_is_never_unpickled(source, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "data" / source.name)
    (tmp_path / "data" / source.name / "train").write_bytes(pickle.dumps({"data": 1}))
    monkeypatch.setattr(official.pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(UserError, match="train is corrupt"):
        CIFAR100(str(tmp_path / "data")).setup()


def test_an_archive_that_unpacks_to_gigabytes(source, tmp_path):
    """Refused by what its headers say, before anything is unpacked."""
    info = tarfile.TarInfo("cifar-100-python/train")
    info.size = 3 * 2**30
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10 * 2**20), 1))
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"bomb\.tar\.gz \(holds cifar-100-python/train of 3,221,225,472 bytes"):
        CIFAR100(str(tmp_path / "data"), archive=str(tmp_path / "bomb.tar.gz")).prepare_data()
    assert time.perf_counter() - began < 5
    assert not (tmp_path / "data").exists()
