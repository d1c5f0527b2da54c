"""The processes that Lightning starts for the other ranks of a machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl

# Ranks that stop together need about a second; one that waits for a rank that is gone would wait for ever.
_SECONDS = 10.0


@contextmanager
def no_process_left(trainer: pl.Trainer) -> Iterator[None]:
    """End the processes that the trainer's launcher has started, if this process leaves the block by an error."""
    try:
        yield
    except BaseException:
        # private: lightning launcher.procs
        for process in getattr(trainer.strategy.launcher, "procs", []):
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        raise
