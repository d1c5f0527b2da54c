"""Links and special files in folders of images: no image belongs to two classes, and nothing hangs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ickd_pl.data import ImageFolder
from ickd_pl.errors import UserError


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), len(str(path)) % 256, np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/in/1.png", "test/a/0.png", "test/b/0.png"):
        write(tmp_path / "set" / name)
    return tmp_path / "set"


def counts(root: Path) -> list[int]:
    data = ImageFolder(str(root), image_size=8)
    data.setup("fit")
    return data.train_labels.bincount().tolist()


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/a/loop", ".."),
        ("train/a/loop", "../.."),
        ("train/a/loop", "../../.."),
        ("train/a/loop", "/"),
        ("train/a/loop", "../b"),
        ("train/a/loop", "../b/in"),
        ("train/a/loop", "../../test/a"),
        ("train/a/loop", "../../test"),
        ("train/a/2.png", "../b/0.png"),
        ("train/a/2.png", "../b/in/1.png"),
        ("train/a/2.png", "../../test/a/0.png"),
        ("test/b/2.png", "../../train/b/0.png"),
        ("train/c", "b"),
        ("train/c", "."),
        ("train/c", "/"),
    ],
)
def test_a_link_never_makes_one_class_another(root: Path, link: str, target: str) -> None:
    (root / link).symlink_to(target)
    with pytest.raises(UserError) as caught:
        counts(root)
    assert str(root / link) in str(caught.value) and "remove" in str(caught.value)
    assert "\n" not in str(caught.value)
    (root / link).unlink()
    assert counts(root) == [2, 2]


def test_the_test_images_are_not_the_training_images(root: Path) -> None:
    (root / "test").rename(root / "held out")
    (root / "test").symlink_to("train")
    with pytest.raises(UserError, match=r"train/a and .*test/a are the same"):
        counts(root)
    (root / "test").unlink()
    (root / "test").symlink_to("held out")
    assert counts(root) == [2, 2]


def test_one_folder_or_file_outside_for_two_classes(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "store" / "x.png")
    for name in ("a", "b"):
        (root / "train" / name / "more").symlink_to(file.parent)
    with pytest.raises(UserError, match=r"a/more and .*b/more are the same"):
        counts(root)
    for name in ("a", "b"):
        (root / "train" / name / "more").unlink()
        (root / "train" / name / "x.png").symlink_to(file)
    with pytest.raises(UserError, match=r"a/x.png and .*b/x.png are the same"):
        counts(root)


def test_ordinary_links_are_followed(root: Path, tmp_path: Path) -> None:
    """The set, a split, a class and a folder on another disk, and files in a store, also by links to links."""
    store = write(tmp_path / "disk" / "store" / "9.png").rename(tmp_path / "disk" / "store" / "blob").parent
    (root / "train" / "a" / "linked.png").symlink_to(store / "blob")
    (tmp_path / "hop").symlink_to(store / "blob")
    (root / "train" / "a" / "twice linked.png").symlink_to(tmp_path / "hop")
    for name in ("train/b/in", "train/b", "test"):
        (root / name).rename(tmp_path / "disk" / name.replace("/", " "))
        (root / name).symlink_to(tmp_path / "disk" / name.replace("/", " "))
    (tmp_path / "link to set").symlink_to(root)
    assert counts(tmp_path / "link to set") == [4, 2]


def test_a_folder_counts_once(root: Path, tmp_path: Path) -> None:
    """Two links to it, a link to the folder itself, and links that lead to each other."""
    extra = write(tmp_path / "extra" / "x.png").parent
    for link, target in (("one", extra), ("two", extra), ("here", "."), ("self", "self"), ("deep/up", "..")):
        (root / "train/a/deep").mkdir(exist_ok=True)
        (root / "train/a" / link).symlink_to(target)
    other = write(tmp_path / "other" / "y.png").parent
    (extra / "to other").symlink_to(other)
    (other / "to extra").symlink_to(extra)
    data = ImageFolder(str(root), image_size=8)
    assert [name for name in data._files["train"] if name.startswith("a/")] == [
        *("a/0.png", "a/1.png", "a/one/x.png", "a/one/to other/y.png"),
    ]


def test_an_image_keeps_its_path_without_a_link(root: Path, tmp_path: Path) -> None:
    (root / "train/b/a link").symlink_to("in")
    assert ImageFolder(str(root))._files["train"][2:] == ["b/0.png", "b/in/1.png"]


def special(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
        os.chdir(here)
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    else:
        path.symlink_to(kind)


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe", "/dev/zero", "/dev/null", "nowhere", "x.png"])
def test_special_files_do_not_hang(root: Path, tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "predict" / "0.png").parent
    special(folder / "x.png", kind)
    with pytest.raises(UserError, match=r"predict/x\.png is a (pipe, socket or device|broken link), not an image"):
        ImageFolder(str(root), predict_root=str(folder))
    special(root / "train/a/x.png", kind)
    with pytest.raises(UserError, match=r"train/a/x\.png is a (pipe, socket or device|broken link), not an image"):
        ImageFolder(str(root))


def test_a_file_that_became_a_pipe_does_not_hang(root: Path) -> None:
    data = ImageFolder(str(root), image_size=8)
    (root / "train/a/0.png").unlink()
    os.mkfifo(root / "train/a/0.png")
    with pytest.raises(
        UserError, match=r"a/0\.png cannot be read as an image \(.*a pipe, socket or device, not a file"
    ):
        data.setup("fit")
    (root / "train/a/0.png").unlink()
    write(root / "train/a/0.png")
    (root / ".ickd_cache").mkdir(exist_ok=True)
    os.mkfifo(root / ".ickd_cache/train_8.images")
    assert counts(root) == [2, 2]


def test_special_files_without_the_name_of_an_image_are_left_alone(root: Path) -> None:
    os.mkfifo(root / "train/a/pipe")
    (root / "train/a/notes").symlink_to("/dev/zero")
    assert counts(root) == [2, 2]


def test_names_in_messages_are_printable(root: Path) -> None:
    odd = root / "train" / "a" / os.fsdecode(b"x\x1b[31m\n\xff.png")
    odd.write_text("no image")
    with pytest.raises(UserError) as caught:
        counts(root)
    assert r"x\x1b[31m\x0a\xff.png" in str(caught.value) and str(caught.value).isprintable()
