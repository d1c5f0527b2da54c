"""The commands besides Lightning's ``fit``, ``validate``, ``test`` and ``predict``: one module per command.

A module defines the command of its name by ``SUMMARY``, a line for ``--help``, and ``run(args) -> int``.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType


def names() -> list[str]:
    """Names of all commands."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Import a command's module, and with it the libraries that only this command needs."""
    return import_module(f"{__name__}.{name}")
