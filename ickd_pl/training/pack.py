"""Packs: several students trained in one run, with one forward pass of their shared teacher per batch."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from ickd_pl.checks import true_or_false
from ickd_pl.data.batch import Batch, as_batch
from ickd_pl.errors import NonFiniteLoss, UserError
from ickd_pl.models.features import Features
from ickd_pl.training.build import optimizer_of
from ickd_pl.training.captured import CapturedSteps
from ickd_pl.training.first_batch import dtype_of
from ickd_pl.training.fused import Fusion, Part
from ickd_pl.training.module import DistillationModule
from ickd_pl.training.pack_members import ForMember, check_members, note_of, restore
from ickd_pl.training.speed import Float32
from ickd_pl.training.teacher_parts import put_back, take_out
from ickd_pl.training.weights_record import keepers


class Pack(CapturedSteps):
    """Train several :class:`~ickd_pl.DistillationModule` together, each exactly as in a run of its own (solo run).

    The members see the same batches and share the teacher's forward pass. Each member has its own backward pass, which
    frees its graph before the next member's is built. One SGD updates all members, with a parameter group each. On a
    CPU in float32 every member is bitwise equal to its solo run. One whose loss becomes infinite or NaN is reported and
    stopped; the others continue.

    Args:
        members: modules for the same data. Those with a teacher must have the same one; the first member's is used.
        names: the members' names in messages; default: their methods.
        gradient_clip_val: clip each member's gradient; the Trainer's option would clip all members together.
        gradient_clip_algorithm: ``norm`` (the default) or ``value``, as in the Trainer.
        fused: compute the students of one architecture as a single network (see :mod:`ickd_pl.training.fused`), with
            one backward pass. Results differ from solo runs in the last bits, as those of another batch size would.

    Raises:
        UserError: no members, different teachers or classes, or a member that cannot be packed (``why_alone``).
        NonFiniteLoss: the loss of every member became infinite or NaN.
    """

    def __init__(
        self,
        members: Sequence[DistillationModule],
        names: Sequence[str] | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.names = list(names) if names is not None else ["_".join(m.keys) or "vanilla" for m in members]
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm or "norm"
        self.members = nn.ModuleList(members)
        check_members(list(self), self.names)
        self.strategies = [strategy for member in self for strategy in member.strategies]
        self.cuda_graphs = bool(members[0].hparams["cuda_graphs"])
        for member in self._taught()[1:]:
            member.share_teacher(self._taught()[0])
        self._fusion = Fusion([m.student for m in self], self.names) if true_or_false("fused", fused) else None
        self.stopped: dict[str, str] = {}
        self.values: list[dict[str, float]] = [{} for _ in self]

    def __iter__(self) -> Iterator[DistillationModule]:
        return iter(self.members)  # type: ignore[arg-type]

    def _taught(self) -> list[DistillationModule]:
        return [member for member in self if member.teacher is not None]

    def active(self) -> Iterator[tuple[int, DistillationModule]]:
        """Position and module of each member that has not been stopped."""
        for position, (name, member) in enumerate(zip(self.names, self, strict=True)):
            if name not in self.stopped:
                yield position, member

    # -- one step ------------------------------------------------------------------------------------------------

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
        teacher = self._teacher_features(checked)
        synchronised = False
        for part in self._parts():
            features = self._student_features(part, checked.image)
            losses = [self._loss(i, batch, teacher, own) for i, own in zip(part.positions, features, strict=True)]
            del features
            if not synchronised:
                # DDP expects this call once per step; each member contributes a part of the gradients.
                self.trainer.strategy.pre_backward(losses[0])  # private: lightning strategy.pre_backward
                synchronised = True
            # Lightning runs training_step under autocast but a solo run's backward pass outside it: under autocast the
            # gradients of losses computed in full precision would be in half precision.
            with torch.autocast(self.device.type, enabled=False):
                torch.autograd.backward(losses if self.trainer.world_size == 1 else [loss * factor for loss in losses])
            del losses
        self._check_gradients()
        self._clip()

    def _parts(self) -> list[Part]:
        """Members to compute. Under DDP also the stopped ones: the other ranks wait for their gradients."""
        ddp = isinstance(self.trainer.strategy, DDPStrategy)
        positions = [i for i, name in enumerate(self.names) if ddp or name not in self.stopped]
        return [Part([i], None) for i in positions] if self._fusion is None else self._fusion.parts(positions)

    def _student_features(self, part: Part, image: Tensor) -> Sequence[Features | None]:
        """The students' features, None for one that is computed with its losses."""
        if part.students is None:
            return [None]
        members = list(self)
        return part.students.features(image, preact=any(members[i].needs_preact for i in part.positions))

    def _loss(self, position: int, raw: Any, teacher: Features | None, student: Features | None) -> Tensor:
        member: Any = self.members[position]
        given = member.as_batch(raw), teacher if member.teacher is not None else None, student
        stopped = self.names[position] in self.stopped
        loss: Tensor = member.losses(*given)[0] if stopped else member.counted_loss(*given)
        return loss

    def _check_gradients(self) -> None:
        """Stop members whose gradients are not finite, before the update; on all ranks, whose gradients are equal."""
        step = self.step_number
        bad = [position for position, m in self.active() if m.sums.finite.gradients(m.trainable(), step)]
        for position in bad:
            self._check_member(position)
        for name, member in zip(self.names, self, strict=True):
            if name in self.stopped:
                for parameter in member.trainable():
                    parameter.grad = None  # the optimizer skips it

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

    def _teacher_features(self, batch: Batch) -> Features | None:
        taught = self._taught()
        if not taught:
            return None
        return taught[0].teacher_features(batch.image, preact=any(member.needs_preact for member in taught))

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

    def _clip(self) -> None:
        if self.gradient_clip_val:
            by_norm = self.gradient_clip_algorithm == "norm"
            clip = torch.nn.utils.clip_grad_norm_ if by_norm else torch.nn.utils.clip_grad_value_
            for _, member in self.active():
                clip(list(member.trainable()), self.gradient_clip_val)

    # -- evaluation and epochs: as each member does in a solo run ----------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for _, member in self.active():
            member.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        for position, member in self.active():
            self._keep(position, member.validation_values())

    def on_train_epoch_end(self) -> None:
        self.check_finite()
        for position, member in list(self.active()):
            self._keep(position, member.train_values())

    def _keep(self, position: int, values: dict[str, float]) -> None:
        """Store a member's metrics in float32, as Lightning stores those of a solo run."""
        self.values[position].update({name: torch.tensor(value).item() for name, value in values.items()})

    def setup(self, stage: str) -> None:
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "a pack cannot use 16-mixed: one loss scale would couple its members; use bf16-mixed or 32-true"
            )
        for member in self:
            member.trainer = self.trainer
            member.setup(stage)

    def baked(self) -> Hashable:
        return tuple(self.stopped), tuple(member.baked() for _, member in self.active())

    def on_fit_start(self) -> None:
        super().on_fit_start()
        for member in self:
            member.captured = self.captured

    def on_fit_end(self) -> None:
        for module in (self, *self):
            module.captured = None

    def on_train_start(self) -> None:
        for member in self:
            member.on_train_start()
        self.arrange()

    def arrange(self) -> None:
        """Find the students that are computed together, where the pack is fused."""
        if self._fusion is not None:
            context = self.trainer.precision_plugin.forward_context()
            preact = [member.needs_preact for member in self]
            self._fusion.arrange(next(iter(self)).hparams["image_size"], preact, context)

    def on_train_epoch_start(self) -> None:
        for values in self.values:
            values.clear()
        for member in self:
            member.on_train_epoch_start()
        self.arrange()  # a callback may have changed modes

    def on_train_end(self) -> None:
        for member in self:
            member.on_train_end()

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        members: list[pl.Callback] = [
            ForMember(strategy, member, position)
            for position, member in enumerate(self)
            for strategy in [*member.strategies, *keepers(self.trainer, member, f"members.{position}.")]
        ]
        return [Float32(next(iter(self)).hparams["tf32"]), *members]

    def configure_optimizers(self) -> Any:
        return optimizer_of(list(self))

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data, taught = getattr(self.trainer, "datamodule", None), self._taught()
        parts = take_out(checkpoint, taught[0].teacher if taught else None)
        checkpoint["ickd_pl_pack"] = {
            "names": self.names,
            "stopped": dict(self.stopped),
            "values": [dict(values) for values in self.values],
            "members": [note_of(member, data) for member in self],
            **({"teacher_parts": parts} if parts else {}),
        }

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Refused: Lightning would build a class that the file names.

        Raises:
            UserError: always.
        """
        raise UserError(
            "a pack is not built from its checkpoint: build its members in Python, then call "
            "Trainer.fit(pack, data, ckpt_path=FILE)"
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("ickd_pl_pack")
        if stored is None or stored["names"] != self.names:
            raise UserError(
                f"the checkpoint is of another pack: expected {self.names}, got {(stored or {}).get('names')}"
            )
        self.stopped = dict(stored["stopped"])
        self.values = [dict(values) for values in stored.get("values", self.values)]
        restore(list(self), stored["members"], checkpoint)
        taught = self._taught()
        put_back(checkpoint, stored.get("teacher_parts"), taught[0].teacher if taught else None)
