"""The settings with which a run computes, read from the live objects, and those that its record has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Protocol

import pytorch_lightning as pl
from torch import nn

from ickd_pl.checks import plain
from ickd_pl.data.base import TensorDataModule
from ickd_pl.data.loader import TensorLoader
from ickd_pl.training.checkpoint import CheckpointedModule, plain_data_arguments, plain_specs
from ickd_pl.training.metrics import Accuracies

# Settings of the Trainer that change what a run computes and that a callback can set as an attribute.
_TRAINER = (
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("limit_train_batches", "limit_val_batches", "check_val_every_n_epoch"),
)
_OF_THE_DATA = ("batch_size", "eval_batch_size", "val_size", "train_size", "seed")


class RecordedModule(CheckpointedModule, Protocol):
    """What the two callbacks need of a :class:`ickd_pl.DistillationModule`."""

    in_force: dict[str, float]
    metrics: Accuracies

    @property
    def keys(self) -> list[str]: ...

    @property
    def stages(self) -> Any: ...

    @property
    def student(self) -> nn.Module: ...

    def parameter_group(self) -> dict[str, Any]: ...

    def lr_factor(self) -> Callable[[int], float]: ...

    def trainable(self) -> Iterator[nn.Parameter]: ...

    def configure_optimizers(self) -> Any: ...


def write_down(trainer: pl.Trainer, module: RecordedModule) -> None:
    """Record attributes that were changed in Python between building the objects and ``fit``, which uses them."""
    own = {name: getattr(module, name) for name in module.hparams if hasattr(module, name)}
    module.hparams.update({name: value for name, value in own.items() if name != "strategies" and plain(value)})
    module.hparams["strategies"] = plain_specs(module.strategies)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if data is not None:
        plain_data_arguments(data)  # refused before the first checkpoint
    if isinstance(data, TensorDataModule):
        data.hparams.update({name: getattr(data, name) for name in _OF_THE_DATA if name in data.hparams})


def said(trainer: pl.Trainer, module: RecordedModule) -> dict[str, Any]:
    """Hyper-parameters of the module and the data, and the attributes of the data that have the same names."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    arguments = dict(getattr(data, "hparams", {}))
    found = {f"data.{name}": getattr(data, name) for name in arguments if hasattr(data, name)}
    found.update({f"data.hparams.{name}": value for name, value in arguments.items()})
    found.update({f"model.{name}": value for name, value in module.hparams.items()})
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        found.pop("data.batch_size", None)  # the next loader uses it: see used
    return {name: deepcopy(value) for name, value in found.items() if plain(value)}


def used(trainer: pl.Trainer, module: RecordedModule) -> dict[str, Any]:
    """What the run computes with now, by the names of the settings."""
    found = {f"model.{name}": getattr(module, name, None) for name in module.hparams}
    found = {name: value for name, value in found.items() if plain(value) and value is not None}
    for key, spec in zip(module.keys, plain_specs(module.strategies), strict=True):
        found.update({f"model.{key}.{name}": value for name, value in spec["init_args"].items()})
    found.update(options_in_force(trainer, module))
    found.update(of_trainer(trainer, module))
    data, loader = trainer.datamodule, trainer.train_dataloader  # type: ignore[attr-defined]
    if isinstance(data, TensorDataModule):  # its attributes are its arguments
        found.update({f"data.{name}": getattr(data, name) for name in _OF_THE_DATA})
    if isinstance(loader, TensorLoader):
        found["data.batch_size"] = loader.batch_size
    return found


def of_trainer(trainer: pl.Trainer, module: RecordedModule) -> dict[str, Any]:
    found = {f"trainer.{name}": getattr(trainer, name) for name in _TRAINER}
    # max_epochs counts main epochs.
    planned = trainer.max_epochs
    return {**found, "trainer.max_epochs": planned and planned - module.stages.added_to(trainer)}


def set_again(trainer: pl.Trainer, module: RecordedModule, name: str, value: float) -> None:
    """Set a changed setting of a checkpoint again."""
    owner, _, rest = name.partition(".")
    key, _, argument = rest.rpartition(".")
    if owner == "data":
        setattr(trainer.datamodule, rest, value)  # type: ignore[attr-defined]
    elif owner == "trainer" and rest in _TRAINER:
        setattr(trainer, rest, value)
    elif owner == "model" and key:
        setattr(module.strategies[module.keys.index(key)], argument, value)
    elif owner == "model" and plain(getattr(module, rest, {"class_path": ""})):
        setattr(module, rest, value)


def group(trainer: pl.Trainer, module: RecordedModule) -> dict[str, Any]:
    """The module's group of the optimizer: the one that begins with its parameters, else the first."""
    first = next(module.trainable())
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    found: dict[str, Any] = next(
        (group for group in groups if group["params"] and group["params"][0] is first), groups[0]
    )
    return found


def options_in_force(trainer: pl.Trainer, module: RecordedModule) -> dict[str, Any]:
    """The optimizer's options for the module, and for how many parameters."""
    own = group(trainer, module)
    found = {option(name): value for name, value in own.items() if name not in ("params", "initial_lr")}
    return {**found, "optimizer.parameters": len(own["params"])}


def options_recorded(trainer: pl.Trainer, module: RecordedModule) -> dict[str, Any]:
    """The options that the module's settings give; an own ``configure_optimizers`` sets those with which it begins."""
    if not type(module).configure_optimizers.__module__.startswith("ickd_pl."):
        return options_in_force(trainer, module)
    own = {**trainer.optimizers[0].defaults, **module.parameter_group()}
    own["lr"] *= module.lr_factor()(0)
    found = {option(name): value for name, value in own.items() if name != "params"}
    return {**found, "optimizer.parameters": len(own["params"])}


def option(name: str) -> str:
    return f"model.{name}" if name in ("lr", "momentum", "weight_decay") else f"optimizer.{name}"


def column(name: str) -> str:
    return "lr" if name == "model.lr" else f"set/{name}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def numbers(values: Any) -> dict[str, Any]:
    return {k: v for k, v in values.items() if type(k) is str and is_number(v)} if isinstance(values, dict) else {}


def same(one: Any, other: Any) -> bool:
    # A list and a tuple of the same values are the same setting.
    sequences = isinstance(one, list | tuple) and isinstance(other, list | tuple)
    return list(one) == list(other) if sequences else bool(one == other)
