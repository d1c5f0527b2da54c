"""The Trainer of the command line: whole numbers of batches stay whole numbers."""

from __future__ import annotations

import os
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]

from ickd_pl.errors import UserError

# Either says which node this is.
NODE = {"NODE_RANK", "GROUP_RANK"}


class CommandLineTrainer(pl.Trainer):
    """Lightning's Trainer, whose limits take a whole number as a number of batches and any other as a part of them.

    Lightning annotates them as ``float | int``, for which the parser makes 1.0, the whole epoch, of 1, one batch. The
    order of a union does not help: Python takes unions of the same types for one, in the order that came first.

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
