"""A cell's result: where it was trained."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ickd_pl.benchmark.result import where_trained
from ickd_pl.runs import RunFolder
from ickd_pl.runs.machine import Piece
from tests.runs.helpers import Run, load


def piece(device: str, first: int, last: int) -> Piece:
    return Piece(device=device, precision="32-true", versions={"torch": device}, first=first, last=last)


@pytest.mark.parametrize(
    ("pieces", "listed"),
    [
        ([piece("cuda", 1, 3)], False),
        ([piece("cuda", -1, 3)], False),
        ([piece("cuda", 1, 2), piece("cpu", 2, 3)], True),
        ([piece("cpu", 2, 3)], True),  # a version that recorded no pieces began it
    ],
)
def test_where_a_run_was_trained(student: Run, tmp_path: Path, pieces: list[Piece], listed: bool) -> None:
    """Its last device and versions, wherever the result is made; all pieces where it is not a whole one."""
    run = RunFolder(tmp_path)
    content = load(student.last)
    content["callbacks"]["EpochRecord"]["pieces"] = [asdict(each) for each in pieces]
    run.last.parent.mkdir()
    torch.save(content, run.last)
    found = where_trained(run)
    assert found.pop("pieces") == (pieces if listed else [])
    last = pieces[-1]
    assert found == {"device": last.device, "precision": "32-true", "versions": last.versions}


def test_a_checkpoint_of_an_older_version_does_not_say_where(student: Run, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    content: dict[str, Any] = load(student.last)
    del content["callbacks"]["EpochRecord"]["pieces"]
    run.last.parent.mkdir()
    torch.save(content, run.last)
    assert where_trained(run) == {}
