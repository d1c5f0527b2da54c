"""The student's part of the training module: evaluation, prediction and loading from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from torch import Tensor

from ickd_pl.data.batch import Batch, as_batch
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.hooked import HookedNet
from ickd_pl.training.checkpoint import load_module
from ickd_pl.training.first_batch import FirstBatch, dtype_of
from ickd_pl.training.memory import keep_memory
from ickd_pl.training.metrics import Accuracies

if TYPE_CHECKING:
    from typing_extensions import Self


class StudentModule(pl.LightningModule):
    """The part of :class:`~ickd_pl.DistillationModule` that needs no teacher, methods or optimizer.

    Attributes:
        student: maps normalised images (B, 3, H, W) to logits (B, K).
        metrics: accuracies of the current evaluation.
        best_acc1: top-1 accuracy in % of the best epoch so far; every ``fit`` that resumes no checkpoint starts anew.
        trained_steps: optimizer steps that the weights have had, in all fits.
        trained_before: those before the current fit, also stored in its checkpoints; 0: it started from the seed.
    """

    student: FeatureNet | HookedNet
    metrics: Accuracies
    best_acc1: float = 0.0
    trained_steps: int = 0
    trained_before: int = 0
    student_name: str
    first_batch: FirstBatch

    @property
    def in_first_stage(self) -> bool:
        """Whether this is a method's first stage, in which the student's accuracy does not count."""
        return False

    def setup(self, stage: str) -> None:
        keep_memory(self.trainer.strategy.root_device)

    @property
    def deployed(self) -> FeatureNet | HookedNet:
        """The network that predicts: the student, or the student with the head of a method that predicts."""
        return self.student

    def forward(self, image: Tensor) -> Tensor:
        """The prediction's logits, (B, K), for normalised images (B, 3, H, W)."""
        logits: Tensor = self.deployed(image)
        return logits

    def evaluation_batch(self, raw: Any, stage: str = "evaluation") -> Batch:
        """Convert what an evaluation loader yields to a :class:`Batch`.

        Raises:
            UserError: it is not a batch, or the values of the first one are impossible.
        """
        return self.first_batch.check(as_batch(raw, dtype_of(self.student)), stage, [(self.student, self.student_name)])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch = self.evaluation_batch(batch)
        self.metrics.update(self(batch.image), batch)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities, (B, K)."""
        logits: Tensor = self(self.evaluation_batch(batch, "prediction").image)
        return logits.float().softmax(dim=1)

    def validation_values(self) -> dict[str, float]:
        """Accuracies in % of the evaluation that is ending, by the names under which they are logged.

        Empty after Lightning's sanity check. In ``fit`` the best epoch's accuracy is included.
        """
        values = self.metrics.percentages()
        if self.trainer.sanity_checking:
            return {}
        split = getattr(self.trainer.datamodule, "eval_split", "val")  # type: ignore[attr-defined]
        found = {f"{split}/{name}": value for name, value in values.items()}
        if self.trainer.state.fn == "fit" and not self.in_first_stage:
            self.best_acc1 = max(self.best_acc1, values["acc1"])
            found[f"{split}/acc1_best"] = self.best_acc1
        return found

    def on_validation_epoch_end(self) -> None:
        self.log_values(self.validation_values())

    def on_test_epoch_end(self) -> None:
        self.log_values({f"test/{name}": value for name, value in self.metrics.percentages().items()})

    def log_values(self, values: dict[str, float]) -> None:
        """Log values that are already equal on all ranks; ``sync_dist`` only avoids Lightning's warning."""
        for name, value in values.items():
            shown = name.startswith(("val/", "test/")) and not name.endswith("_best")
            self.log(name, value, prog_bar=shown, sync_dist=True)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, *, strict: bool = True, **kwargs: Any
    ) -> Self:
        """Load a module with its settings and weights. Nothing in the file is executed, imported or downloaded.

        Args:
            checkpoint_path: path of the checkpoint.
            map_location: device of the module; None: the CPU.
            strict: all keys of the state dict must match.
            **kwargs: arguments that replace the stored ones. A custom network is not stored: pass it again, as
                ``student=NET, student_layers=LAYERS``. ``weights_only`` is accepted and always true.

        Raises:
            UserError: the file is missing, damaged, of another network, or has settings that a file may not set.
        """
        return load_module(cls, checkpoint_path, map_location, strict, kwargs)
