"""The commands beside Lightning's ``fit``, ``validate``, ``test`` and ``predict``: one module per command.

A module here is a command of its own name, with ``SUMMARY``, a line for the overview, and ``run(args) -> int``.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType


def names() -> list[str]:
    """Names of the commands."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """A command's module; the libraries that it needs are imported only now."""
    return import_module(f"{__name__}.{name}")
