"""A path that a user gives and that cannot be reached: one line that names it, whatever is wrong with it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ickd_pl.data import CIFAR100, ImageFolder
from ickd_pl.errors import UserError
from ickd_pl.files import replacing
from tests.data.sources.made_up import MadeUp, make, npz, tree
from tests.runs.helpers import cli

LONG = "x" * 300
CASES = {
    "~nosuchuser/x": r"~nosuchuser/x: ~nosuchuser is no user's home folder: give the whole path\.",
    LONG: r"x{300} cannot be read \(File name too long\): correct \w+, or allow access to it\.",
    "a\0b": r"a\\x00b is no path \(embedded null byte\)\.",
    "": r" is empty: give a path\.",
}


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    return make(tmp_path / "src", monkeypatch)


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Nothing in the folder can be reached; root may do everything, so that another user does what is inside."""
    mode, user = folder.stat().st_mode, os.geteuid()
    folder.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        if user == 0:
            os.seteuid(0)
        folder.chmod(mode)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", CASES)
def test_what_is_no_path(path: str, made_up: MadeUp, tmp_path: Path) -> None:
    act: list[Callable[[], object]] = [CIFAR100(str(tmp_path), archive=path).prepare_data]
    if path:
        act += [CIFAR100(path).prepare_data, CIFAR100(path).setup]
    if "\0" not in path:
        act.append(lambda: ImageFolder(path))
    for each in act:
        with pytest.raises(UserError, match=CASES[path]):
            each()
    if path and "\0" not in path:
        done = cli("data", "check", path)
        assert done.status == 2 and len(done.err.splitlines()) == 1, done.err


def test_folders_without_permission(made_up: MadeUp, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    images = tree(folder / "images", made_up.splits)
    archive = npz(folder / "a.npz", made_up.splits)
    for source in (images, archive, made_up.official):
        CIFAR100(str(tmp_path / "data"), archive=source).prepare_data()  # also imports what is needed
    cases: list[Callable[[], object]] = [
        CIFAR100(str(tmp_path / "data"), archive=images).prepare_data,
        CIFAR100(str(tmp_path / "data"), archive=archive).prepare_data,
        CIFAR100(str(folder / "root")).prepare_data,
        CIFAR100(str(folder / "root")).setup,
        lambda: ImageFolder(str(images)),
    ]
    with closed(folder):
        texts = [refusal(case) for case in cases]
    assert all("closed" in text and "cannot be read (Permission denied)" in text for text in texts), texts
    assert [text.partition(":")[0] for text in texts] == ["archive", "archive", "root", "root", "root"]
    for inner in (images, images / "train", made_up.official):
        with closed(inner):
            assert "Permission denied" in refusal(CIFAR100(str(tmp_path / "b"), archive=inner).prepare_data)


def test_a_file_in_a_folder_without_permission_is_not_written(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "closed" / "inner" / "file") as temporary:
            temporary.write_text("x")

    (tmp_path / "closed").mkdir()
    with closed(tmp_path / "closed"):
        text = refusal(write)
    assert "cannot write" in text and "Permission denied" in text


def test_a_zip_archive_with_a_name_that_is_not_what_its_flag_says(made_up: MadeUp, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("train/name 1/\u00e4.png", b"x")
    path.write_bytes(path.read_bytes().replace("\u00e4".encode(), b"\xff\xfe"))
    text = refusal(CIFAR100(str(tmp_path / "data"), archive=path).prepare_data)
    assert "a.zip is a damaged zip archive ('utf-8' codec can't decode" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"BZ and other letters", r"got a file that starts with b'BZ and o'"),
        (b"BZh and other letters", r"a\.tar is corrupt|a\.tar \(.*\) is corrupt: expected md5"),
        (b"\x1f\x8b and other letters", r"a\.tar \(.*\) is corrupt: expected md5"),
        (b"\xfd7zXZ and other letters", r"a\.tar \(.*\) is corrupt: expected md5"),
    ],
)
def test_what_is_no_archive_or_a_damaged_one(content: bytes, said: str, made_up: MadeUp, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=said):
        CIFAR100(str(tmp_path / "data"), archive=tmp_path / "a.tar").prepare_data()
    assert not (tmp_path / "data").exists()
