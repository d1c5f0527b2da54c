"""Knowledge distillation on PyTorch Lightning: the benchmark of ICKD and RepDistiller, and custom models."""

from __future__ import annotations

import pkgutil
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ickd_pl.version import __version__

if TYPE_CHECKING:
    from ickd_pl.data import CIFAR10, CIFAR100, Batch, DataInfo, Digits, ImageFolder
    from ickd_pl.errors import IncompatiblePair, UserError
    from ickd_pl.models import get_model, model_names
    from ickd_pl.models.features import Features, FeatureShapes
    from ickd_pl.models.hooked import HookedNet, LayerMap
    from ickd_pl.strategies import LossStrategy
    from ickd_pl.training.module import DistillationModule
    from ickd_pl.weights import load_student, load_teacher

# Where each name comes from. It is imported when it is asked for: torch and Lightning take seconds, and `--help` and
# commands that only read files do without.
_NAMES = {
    "data": ("CIFAR10", "CIFAR100", "Batch", "DataInfo", "Digits", "ImageFolder"),
    "errors": ("IncompatiblePair", "UserError"),
    "models": ("get_model", "model_names"),
    "models.features": ("FeatureShapes", "Features"),
    "models.hooked": ("HookedNet", "LayerMap"),
    "strategies": ("LossStrategy",),
    "training.module": ("DistillationModule",),
    "weights": ("load_student", "load_teacher"),
}
_ORIGIN = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Batch",
    "DataInfo",
    "Digits",
    "DistillationModule",
    "FeatureShapes",
    "Features",
    "HookedNet",
    "ImageFolder",
    "IncompatiblePair",
    "LayerMap",
    "LossStrategy",
    "UserError",
    "__version__",
    "get_model",
    "load_student",
    "load_teacher",
    "model_names",
]

# -- moved modules: the old paths still work, with a warning that names the new path ----------------------------------

# Old path below ickd_pl: the new path, or the paths into which the module was split.
MOVED = {
    "accounting": "training.metrics",
    "adapters": "strategies.components.regressors",
    "arguments": "strategies.components.shapes, checks, strategies.base",
    "benchmark.checks": "benchmark.schema",
    "benchmark.identity": "benchmark.fingerprint",
    "benchmark.locks": "runs.lock",
    "benchmark.names": "benchmark.published",
    "benchmark.pack": "training.pack",
    "benchmark.pack_record": "runs.pack_folder",
    "benchmark.results": "benchmark.report.results",
    "benchmark.statistics": "benchmark.report.statistics",
    "benchmark.stored": "benchmark.records",
    "benchmark.summary": "benchmark.report.summary",
    "checkpoints": "training.checkpoint",
    "class_table": "strategies.components.negatives",
    "commands.parser": "runs.parser",
    "correlations_figure": "correlations.figure",
    "correlations_inputs": "correlations.inputs",
    "data.build": "runs.data_options",
    "features": "models.features, models.hooked",
    "module": "training.module",
    "networks": "models.build",
    "pairs": "strategies.components.compatibility",
    "runtime": "runs",
    "runtime.atomic": "files",
    "runtime.checkpoint_io": "runs.checkpoint_io",
    "runtime.configs": "runs.configs",
    "runtime.parser": "runs.parser",
    "runtime.predictions": "runs.predictions",
    "runtime.run_folder": "runs.run_folder",
    "stages": "training.two_stage",
    "teacher": "training.teacher",
    "weights.archives": "teachers.archives",
    "weights.download": "teachers.download",
    "weights.fetch": "teachers.fetch",
    "weights.manifest": "teachers.manifest",
    "weights.teacher_runs": "teachers.train",
}


class _OldPaths(MetaPathFinder, Loader):
    """Imports a module by its old path: the same module object, or the names of all modules it was split into."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == __name__ and old in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        package, _, old = module.__name__.partition(".")
        paths = [f"{package}.{path}" for path in MOVED[old].split(", ")]
        warnings.warn(f"{module.__name__} is now {' and '.join(paths)}", DeprecationWarning, stacklevel=2)
        first, *others = [import_module(path) for path in paths]
        for part in (*others, first):
            vars(module).update({name: value for name, value in vars(part).items() if not name.startswith("__")})
        if not others:
            sys.modules[module.__name__] = first


def keep_old_paths() -> None:
    """Install the finder for old paths, before others, which would import the modules of ``runtime`` twice."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldPaths())


keep_old_paths()
_MODULES = {module.name for module in pkgutil.iter_modules(__path__)} - {"__main__"}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a name of ``__all__``, a module, or one by its old path, as in ``ickd_pl.features.Features``."""
        if name in _ORIGIN:
            globals()[name] = found = getattr(import_module(f"{__name__}.{_ORIGIN[name]}"), name)
            return found
        if name in MOVED or name in _MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
