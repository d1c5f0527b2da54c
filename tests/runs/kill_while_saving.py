"""Kill a run again and again while it saves, and look at what each kill leaves: a program for tests/test_faults.py.

    python kill_while_saving.py RUN_FOLDER TEMPORARY_FOLDER DELAYS WORDS...

DELAYS are milliseconds, separated by commas. Each is one run of the command line with WORDS, in a fork of this process,
which saves the imports. The run is killed so long after the first temporary file of a save appeared, whether beside
the checkpoint or in TMPDIR. The next run continues from what is left. Prints, as JSON, for every kill the epoch of the
newest checkpoint and whether the kill fell into the save.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import sklearn.datasets  # noqa: F401  imported once for all runs
import torch

from ickd_pl.cli import main
from ickd_pl.weights import read_file

PATIENCE = 60.0  # seconds


def run(words: list[str], temporary: Path) -> None:
    """The child: the command line, with TMPDIR on another file system."""
    torch.set_num_threads(1)
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    status = 1
    try:
        status = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def temporaries(*folders: Path) -> set[str]:
    """Files of a save in progress, or of one that was killed."""
    files = (file for folder in folders if folder.is_dir() for file in os.scandir(folder) if file.is_file())
    return {file.path for file in files if file.name.startswith((".last.ckpt.", "tmp"))}


def kill_one(folder: Path, temporary: Path, delay: float, words: list[str]) -> bool:
    """Start a run and kill it in its first save that has a checkpoint to replace; whether the save was under way."""
    checkpoints = folder / "checkpoints"
    child = os.fork()
    if child == 0:
        run(words, temporary)
    began = time.monotonic()
    before: set[str] | None = None
    while True:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            raise SystemExit("the run ended by itself")
        if time.monotonic() - began > PATIENCE:
            os.kill(child, signal.SIGKILL)
            raise SystemExit("no save was seen")
        there = temporaries(checkpoints, temporary)
        if before is None:
            before = there if (checkpoints / "last.ckpt").exists() else None
        elif new := there - before:
            time.sleep(delay / 1000)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return any(Path(path).exists() for path in new)
        time.sleep(0.001)


def newest_epoch(folder: Path) -> int:
    """Epoch of the newest checkpoint. Every file under a final name must be whole."""
    checkpoints = [path for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert {path.name for path in checkpoints} <= {"last.ckpt", "previous.ckpt"}, checkpoints
    return max(int(read_file(path)["epoch"]) for path in checkpoints)


if __name__ == "__main__":
    place, tmpdir, delays = Path(sys.argv[1]), Path(sys.argv[2]), [float(text) for text in sys.argv[3].split(",")]
    kills = []
    for wait in delays:
        inside = kill_one(place, tmpdir, wait, sys.argv[4:])
        kills.append({"epoch": newest_epoch(place), "inside": inside})
    print("\n" + json.dumps(kills))
