"""The teacher's part of the training module: its weights, its features, and that it stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ickd_pl.errors import UserError
from ickd_pl.models.base import FeatureNet
from ickd_pl.models.deployed import DeployedNet, Head
from ickd_pl.models.features import Features
from ickd_pl.models.hooked import HookedNet
from ickd_pl.strategies import LossStrategy
from ickd_pl.training.speed import Computing
from ickd_pl.training.student import StudentModule
from ickd_pl.training.teacher import TeacherWeights

if TYPE_CHECKING:
    from typing_extensions import Self


class TaughtModule(StudentModule):
    """The part of :class:`~ickd_pl.DistillationModule` that is about its frozen teacher.

    Attributes:
        teacher: in eval mode and without gradients; None without methods.
        teacher_weights: their file, and whether they are loaded.
        strategies: the methods.
        keys: their keys in logs and adapters.
        adapters: their trainable parts by key.
        computing: what computes features and losses.
        older: settings that the run is older than; its checkpoints go on leaving them out, so that it continues again.
    """

    teacher: FeatureNet | HookedNet | None
    teacher_name: str | None
    teacher_weights: TeacherWeights
    strategies: list[LossStrategy]
    keys: list[str]
    adapters: nn.ModuleDict
    computing: Computing
    older: frozenset[str] = frozenset()

    @property
    def needs_preact(self) -> bool:
        """Whether a method needs :attr:`Features.preact` of both networks."""
        return any(s.needs_preact for s in self.strategies)

    def adapter_of(self, strategy: LossStrategy) -> nn.Module | None:
        """The trainable part that a strategy's ``build`` returned, or None."""
        key = next(key for key, own in zip(self.keys, self.strategies, strict=True) if own is strategy)
        # ModuleDict has no get() in every supported torch.
        return self.adapters[key] if key in self.adapters else None  # noqa: SIM401

    @property
    def head(self) -> Head | None:
        """What predicts instead of the student's last layer: of a method, or of the checkpoint that was loaded."""
        return next((adapter for adapter in self.adapters.values() if isinstance(adapter, Head)), None)

    @property
    def deployed(self) -> FeatureNet | HookedNet:
        if (head := self.head) is None:
            return self.student
        if not head.ready:
            self.prepare_teacher()
        return DeployedNet(self.student, head)

    def check_head(self) -> None:
        """Raise :class:`UserError` before a fit that would not train the head by which the student predicts."""
        if self.head is not None and not any(strategy.predicts for strategy in self.strategies):
            raise UserError(
                "the student predicts by a head of its checkpoint, which no method of this run trains: load it with "
                "its methods, or train load_student(FILE) as the student"
            )

    def prepare_teacher(self) -> None:
        """Load the teacher's weights, once. ``fit`` calls it; call it yourself to fail early.

        Raises:
            UserError: no weights file is set, or it is missing, damaged or of another network; or
                ``teacher_normalization`` cannot be followed.
        """
        if self.teacher is not None:
            self.teacher_weights.read_into(self.teacher)
            if (head := self.head) is not None and not head.ready:
                head.take(self.teacher.last_layer())
            if self._attached():  # else the data are not known yet
                self._prepare_images(self.trainer.datamodule)  # type: ignore[attr-defined]

    def share_teacher(self, other: TaughtModule) -> None:
        """Use the other module's teacher (the same network) instead of this module's own."""
        self.teacher, self.teacher_weights, self.computing = other.teacher, other.teacher_weights, other.computing

    @torch.no_grad()
    def teacher_features(self, image: Tensor, preact: bool) -> Features:
        """The frozen teacher's features of the images, without gradient; needs at least one method."""
        self.prepare_teacher()
        if not self._attached():
            self._prepare_images(None)
        return self.computing.teacher_features(self, self.teacher_weights.images(image), preact)

    def _prepare_images(self, data: Any) -> None:
        self.teacher_weights.images.prepare(self.hparams["teacher_normalization"], data)

    def _attached(self) -> bool:
        """Whether a trainer has run, or runs, the module."""
        try:
            return self.trainer is not None
        except RuntimeError:
            return False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self
