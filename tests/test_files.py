"""Files are written atomically."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ickd_pl.errors import UserError
from ickd_pl.files import replacing, write_text


def test_a_text_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.txt"
    write_text(file, "one")
    write_text(file, "two")
    assert file.read_text() == "two"
    assert list(file.parent.iterdir()) == [file]


def test_the_old_file_is_kept_if_the_block_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyError), replacing(file) as temporary:
        temporary.write_text("half of the n")
        raise KeyError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_temporary_file_is_in_the_same_folder(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
        assert temporary.parent == tmp_path
        assert not (tmp_path / "a.txt").exists()


def test_a_full_disk_is_a_user_error_with_the_path(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(UserError, match=r"a\.txt: No space left"), replacing(file) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_the_message_has_the_bytes_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt: No space left on device after 4 bytes; free the space"):  # noqa: SIM117
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")


# -- keeping the old file --------------------------------------------------------


def write_kept(file: Path, kept: Path, text: str) -> None:
    with replacing(file, kept) as temporary:
        temporary.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def no_links(*_: object, **__: object) -> None:
    raise OSError(95, "Operation not supported")


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with hard links and one without."""
    if request.param == "no links":
        monkeypatch.setattr(os, "link", no_links)


@pytest.mark.usefixtures("links")
def test_the_old_file_is_kept_at_its_other_path(tmp_path: Path) -> None:
    file, kept = tmp_path / "last", tmp_path / "previous"
    write_kept(file, kept, "one")
    assert contents(tmp_path) == {"last": "one"}
    write_kept(file, kept, "two")
    assert contents(tmp_path) == {"last": "two", "previous": "one"}
    write_kept(file, kept, "three")
    assert contents(tmp_path) == {"last": "three", "previous": "two"}


@pytest.mark.usefixtures("links")
def test_a_failed_write_moves_no_file(tmp_path: Path) -> None:
    file, kept = tmp_path / "last", tmp_path / "previous"
    write_kept(file, kept, "one")
    write_kept(file, kept, "two")
    with pytest.raises(UserError), replacing(file, kept) as temporary:
        temporary.write_text("thr")
        raise OSError(28, "No space left on device")
    assert contents(tmp_path) == {"last": "two", "previous": "one"}


@pytest.mark.usefixtures("links")
def test_an_intact_file_exists_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files before and after each rename, which a kill between two of them would leave."""
    file, kept = tmp_path / "last", tmp_path / "previous"
    write_kept(file, kept, "one")
    write_kept(file, kept, "two")
    seen = []

    def watched(name: str) -> Callable[..., Any]:
        change = getattr(os if name == "link" else Path, name)

        def watch(*arguments: Any, **more: Any) -> Any:
            seen.append({k: v for k, v in contents(tmp_path).items() if not k.startswith(".")})
            return change(*arguments, **more)

        return watch

    monkeypatch.setattr(os, "link", watched("link"))
    monkeypatch.setattr(Path, "replace", watched("replace"))
    write_kept(file, kept, "three")
    assert len(seen) >= 3
    for moment in [*seen, contents(tmp_path)]:
        assert set(moment.values()) <= {"one", "two", "three"}, moment
        assert moment.get("last", moment.get("previous")) in ("two", "three"), moment


def test_two_paths_of_one_file(tmp_path: Path) -> None:
    """As left by a process that is killed between its two renames."""
    file, kept = tmp_path / "last", tmp_path / "previous"
    file.write_text("one")
    os.link(file, kept)
    write_kept(file, kept, "two")
    assert contents(tmp_path) == {"last": "two", "previous": "one"}
