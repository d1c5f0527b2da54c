"""The settings of a run as Lightning's loggers get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ickd_pl.checks import plain
from ickd_pl.strategies import LossStrategy


class LoggedModule(Protocol):
    """What is read of a :class:`~ickd_pl.DistillationModule`."""

    keys: list[str]
    strategies: list[LossStrategy]

    @property
    def hparams(self) -> Any: ...

    @property
    def trainer(self) -> Any: ...


def log_settings(module: LoggedModule) -> None:
    """Give every logger the module's settings, those of its methods by their keys, and those of the data module.

    Lightning's own way would merge module and data into one level, and refuse a seed that both have. The member of a
    pack logs nothing: all members share the loggers.
    """
    trainer = module.trainer
    if trainer.lightning_module is not module or not trainer.loggers:
        return
    data = trainer.datamodule
    methods = dict(zip(module.keys, (s.spec()["init_args"] for s in module.strategies), strict=True))
    settings = {**module.hparams, "strategies": methods}
    if data is not None:
        settings["data"] = {"name": type(data).__name__, **getattr(data, "hparams", {})}
    for logger in trainer.loggers:
        logger.log_hyperparams(_plain(settings))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(each) for each in value]
    return value if plain(value) else str(value)
