"""Kill a run repeatedly while it saves, and check the files after each kill; for tests/test_faults.py.

    python kill_while_saving.py RUN_FOLDER TEMPORARY_FOLDER DELAYS ARGS...

DELAYS are milliseconds, separated by commas. Each starts the command line with ARGS, in a fork of this process (which
avoids new imports), and kills it that long after the first temporary file of a save has appeared, beside the
checkpoint or in TMPDIR. The next run resumes from the remaining files. Prints JSON: for every kill, the epoch of the
newest checkpoint and whether the kill was during the save.
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


def run(args: list[str], temporary: Path) -> None:
    """In the child process: run the command line, with TMPDIR on another file system."""
    torch.set_num_threads(1)
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    status = 1
    try:
        status = main(args)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def temporaries(*folders: Path) -> set[str]:
    """Temporary files of a save in progress or of a killed one."""
    files = (file for folder in folders if folder.is_dir() for file in os.scandir(folder) if file.is_file())
    return {file.path for file in files if file.name.startswith((".last.ckpt.", "tmp"))}


def kill_one(folder: Path, temporary: Path, delay: float, args: list[str]) -> bool:
    """Start a run and kill it in the first save that replaces a checkpoint; True if the save was not finished."""
    checkpoints = folder / "checkpoints"
    child = os.fork()
    if child == 0:
        run(args, temporary)
    began = time.monotonic()
    before: set[str] | None = None
    while True:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            raise SystemExit("the run ended before a save")
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
    """Epoch of the newest checkpoint. Every file with a final name must be intact."""
    checkpoints = [path for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert {path.name for path in checkpoints} <= {"last.ckpt", "previous.ckpt"}, checkpoints
    return max(int(read_file(path)["epoch"]) for path in checkpoints)


if __name__ == "__main__":
    folder, tmpdir, delays = Path(sys.argv[1]), Path(sys.argv[2]), [float(text) for text in sys.argv[3].split(",")]
    kills = []
    for wait in delays:
        inside = kill_one(folder, tmpdir, wait, sys.argv[4:])
        kills.append({"epoch": newest_epoch(folder), "inside": inside})
    print("\n" + json.dumps(kills))
