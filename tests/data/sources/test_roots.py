"""What is in ``root`` is what was asked for: no images are measured instead of others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ickd_pl.data import CIFAR10, CIFAR100
from ickd_pl.errors import UserError
from tests.data.sources.made_up import MadeUp, make, npz, tree
from tests.runs.helpers import QUIET, cli

OTHERS = "warning: the test images of CIFAR10 are not those of the checkpoint's run"


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    made = make(tmp_path / "src", monkeypatch)
    for name, value in (("num_available", 200), ("num_test", 200), ("classes", CIFAR100.classes), ("num_classes", 100)):
        monkeypatch.setattr(CIFAR10, name, value)
    return made


def two(made_up: MadeUp, folder: Path) -> tuple[Path, Path]:
    """Two sources of other images, which nothing tells apart from CIFAR-10."""
    swapped = {"train": made_up.splits["test"], "test": made_up.splits["train"]}
    return npz(folder / "a.npz", made_up.splits), npz(folder / "b.npz", swapped)


def ten(root: Path, archive: Path | str | None = None) -> CIFAR10:
    return CIFAR10(str(root), download=False, archive=archive)


@pytest.mark.parametrize("cls", [CIFAR10, CIFAR100])
def test_a_given_archive_that_is_not_there_is_refused(
    cls: type[CIFAR100] | type[CIFAR10], made_up: MadeUp, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    cls(str(root), archive=tree(tmp_path / "images", made_up.splits)).prepare_data()
    missing = cls(str(root), archive=tmp_path / "im\x1bages")
    with pytest.raises(UserError, match=r"archive: .*im\\x1bages does not exist; .*leave archive out \(null\) to use"):
        missing.prepare_data()
    advised = cls(str(root), download=False)
    advised.prepare_data()
    assert len(advised._part("test").label) == 200


def test_two_sources_with_one_root(made_up: MadeUp, tmp_path: Path) -> None:
    root = tmp_path / "data"
    one, other = (ten(root, source) for source in two(made_up, tmp_path))
    one.prepare_data()
    other.prepare_data()
    for data, archive in ((one, "a.npz"), (other, "b.npz"), (one, "a.npz")):
        reference = ten(tmp_path / f"own {archive}", tmp_path / archive)
        reference.prepare_data()
        assert torch.equal(data._read("test").image, reference._read("test").image)


def test_a_root_whose_images_are_replaced_between_its_splits(made_up: MadeUp, tmp_path: Path) -> None:
    first, second = two(made_up, tmp_path)
    ten(tmp_path / "data", first).prepare_data()
    data = ten(tmp_path / "data")
    data.prepare_data()
    data._part("train")
    ten(tmp_path / "data", second).prepare_data()
    with pytest.raises(UserError, match=r"cifar10-prepared\.npz has been replaced, by the images of another source"):
        data._part("test")


def test_other_images_than_those_of_the_checkpoint(
    made_up: MadeUp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = two(made_up, tmp_path)
    run, same, other = ten(tmp_path / "a", first), ten(tmp_path / "b", first), ten(tmp_path / "c", second)
    for data in (run, same, other):
        data.prepare_data()
        data.setup("test")
    state = run.state_dict()
    assert list(state["digests"]) == ["test"]
    caplog.set_level("INFO", "pytorch_lightning")
    same.load_state_dict(state)
    other.load_state_dict({key: value for key, value in state.items() if key != "digests"})  # of an older version
    other.load_state_dict({**state, "digests": 3})
    assert OTHERS not in caplog.text
    other.load_state_dict(state)
    assert OTHERS in caplog.text
    verified = CIFAR100(str(tmp_path / "d"), archive=first)
    verified.prepare_data()
    verified.setup()
    assert "digests" not in verified.state_dict()


def test_the_command_line_says_that_the_images_are_others(
    made_up: MadeUp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = two(made_up, tmp_path)
    trained = cli(
        *("fit", "--data=CIFAR10", f"--data.root={tmp_path / 'data'}", f"--data.archive={first}"),
        *("--model.student=resnet8", "--trainer.max_epochs=1", *QUIET),
        f"--trainer.default_root_dir={tmp_path / 'out'}",
    )
    assert trained.status == 0, trained.err
    (last,) = (tmp_path / "out").rglob("last.ckpt")
    for archive, said in ((first, False), (second, True)):
        caplog.clear()
        with caplog.at_level("INFO", "pytorch_lightning"):
            done = cli("test", "--ckpt_path", last, f"--data.archive={archive}", *QUIET)
        assert done.status == 0, done.err
        assert (OTHERS in caplog.text) is said


def test_the_archive_may_be_the_prepared_file(made_up: MadeUp, tmp_path: Path) -> None:
    ten(tmp_path / "data", two(made_up, tmp_path)[0]).prepare_data()
    prepared = tmp_path / "data" / "cifar10-prepared.npz"
    before = prepared.stat()
    for _ in range(2):
        data = ten(tmp_path / "data", prepared)
        data.prepare_data()
        data.setup()
    assert prepared.stat() == before


def test_a_damaged_prepared_file_is_made_anew_where_its_source_is(made_up: MadeUp, tmp_path: Path) -> None:
    root, source = tmp_path / "data", tree(tmp_path / "images", made_up.splits)
    for cls in (CIFAR100, CIFAR10):
        cls(str(root), archive=source).prepare_data()
        prepared = root / f"{cls.__name__.lower()}-prepared.npz"
        whole = prepared.read_bytes()
        damaged = bytearray(whole)
        damaged[5000] ^= 1
        prepared.write_bytes(damaged)
        left = prepared.with_name(f".{prepared.name}.123-abc.tmp")
        left.write_bytes(b"of a killed process")
        data = cls(str(root), archive=source)
        data.prepare_data()
        data.setup()
        assert len(prepared.read_bytes()) == len(whole) and not left.exists()
        with pytest.raises(UserError, match="delete it"):
            prepared.write_bytes(damaged)
            cls(str(root), download=False).setup()
