"""Packs: several students trained in one run, with one forward pass of their shared teacher per batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ickd_pl.checks import true_or_false
from ickd_pl.errors import UserError
from ickd_pl.training.build import optimizer_of
from ickd_pl.training.fused import Fusion
from ickd_pl.training.module import DistillationModule
from ickd_pl.training.pack_members import ForMember, check_members, note_of, restore
from ickd_pl.training.pack_step import PackedSteps
from ickd_pl.training.speed import Float32
from ickd_pl.training.teacher_parts import put_back, take_out
from ickd_pl.training.weights_record import keepers


class Pack(PackedSteps):
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
        self._check_trainer()  # the first hook, before Lightning's own refusals
        members: list[pl.Callback] = [
            ForMember(strategy, member, position)
            for position, member in enumerate(self)
            for strategy in [*member.strategies, *keepers(self.trainer, member, f"members.{position}.")]
        ]
        return [Float32(next(iter(self)).hparams["tf32"]), *members]

    def _check_trainer(self) -> None:
        if self.trainer.gradient_clip_val:
            raise UserError(
                "the Trainer's gradient_clip_val would clip all members together: give it to the pack, "
                "Pack(members, gradient_clip_val=...)"
            )
        if self.trainer.accumulate_grad_batches != 1:
            raise UserError(
                "a pack makes an update with every batch: expected accumulate_grad_batches 1, got "
                f"{self.trainer.accumulate_grad_batches}; give the data a larger batch_size instead"
            )

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
