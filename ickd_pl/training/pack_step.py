"""One training step of a pack: a forward pass of the shared teacher, then every member's losses and gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from ickd_pl.data.batch import Batch, as_batch
from ickd_pl.errors import NonFiniteLoss
from ickd_pl.models.features import Features
from ickd_pl.training.captured_steps import CapturedSteps
from ickd_pl.training.first_batch import dtype_of
from ickd_pl.training.fused import Fusion, Part
from ickd_pl.training.module import DistillationModule


class PackedSteps(CapturedSteps):
    """The part of :class:`~ickd_pl.training.pack.Pack` that runs its steps.

    Attributes:
        names: the members' names in messages.
        members: the modules.
        stopped: why, by name, of the members that are trained no longer.
    """

    names: list[str]
    members: nn.ModuleList
    stopped: dict[str, str]
    gradient_clip_val: float | None
    gradient_clip_algorithm: str
    _fusion: Fusion | None

    def __iter__(self) -> Iterator[DistillationModule]:
        return iter(self.members)  # type: ignore[arg-type]

    def _taught(self) -> list[DistillationModule]:
        return [member for member in self if member.teacher is not None]

    def active(self) -> Iterator[tuple[int, DistillationModule]]:
        """Position and module of each member that has not been stopped."""
        for position, (name, member) in enumerate(zip(self.names, self, strict=True)):
            if name not in self.stopped:
                yield position, member

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_step(batch, optimizer, partial(self._gradients, batch_idx, optimizer))
        if self.trainer.is_last_batch:
            self.lr_schedulers().step()  # type: ignore[union-attr]

    def _gradients(self, batch_idx: int, optimizer: Any, batch: Any) -> None:
        optimizer.zero_grad()
        share = getattr(self.trainer.train_dataloader, "share", None)
        factor = 1.0 if share is None or self.trainer.world_size == 1 else share(batch_idx)
        checked = as_batch(batch, dtype_of(self.members[0]))
        parts = self._parts()
        teacher: Features | None = None
        features: list[Any] = [None] * len(parts)
        if self.captured is None:
            teacher = self._teacher_features(checked)
        else:
            forward: list[Any] = [partial(self._student_features, part, checked.image, ahead=True) for part in parts]
            *features, teacher = self.side_by_side([*forward, partial(self._teacher_features, checked)])

        def backward(number: int, part: Part, students: Sequence[Features | None] | None) -> None:
            students = students or self._student_features(part, checked.image, ahead=False)
            losses = [self._loss(i, batch, teacher, own) for i, own in zip(part.positions, students, strict=True)]
            del students
            if number == 0:
                # DDP expects this call once per step; each member contributes a part of the gradients.
                self.trainer.strategy.pre_backward(losses[0])  # private: lightning strategy.pre_backward
            # Lightning runs training_step under autocast but a solo run's backward pass outside it: under autocast the
            # gradients of losses computed in full precision would be in half precision.
            with torch.autocast(self.device.type, enabled=False):
                torch.autograd.backward(losses if self.trainer.world_size == 1 else [loss * factor for loss in losses])

        self.side_by_side([partial(backward, *each) for each in zip(range(len(parts)), parts, features, strict=True)])
        self._check_gradients()
        self._clip()

    def _parts(self) -> list[Part]:
        """Members to compute. Under DDP also the stopped ones: the other ranks wait for their gradients."""
        ddp = isinstance(self.trainer.strategy, DDPStrategy)
        positions = [i for i, name in enumerate(self.names) if ddp or name not in self.stopped]
        return [Part([i], None) for i in positions] if self._fusion is None else self._fusion.parts(positions)

    def _student_features(self, part: Part, image: Tensor, ahead: bool) -> Sequence[Features | None]:
        """The students' features; None for one that is computed with its losses, unless ``ahead`` of them."""
        members: list[DistillationModule] = [list(self)[i] for i in part.positions]
        if part.students is not None:
            return part.students.features(image, preact=any(member.needs_preact for member in members))
        if not ahead:
            return [None]
        return [member.computing.student_features(member, image, member.needs_preact) for member in members]

    def _loss(self, position: int, raw: Any, teacher: Features | None, student: Features | None) -> Tensor:
        member: Any = self.members[position]
        given = member.as_batch(raw), teacher if member.teacher is not None else None, student
        stopped = self.names[position] in self.stopped
        loss: Tensor = member.losses(*given)[0] if stopped else member.counted_loss(*given)
        return loss

    def _check_gradients(self) -> None:
        """Stop members whose gradients are not finite, before the update; on all ranks, whose gradients are equal."""
        active, step = list(self.active()), self.step_number
        works = [partial(member.sums.finite.gradients, list(member.trainable()), step) for _, member in active]
        for (position, _), bad in zip(active, self.side_by_side(works), strict=True):
            if bad:
                self._check_member(position)
        for name, member in zip(self.names, self, strict=True):
            if name in self.stopped:
                for parameter in member.trainable():
                    parameter.grad = None  # the optimizer skips it

    def _teacher_features(self, batch: Batch) -> Features | None:
        taught = self._taught()
        if not taught:
            return None
        return taught[0].teacher_features(batch.image, preact=any(member.needs_preact for member in taught))

    def _clip(self) -> None:
        if self.gradient_clip_val:
            by_norm = self.gradient_clip_algorithm == "norm"
            clip = torch.nn.utils.clip_grad_norm_ if by_norm else torch.nn.utils.clip_grad_value_
            for _, member in self.active():
                clip(list(member.trainable()), self.gradient_clip_val)

    def check_finite(self) -> None:
        """Stop members of which something was infinite or NaN. Call it on all ranks; it waits for the device.

        Raises:
            NonFiniteLoss: every member is stopped.
        """
        for position, _ in list(self.active()):
            self._check_member(position)

    def _check_member(self, position: int) -> None:
        try:
            self.members[position].sums.check_finite(self.trainer)  # type: ignore[union-attr, operator]
        except NonFiniteLoss as error:
            self.stop_member(self.names[position], error)

    def stop_member(self, name: str, error: NonFiniteLoss) -> None:
        """Stop a member and go on with the others. Call it on all ranks.

        Args:
            name: of the member.
            error: the reason.

        Raises:
            NonFiniteLoss: every member is stopped.
        """
        self.stopped[name] = str(error)
        if self.trainer.global_rank == (error.rank or 0):
            warnings.warn(f"{name} is stopped, the others continue: {error}", stacklevel=2)
        if len(self.stopped) == len(self.names):
            raise NonFiniteLoss(f"every member of the pack is stopped: {error}", error.rank)
