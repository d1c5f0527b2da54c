"""Files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ickd_pl.errors import UserError
from ickd_pl.runtime.atomic import replacing, write_text


def test_a_text_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.txt"
    write_text(file, "one")
    write_text(file, "two")
    assert file.read_text() == "two"
    assert list(file.parent.iterdir()) == [file]


def test_the_old_file_stays_when_the_block_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyError), replacing(file) as temporary:
        temporary.write_text("half of the n")
        raise KeyError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_temporary_file_lies_in_the_same_folder(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
        assert temporary.parent == tmp_path
        assert not (tmp_path / "a.txt").exists()


def test_a_full_disk_is_a_users_error_with_the_path(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(UserError, match=r"a\.txt: No space left"), replacing(file) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_a_file_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "x")
