"""Import every file of a folder, so that a new method, network or data set only needs a file there.

Only the package's own folders are imported, never a name from a file or from the user.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from importlib import import_module
from typing import Any


def import_all(package: str) -> None:
    """Import every module in a package's folder; the package itself is imported, or being imported, already."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        import_module(f"{package}.{module.name}")


def subclasses(base: Any) -> list[Any]:
    """All subclasses that are defined so far, without abstract ones."""
    found = []
    for cls in base.__subclasses__():
        found += ([] if inspect.isabstract(cls) else [cls]) + subclasses(cls)
    return list(dict.fromkeys(found))


def classes_in(package: str, base: Any) -> dict[str, Any]:
    """The subclasses in a package's folder by name, without abstract and private ones."""
    import_all(package)
    inside = [cls for cls in subclasses(base) if cls.__module__.startswith(f"{package}.")]
    return {cls.__name__: cls for cls in inside if not cls.__name__.startswith("_")}
