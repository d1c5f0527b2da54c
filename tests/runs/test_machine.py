"""Where a run was computed: its pieces, in the checkpoints of runs and packs."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from ickd_pl.runs import RunFolder, machine
from ickd_pl.runs.machine import Piece, continued, pieces_of
from ickd_pl.runs.pack_folder import PackRecord
from ickd_pl.training.pack import Pack
from tests.runs.faults import StopBeforeEpoch, Stopped
from tests.runs.helpers import cli, load
from tests.runs.moments import VANILLA, fit, folder, sending
from tests.training.packs import data, make_teacher, member, trainer


def piece(device: str = "cpu", first: int = 1, last: int = 1, **changes: Any) -> Piece:
    return Piece(**{"device": device, "precision": "32-true", "versions": {}, "first": first, "last": last} | changes)


def test_a_piece_goes_on_where_nothing_differs() -> None:
    assert continued([], piece()) == [piece()]
    assert continued([piece(last=2)], piece(first=2, last=2)) == [piece(last=2)]
    for other in ({"device": "cuda"}, {"precision": "16-mixed"}, {"versions": {"torch": "2"}}):
        assert continued([piece(last=2)], piece(first=2, last=2, **other)) == [
            piece(last=2),
            piece(first=2, last=2, **other),
        ]


def test_damaged_pieces_of_a_file_are_left_out() -> None:
    good = {"device": "cpu", "precision": "32-true", "versions": {"torch": "2"}, "first": 1, "last": 2}
    bad: list[Any] = [1, None, {}, {**good, "more": 1}, {**good, "first": 1.5}, {**good, "versions": [1]}]
    bad += [{**good, "device": None}, {**good, "versions": {"torch": 2}}, {**good, "last": True}]
    assert pieces_of({"pieces": [*bad, good]}) == [Piece(**good)]
    for state in (None, {}, {"pieces": 1}, []):
        assert pieces_of(state) == []


def test_a_run_that_is_continued_by_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped within its second epoch: the checkpoint has both pieces with their epochs."""
    command = fit("out", *VANILLA, *sending("on_train_batch_end:4", "SIGTERM"))
    assert cli(*command).status == 143
    monkeypatch.setattr(machine, "versions", lambda: {"torch": "another"})
    monkeypatch.setenv("NO_FAULTS", "1")
    assert cli(*command).status == 0
    one, two = pieces_of(load(folder("out") / "checkpoints" / "last.ckpt")["callbacks"]["EpochRecord"])
    assert one.device == two.device == f"cpu ({platform.machine()}, 1 threads)"
    assert (one.versions["torch"], two.versions) == (torch.__version__.partition("+")[0], {"torch": "another"})
    assert (one.first, one.last, two.first, two.last) == (1, 2, 2, 2)


@pytest.mark.filterwarnings("ignore")
def test_a_pack_gives_each_member_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two epochs."""

    def train(ckpt_path: str | None) -> None:
        taught = make_teacher()
        record = PackRecord(Path("pack.ckpt"), [RunFolder(Path(name)) for name in ("kd", "vanilla")], [{}, {}])
        own = trainer(record)
        own.callbacks.append(StopBeforeEpoch(1))  # type: ignore[attr-defined]
        pack = Pack([member(["kd"], taught), member([], taught)], ["kd", "vanilla"])
        own.fit(pack, data(), ckpt_path=ckpt_path, weights_only=True)

    with pytest.raises(Stopped):
        train(None)
    monkeypatch.setattr(machine, "versions", lambda: {"torch": "another"})
    monkeypatch.setenv("NO_FAULTS", "1")
    train("pack.ckpt")
    for name in ("kd", "vanilla"):
        one, two = pieces_of(load(Path(name) / "checkpoints" / "last.ckpt")["callbacks"]["EpochRecord"])
        assert (one.first, one.last, two.first, two.last, two.versions) == (1, 1, 2, 2, {"torch": "another"})
