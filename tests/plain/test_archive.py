"""Tar archives that unpack to more than they should."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from ickd_pl.plain import TooMuch, archive, members, open_tar

MIB = 2**20


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def names(path: Path, total: int = 64 * MIB, largest: int = 32 * MIB) -> list[str]:
    with open_tar(path, total) as tar:
        return [member.name for member in members(tar, largest)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_ordinary_archives(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("a", "b" * 200):
            tar.addfile(info := tarfile.TarInfo(name), io.BytesIO(bytes(info.size)))
    (tmp_path / "a.tar").write_bytes(pack(out.getvalue()))
    assert names(tmp_path / "a.tar") == ["a", "b" * 200]


BOMBS = {
    "a file": (header("bomb", 100 * MIB) + bytes(100 * MIB), "holds bomb of 104,857,600 bytes"),
    "many files": (b"".join(header("part", 20 * MIB) + bytes(20 * MIB) for _ in range(5)), "unpacks to more than"),
    "a name": (header("x", 40 * MIB, tarfile.GNUTYPE_LONGNAME) + bytes(40 * MIB), "holds a header of"),
    "a pax header": (header("x", 40 * MIB, tarfile.XHDTYPE) + bytes(40 * MIB), "holds a header of"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, bomb: str) -> None:
    content, reason = BOMBS[bomb]
    (tmp_path / "bomb.tgz").write_bytes(gzip.compress(content, 1))
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(TooMuch, match=reason):
        names(tmp_path / "bomb.tgz")
    assert time.process_time() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.stop()


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 3)
    (tmp_path / "a.tar").write_bytes(b"".join(header(str(n), 0) for n in range(5)) + bytes(1024))
    with pytest.raises(TooMuch, match="more than 3 files"):
        names(tmp_path / "a.tar")


@pytest.mark.parametrize("size", [0, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB])
@pytest.mark.parametrize("pack", [bytes, lambda content: gzip.compress(content, 1)])
def test_what_a_member_holds_may_be_read_as_one_and_in_parts(
    tmp_path: Path, size: int, pack: Callable[[bytes], bytes]
) -> None:
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    padding = bytes(-size % 512)
    path = tmp_path / "a.tar"
    path.write_bytes(pack(header("a", size) + content + padding + header("b", 3) + b"end" + bytes(509 + 1024)))
    with open_tar(path, 64 * MIB) as tar:
        first, second = members(tar, 32 * MIB)
        as_one, in_parts, last = (tar.extractfile(each) for each in (first, first, second))
        assert as_one is not None and in_parts is not None and last is not None
        assert as_one.read() == content
        assert in_parts.read(5 * MIB) == content[: 5 * MIB] and in_parts.read() == content[5 * MIB :]
        assert last.read() == b"end"


def test_a_member_that_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(header("a", 6 * MIB) + bytes(5 * MIB))
    with open_tar(tmp_path / "a.tar", MIB) as tar:
        file = tar.extractfile(next(members(tar, 32 * MIB)))
        with pytest.raises(tarfile.ReadError, match="unexpected end of data"):
            file.read()  # type: ignore[union-attr]


def test_archives_are_opened_here_only() -> None:
    """So that every reader of archives has the same limits, and the same members."""
    package = Path(archive.__file__).parents[1]
    found = {path.name for path in package.rglob("*.py") if "tarfile.open(" in path.read_text(encoding="utf-8")}
    assert found == set()
