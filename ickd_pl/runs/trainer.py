"""The Trainer of the command line: whole numbers of batches stay whole numbers, and a step's hooks take little time."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.profilers import PassThroughProfiler

from ickd_pl.errors import UserError
from ickd_pl.runs.bar import SparingBar

# Either says which node this is.
NODE = {"NODE_RANK", "GROUP_RANK"}


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, in less time than Lightning's own, which builds a generator for each hook of each callback."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return self._nothing


class CommandLineTrainer(pl.Trainer):
    """Lightning's Trainer, whose limits take a whole number as a number of batches and any other as a part of them.

    Lightning annotates them as ``float | int``, for which the parser makes 1.0, the whole epoch, of 1, one batch. The
    order of a union does not help: Python takes unions of the same types for one, in the order that came first. The
    progress bar, unless one is given, is a :class:`~ickd_pl.runs.bar.SparingBar`, whether or not rich is installed.

    Args:
        limit_train_batches: batches of an epoch: 1 is one batch, 1.0 all of them, 0.5 half of them.
        limit_val_batches: likewise for validation.
        limit_test_batches: likewise for test.
        limit_predict_batches: likewise for prediction.
        **kwargs: see ``pytorch_lightning.Trainer``.

    Raises:
        UserError: several nodes, and nothing says which of them this is: each would wait for the others.
    """

    def __init__(
        self,
        *,
        limit_train_batches: Any = None,
        limit_val_batches: Any = None,
        limit_test_batches: Any = None,
        limit_predict_batches: Any = None,
        **kwargs: Any,
    ) -> None:
        given = kwargs.get("callbacks") or []
        given = list(given) if isinstance(given, list) else [given]  # Lightning adds its own to the list
        if kwargs.get("profiler") is None and not kwargs.get("barebones"):
            kwargs["profiler"] = NoProfiler()
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            **kwargs,
        )
        environment = getattr(self.strategy, "cluster_environment", None)
        if self.num_nodes > 1 and isinstance(environment, LightningEnvironment) and not NODE & os.environ.keys():
            raise UserError(
                f"trainer.num_nodes {self.num_nodes}: nothing says which node this is: start the command by torchrun "
                "or SLURM on every node, or set MASTER_ADDR, MASTER_PORT and NODE_RANK"
            )
        bar = self.progress_bar_callback
        if bar is not None and bar not in given:
            own: list[pl.Callback] = self.callbacks  # type: ignore[has-type]
            self.callbacks = [SparingBar() if each is bar else each for each in own]
