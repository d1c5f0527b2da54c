"""Single training runs with a folder each, which can be stopped, resumed and compared."""

from __future__ import annotations

from ickd_pl.runs.run_folder import EpochRecord, RunFolder

__all__ = ["EpochRecord", "RunFolder"]
