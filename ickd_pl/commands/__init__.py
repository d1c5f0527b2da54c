"""What the command line does beside Lightning's ``fit``, ``validate``, ``test`` and ``predict``: one module a command.

A module here is a command of its own name, with ``SUMMARY``, a line for the overview, and ``run(words) -> int``.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType


def names() -> list[str]:
    """The commands there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """A command's module; only then are the libraries that it needs imported."""
    return import_module(f"{__name__}.{name}")
