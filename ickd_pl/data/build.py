"""A data module from plain settings, as a configuration file has them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


def data_module(settings: dict[str, Any]) -> Any:
    """Build a data module.

    Args:
        settings: ``{"class_path": "CIFAR100", "init_args": {...}}``.

    Raises:
        UserError: what the data module does not accept.
    """
    from ickd_pl.runtime.parser import OneLineParser

    parser = OneLineParser()
    parser.add_subclass_arguments(pl.LightningDataModule, "data", required=True)
    # jsonargparse renamed it in 4.49.
    instantiate = getattr(parser, "instantiate", parser.instantiate_classes)
    return instantiate(parser.parse_object({"data": settings})).data
