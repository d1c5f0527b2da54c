"""Build a data module from plain settings or command-line arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from ickd_pl.runs.parser import OneLineParser, RaisingParser


def data_module(settings: dict[str, Any]) -> Any:
    """Build a data module from plain settings.

    Args:
        settings: ``{"class_path": "CIFAR100", "init_args": {...}}``.

    Raises:
        UserError: the data module does not accept the settings.
    """
    parser = _parser(RaisingParser)
    return _built(parser, parser.parse_object({"data": settings}))


def data_from_args(args: Sequence[str]) -> Any:
    """Build a data module from arguments such as ``--data CIFAR100 --data.root data``; CIFAR-100 by default.

    Raises:
        UserError: the data module does not accept the arguments.
    """
    parser = _parser(OneLineParser)
    parser.set_defaults({"data": "CIFAR100"})
    return _built(parser, parser.parse_args(list(args)))


def data_name(data: Any) -> str:
    """The data set's name in folders and records: the data module's ``name``, or its class name in lower case."""
    return str(getattr(data, "name", None) or type(data).__name__.lower())


def _parser(cls: Any) -> Any:
    parser = cls()
    parser.add_subclass_arguments(pl.LightningDataModule, "data", required=True)
    return parser


def _built(parser: Any, config: Any) -> Any:
    # jsonargparse renamed it in 4.49.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return instantiate(config).data
