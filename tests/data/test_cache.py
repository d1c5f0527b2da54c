"""Where the images of a folder are kept: in memory, in a file or nowhere, which changes only time and memory."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ickd_pl.data import ImageFolder, cache, decode, image_folder
from ickd_pl.data.images import LazyImages
from ickd_pl.errors import UserError
from ickd_pl.training.fingerprint import data_hash

KINDS = ("memory", "disk", "none")


def write(path: Path, seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "zoo"
    for c, name in enumerate(("ant", "bee")):
        for i in range(6):
            write(folder / "train" / name / f"{i}.png", 10 * c + i)
        write(folder / "test" / name / "0.png", 100 + c)
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ickd_pl.data.images.PART", 5 * 3 * 8 * 8)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files in the order in which they are decoded."""
    paths: list[str] = []
    original = decode.decode_file

    def noted(path: str, size: int) -> np.ndarray:
        paths.append(path)
        return original(path, size)

    monkeypatch.setattr(decode, "decode_file", noted)
    return paths


def make(root: Path, kind: str = "disk", **kwargs: object) -> ImageFolder:
    return ImageFolder(str(root), image_size=8, batch_size=4, cache=kind, **kwargs)  # type: ignore[arg-type]


def images(root: Path, kind: str = "disk") -> torch.Tensor:
    return make(root, kind)._part("train").image[:]  # type: ignore[return-value]


def file(root: Path, split: str = "train") -> Path:
    return root / ".ickd_cache" / f"{split}_8.images"


@pytest.mark.parametrize("sizes", [{}, {"val_size": 3, "train_size": 6}])
@pytest.mark.parametrize("small", [True, False])
def test_every_kind_gives_the_same_batches_and_hash(
    root: Path, sizes: dict[str, int], small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr("ickd_pl.data.augment.MIRROR_LIMIT", 0)
    found = []
    for kind in (*KINDS, *KINDS):  # the second time out of the file
        data = make(root, kind, predict_root=str(root / "test"), **sizes)
        data.setup()
        assert isinstance(data._part("train").image, LazyImages) == (kind != "memory")
        loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()
        batches = [torch.cat([part.flatten() for batch in loader for part in batch]) for loader in loaders]
        found.append((batches, data.mean, data.std, data_hash(data), data.predict_paths()))
    for other in found[1:]:
        assert all(map(torch.equal, other[0], found[0][0])) and other[1:] == found[0][1:]


def test_auto_keeps_little_in_memory_and_much_on_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 14 * 3 * 8 * 8
    for limit, kind in ((count, "memory"), (count - 1, "disk")):
        monkeypatch.setattr(image_folder, "MEMORY_LIMIT", limit)
        assert make(root, "auto")._kind() == kind
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert make(root, "auto")._kind() == "memory", "as it cannot be written"
    images(root)
    assert make(root, "auto")._kind() == "disk"
    with pytest.raises(UserError, match="cache must be one of auto, memory, disk, none, got 'ram'"):
        make(root, "ram")


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_the_file_is_used_and_follows_the_images(root: Path, kind: str, decoded: list[str]) -> None:
    old = file(root).with_suffix(".pt")
    old.parent.mkdir()
    old.write_bytes(b"of version 0.1")
    first, second = make(root, kind), make(root, kind)
    first.setup()
    assert len(decoded) == 14 and not old.exists()
    second.setup()
    assert len(decoded) == 14 and (first.mean, first.std) == (second.mean, second.std)
    pixels = write(root / "train" / "ant" / "6.png", 77)
    assert torch.equal(images(root, kind)[6], torch.from_numpy(pixels).permute(2, 0, 1))
    assert len(decoded) == 14 + 13
    write(root / "train" / "ant" / "6.png", 78)
    os.utime(root / "train" / "ant" / "6.png", ns=(1, 1))
    assert make(root, kind).mean != first.mean
    assert len(decoded) == 14 + 2 * 13
    assert sorted(p.name for p in file(root).parent.iterdir()) == ["lock", "test_8.images", "train_8.images"]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def foreign(path: Path) -> None:
    path.write_bytes(bytes(12 * 3 * 8 * 8) + b'{"key": "of others", "crc32": 0, "mean": [], "std": []}')


def no_list(path: Path) -> None:
    path.write_bytes(bytes(12 * 3 * 8 * 8) + b"[]")


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("damage", [half, one_byte, last_byte, foreign, no_list, lambda path: path.write_bytes(b"")])
def test_a_damaged_file_is_made_anew(root: Path, kind: str, damage: object, decoded: list[str]) -> None:
    good = images(root)
    damage(file(root))  # type: ignore[operator]
    decoded.clear()
    assert torch.equal(images(root, kind), good) and len(decoded) == 12
    assert torch.equal(images(root, kind), good) and len(decoded) == 12


def test_a_file_that_is_replaced_or_pickled_while_in_use(root: Path) -> None:
    data = make(root)
    good = data._part("train").image[:]
    again = pickle.loads(pickle.dumps(data._part("train").image))
    assert torch.equal(again[:], good)
    write(root / "train" / "ant" / "0.png", 99)
    assert not torch.equal(images(root), good)
    assert torch.equal(data._part("train").image[:], good)


def test_a_file_that_is_cut_off_while_in_use_ends_in_a_line(root: Path) -> None:
    data = make(root)
    data.setup("fit")
    os.truncate(file(root), 100)
    with pytest.raises(UserError, match=r"train_8\.images was cut off while it was in use"):
        list(data.train_dataloader())


def test_a_full_disk_and_a_folder_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line = r"^cannot write .*train_8.images: {}[^\n]*, or set data.cache to memory or none$"
    with monkeypatch.context() as full:
        full.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(UserError, match=one_line.format(os.strerror(errno.ENOSPC))):
            images(root)
        assert len(images(root, "memory")) == 12
        assert [path.name for path in file(root).parent.iterdir()] == ["lock"]
    (root / ".ickd_cache/lock").unlink()
    (root / ".ickd_cache").rmdir()
    (root / ".ickd_cache").write_text("a file in the way")
    with pytest.raises(UserError, match=one_line.format("")):
        images(root)
    assert len(images(root, "memory")) == len(images(root, "none")) == 12


def forked(root: Path, wait: float = 0.0) -> int:
    """A process that makes the file, or hangs within it."""
    if (child := os.fork()) == 0:
        try:
            if wait:
                original = decode.decode_file
                decode.decode_file = lambda path, size: (
                    time.sleep(wait if "bee/4" in path else 0),
                    original(path, size),
                )[1]
            images(root)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def wait_for_part(root: Path) -> Path:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := list((root / ".ickd_cache").glob(".train_8.images.*.tmp")):
            return found[0]
        time.sleep(0.01)
    raise AssertionError("nothing was written")


def test_a_killed_process_leaves_nothing_that_is_used_or_stays(root: Path) -> None:
    child = forked(root, wait=60)
    part = wait_for_part(root)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert part.exists() and not file(root).exists()
    assert torch.equal(images(root), images(root, "none"))
    assert not part.exists()


def test_two_processes_make_the_file_once(root: Path, decoded: list[str]) -> None:
    child = forked(root, wait=0.3)
    wait_for_part(root)
    found = images(root)
    assert os.waitpid(child, 0)[1] == 0 and decoded == []
    assert torch.equal(found, images(root, "none"))
