"""What a checkpoint contains: the student and the methods' trainable parts, never the teacher."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytorch_lightning as pl
from torch import nn

from ickd_pl.checks import name_of, plain_arguments, short, writable
from ickd_pl.errors import UserError
from ickd_pl.models import FeatureNet
from ickd_pl.models.deployed import Head, head_from
from ickd_pl.strategies import LossStrategy
from ickd_pl.training.speed import UNSET
from ickd_pl.training.teacher_parts import put_back, take_out
from ickd_pl.version import __version__
from ickd_pl.weights.checkpoint import checkpoint_of
from ickd_pl.weights.read import read_file
from ickd_pl.weights.stated import stated_head


class CheckpointedModule(Protocol):
    """What this file needs of a :class:`ickd_pl.DistillationModule`."""

    best_acc1: float
    trained_steps: int
    trained_before: int
    older: frozenset[str]

    @property
    def hparams(self) -> Any: ...

    @property
    def strategies(self) -> Sequence[Any]: ...

    @property
    def teacher(self) -> nn.Module | None: ...

    @property
    def adapters(self) -> nn.ModuleDict: ...


Module = TypeVar("Module", bound=pl.LightningModule)


def plain_settings(arguments: Mapping[str, Any], strategies: Sequence[LossStrategy]) -> dict[str, Any]:
    """The constructor's arguments as plain data, so that every checkpoint loads under ``weights_only=True``.

    A built-in network is stored by its name. A custom network and its layer map are not stored: pass them to
    ``load_from_checkpoint`` again.

    Raises:
        UserError: another argument, of the module or of a method, cannot be written down.
    """
    named = {k: v.name if isinstance(v, FeatureNet) and v.name else v for k, v in arguments.items()}
    plain = {k: v for k, v in named.items() if not (isinstance(v, nn.Module) or k.endswith("_layers"))}
    weights = plain["teacher_weights"]
    plain["teacher_weights"] = None if weights is None else str(weights)
    written = {name: writable(f"DistillationModule.{name}", v) for name, v in plain.items() if name != "strategies"}
    return {**written, "strategies": plain_specs(strategies), "milestones": list(written["milestones"])}


def plain_specs(strategies: Sequence[LossStrategy]) -> list[dict[str, Any]]:
    """The methods as plain data, from which :func:`ickd_pl.strategies.from_spec` builds equal ones.

    Raises:
        UserError: an argument of a method cannot be written down.
    """
    specs = [strategy.spec() for strategy in strategies]
    return [
        {**spec, "init_args": writable(name_of(s), spec["init_args"])}
        for s, spec in zip(strategies, specs, strict=True)
    ]


def plain_data_arguments(data: pl.LightningDataModule) -> dict[str, Any]:
    """The hyper-parameters of a data module as plain data.

    Raises:
        UserError: one cannot be written down.
    """
    instead = "give numbers or strings, or leave it out: self.hparams.pop(NAME) after super().__init__()"
    found: dict[str, Any] = writable(name_of(data), dict(data.hparams), instead)
    return found


def load_module(cls: type[Module], path: str | Path, map_location: Any, strict: bool, kwargs: dict[str, Any]) -> Module:
    """Implements :meth:`ickd_pl.DistillationModule.load_from_checkpoint`; arguments and errors are documented there."""
    if kwargs.pop("hparams_file", None) is not None:
        raise UserError("load_from_checkpoint: hparams_file is not supported: pass its settings as arguments")
    kwargs.pop("weights_only", None)
    content = read_file(path)
    known = inspect.signature(cls).parameters
    # A newer version may have stored more settings.
    settings = {name: v for name, v in checkpoint_of(path, content, kwargs).settings.items() if name in known}
    rest = {k: v for k, v in settings.items() if k not in ("student", "teacher", "strategies")}
    settings = {**{name: value for name, value in UNSET.items() if name in known}, **settings}
    plain_arguments(cls, rest, str(path), "pass it to load_from_checkpoint as an argument")
    if "student" not in settings and "student" not in kwargs:
        raise UserError(f"{path} does not name its student: pass student=NET, and student_layers=LAYERS for your own")
    if "teacher" in settings and isinstance(kwargs.get("teacher"), nn.Module):
        settings.pop("teacher_weights", None)  # of the teacher that is replaced
    module = cls(**{**settings, **kwargs})
    module.on_load_checkpoint(content)
    try:
        module.load_state_dict(content["state_dict"], strict=strict)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not fit its settings: {' '.join(str(error).split())[:300]}") from error
    return module if map_location is None else module.to(map_location)


def is_fitting(module: pl.LightningModule) -> bool:
    """Whether a trainer is running ``fit`` on the module."""
    try:
        return module.trainer.state.fn == "fit"
    except RuntimeError:  # not attached to a trainer
        return False


def remove_teacher(module: CheckpointedModule, checkpoint: dict[str, Any], data: Any) -> None:
    """Remove the teacher from a checkpoint to be saved; add version, data module's arguments and how it predicts.

    Args:
        module: the module being saved.
        checkpoint: modified in place.
        data: the trainer's data module, or None.
    """
    parts = take_out(checkpoint, module.teacher)
    for name in module.older:
        checkpoint.get("hyper_parameters", {}).pop(name, None)
    checkpoint["ickd_pl"] = {"version": __version__, "best_acc1": module.best_acc1}
    checkpoint["ickd_pl"]["trained_before"] = module.trained_before
    for key, adapter in module.adapters.items():
        if isinstance(adapter, Head):
            checkpoint["ickd_pl"]["head"] = {"adapter": key, **adapter.spec()}
    if parts:
        checkpoint["ickd_pl"]["teacher_parts"] = parts
    if data is not None:
        cls = type(data)
        path = f"{cls.__module__}.{cls.__qualname__}"
        arguments = plain_data_arguments(data)
        checkpoint["ickd_pl"]["data"] = {"class_path": path, "init_args": arguments}
        if data.CHECKPOINT_HYPER_PARAMS_KEY in checkpoint:  # Lightning's copy
            checkpoint[data.CHECKPOINT_HYPER_PARAMS_KEY] = dict(arguments)


def complete_checkpoint(module: CheckpointedModule, checkpoint: dict[str, Any], evaluating: bool) -> None:
    """Complete a loaded checkpoint, so that ``strict`` loading still covers everything else.

    Args:
        module: the module that loads it.
        checkpoint: modified in place: the teacher's weights, which it lacks, come from the module.
        evaluating: no training follows. A module without methods then ignores the methods' trained parts, except the
            head by which the student predicts.

    Raises:
        UserError: the checkpoint has a different network or number of classes.
    """
    stored, extra = checkpoint.get("hyper_parameters", {}), checkpoint.get("ickd_pl", {})
    for name, what in (("student", "network"), ("num_classes", "number of classes")):
        own = module.hparams.get(name)
        # A value of another type was refused on reading, or the user has replaced it.
        if own is not None and type(stored.get(name)) is type(own) and stored[name] != own:
            raise UserError(f"the checkpoint is of another {what}: expected {own}, got {short(stored[name])}")
    if evaluating and not module.strategies:
        state, kept = checkpoint["state_dict"], "none"
        if (stated := stated_head("the checkpoint", checkpoint)) is not None:
            module.adapters[stated.adapter] = head_from(stated.spec, "the checkpoint's head")
            kept = f"adapters.{stated.adapter}."
        left = {k for k in state if k.startswith("adapters.") and not k.startswith(kept)}
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k not in left}
    if module.teacher is not None:
        for key, value in module.teacher.state_dict(prefix="teacher.").items():
            checkpoint["state_dict"].setdefault(key, value)
        put_back(checkpoint, extra.get("teacher_parts"), module.teacher)
    steps, before = checkpoint.get("global_step", 0), extra.get("trained_before", 0)
    module.best_acc1 = float(extra.get("best_acc1", 0.0))
    module.trained_before = before if type(before) is int else 0
    module.trained_steps = module.trained_before + (steps if type(steps) is int else 0)
