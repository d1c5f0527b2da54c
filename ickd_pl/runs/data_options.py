"""A data module from plain settings, as a configuration file or a command line has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl


def data_module(settings: dict[str, Any]) -> Any:
    """Build a data module.

    Args:
        settings: ``{"class_path": "CIFAR100", "init_args": {...}}``.

    Raises:
        UserError: what the data module does not accept.
    """
    from ickd_pl.runs.parser import RaisingParser

    parser = _parser(RaisingParser)
    return _built(parser, parser.parse_object({"data": settings}))


def data_from_words(words: Sequence[str]) -> Any:
    """Build a data module from words such as ``--data CIFAR100 --data.root data``; CIFAR-100 where none is named.

    Raises:
        UserError: what the data module does not accept.
    """
    from ickd_pl.runs.parser import OneLineParser

    parser = _parser(OneLineParser)
    parser.set_defaults({"data": "CIFAR100"})
    return _built(parser, parser.parse_args(list(words)))


def data_name(data: Any) -> str:
    """A data set's name in folders and records: the data module's ``name``, else its class in lower case."""
    return str(getattr(data, "name", None) or type(data).__name__.lower())


def _parser(cls: Any) -> Any:
    parser = cls()
    parser.add_subclass_arguments(pl.LightningDataModule, "data", required=True)
    return parser


def _built(parser: Any, config: Any) -> Any:
    # jsonargparse renamed it in 4.49.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return instantiate(config).data
