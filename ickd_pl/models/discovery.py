"""Methods, networks and data sets are found by being there: a new file in their folder is all that it takes.

Nothing here follows a name that a file or a user gives: what is imported is the package's own folders.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from importlib import import_module
from typing import Any


def import_all(package: str) -> None:
    """Import every module in the folder of a package that is imported already, or is just being imported."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        import_module(f"{package}.{module.name}")


def subclasses(base: Any) -> list[Any]:
    """Every subclass that is defined so far and that is not abstract."""
    found = []
    for cls in base.__subclasses__():
        found += ([] if inspect.isabstract(cls) else [cls]) + subclasses(cls)
    return list(dict.fromkeys(found))


def classes_in(package: str, base: Any) -> dict[str, Any]:
    """The subclasses in a package's folder by name; not abstract and private ones."""
    import_all(package)
    inside = [cls for cls in subclasses(base) if cls.__module__.startswith(f"{package}.")]
    return {cls.__name__: cls for cls in inside if not cls.__name__.startswith("_")}
