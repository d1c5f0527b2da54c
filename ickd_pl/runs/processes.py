"""The processes of a run's ranks: one decision for all of them, and none left behind."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]

from ickd_pl.errors import UserError

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


def on_rank_zero(trainer: pl.Trainer, decide: Callable[[], Result]) -> Result:
    """Let rank 0 decide, before ``trainer.fit``, and give its result, or its error, to all ranks.

    The processes that Lightning starts inherit the result: a process is not started before it is known.

    Args:
        trainer: before its first fit.
        decide: returns plain data.

    Raises:
        UserError: raised by ``decide`` on rank 0.
    """
    if trainer.world_size == 1:
        return decide()
    name = "ICKD_DECIDED_BY_RANK_ZERO"
    cluster = trainer._accelerator_connector.cluster_environment  # private: lightning cluster_environment
    if isinstance(cluster, LightningEnvironment) and trainer.num_nodes == 1:
        if trainer.local_rank > 0:
            return json.loads(os.environ[name])  # type: ignore[no-any-return]
        result = decide()
        os.environ[name] = json.dumps(result)
        return result
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
