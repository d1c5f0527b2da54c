"""Which modules can be members of a pack, their methods as callbacks of the pack, and their part of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import nn

from ickd_pl.errors import UserError
from ickd_pl.strategies import LossStrategy
from ickd_pl.training.build import share
from ickd_pl.training.checkpoint import complete_checkpoint, remove_teacher
from ickd_pl.training.module import DistillationModule
from ickd_pl.training.speed import UNSET, as_recorded

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# Hooks around the backward pass and the optimizer step, which a pack runs once for all members.
_NOT_IN_A_PACK = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")


def why_alone(strategies: Sequence[LossStrategy]) -> str | None:
    """The reason why a run with these methods cannot be packed; None if it can."""
    for strategy in strategies:
        if strategy.pretrain_epochs:
            return f"{type(strategy).__name__} has a first stage of its own"
        hooks = [hook for hook in _NOT_IN_A_PACK if getattr(type(strategy), hook) is not getattr(pl.Callback, hook)]
        if hooks:
            return f"{type(strategy).__name__} uses the hook {hooks[0]}"
    return None


def _uses_dropout(student: nn.Module) -> str | None:
    """Why a student with dropout is refused: it draws from the global generator, which all members share."""
    drops = any(isinstance(m, _DROPOUT) and m.p > 0 for m in student.modules())
    return "its student has dropout" if drops else None


def check_members(members: Sequence[DistillationModule], names: Sequence[str]) -> None:
    """Raise :class:`UserError` if the modules cannot be members of one pack."""
    if not members:
        raise UserError("a pack needs at least one member")
    if len(set(names)) != len(names) or len(names) != len(members):
        raise UserError(f"the members of a pack need one name each, all different, got {list(names)}")
    for name, member in zip(names, members, strict=True):
        if reason := why_alone(member.strategies) or _uses_dropout(member.student):
            raise UserError(f"{name} cannot be packed, because {reason}: run it alone")
        for what in ("num_classes", "image_size", *UNSET, "cuda_graphs"):
            first, own = members[0].hparams[what], member.hparams[what]
            if first != own:
                shared = "share their data" if what in ("num_classes", "image_size") else "compute alike"
                raise UserError(f"the members of a pack {shared}: {what} is {first}, but {own} for {name}")
    _check_apart(members, names)
    taught = [member for member in members if member.teacher is not None]
    first = taught[0] if taught else None
    if first and not all(m.teacher_weights.is_same(first.teacher_weights, m.teacher is first.teacher) for m in taught):
        found = ", ".join(f"{member.teacher_name} ({member.hparams['teacher_weights']})" for member in taught)
        raise UserError(f"the members of a pack share one teacher, got {found}")


def _check_apart(members: Sequence[DistillationModule], names: Sequence[str]) -> None:
    for position, member in enumerate(members):
        for other in range(len(members)):
            taught = member.teacher is not None and share(member.teacher, members[other].student)
            if taught or (other < position and share(member.student, members[other].student)):
                what = f"the teacher of {names[position]}" if taught else f"the student of {names[position]}"
                raise UserError(
                    f"{what} shares parts with the student of {names[other]}, which trains them: give each member a "
                    "network of its own (copy.deepcopy)"
                )


class ForMember(pl.Callback):
    """Runs a member's method as a callback of the pack: its hooks receive the member instead of the pack."""

    outside_steps = True  # see _NOT_IN_A_PACK

    def __init__(self, strategy: pl.Callback, member: DistillationModule, position: int) -> None:
        self._strategy, self._member, self._position = strategy, member, position

    @property
    def state_key(self) -> str:
        return f"{self._position}:{self._strategy.state_key}"

    def state_dict(self) -> dict[str, Any]:
        return self._strategy.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._strategy.load_state_dict(state_dict)


def _forward(hook: str) -> Callable[..., None]:
    def forward(self: ForMember, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        getattr(self._strategy, hook)(trainer, self._member, *args, **kwargs)

    return forward


for _hook in [name for name in vars(pl.Callback) if name.startswith("on_") or name in ("setup", "teardown")]:
    setattr(ForMember, _hook, _forward(_hook))


def note_of(member: DistillationModule, data: Any) -> dict[str, Any]:
    """What a solo checkpoint of the member contains besides weights and progress."""
    own: dict[str, Any] = {"state_dict": {}}
    remove_teacher(member, own, data)
    own["ickd_pl"]["epoch"] = member.epoch_state()
    settings = {name: value for name, value in member.hparams.items() if name not in member.older}
    return {"ickd_pl": own["ickd_pl"], "hyper_parameters": settings}


def restore(members: Sequence[DistillationModule], notes: Sequence[Any], checkpoint: dict[str, Any]) -> None:
    """Restore the members from a pack's checkpoint, whose weights are completed in place."""
    # Older packs stored their first member twice, with the teacher.
    state = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith("_first.")}
    checkpoint["state_dict"] = state
    for position, (member, note) in enumerate(zip(members, notes, strict=True)):
        own: dict[str, Any] = {"state_dict": {}, **note}
        complete_checkpoint(member, own, evaluating=False)
        as_recorded(member, note["hyper_parameters"])
        member.stored_epoch = own["ickd_pl"].get("epoch")
        state.update({f"members.{position}.{key}": value for key, value in own["state_dict"].items()})
