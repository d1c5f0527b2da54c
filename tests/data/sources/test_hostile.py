"""Files from outside: nothing in them runs, no link is followed, and little memory is taken."""

from __future__ import annotations

import io
import pickle
import stat
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ickd_pl.data import CIFAR100
from ickd_pl.data.sources.npz import from_npz
from ickd_pl.errors import UserError
from tests.data.sources.made_up import MadeUp, files, make, npz, tree, zipped


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    return make(tmp_path / "src", monkeypatch)


def refusal(archive: Path) -> str:
    begun = time.perf_counter()
    with pytest.raises(UserError) as caught:
        CIFAR100(str(archive.parent / "data"), archive=archive).prepare_data()
    assert time.perf_counter() - begun < 5
    assert not (archive.parent / "data").exists()
    text = str(caught.value)
    assert "\n" not in text
    return text


class Runs:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def arrays(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as bundle:
        for name, content in members.items():
            bundle.writestr(f"{name}.npy", content)
    return path


def array(shape: tuple[int, ...], descr: str, content: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue() + content


@pytest.mark.parametrize("key", ["classes", "x_train", "y_train"])
def test_an_array_of_objects_is_never_unpickled(key: str, made_up: MadeUp, tmp_path: Path) -> None:
    members = {
        name: array((2, 32, 32, 3) if name[0] == "x" else (2,), "|u1", bytes(2 * 3072 if name[0] == "x" else 2))
        for name in ("x_train", "y_train", "x_test", "y_test")
    }
    members[key] = array((1,), "|O", pickle.dumps([Runs()]))
    text = refusal(arrays(tmp_path / "bad", members))
    assert f"{key} must be an array of integers or texts, got object" in text


def test_arrays_that_are_larger_than_they_can_be(made_up: MadeUp, tmp_path: Path) -> None:
    huge = array((10**9, 32, 32, 3), "|u1", b"")
    assert "holds x_train of 3,072,000,000,000 bytes" in refusal(arrays(tmp_path / "a", {"x_train": huge}))
    bomb = array((1, 32, 32, 3), "|u1", bytes(2**29))
    assert "holds x_train of 536,871,040 bytes" in refusal(arrays(tmp_path / "b", {"x_train": bomb}))


def test_arrays_of_other_shapes_and_types(made_up: MadeUp, tmp_path: Path) -> None:
    splits = made_up.splits
    good = npz(tmp_path / "good", splits)
    facts = CIFAR100(str(tmp_path))._facts()
    assert len(from_npz(good, facts)["test"].label) == 200
    for key, value, expected in (
        ("x_test", np.zeros((200, 3072), np.uint8), r"x_test must be uint8 (N, 32, 32, 3), got uint8 (200, 3072)."),
        ("y_test", np.zeros(199, np.uint8), "y_test must be integers (200,), got uint8 (199,)."),
        ("y_test", np.full(200, 100), "y_test must be from 0 to 99, got 100 to 100."),
        ("y_test", np.zeros(200), "y_test must be an array of integers or texts, got float64 (200,)."),
        ("classes", np.array(["cat"] * 100), "cat is not a class of CIFAR100;"),
    ):
        with np.load(good) as content:
            changed = {**content, key: value}
        with (tmp_path / "changed").open("wb") as file:
            np.savez(file, **changed)
        assert expected in refusal(tmp_path / "changed")
    with np.load(good) as content, (tmp_path / "changed").open("wb") as file:
        np.savez(file, **{key: value for key, value in content.items() if key != "y_test"})
    assert "lacks x_test or y_test; it has" in refusal(tmp_path / "changed")


def test_labels_in_another_order_of_classes(made_up: MadeUp, tmp_path: Path) -> None:
    with np.load(npz(tmp_path / "good", made_up.splits)) as content:
        changed = {key: 99 - value if key[0] == "y" else value for key, value in content.items()}
        changed["classes"] = content["classes"][::-1]
    with (tmp_path / "changed").open("wb") as file:
        np.savez(file, **changed)
    CIFAR100(str(tmp_path / "data"), archive=tmp_path / "changed").prepare_data()


def test_links_in_archives_are_not_followed(made_up: MadeUp, tmp_path: Path) -> None:
    whole = list(files(made_up.splits))
    (tmp_path / "outside.png").write_bytes(whole[0][1])
    with tarfile.open(tmp_path / "a", "w") as archive:
        link = tarfile.TarInfo(whole[0][0])
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "outside.png")
        archive.addfile(link)
        for name, content in whole[1:]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert "199 training images, expected 200" in refusal(tmp_path / "a")
    path = zipped(tmp_path / "b", made_up.splits)
    with zipfile.ZipFile(path, "a") as bundle:
        entry = zipfile.ZipInfo("images/train/name 3/link.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        bundle.writestr(entry, str(tmp_path / "outside.png"))
    assert "link.png is a link: expected the image itself" in refusal(path)


def test_members_that_unpack_to_much(made_up: MadeUp, tmp_path: Path) -> None:
    for opened, name in ((zipfile.ZipFile, "a"), (tarfile.open, "b")):
        with opened(tmp_path / name, "w") as archive:
            if isinstance(archive, zipfile.ZipFile):
                archive.writestr("train/name 1/a.png", bytes(2**28), zipfile.ZIP_DEFLATED)
            else:
                info = tarfile.TarInfo("train/name 1/a.png")
                info.size = 2**20
                archive.addfile(info, io.BytesIO(bytes(2**20)))
        assert "a.png of" in (text := refusal(tmp_path / name)) and "expected at most 65,536" in text


def test_a_damaged_archive(made_up: MadeUp, tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a", made_up.splits).read_bytes()
    (tmp_path / "a").write_bytes(whole[:-500])
    assert "is a damaged zip archive" in refusal(tmp_path / "a")
    middle = bytearray(whole)
    middle[2000] ^= 255
    (tmp_path / "a").write_bytes(middle)
    assert "get it again" in refusal(tmp_path / "a")


def test_images_that_are_not_lossless_of_another_size_or_class(made_up: MadeUp, tmp_path: Path) -> None:
    path = tree(tmp_path / "jpeg", made_up.splits, "JPEG", quality=95)
    assert "is a JPEG file, whose pixels are not the published ones" in refusal(path)
    path = tree(tmp_path / "images", made_up.splits)
    small = {"train": made_up.splits["train"]._replace(image=made_up.splits["train"].image[..., :16])}
    tree(tmp_path / "small", small)
    file = next(path.glob("train/*/*"))
    good = file.read_bytes()
    file.write_bytes((tmp_path / "small" / file.relative_to(path)).read_bytes())
    assert "has 16x32 pixels, expected 32x32" in refusal(path)
    file.write_bytes(good[:60])
    assert "cannot be read as an image" in refusal(path)
    file.write_bytes(good)
    (path / "train" / "name 3").rename(path / "train" / "nmae 3")
    (path / "test" / "name 3").rename(path / "test" / "nmae 3")
    assert "nmae 3 is not a class of CIFAR100; did you mean name 3" in refusal(path)
