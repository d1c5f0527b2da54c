"""Training runs with a folder each, and what protects them: a lock, exact resume, graceful stops, finite numbers.

- :class:`RunFolder`, :class:`EpochRecord` (run_folder.py), decided by decide.py and locked by lock.py: what a run
  writes, and whether it starts, continues, is finished or is refused.
- :class:`SignalStop` (stop.py): a signal to any rank stops all ranks after the current step, with a checkpoint.
- :class:`FiniteGuard` (finite.py): nothing infinite or NaN is used for an update or saved.
- :class:`StepCheckpoint` (step.py): checkpoints within an epoch, and the random states, for an exact resume.

The three callbacks work in any Trainer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ickd_pl.runs.finite import FiniteGuard
    from ickd_pl.runs.run_folder import EpochRecord, RunFolder
    from ickd_pl.runs.step import StepCheckpoint
    from ickd_pl.runs.stop import SignalStop

_MODULES = {
    "EpochRecord": "run_folder",
    "FiniteGuard": "finite",
    "RunFolder": "run_folder",
    "SignalStop": "stop",
    "StepCheckpoint": "step",
}
__all__ = ["EpochRecord", "FiniteGuard", "RunFolder", "SignalStop", "StepCheckpoint"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a class when it is asked for: commands that only read files do without Lightning."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return found
