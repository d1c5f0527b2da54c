"""``bench run --minutes``: a benchmark in pieces, each in another folder, as on another machine."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from ickd_pl.training.module import DistillationModule
from ickd_pl.training.pack import Pack
from tests.benchmark.helpers import quick, refused, results
from tests.runs.helpers import REPOSITORY, Outcome, assert_same_run, cli

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no SIGALRM")
CARRIED = re.search(r"```sh\n(mkdir -p carry .+)\n(mkdir .+)\n```", (REPOSITORY / "docs/benchmark.md").read_text())

STOPPED = "stopped by --minutes {}: run the same command to resume"


def piece(minutes: float) -> Outcome:
    """Run a piece in the current folder, a machine's."""
    quick()
    return cli("bench", "run", "--config", "short.yaml", "--output", "outputs/column", "--minutes", minutes)


def stopped_in(module: type, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a piece whose time is up in the n-th step of a kind of module, whatever this machine's speed."""
    original, seen = module.training_step, []  # type: ignore[attr-defined]

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) == step:
            signal.raise_signal(signal.SIGALRM)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "training_step", training_step)
        outcome = piece(60)
    assert len(seen) == step, outcome.err
    assert outcome.status == 142, outcome.err
    assert outcome.err.strip().splitlines()[-1] == STOPPED.format(60)


def carry(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carry what is needed to another machine's folder by the two commands of docs/benchmark.md, and lose the rest."""
    assert CARRIED is not None
    here, (pack, unpack) = Path.cwd(), CARRIED.groups()
    to.mkdir()
    for folder, command in ((here, pack), (to, unpack)):
        assert not subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True).stderr
        if folder == here:
            shutil.copytree("carry", to / "carry", dirs_exist_ok=True)
            shutil.rmtree("outputs")
    monkeypatch.chdir(to)
    assert not list(Path().rglob("previous*"))


@pytest.mark.reliability
def test_pieces_on_several_machines_end_like_one_run(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the teacher's epoch and, elsewhere, within a pack's second epoch: bit for bit the whole run."""
    for module, step, following in ((DistillationModule, 3, "two"), (Pack, 4, "three")):
        stopped_in(module, step, monkeypatch)
        carry(tmp_path / following, monkeypatch)
    folder = Path("outputs/column")
    assert (folder / "packs/resnet20_resnet8/seed_0/pack.ckpt").is_file()
    outcome = piece(60)
    assert outcome.status == 0, outcome.err
    assert results(folder) == results(done)
    for name in results(done):
        assert_same_run(folder / "cells" / name, done / "cells" / name)


def test_when_the_start_takes_all_the_time_nothing_is_trained() -> None:
    outcome = piece(0.0001)
    assert outcome.status == 142
    assert outcome.err.strip().splitlines()[-1] == STOPPED.format(0.0001)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert not list(Path().rglob("*.ckpt"))


def test_waiting_for_another_process_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard waits for the teacher that another one trains, but not longer than it may."""
    folder = Path("outputs/column/cells/teachers/resnet20/seed_0")
    folder.mkdir(parents=True)
    quick()
    with FileLock(folder / ".lock", is_singleton=False):
        outcome = piece(0.05)
    assert outcome.status == 142, outcome.err
    assert "another process is running it, waiting" in outcome.out


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "ten", "1e9"])
def test_a_wrong_number_of_minutes(minutes: str) -> None:
    message = refused("run", "--config", quick(), "--output", "out", f"--minutes={minutes}")
    assert f"expected a number above 0 and up to 525600 (a year), such as 9, got {minutes}" in message
    assert not Path("out").exists()


def test_without_a_timer_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ickd_pl.benchmark.time_limit.ALARM", 0)
    message = refused("run", "--config", quick(), "--output", "out", "--minutes", "9")
    assert "expected a system with SIGALRM" in message and "leave it out" in message
