"""What a checkpoint holds: the student and the methods' trainable parts, never the teacher."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytorch_lightning as pl
from torch import nn

from ickd_pl.checks import plain_arguments, short
from ickd_pl.errors import UserError
from ickd_pl.models import FeatureNet
from ickd_pl.strategies import LossStrategy
from ickd_pl.version import __version__
from ickd_pl.weights.checkpoint import checkpoint_of
from ickd_pl.weights.read import read_file


class Kept(Protocol):
    """What is asked here of a :class:`ickd_pl.DistillationModule`."""

    best_acc1: float

    @property
    def hparams(self) -> Any: ...

    @property
    def strategies(self) -> Sequence[Any]: ...

    @property
    def teacher(self) -> nn.Module | None: ...


Module = TypeVar("Module", bound=pl.LightningModule)


def plain_settings(arguments: Mapping[str, Any], strategies: Sequence[LossStrategy]) -> dict[str, Any]:
    """The constructor's arguments as plain data, so that every checkpoint loads under ``weights_only=True``.

    A network of the project's is kept by its name. One of the user's own cannot be kept, nor can the layers in it:
    ``load_from_checkpoint`` wants them again.
    """
    named = {k: v.name if isinstance(v, FeatureNet) and v.name else v for k, v in arguments.items()}
    plain = {k: v for k, v in named.items() if not (isinstance(v, nn.Module) or k.endswith("_layers"))}
    weights = plain["teacher_weights"]
    plain["teacher_weights"] = None if weights is None else str(weights)
    return {**plain, "strategies": [s.spec() for s in strategies], "milestones": list(plain["milestones"])}


def load_module(cls: type[Module], path: str | Path, map_location: Any, strict: bool, given: dict[str, Any]) -> Module:
    """The work of :meth:`ickd_pl.DistillationModule.load_from_checkpoint`, which says what it takes and raises."""
    if given.pop("hparams_file", None) is not None:
        raise UserError("load_from_checkpoint: hparams_file is not read: give its settings as arguments")
    given.pop("weights_only", None)
    content = read_file(path)
    known = inspect.signature(cls).parameters
    # A newer version may have kept more settings.
    settings = {name: v for name, v in checkpoint_of(path, content, given).settings.items() if name in known}
    rest = {k: v for k, v in settings.items() if k not in ("student", "teacher", "strategies")}
    plain_arguments(cls, rest, str(path), "give it to load_from_checkpoint as an argument")
    module = cls(**{**settings, **given})
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=strict)
    return module if map_location is None else module.to(map_location)


def is_fitting(module: pl.LightningModule) -> bool:
    """Whether the module is in a trainer's ``fit``."""
    try:
        return module.trainer.state.fn == "fit"
    except RuntimeError:  # it is in no trainer
        return False


def leave_teacher_out(module: Kept, checkpoint: dict[str, Any], data: Any) -> None:
    """Take the teacher out of a checkpoint that is written, and note the version and how the data were made.

    Args:
        module: whose checkpoint it is.
        checkpoint: changed in place.
        data: the trainer's data module, or None.
    """
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("teacher.")}
    checkpoint["ickd_pl"] = {"version": __version__, "best_acc1": module.best_acc1}
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
