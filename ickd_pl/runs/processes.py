"""The processes of a run's ranks: one decision for all of them, and none left behind."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytorch_lightning as pl

from ickd_pl.errors import UserError

_DECIDED = "ICKD_DECIDED_BY_RANK_ZERO"
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


Result = TypeVar("Result")


def on_rank_zero(trainer: pl.Trainer, key: str, decide: Callable[[], Result]) -> Result:
    """Let rank 0 decide, before ``trainer.fit``, and give its result, or its error, to all ranks.

    Processes that Lightning starts later inherit the result. On several nodes without torchrun or SLURM, each node
    decides for itself.

    Args:
        trainer: before its fit.
        key: what is decided about, such as a folder.
        decide: returns plain data.

    Raises:
        UserError: raised by ``decide`` on rank 0.
    """
    if trainer.world_size == 1:
        return decide()
    cluster = trainer._accelerator_connector.cluster_environment  # private: lightning cluster_environment
    if cluster is not None and not cluster.creates_processes_externally:
        result = decide()
        os.environ[_DECIDED] = json.dumps([key, result])
        return result
    if trainer.local_rank > 0 and (inherited := json.loads(os.environ.get(_DECIDED, "[null, null]")))[0] == key:
        return inherited[1]  # type: ignore[no-any-return]
    trainer.strategy.setup_environment()  # the process group; Lightning leaves an existing one as it is
    outcome: list[Any] = [None, None]
    if trainer.is_global_zero:
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = error
    outcome = trainer.strategy.broadcast(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]  # type: ignore[no-any-return]
