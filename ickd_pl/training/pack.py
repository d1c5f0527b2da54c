"""Several students on one teacher in one run: the teacher looks at each batch once, for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from ickd_pl.data.batch import Batch, as_batch
from ickd_pl.errors import NonFiniteLoss, UserError
from ickd_pl.models.features import Features
from ickd_pl.strategies import LossStrategy
from ickd_pl.training.checkpoint import leave_teacher_out, put_back
from ickd_pl.training.module import DistillationModule


class Pack(pl.LightningModule):
    """Train several :class:`~ickd_pl.DistillationModule` at once, each exactly as it would train alone.

    The members see the same batches, and one teacher's forward pass serves them all. Each member has a backward pass
    of its own, which frees its graph before the next member's is built. One SGD steps all of them, with a parameter
    group per member. On a CPU in float32 every member ends bit for bit where its solo run ends.

    A member whose loss becomes infinite or NaN is named and stopped; the others go on.

    Args:
        members: modules of the same data; those with a teacher must have the same one (the first one's is kept).
        names: what to call the members in messages; default: their methods.
        gradient_clip_val: clip each member's gradient, as ``Trainer(gradient_clip_val=...)`` does for a solo run; the
            Trainer's own would clip all members together and is refused by Lightning.
        gradient_clip_algorithm: ``norm`` (the default) or ``value``, as the Trainer's.

    Raises:
        UserError: no members, different teachers or class counts, and what cannot be packed (see :func:`why_alone`).
        NonFiniteLoss: the loss of every member became infinite or NaN.
    """

    def __init__(
        self,
        members: Sequence[DistillationModule],
        names: Sequence[str] | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.names = list(names) if names is not None else ["_".join(m.keys) or "vanilla" for m in members]
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm or "norm"
        self.members = nn.ModuleList(members)
        _check(list(self), self.names)
        self._share_teacher()
        self.stopped: dict[str, str] = {}
        self.noted: list[dict[str, float]] = [{} for _ in members]
        for position, member in enumerate(self):
            member.param_group = position
            member.note = self._sink(position)  # type: ignore[method-assign]

    def __iter__(self) -> Iterator[DistillationModule]:
        return iter(self.members)  # type: ignore[arg-type]

    def _share_teacher(self) -> None:
        taught = [member for member in self if member.teacher is not None]
        for member in taught[1:]:
            member.teacher, member._teacher_ready = taught[0].teacher, True
        self._first = taught[0] if taught else None

    def _sink(self, position: int) -> Callable[..., None]:
        """Takes a member's values as Lightning would keep them: in float32."""

        def note(values: dict[str, float], prog_bar: bool = False) -> None:
            kept = {name: torch.tensor(float(value)).item() for name, value in values.items()}
            self.noted[position].update(kept)

        return note

    def active(self) -> Iterator[tuple[int, DistillationModule]]:
        """Position and module of each member that still trains."""
        for position, (name, member) in enumerate(zip(self.names, self, strict=True)):
            if name not in self.stopped:
                yield position, member

    # -- one step ------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        share = getattr(self.trainer.train_dataloader, "share", None)
        factor = 1.0 if share is None or self.trainer.world_size == 1 else share(batch_idx)
        teacher = self._teacher_features(as_batch(batch))
        synchronised = False
        for position, member in self._in_step():
            loss = self._loss(position, member, batch, batch_idx, teacher)
            if loss is None:
                continue
            if not synchronised:
                # DDP expects to be told once that gradients will come; each member brings a part of them.
                # private: lightning strategy.pre_backward
                self.trainer.strategy.pre_backward(loss)
                synchronised = True
            # training_step runs under autocast and a solo run's backward pass does not: in it, the gradients of losses
            # in full precision would be taken in half.
            with torch.autocast(self.device.type, enabled=False):
                (loss if self.trainer.world_size == 1 else loss * factor).backward()  # type: ignore[no-untyped-call]
            del loss
        self._clip()
        optimizer.step()
        if self.trainer.is_last_batch:
            self.lr_schedulers().step()  # type: ignore[union-attr]

    def _in_step(self) -> Iterator[tuple[int, DistillationModule]]:
        """Under DDP a stopped member still computes, unrecorded: the other ranks wait for its gradients."""
        yield from enumerate(self) if isinstance(self.trainer.strategy, DDPStrategy) else self.active()

    def _loss(
        self, position: int, member: DistillationModule, raw: Any, batch_idx: int, teacher: Features | None
    ) -> Tensor | None:
        name, batch = self.names[position], member._as_batch(raw)
        if name in self.stopped:
            return member.losses(batch, teacher)[0]
        try:
            return member.counted_loss(batch, batch_idx, teacher if member.teacher is not None else None)
        except UserError as error:
            self._stop(name, error)
            return member.losses(batch, teacher)[0] if isinstance(self.trainer.strategy, DDPStrategy) else None

    def _teacher_features(self, batch: Batch) -> Features | None:
        if self._first is None:
            return None
        return self._first.teacher_features(batch.image, preact=any(member._preact for member in self))

    def _stop(self, name: str, error: Exception) -> None:
        self.stopped[name] = str(error)
        rank_zero_warn(f"{name} is stopped, the others go on: {error}")
        if len(self.stopped) == len(self.names):
            raise NonFiniteLoss(f"every member of the pack is stopped: {error}")

    def _clip(self) -> None:
        if self.gradient_clip_val:
            by_norm = self.gradient_clip_algorithm == "norm"
            clip = torch.nn.utils.clip_grad_norm_ if by_norm else torch.nn.utils.clip_grad_value_
            for _, member in self.active():
                clip(list(member.trainable()), self.gradient_clip_val)

    # -- evaluation and epochs: each member as it does alone ---------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for _, member in self.active():
            member.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        for _, member in self.active():
            member.on_validation_epoch_end()

    def on_train_epoch_end(self) -> None:
        self._agree()
        for position, member in list(self.active()):
            try:
                member.on_train_epoch_end()
            except UserError as error:
                self._stop(self.names[position], error)

    def _agree(self) -> None:
        """A member that one rank has stopped, or is about to stop, stops on all: they go on in step."""
        if self.trainer.world_size == 1:
            return
        bad = [float(name in self.stopped or not m.is_finite()) for name, m in zip(self.names, self, strict=True)]
        total = self.trainer.strategy.reduce(torch.tensor(bad, device=self.device), reduce_op="sum")
        for name, count in zip(self.names, torch.as_tensor(total).tolist(), strict=True):
            if count and name not in self.stopped:
                self._stop(name, NonFiniteLoss("its loss became infinite or NaN on one of the ranks"))

    def setup(self, stage: str) -> None:
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "a pack cannot use 16-mixed: one loss scale would couple its members; use bf16-mixed or 32-true"
            )
        for member in self:
            member._trainer = self.trainer  # private: lightning LightningModule._trainer
            if self._first is not None and member.teacher is not None and member is not self._first:
                member._teacher_ready = True
            member.setup(stage)

    def on_train_start(self) -> None:
        for member in self:
            member.on_train_start()

    def on_train_epoch_start(self) -> None:
        for values in self.noted:
            values.clear()
        for member in self:
            member.on_train_epoch_start()

    def on_train_end(self) -> None:
        for member in self:
            member.on_train_end()

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        return [_ForMember(strategy, member) for member in self for strategy in member.strategies]

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = []
        for member in self:
            hp = member.hparams
            groups.append(
                {
                    "params": list(member.trainable()),
                    **{key: hp[key] for key in ("lr", "momentum", "weight_decay")},
                }
            )
        optimizer = torch.optim.SGD(groups, foreach=True)
        factors = [member.lr_factor() for member in self]
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factors)}

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        teachers = tuple(f"members.{position}.teacher." for position in range(len(self.names)))
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(teachers)}
        checkpoint["ickd_pl_pack"] = {
            "names": self.names,
            "stopped": dict(self.stopped),
            "members": [_note_of(member) for member in self],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get("ickd_pl_pack")
        if kept is None or kept["names"] != self.names:
            raise UserError(f"the checkpoint is of another pack: expected {self.names}, got {kept and kept['names']}")
        self.stopped = dict(kept["stopped"])
        for position, (member, note) in enumerate(zip(self, kept["members"], strict=True)):
            own: dict[str, Any] = {"state_dict": {}, **note}
            put_back(member, own, evaluating=False)
            prefix = f"members.{position}."
            checkpoint["state_dict"].update({prefix + key: value for key, value in own["state_dict"].items()})


def _note_of(member: DistillationModule) -> dict[str, Any]:
    """What a solo checkpoint of the member holds beside weights and progress."""
    own: dict[str, Any] = {"state_dict": {}}
    leave_teacher_out(member, own)
    return {"ickd_pl": own["ickd_pl"], "hyper_parameters": dict(member.hparams)}


class _ForMember(pl.Callback):
    """A member's method as a callback of the pack: its hooks get the member in place of the pack."""

    def __init__(self, strategy: pl.Callback, member: DistillationModule) -> None:
        self._strategy, self._member = strategy, member

    @property
    def state_key(self) -> str:
        return f"{self._member.param_group}:{self._strategy.state_key}"

    def state_dict(self) -> dict[str, Any]:
        return self._strategy.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._strategy.load_state_dict(state_dict)


def _forward(hook: str) -> Callable[..., None]:
    def forward(self: _ForMember, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        getattr(self._strategy, hook)(trainer, self._member, *args, **kwargs)

    return forward


for _hook in [name for name in vars(pl.Callback) if name.startswith("on_") or name in ("setup", "teardown")]:
    setattr(_ForMember, _hook, _forward(_hook))


# Hooks around a member's backward pass and its step, of which a pack has one for all.
_NOT_IN_A_PACK = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")


def why_alone(strategies: Sequence[LossStrategy]) -> str | None:
    """Why a run with these methods cannot be a member of a pack, or None where it can."""
    for strategy in strategies:
        if strategy.pretrain_epochs:
            return f"{type(strategy).__name__} has a first stage of its own"
        hooks = [hook for hook in _NOT_IN_A_PACK if getattr(type(strategy), hook) is not getattr(pl.Callback, hook)]
        if hooks:
            return f"{type(strategy).__name__} uses the hook {hooks[0]}"
    return None


def _random(student: nn.Module) -> str | None:
    """Dropout draws from the one global stream, so that a member's draws would depend on the other members."""
    # private: torch _DropoutNd
    dropouts = (m for m in student.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0)
    return "its student has dropout" if next(dropouts, None) is not None else None


def _check(members: Sequence[DistillationModule], names: Sequence[str]) -> None:
    if not members:
        raise UserError("a pack needs at least one member")
    if len(set(names)) != len(names) or len(names) != len(members):
        raise UserError(f"the members of a pack need different names, one each, got {list(names)}")
    for name, member in zip(names, members, strict=True):
        if reason := why_alone(member.strategies) or _random(member.student):
            raise UserError(f"{name} cannot be packed, for {reason}: run it alone")
        for what in ("num_classes", "image_size"):
            first, own = members[0].hparams[what], member.hparams[what]
            if first != own:
                raise UserError(f"the members of a pack share their data: {what} is {first} and, of {name}, {own}")
    taught = [member for member in members if member.teacher is not None]
    teachers = {
        (member.teacher_name, id(member.teacher) if member._teacher_ready else member.hparams["teacher_weights"])
        for member in taught
    }
    if len(teachers) > 1:
        found = ", ".join(f"{member.teacher_name} ({member.hparams['teacher_weights']})" for member in taught)
        raise UserError(f"the members of a pack share one teacher, got {found}")
