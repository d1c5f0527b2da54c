"""What a checkpoint holds: the student and the methods' trainable parts, never the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from ickd_pl.checks import short
from ickd_pl.errors import UserError
from ickd_pl.version import __version__


class Kept(Protocol):
    """What is asked here of a :class:`ickd_pl.DistillationModule`."""

    best_acc1: float
    _trainer: Any

    @property
    def hparams(self) -> Any: ...

    @property
    def strategies(self) -> Sequence[Any]: ...

    @property
    def teacher(self) -> nn.Module | None: ...


def leave_teacher_out(module: Kept, checkpoint: dict[str, Any]) -> None:
    """Take the teacher out of a checkpoint that is written, and note the version and how the data were made."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("teacher.")}
    checkpoint["ickd_pl"] = {"version": __version__, "best_acc1": module.best_acc1}
    data = getattr(module._trainer, "datamodule", None)  # private: lightning LightningModule._trainer
    if data is not None:
        cls = type(data)
        path = f"{cls.__module__}.{cls.__qualname__}"
        checkpoint["ickd_pl"]["data"] = {"class_path": path, "init_args": dict(data.hparams)}


def put_back(module: Kept, checkpoint: dict[str, Any], evaluating: bool) -> None:
    """Make a checkpoint that is read complete, so that loading stays strict for all that matters.

    Args:
        module: that loads it.
        checkpoint: changed in place. The teacher's own weights stand in for those that are not in the file.
        evaluating: no training follows. A module without methods then does without what the methods trained.

    Raises:
        UserError: the checkpoint is of another network or number of classes.
    """
    theirs = checkpoint.get("hyper_parameters", {})
    for name, what in (("student", "network"), ("num_classes", "number of classes")):
        own = module.hparams.get(name)
        # What is no name or number was refused on reading, or the user has given another in its place.
        if own is not None and type(theirs.get(name)) is type(own) and theirs[name] != own:
            raise UserError(f"the checkpoint is of another {what}: it has {short(theirs[name])}, asked for is {own}")
    if evaluating and not module.strategies:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("adapters.")}
    if module.teacher is not None:
        for key, value in module.teacher.state_dict(prefix="teacher.").items():
            checkpoint["state_dict"].setdefault(key, value)
    module.best_acc1 = float(checkpoint.get("ickd_pl", {}).get("best_acc1", 0.0))
